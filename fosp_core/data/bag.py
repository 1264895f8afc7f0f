# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Episodes to rosbag2 folders and back, with the rosbags library: no ROS installation is needed. Anyone may import it.

A bag holds the replay topics; `episodes.yaml` beside the storage file keeps what no message carries (seed, policy,
task) and is optional on reading. A bag is written under a temporary name and renamed: it is whole or not there.
"""

import collections
import contextlib
import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import yaml
from rosbags.interfaces import Nodetype
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from fosp_core.contract import Contract
from fosp_core.data import messages
from fosp_core.data.episode import Episode
from fosp_core.data.joiner import EpisodeAssembler, JoinCounts, Label, StepJoiner, kinds
from fosp_core.errors import ContractError, DataError, FospError
from fosp_core.io import atomic_dir

SIDECAR = 'episodes.yaml'
STORAGES = {'mcap': StoragePlugin.MCAP, 'sqlite3': StoragePlugin.SQLITE3}
METADATA_VERSION = 9    # what Jazzy and later write and read

_TRAILING = 32          # bytes after the end of a message that are no sign of damage

_store = None
_log = logging.getLogger(__name__)


def typestore():
    """Message types of Jazzy; those used here have the same definitions (RIHS01) from Humble to Kilted."""
    global _store
    if _store is None:
        _store = get_typestore(Stores.ROS2_JAZZY)
    return _store


def blank(msgtype: str):
    """Return an empty rosbags message: numbers zero, strings and sequences empty, as rclpy's constructors do."""
    store = typestore()
    if msgtype not in store.fielddefs:
        raise DataError(f'message type {msgtype!r} is unknown, expected a standard type of ROS 2 Jazzy')

    def empty(kind, detail):
        if kind == Nodetype.NAME:
            return blank(detail)
        if kind == Nodetype.BASE:
            return {'string': '', 'bool': False}.get(detail[0], 0.0 if detail[0].startswith('float') else 0)
        (inner, inner_detail), length = detail
        length = length if kind == Nodetype.ARRAY else 0
        if inner == Nodetype.BASE and inner_detail[0] != 'string':
            return np.zeros(length, inner_detail[0].replace('octet', 'uint8'))
        return [empty(inner, inner_detail) for _ in range(length)]

    return store.types[msgtype](**{name: empty(*definition) for name, definition in store.fielddefs[msgtype][1]})


def deserialise(raw: bytes, msgtype: str):
    """Return the rosbags message in CDR bytes; raises anything on damaged ones.

    Unlike rosbags' own function it bears some bytes after the end: rclpy's serialize_message leaves them there when a
    message ends in empty sequences of doubles (JointState), and recorders in Python write what it returns.
    """
    if len(raw) < 4 or bytes(raw[:2]) not in (b'\0\0', b'\0\1'):
        raise ValueError('no CDR header')
    definition = typestore().get_msgdef(msgtype)
    read = definition.deserialize_cdr_le if raw[1] else definition.deserialize_cdr_be
    message, end = read(raw[4:], 0, definition.cls, typestore())
    if end + 4 + _TRAILING < len(raw):
        raise ValueError(f'{len(raw)} bytes, expected {end + 4}')
    return message


