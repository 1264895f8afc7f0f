# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Topics of any rate to records at the control rate, by stamp. No ROS, no clock; the importer of foreign bags uses it.

The first camera leads. Its pictures are picked near the beats of the control period; each picked picture is a record,
and the other topics are paired with its stamp. The beat follows the camera slowly, so that a camera whose clock is a
little off loses no picture, and one at 25 Hz gives 10 Hz on average. A beat without a picture, or a picture without its
companions, is a gap: no episode crosses it. No picture is used twice and nothing is made up.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fosp_core.data.import_report import TopicCounts

_FOLLOW = 10            # the next beats are moved by a beat's error divided by this
_BACK = 8               # older messages in a row after which the clock was set back, not the messages reordered
_EVENTS = 4096          # labels that wait for a picture before old ones are merged
_SWEEP = 16             # messages after which samples that nobody wanted are dropped
_NEVER = 2 ** 63 - 1     # ns; after every stamp
_RAW = 4                # pictures of a further camera that wait undecoded; older ones are made small at once


class Sample:
    """One message: stamp and time of receipt (ns), and its bytes until somebody wants the value."""

    __slots__ = ('raw', 'received', 'stamp', 'value')

    def __init__(self, stamp: int, received: int, raw=None, value=None):
        self.stamp, self.received, self.raw, self.value = stamp, received, raw, value


class Ordered:
    """Takes the messages of one topic in the order of the bag and passes on those whose stamps rise."""

    def __init__(self, counts: TopicCounts):
        self.counts = counts
        self._last: int | None = None
        self._back = 0

    def admit(self, stamp: int) -> tuple[bool, bool]:
        """Return whether the message is to be used, and whether the topic's clock was set back before it."""
        self.counts.messages += 1
        if self._last is None or stamp > self._last:
            if self._last is not None:
                self.counts.interval(stamp - self._last)
            self._last, self._back = stamp, 0
            return True, False
        if stamp == self._last:
            self.counts.doubled += 1
            return False, False
        self._back += 1
        if self._back >= _BACK:
            self.counts.restarts += 1
            self._last, self._back = stamp, 0
            return True, True
        self.counts.reordered += 1
        return False, False


class Track:
    """The samples of one topic that may still be wanted, sorted by stamp."""

    def __init__(self, name: str, counts: TopicCounts, decode: Callable[[Sample], Any], heavy: bool = False):
        self.name, self.counts, self.order = name, counts, Ordered(counts)
        self.samples: collections.deque[Sample] = collections.deque()
        self._decode, self._heavy = decode, heavy

    def value(self, sample: Sample):
        """What the message holds; decoded once, when it is first wanted."""
        if sample.raw is not None:
            sample.value, sample.raw = self._decode(sample), None
        return sample.value

    def push(self, sample: Sample) -> None:
        """Append the newest."""
        self.samples.append(sample)
        if self._heavy and len(self.samples) > _RAW:
            self.value(self.samples[-1 - _RAW])

    def beyond(self, stamp: int) -> bool:
        """True when a sample at or after `stamp` is there: nothing nearer can come."""
        return bool(self.samples) and self.samples[-1].stamp >= stamp

    def nearest(self, stamp: int) -> Sample | None:
        """The sample nearest to a stamp."""
        return min(self.samples, key=lambda s: abs(s.stamp - stamp), default=None)

    def forget(self, stamp: int, received: int) -> None:
        """Drop what is older than the newest sample before `stamp`, or before the time of receipt `received`."""
        samples = self.samples
        while len(samples) > 1 and (samples[1].stamp <= stamp or samples[1].received < received):
            samples.popleft()


class Said(NamedTuple):
    """One message of a label or signal: stamp and time of receipt (ns), and what it says."""

    stamp: int
    received: int
    value: Any


