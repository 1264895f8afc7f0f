# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Foreign bags to episodes, by the contract's import section. `fosp_core.data.bag.read_episodes` calls it.

One message is held at a time but for what waits for its companions: memory does not grow with the bag.
"""

import collections
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader

from fosp_core.contract import Contract
from fosp_core.data import convert
from fosp_core.data.definitions import Definitions, has_header
from fosp_core.data.earnings import EPISODE, merge_of
from fosp_core.data.episode import Episode
from fosp_core.data.episode_marker import EpisodeMarker
from fosp_core.data.import_report import ImportReport, TopicCounts
from fosp_core.data.import_spec import TF, ImportSpec, Source
from fosp_core.data.joiner import ACTION, LABEL, EpisodeAssembler
from fosp_core.data.ranges import Ranges
from fosp_core.data.resample import Events, Resampler, Said, Sample, Track
from fosp_core.errors import DataError

_CLOCKS_NS = 1_000_000_000      # beyond latency_s, how far stamps and receipt may lie apart and still be of one clock
_STAMP = {0: struct.Struct('>iI'), 1: struct.Struct('<iI')}     # by the second byte of CDR


def resolve(path, reader: Reader, source: Source, namespace: str | None = None) -> list[Connection]:
    """Return the connections of one topic; raise DataError when it is not there, twice there, or of another type."""
    names = sorted({c.topic for c in reader.connections})
    if source.topic.startswith('/'):
        found = [n for n in names if n == source.topic]
    else:
        prefix = '' if namespace is None else f'/{namespace.strip("/")}'.rstrip('/')
        found = [n for n in names if n.endswith(f'/{source.topic}') and n.startswith(prefix)]
        if f'{prefix}/{source.topic}' in found:
            found = [f'{prefix}/{source.topic}']
    if len(found) != 1:
        what = f'{len(found)} topics end in' if found else 'no topic'
        raise DataError(f'{path}: {what} {source.topic}; the bag has {", ".join(found or names) or "no topics"}')
    connections = [c for c in reader.connections if c.topic == found[0]]
    for c in connections:
        if c.msgtype != source.type:
            raise DataError(f'{path}: {c.topic} is of type {c.msgtype}, expected {source.type} (key type of the '
                            f"contract's import section)")
    return connections


class _Feed:
    """One topic on its way from bytes to the resampler."""

    def __init__(self, path, topic: str, source: Source, store, counts: TopicCounts):
        self.path, self.topic, self.source, self.counts, self.store = path, topic, source, counts, store
        self.headed = has_header(store, source.type) and source.clock == 'header'
        self.target: Track | Events
        self.read: convert.Reader

    @property
    def by_receipt(self) -> bool:
        """True when its messages are taken at their time of receipt."""
        return not self.headed and not (self.source.type == TF and self.source.clock == 'header')

    def where(self, stamp: int) -> str:
        return f'{self.path}: {self.topic}, stamp {stamp}'

    def stamp(self, raw, received: int) -> int:
        """The header's stamp, or the time of receipt when there is none or it is zero."""
        if self.headed:
            kind = raw[1] if len(raw) >= 12 and raw[0] == 0 else None
            if kind not in _STAMP:
                raise DataError(f'{self.path}: {self.topic}, received at {received}: not a {self.source.type}: '
                                f'{len(raw)} bytes without CDR header and stamp')
            return self.checked(*_STAMP[kind].unpack_from(raw, 4), received)
        self.counts.log_time += 1
        return received

    def checked(self, sec: int, nanosec: int, received: int) -> int:
        if sec < 0 or nanosec >= 1_000_000_000:
            raise DataError(f'{self.path}: {self.topic}, received at {received}: stamp of {sec} s and {nanosec} ns, '
                            f'expected at least 0 s and below 1e9 ns')
        if sec or nanosec:
            return sec * 1_000_000_000 + nanosec
        self.counts.log_time += 1
        return received