class BagWriter:
    """Writes episodes as replay topics; a context manager. Stamps and step counters must rise over the whole bag.

    Parameters
    ----------
    path
        Folder to make; it must not exist, and appears only when the block ends without an error.
    contract
        What the episodes are checked against.
    namespace
        Put before the topics: `/fosp/replay/image`.
    storage
        `mcap` or `sqlite3`.

    """

    def __init__(self, path: Path | str, contract: Contract, namespace: str = 'fosp', storage: str = 'mcap'):
        if storage not in STORAGES:
            raise DataError(f'{path}: storage {storage!r}, expected one of {", ".join(STORAGES)}')
        self.path = Path(path)
        self.contract = contract
        self._storage = STORAGES[storage]
        self._prefix = '/'.join(['', *namespace.strip('/').split('/')]) if namespace.strip('/') else ''
        self._types = messages.types(contract)
        self._stack: contextlib.ExitStack | None = None
        self._entries: list[dict] = []
        self._more: dict = {}                           # topic -> connection of messages beside the records
        self._last: tuple[int, int] | None = None      # stamp and counter of the record written last

    def __enter__(self) -> 'BagWriter':
        with contextlib.ExitStack() as stack:
            self._folder = stack.enter_context(atomic_dir(self.path))
            # rosbags names the storage file after its folder, and the temporary one has a throw-away name.
            self._writer = Writer(self._folder / self.path.name, version=METADATA_VERSION,
                                  storage_plugin=self._storage)
            self._writer.open()
            self._connections = {
                kind: self._writer.add_connection(f'{self._prefix}/{messages.topic(kind)}', msgtype,
                                                  typestore=typestore())
                for kind, msgtype in self._types.items()}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, exc_type, exc, traceback) -> None:
        stack, self._stack = self._stack, None
        if exc_type is not None:
            self._writer.abort()
            stack.__exit__(exc_type, exc, traceback)
            return
        with stack:
            if not self._entries:
                self._writer.abort()
                raise DataError(f'{self.path}: no episode to write')
            self._writer.close()
            inner = self._folder / self.path.name
            for file in inner.iterdir():
                shutil.move(file, self._folder)
            inner.rmdir()
            lines = ',\n  '.join(map(_json, self._entries))
            # JSON is YAML, and is read a hundred times as fast.
            (self._folder / SIDECAR).write_text(f'{{"schema": 1, "contract": "{self.contract.hash}", "episodes": [\n'
                                                f'  {lines}\n]}}\n')

    def add(self, episode: Episode) -> None:
        """Append one episode; raise DataError naming key and step when it does not fit contract or bag."""
        if self._stack is None:
            raise FospError(f'{self.path}: the bag is not open')
        where = f'{self.path}: episode {len(self._entries)}'
        episode.validate(self.contract, where)
        first, last = (int(episode.stamp[0]), int(episode.step[0])), (int(episode.stamp[-1]), int(episode.step[-1]))
        if self._last is not None and (first[0] <= self._last[0] or first[1] <= self._last[1]):
            raise DataError(f'{where}: begins at stamp {first[0]} and step {first[1]}, expected both above those of '
                            f'the record before, {self._last[0]} and {self._last[1]}')
        if first[0] < 0 or first[1] < 0 or last[1] >= 2 ** 31 or last[0] >= 2 ** 31 * 10 ** 9:
            raise DataError(f'{where}: stamp and step must fit in a message: seconds and counter within 0 to 2**31-1')
        series = {**episode.images, **episode.vectors, 'action': episode.action}
        blanks = {kind: blank(msgtype) for kind, msgtype in self._types.items()}
        for t in range(len(episode)):
            stamp = int(episode.stamp[t])
            label = Label(episode.reward[t], episode.cost[t], episode.is_first[t], episode.is_last[t],
                          episode.is_terminal[t], episode.step[t])
            for kind, connection in self._connections.items():
                message = messages.fill(self.contract, kind, blanks[kind], stamp,
                                        label if kind == 'label' else series[kind][t])
                self._writer.write(connection, stamp, typestore().serialize_cdr(message, connection.msgtype))
        self._last = last
        self._entries.append({'first_stamp': first[0], 'last_stamp': last[0], 'steps': len(episode),
                              'meta': episode.meta})

    def add_message(self, topic: str, msgtype: str, received: int, data: bytes) -> None:
        """Append a serialised message (CDR) of another topic, received at `received` ns; the importer passes it by."""
        if self._stack is None:
            raise FospError(f'{self.path}: the bag is not open')
        connection = self._more.get(topic)
        if connection is None:
            if msgtype not in typestore().fielddefs:
                raise DataError(f'{self.path}: {topic}: message type {msgtype!r} is unknown, expected a standard type '
                                'of ROS 2 Jazzy')
            if any(topic == c.topic for c in self._connections.values()):
                raise DataError(f'{self.path}: {topic} holds the replay records')
            connection = self._writer.add_connection(topic, msgtype, typestore=typestore())
            self._more[topic] = connection
        self._writer.write(connection, received, data)


def _json(entry: dict) -> str:
    return json.dumps(entry, default=lambda value: value.item())


@dataclasses.dataclass
class ImportReport:
    """What the importer met, summed over the bags; filled by `read_episodes`."""

    counts: JoinCounts = dataclasses.field(default_factory=JoinCounts)
    episodes: int = 0
    gaps: int = 0       # times at which an episode was cut by missing steps
    short: int = 0      # single steps that make no episode

    def text(self) -> str:
        """One line for people."""
        c = self.counts
        return (f'{c.steps} steps in {self.episodes} episodes; {c.lost} steps lost, {c.doubled} messages doubled, '
                f'{c.reordered} reordered, {c.mismatched} stamps incomplete, {self.gaps} gaps, {c.restarts} restarts')


