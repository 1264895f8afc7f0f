# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Episodes to rosbag2 folders, with the rosbags library: no ROS installation is needed. Anyone may import it.

A bag is written under a temporary name and renamed: it is whole or not there. MCAP files get checksums.
"""

import contextlib
import json
import shutil
from pathlib import Path

from rosbags.rosbag2 import StoragePlugin, Writer

from fosp_core.contract import Contract
from fosp_core.data import mcap_crc, messages
from fosp_core.data.cdr import blank, typestore
from fosp_core.data.episode import Episode
from fosp_core.data.joiner import Label
from fosp_core.errors import DataError, FospError
from fosp_core.io import atomic_dir

SIDECAR = 'episodes.yaml'
STORAGES = {'mcap': StoragePlugin.MCAP, 'sqlite3': StoragePlugin.SQLITE3}
METADATA_VERSION = 9    # what Jazzy and later write and read


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
                if file.suffix == '.mcap':
                    mcap_crc.seal(file)
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