class Events:
    """What a label or signal said since the last record; `merge(a, b)` says what two of them make together."""

    def __init__(self, counts: TopicCounts, merge: Callable):
        self.counts, self.order = counts, Ordered(counts)
        self._merge = merge
        self._waiting: collections.deque[Said] = collections.deque()
        self._newest: int | None = None

    def push(self, said: Said) -> None:
        """Append the newest."""
        self._newest = said.stamp
        self._waiting.append(said)
        if len(self._waiting) > _EVENTS:
            a, b = self._waiting.popleft(), self._waiting.popleft()
            self._waiting.appendleft(b._replace(value=self._merge(a.value, b.value)))

    def beyond(self, stamp: int) -> bool:
        """True when nothing at or before `stamp` can come any more."""
        return self._newest is not None and self._newest > stamp

    def has(self, stamp: int) -> bool:
        """True when something was said up to `stamp`, since the clock was set back."""
        return any(0 <= said.stamp <= stamp for said in self._waiting)

    def restart(self) -> None:
        """The clock was set back: what still waits was said before everything that comes now."""
        self._waiting = collections.deque(said._replace(stamp=-1) for said in self._waiting)

    def take(self, stamp: int) -> list[Said]:
        """Return and forget what was said up to `stamp`, oldest first."""
        said = []
        while self._waiting and self._waiting[0].stamp <= stamp:
            said.append(self._waiting.popleft())
        self.counts.used += len(said)
        return said


@dataclasses.dataclass
class Record:
    """One step of a foreign bag; `events` by name is what each label or signal said since the record before.

    Where a gap is before it, that includes what was said in the gap.
    """

    stamp: int
    received: int
    images: dict[str, np.ndarray]
    vectors: dict[str, np.ndarray]
    action: np.ndarray
    events: dict[str, list[Said]]
    gap: bool           # records are missing before this one


@dataclasses.dataclass
class _Beat:
    sample: Sample
    gap: bool