def read_episodes(paths: Iterable[Path | str] | Path | str, contract: Contract, namespace: str | None = None,
                  report: ImportReport | None = None) -> Iterator[Episode]:
    """Yield the episodes of one or more bags, one at a time: no bag is ever held whole.

    Parameters
    ----------
    paths
        rosbag2 folders (or single .mcap or .db3 files).
    contract
        Which topics make a step, and what their content must be.
    namespace
        Where the replay topics lie; needed only when a bag holds them more than once.
    report
        Is filled with what was lost, doubled and so on. Losses are logged as a warning in any case.

    Raises
    ------
    DataError
        Naming bag, topic and stamp, what was found and what was expected.

    """
    report = ImportReport() if report is None else report
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        path = Path(path)
        joiner, assembler = StepJoiner(contract), EpisodeAssembler(contract)
        own = ImportReport(joiner.counts)
        meta = _Sidecar(path)
        for episode in _episodes(path, contract, namespace, joiner, assembler):
            if not own.episodes:
                meta.check(contract)  # not earlier: what a message cannot be read as says more than a hash
            episode.meta = {**meta.of(episode), **episode.meta}
            episode.validate(contract, f'{path}: episode {own.episodes}')
            own.episodes += 1
            yield episode
        own.gaps, own.short = assembler.gaps, assembler.short
        if not own.episodes:
            raise DataError(f'{path}: no complete episode; {own.text()}')
        if not (own.counts.clean and not own.gaps):
            _log.warning('%s: %s', path, own.text())
        report.counts += own.counts
        report.episodes, report.gaps = report.episodes + own.episodes, report.gaps + own.gaps
        report.short += own.short


def _episodes(path, contract, namespace, joiner: StepJoiner, assembler: EpisodeAssembler) -> Iterator[Episode]:
    number = 0

    def place() -> str:
        # Exact in the recorder's order, near where messages were reordered.
        return f'episode {number}, step {assembler.open_steps + joiner.held}'

    with contextlib.closing(read_messages(path, contract, namespace, place)) as stream:
        for kind, stamp, payload in stream:
            for step in joiner.push(kind, stamp, payload):
                if (episode := assembler.add(step)) is not None:
                    number += 1
                    yield episode
    for step in joiner.flush():
        if (episode := assembler.add(step)) is not None:
            yield episode
    if (episode := assembler.flush()) is not None:
        yield episode


def read_messages(path: Path | str, contract: Contract, namespace: str | None = None,
                  place: Callable[[], str] | None = None) -> Iterator[tuple]:
    """Yield (kind, stamp in ns, payload) of each replay message in the order of the bag; raise DataError.

    `place` says how far the reader has come; it is added to the error of a damaged or wrong message.
    """
    with open_bag(path) as reader:
        topics = find_topics(path, reader, contract, namespace)
        try:
            yield from _decode(path, contract, reader, {topic: kind for kind, topic in topics.items()})
        except (DataError, ContractError) as error:
            raise type(error)(f'{error}{f" ({place()})" if place else ""}') from None


def _decode(path, contract: Contract, reader: Reader, of: dict[str, str]) -> Iterator[tuple]:
    connections = [c for c in reader.connections if c.topic in of]
    stream = reader.messages(connections=connections)
    missing = collections.Counter()
    for connection in connections:
        missing[connection.topic] += connection.msgcount
    while True:
        try:
            connection, received, raw = next(stream)
        except StopIteration:
            break
        except Exception as error:  # noqa: BLE001 - a damaged file can make the parser raise anything
            raise DataError(f'{path}: damaged storage: {_line(error)}') from None
        try:
            message = deserialise(raw, connection.msgtype)
        except Exception as error:  # noqa: BLE001
            raise DataError(f'{path}: {connection.topic}, received at {received}: not a {connection.msgtype}: '
                            f'{_line(error)}') from None
        kind = of[connection.topic]
        missing[connection.topic] -= 1
        yield kind, *messages.payload(contract, kind, message, f'{path}: {connection.topic}')
    for topic, count in missing.items():
        if count:
            raise DataError(f'{path}: {topic} has {-count:+d} messages against what the bag says of itself: '
                            f'truncated or damaged')