class RawImport:
    """One foreign bag.

    Parameters
    ----------
    path, reader
        The bag, open.
    contract
        With its import section.
    report
        Is filled.

    """

    def __init__(self, path: Path, reader: Reader, contract: Contract, report: ImportReport,
                 namespace: str | None = None):
        self.path, self.contract, self.report = path, contract, report
        spec: ImportSpec = contract.imports
        self._spec, self._reader = spec, reader
        self._definitions = Definitions(str(path), spec.distribution or _distribution(reader))
        self._feeds: dict[str, list[_Feed]] = collections.defaultdict(list)     # topic -> what reads it
        self.connections: list[Connection] = []
        self._namespace = namespace
        self.ranges = None
        if spec.ranges:
            folder, stem = (path, path.name) if path.is_dir() else (path.parent, path.stem)
            self.ranges = Ranges(folder / spec.ranges.replace('{bag}', stem), reader.start_time, reader.end_time - 1)
        self._resampler = self._build()

    def _feed(self, name: str, source: Source) -> _Feed:
        connections = resolve(self.path, self._reader, source, self._namespace)
        topic = connections[0].topic
        counts = self.report.topics.setdefault(f'{self.path}: {topic} ({name})', TopicCounts())
        feed = _Feed(self.path, topic, source, self._definitions.store(connections[0]), counts)
        self._feeds[topic].append(feed)
        self.connections += [c for c in connections if c not in self.connections]
        return feed

    def _track(self, name: str, source: Source, heavy: bool = False) -> _Feed:
        feed = self._feed(name, source)
        feed.target = Track(name, feed.counts, lambda s: feed.read(s.raw, feed.where(s.stamp)), heavy)
        return feed

    def _build(self) -> Resampler:
        spec, contract = self._spec, self.contract
        period = round(contract.period * 1e9)
        common = spec.tolerance_s or contract.period / 2
        near, cameras, vectors, events = {}, {}, {}, {}
        for camera in contract.cameras:     # the first one leads
            source = spec.cameras[camera.name]
            feed = self._track(camera.name, source, heavy=True)
            feed.read, cameras[camera.name] = convert.camera(source, camera, feed.store), feed.target
            near[camera.name] = round((source.tolerance_s or common) * 1e9)
        self._lead = next(f for feeds in self._feeds.values() for f in feeds)
        for name, source in spec.vectors.items():
            feed = self._track(name, source)
            read = convert.transform if source.type == TF else convert.vector
            feed.read, vectors[name] = read(source, feed.store), feed.target
            near[name] = round((source.tolerance_s or common) * 1e9)
        feed = self._track(ACTION, spec.action)
        if spec.action.type == TF:
            raise DataError(f'{self.path}: {feed.topic}: a transform is no action')
        feed.read = convert.action(spec.action, contract, feed.store, feed.counts)
        action, idle = feed.target, None
        if spec.action.missing == 'zero':
            idle = contract.action.normalise(np.zeros(contract.action.size))
        if spec.label:
            feed = self._feed(LABEL, spec.label)
            feed.read = convert.label(spec.label, feed.store)
            feed.target = events[LABEL] = Events(feed.counts, merge_of(spec, LABEL))
            self._buttons = (False, False, False)
        signals = [(f'{kind}[{i}]', s, kind == 'reward') for kind in ('reward', 'cost')
                   for i, s in enumerate(getattr(spec, kind))]
        if not isinstance(spec.episodes, str):
            signals.append((EPISODE, spec.episodes, True))
        for name, source, negative in signals:
            feed = self._feed(name, source)
            feed.read = convert.signal(source, feed.store, negative)
            feed.target = events[name] = Events(feed.counts, merge_of(spec, name))
        lead = spec.cameras[contract.cameras[0].name].tolerance_s or common
        return Resampler(period, round(lead * 1e9), round(spec.latency_s * 1e9), cameras, vectors, action, events, near,
                         spec.action.pick, round(spec.action.hold_s * 1e9), idle,
                         (LABEL,) if spec.label and spec.label.mode == 'stamped' else ())

    def _take(self, feed: _Feed, raw, received: int) -> None:
        """Hand one message on."""
        target, source = feed.target, feed.source
        if isinstance(target, Track) and source.type == TF:
            found = feed.read(raw, f'{self.path}: {feed.topic}, received at {received}')
            if found is None:
                return
            header = source.clock == 'header'
            stamp = feed.checked(found[0].sec, found[0].nanosec, received) if header else received
            sample = Sample(stamp, received, None, found[1])
        else:
            stamp = feed.stamp(raw, received)
            sample = Sample(stamp, received, raw)
        use, restarted = target.order.admit(stamp)
        if not use:
            return
        if feed is self._lead and (restarted or feed.counts.messages == 1):
            self._same_clock(stamp, received)
        if isinstance(target, Track):
            self._resampler.sample(target, sample, restarted)
            return
        value = feed.read(raw, feed.where(stamp))
        if feed.source is self._spec.label and self._spec.label.mode == 'event':
            flags = value[2:]
            value = (*value[:2], *(now and not before for now, before in zip(flags, self._buttons)))
            self._buttons = flags
        if restarted:
            target.restart()
        target.push(Said(stamp, received, value))

    def _same_clock(self, stamp: int, received: int) -> None:
        """Refuse topics without stamps beside pictures that are not stamped by the recorder's clock: nothing fits."""
        away, allowed = stamp - received, round(self._spec.latency_s * 1e9) + _CLOCKS_NS
        others = [f.topic for feeds in self._feeds.values() for f in feeds if f.by_receipt]
        if abs(away) > allowed and others:
            raise DataError(f'{self._lead.where(stamp)}: the picture was received at {received}, {-away * 1e-9:+.3f} s '
                            f'from its stamp, but {", ".join(others)} without stamps goes by its time of receipt: '
                            f'expected one clock within {allowed * 1e-9:g} s (import: clock: log takes the time of '
                            f'receipt for all)')

    def episodes(self, messages: Iterator[tuple]) -> Iterator[Episode]:
        """Yield the episodes of `messages`: (connection, time of receipt, bytes) of `connections`."""
        marker = EpisodeMarker(self.contract, self.ranges, self.report)
        assembler = EpisodeAssembler(self.contract)
        report, resampler = self.report, self._resampler

        def assembled(steps):
            for step in steps:
                report.counts.steps += 1
                if (episode := assembler.add(step)) is not None:
                    yield self._finished(episode, marker)

        for connection, received, raw in messages:
            for feed in self._feeds[connection.topic]:
                self._take(feed, raw, received)
            for record in resampler.records(received):
                yield from assembled(marker.add(record))
        for record in resampler.records(None):
            yield from assembled(marker.add(record))
        yield from assembled(marker.flush(resampler.left()))
        if (episode := assembler.flush()) is not None:
            yield self._finished(episode, marker)
        report.gaps, report.short = assembler.gaps, assembler.short
        self._count()

    def _finished(self, episode: Episode, marker: EpisodeMarker) -> Episode:
        if episode.is_last[-1]:
            episode.action[-1] = 0.0        # it was never executed
        episode.meta = {**marker.meta_of(int(episode.step[0])), **episode.meta}
        return episode

    def _count(self) -> None:
        counts = self.report.counts
        counts.mismatched = self._resampler.incomplete
        for feeds in self._feeds.values():
            for feed in feeds:
                feed.counts.settle()
                if isinstance(feed.target, Events):
                    feed.counts.lost = 0        # buttons have no rate
                counts.doubled += feed.counts.doubled
                counts.reordered += feed.counts.reordered
                counts.restarts += feed.counts.restarts
                counts.lost += feed.counts.lost


def _distribution(reader: Reader) -> str | None:
    """What the bag says of itself, when it is one whose definitions are known here."""
    from fosp_core.data.definitions import DISTRIBUTIONS
    return reader.ros_distro if reader.ros_distro in DISTRIBUTIONS else None