class Resampler:
    """Makes records of the messages of one bag.

    Parameters
    ----------
    period, tolerance, latency
        Control period, the farthest that a picture may lie from its beat, and how much later than its picture a
        message may stand in the bag; ns.
    cameras, vectors, action, events
        Tracks by name (the first camera leads), and `Events` by name.
    near
        Name -> the farthest (ns) that a message may lie from its picture.
    pick, hold, idle
        Which command is a record's action, how long one stands (ns), and what it is when there is none (or None: a
        gap).
    needed
        Names of events without which a record is incomplete.

    """

    def __init__(self, period: int, tolerance: int, latency: int, cameras: dict[str, Track], vectors: dict[str, Track],
                 action: Track, events: dict[str, Events], near: dict[str, int], pick: str, hold: int,
                 idle: np.ndarray | None, needed: tuple[str, ...] = ()):
        self._period, self._tolerance, self._latency = period, tolerance, latency
        self._lead, *_ = cameras.values()
        self._cameras, self._vectors, self._action, self._events = cameras, vectors, action, events
        self._paired = [t for t in (*cameras.values(), *vectors.values()) if t is not self._lead]
        self._near, self._pick, self._hold, self._idle, self._needed = near, pick, hold, idle, needed
        self._window = {'next': period + tolerance, 'mean': period, 'hold': 0}[pick]
        self._horizon = 2 * latency + 2 * period + max((hold, *near.values()))
        self._target: int | None = None
        self._candidate: Sample | None = None
        self._beats: collections.deque[_Beat] = collections.deque()
        self._gap = True                    # the next beat follows none
        self._dropped = False               # beats before the next record were incomplete
        self._calls = 0
        self.incomplete = 0                 # beats that made no record

    def sample(self, track: Track, sample: Sample, restarted: bool) -> None:
        """Take a message of a camera, a vector or the action."""
        if restarted:
            track.samples.clear()
        if track is not self._lead:
            track.push(sample)
            return
        if restarted:
            self._candidate, self._target, self._gap = None, None, True
        self._picture(sample)

    def _picture(self, sample: Sample) -> None:
        while self._target is not None:
            if sample.stamp < self._target:
                self._candidate = sample
                return
            before, self._candidate = self._candidate, None
            chosen = sample
            if before is not None and self._target - before.stamp <= sample.stamp - self._target:
                chosen = before
            if abs(chosen.stamp - self._target) > self._tolerance:
                self._gap, self._target = True, None
                break
            self._beat(chosen)
            if chosen is sample:
                return
        self._target = sample.stamp
        self._beat(sample)

    def _beat(self, sample: Sample) -> None:
        self._target += self._period + (sample.stamp - self._target) // _FOLLOW
        self._lead.value(sample)            # small from here on
        self._beats.append(_Beat(sample, self._gap))
        self._gap = False

    def records(self, now: int | None) -> list[Record]:
        """Return the records that are complete at the time of receipt `now`; None: no more messages come."""
        if now is None and self._candidate is not None:
            if self._target - self._candidate.stamp <= self._tolerance:
                self._beat(self._candidate)
            self._candidate = None
        found = []
        while self._beats and (now is None or self._settled(self._beats[0].sample, now)):
            beat = self._beats.popleft()
            if (record := self._record(beat, now is None and not self._beats)) is not None:
                found.append(record)
        self._calls += 1
        if now is not None and not self._calls % _SWEEP:
            for track in (*self._paired, self._action):
                track.forget(-1, now - self._horizon)
        return found

    def left(self) -> dict[str, list[Said]]:
        """Return what was said after the last record; for the end of the bag."""
        return {name: entry.take(_NEVER) for name, entry in self._events.items()}

    def _settled(self, beat: Sample, now: int) -> bool:
        """True when nothing that belongs to this picture can come any more."""
        if now < beat.received or now - beat.received > self._latency + self._window:
            return True
        if not self._action.beyond(beat.stamp + (self._period if self._pick == 'mean' else 0)):
            return False
        return (all(t.beyond(beat.stamp) for t in self._paired)
                and all(e.beyond(beat.stamp) for e in self._events.values()))

    def _record(self, beat: _Beat, final: bool) -> Record | None:
        stamp, missing = beat.sample.stamp, []
        self._dropped |= beat.gap
        found = {self._lead.name: beat.sample.value}
        for track in self._paired:
            sample = track.nearest(stamp)
            if sample is None or abs(sample.stamp - stamp) > self._near[track.name]:
                missing.append(track.counts)
                self._far(track.counts, sample, stamp)
            else:
                found[track.name] = track.value(sample)
        action = self._command(stamp)
        if action is None:
            missing.append(self._action.counts)
            self._far(self._action.counts, self._action.nearest(stamp), stamp)
        for track in (*self._paired, self._action):
            track.forget(stamp, -1)
        if not missing:
            missing = [self._events[name].counts for name in self._needed if not self._events[name].has(stamp)]
        if missing:
            self._dropped = True
            if not final:       # the ragged end of a recording is nothing to report
                self.incomplete += 1
                for counts in missing:
                    counts.missing += 1
            return None
        self._lead.counts.used += 1
        for track in self._paired:
            track.counts.used += 1
        gap, self._dropped = self._dropped, False
        events = {name: entry.take(stamp) for name, entry in self._events.items()}
        return Record(stamp, beat.sample.received, {n: found[n] for n in self._cameras},
                      {n: found[n] for n in self._vectors}, action, events, gap)

    def _command(self, stamp: int) -> np.ndarray | None:
        track, samples = self._action, self._action.samples
        if self._pick == 'hold':
            chosen = [s for s in samples if stamp - self._hold <= s.stamp <= stamp][-1:]
        elif self._pick == 'next':
            chosen = [s for s in samples if stamp <= s.stamp <= stamp + self._window][:1]
        else:
            chosen = [s for s in samples if stamp <= s.stamp < stamp + self._period]
        if not chosen:
            return self._idle
        track.counts.used += len(chosen)
        values = [track.value(s) for s in chosen]
        return values[0] if len(values) == 1 else np.mean(values, axis=0, dtype=np.float64).astype(np.float32)

    @staticmethod
    def _far(counts: TopicCounts, sample: Sample | None, stamp: int) -> None:
        if sample is not None:
            away = (sample.stamp - stamp) * 1e-9
            if counts.nearest_s is None or abs(away) < abs(counts.nearest_s):
                counts.nearest_s = away