@contextlib.contextmanager
def open_bag(path: Path | str) -> Iterator[Reader]:
    """Open a rosbag2 folder or file; raise DataError in one line when it is missing or damaged."""
    path = Path(path)
    if not path.exists():
        raise DataError(f'{path}: no such bag')
    if path.is_dir() and not (path / 'metadata.yaml').is_file():
        from fosp_core.data.live_bag import mend  # late: it imports this module
        if (saved := mend(path)) is not None:
            _log.warning('%s: the recorder did not close it; finished now, %d messages saved', path, saved)
    if path.is_dir() and not (path / 'metadata.yaml').is_file():
        storages = sorted(p.name for p in path.iterdir() if p.suffix in ('.mcap', '.db3'))
        hint = f'has {", ".join(storages)}: the recording was not closed; try `ros2 bag reindex`' if storages \
            else 'expected a rosbag2 folder'
        raise DataError(f'{path}: metadata.yaml is missing ({hint})')
    for file in sorted(path.glob('*.db3')) if path.is_dir() else [path]:
        _whole_sqlite(file)
    try:
        reader = Reader(path)
        reader.open()
    except Exception as error:  # noqa: BLE001 - a damaged file can make the parser raise anything
        raise DataError(f'{path}: cannot be opened as a rosbag2 (truncated or not closed?): {_line(error)}') from None
    try:
        yield reader
    finally:
        reader.close()


def _whole_sqlite(file: Path) -> None:
    """Refuse a database shorter than its header says: sqlite reads on happily until it needs the missing page."""
    with open(file, 'rb') as stream:
        header = stream.read(100)
    if len(header) == 100 and header.startswith(b'SQLite format 3\0'):
        page = int.from_bytes(header[16:18], 'big')
        expected = (65536 if page == 1 else page) * int.from_bytes(header[28:32], 'big')
        if file.stat().st_size < expected:
            raise DataError(f'{file}: {file.stat().st_size} bytes, expected {expected}: truncated')


def find_topics(path: Path | str, reader: Reader, contract: Contract, namespace: str | None = None) -> dict[str, str]:
    """Return kind -> topic of the replay topics in an open bag.

    They are found by the ends of their names, so that any namespace will do; all must lie in the same one.
    """
    there = {c.topic: c for c in reader.connections}
    ends = {kind: f'/{messages.topic(kind)}' for kind in kinds(contract)}
    if namespace is None:
        found = {t[:-len(end)] for end in ends.values() for t in there if t.endswith(end)}
        whole = sorted(ns for ns in found if all(ns + end in there for end in ends.values()))
        if len(whole) > 1:
            raise DataError(f'{path}: replay topics in {len(whole)} namespaces, '
                            f'{", ".join(ns or "/" for ns in whole)}; name one of them')
        # With none complete, name what is missing of the one that has most.
        prefix = whole[0] if whole else max(sorted(found), default='', key=lambda ns: sum(
            ns + end in there for end in ends.values()))
    else:
        prefix = f'/{namespace.strip("/")}' if namespace.strip('/') else ''
    topics = {kind: prefix + end for kind, end in ends.items()}
    if missing := [t for t in topics.values() if t not in there]:
        raise DataError(f'{path}: no topic {", ".join(missing)}; the bag has {", ".join(sorted(there)) or "no topics"}')
    for kind, msgtype in messages.types(contract).items():
        for connection in (c for c in reader.connections if c.topic == topics[kind]):
            if connection.msgtype != msgtype:
                raise DataError(f'{path}: {connection.topic} is of type {connection.msgtype}, expected {msgtype}')
            if connection.digest and connection.digest != typestore().hash_rihs01(msgtype):
                raise DataError(f'{path}: {connection.topic}: another definition of {msgtype}, hash '
                                f'{connection.digest}, expected {typestore().hash_rihs01(msgtype)}')
    return topics


class _Sidecar:
    """What `episodes.yaml` says about the episodes of one bag; a bag of another recorder has none."""

    def __init__(self, bag: Path):
        self._path = path = bag / SIDECAR
        self._entries, self._contract = [], None
        if not path.is_file():
            return
        try:
            text = path.read_text()
            try:
                data = json.loads(text)
            except json.JSONDecodeError:
                data = yaml.safe_load(text)
            self._entries = [(int(e['first_stamp']), int(e['last_stamp']), dict(e['meta'])) for e in data['episodes']]
            self._contract = data.get('contract')
        except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError,
                AttributeError) as error:
            raise DataError(f'{path}: not a list of episodes with first_stamp, last_stamp and meta: '
                            f'{_line(error)}') from None

    def check(self, contract: Contract) -> None:
        """Raise ContractError when the bag was written for another one: its messages would mean other actions."""
        if self._contract is not None:
            contract.require_same(str(self._contract), f'{self._path}: key contract')

    def of(self, episode: Episode) -> dict:
        """Meta of the written episode within which this one (or this fragment of it) lies."""
        for first, last, meta in self._entries:
            if first <= episode.stamp[0] and episode.stamp[-1] <= last:
                return dict(meta)
        return {}


def _line(error: Exception) -> str:
    return ' '.join(str(error).split()) or type(error).__name__
