# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""rosbag2 folders and files to episodes, with the rosbags library: no ROS installation is needed. Anyone may import it.

Replay topics go straight to steps; any other bag goes through `fosp_core.data.raw_import` when the contract has an
`import` section. `episodes.yaml` beside the storage file keeps what no message carries (seed, policy, task) and is
optional.
"""

import collections
import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import yaml
from rosbags.rosbag2 import Reader

from fosp_core.contract import Contract
from fosp_core.data import mcap_crc, messages
from fosp_core.data.bag_writer import METADATA_VERSION, SIDECAR, STORAGES, BagWriter  # noqa: F401 - all of bags is here
from fosp_core.data.cdr import blank, deserialise, typestore  # noqa: F401
from fosp_core.data.episode import Episode
from fosp_core.data.import_report import ImportReport
from fosp_core.data.joiner import EpisodeAssembler, StepJoiner, kinds
from fosp_core.errors import ContractError, DataError

_log = logging.getLogger(__name__)


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
        path, own = Path(path), ImportReport()
        meta = _Sidecar(path)
        for episode in (_own if contract.imports is None else _any)(path, contract, namespace, own):
            if not own.episodes:
                meta.check(contract)  # not earlier: what a message cannot be read as says more than a hash
            episode.meta = {**meta.of(episode), **episode.meta}
            episode.validate(contract, f'{path}: episode {own.episodes}')
            own.episodes += 1
            yield episode
        if not own.episodes:
            raise DataError('; '.join([f'{path}: no complete episode', own.text(), *own.lines()]))
        if not own.counts.clean or own.gaps or own.unseen:
            _log.warning('%s: %s', path, own.text())
            for line in own.lines():
                _log.warning('%s', line)
        report.add(own)


def has_replay(reader: Reader, contract: Contract) -> bool:
    """True when a bag holds replay topics: its records are joined by their very stamps, not resampled."""
    there = {c.topic for c in reader.connections}
    ends = [f'/{messages.topic(kind)}' for kind in kinds(contract)]
    return any(t.endswith(ends[0]) and all(t[:-len(ends[0])] + end in there for end in ends) for t in there)


def _any(path: Path, contract: Contract, namespace: str | None, report: ImportReport) -> Iterator[Episode]:
    with open_bag(path) as reader:
        if not has_replay(reader, contract):
            from fosp_core.data.raw_import import RawImport
            bag = RawImport(path, reader, contract, report, namespace)
            yield from bag.episodes(stored_messages(path, reader, bag.connections))
            return
    yield from _own(path, contract, namespace, report)


def _own(path: Path, contract: Contract, namespace: str | None, report: ImportReport) -> Iterator[Episode]:
    joiner, assembler = StepJoiner(contract), EpisodeAssembler(contract)
    report.counts = joiner.counts
    yield from _episodes(path, contract, namespace, joiner, assembler)
    report.gaps, report.short = assembler.gaps, assembler.short


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
    for connection, received, raw in stored_messages(path, reader, connections):
        try:
            message = deserialise(raw, connection.msgtype)
        except Exception as error:  # noqa: BLE001
            raise DataError(f'{path}: {connection.topic}, received at {received}: not a {connection.msgtype}: '
                            f'{_line(error)}') from None
        kind = of[connection.topic]
        yield kind, *messages.payload(contract, kind, message, f'{path}: {connection.topic}')


def stored_messages(path, reader: Reader, connections: list) -> Iterator[tuple]:
    """Yield (connection, time of receipt in ns, bytes) in the order of the bag.

    Raises
    ------
    DataError
        Naming where: the byte and the message before, for damaged storage; the topic, for messages that are missing
        against what the bag says of itself.

    """
    missing = collections.Counter()
    for connection in connections:
        missing[connection.topic] += connection.msgcount
    storages = getattr(reader.storage, 'storages', [reader.storage])
    opened = [_byte(storage) for storage in storages]
    stream, last, n = reader.messages(connections=_paired(connections, storages)), None, 0
    while True:
        try:
            last = connection, received, raw = next(stream)
        except StopIteration:
            break
        except Exception as error:  # noqa: BLE001 - a damaged file can make the parser raise anything
            after = f'after message {n}, {last[0].topic} received at {last[1]}' if last else 'before the first message'
            now = [(s.path.name, _byte(s)) for s, at in zip(storages, opened) if _byte(s) != at]
            where = f' near byte {now[-1][1]} of {now[-1][0]}' if now else ''
            raise DataError(f'{path}: damaged storage {after}{where}: {_line(error)}') from None
        n += 1
        missing[connection.topic] -= 1
        yield connection, received, raw
    for topic, count in missing.items():
        if count:
            raise DataError(f'{path}: {topic} has {-count:+d} messages against what the bag says of itself: '
                            f'truncated or damaged')


def _paired(connections: list, storages: list) -> list:
    """Return `connections` with the QoS that the files name.

    The rosbags library takes a topic of metadata.yaml and one of a file for the same only if their QoS are equal, which
    the bags of rosbag2 do not promise; unread, the topic would look truncated.
    """
    same = [c._replace(ext=x.ext) for storage in storages for x in storage.connections for c in connections
            if (c.topic, c.msgtype) == (x.topic, x.msgtype)]
    return same or connections


def _byte(storage) -> int | None:
    """Where an MCAP file is being read; None for others."""
    bio = getattr(storage, 'bio', None)
    return None if bio is None else bio.tell()


@contextlib.contextmanager
def open_bag(path: Path | str) -> Iterator[Reader]:
    """Open a rosbag2 folder or file; raise DataError in one line when it is missing or damaged."""
    path = Path(path)
    if not path.exists():
        raise DataError(f'{path}: no such bag')
    if path.is_file() and path.suffix not in ('.mcap', '.db3'):
        hint = '; bags of ROS 1 go through `rosbags-convert` first' if path.suffix == '.bag' else ''
        raise DataError(f'{path}: no bag of ROS 2: expected a folder of rosbag2, or a file .mcap or .db3{hint}')
    if path.is_dir() and not (path / 'metadata.yaml').is_file():
        from fosp_core.data.live_bag import mend  # late: it imports this module
        if (saved := mend(path)) is not None:
            _log.warning('%s: the recorder did not close it; finished now, %d messages saved', path, saved)
    if path.is_dir() and not (path / 'metadata.yaml').is_file():
        storages = sorted(p.name for p in path.iterdir() if p.suffix in ('.mcap', '.db3'))
        hint = f'has {", ".join(storages)}: the recording was not closed; try `ros2 bag reindex`' if storages \
            else 'expected a rosbag2 folder'
        raise DataError(f'{path}: metadata.yaml is missing ({hint})')
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.suffix == '.db3':
            _whole_sqlite(file)
        elif file.suffix == '.mcap':
            mcap_crc.check(file)
    try:
        reader = Reader(path)
        reader.open()
    except Exception as error:  # noqa: BLE001 - a damaged file can make the parser raise anything
        from fosp_core.data.locate import damage
        raise DataError(f'{path}: cannot be opened as a rosbag2 (truncated or not closed?): {_line(error)}'
                        f'{damage(path)}') from None
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
        hint = '' if contract.imports else (' (for other topics the contract needs a section `import`: '
                                            'docs/how-to/import-a-bag.md)')
        raise DataError(f'{path}: no topic {", ".join(missing)}; the bag has '
                        f'{", ".join(sorted(there)) or "no topics"}{hint}')
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
