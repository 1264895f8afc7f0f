# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A rosbag2 (MCAP) that is written while things happen, and that survives the death of its writer. No ROS import.

While it grows it lies beside its final place as `NAME.recording`: whole chunks, each synced, without an index.
`finish` adds index and `metadata.yaml` and renames it. What a killed recorder left is finished by `mend`, which
`open_bag` calls: it is then the same bag, up to the last chunk. `rewind` cuts an unwanted episode off again.
"""

import collections
import dataclasses
import fcntl
import functools
import json
import os
import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import yaml
from mcap import records as mcap
from mcap.data_stream import ReadDataStream, RecordBuilder
from mcap.opcode import Opcode

from fosp_core.contract import Contract
from fosp_core.data import bag
from fosp_core.errors import DataError, FospError
from fosp_core.io import atomic_write_bytes

SUFFIX = '.recording'
LIBRARY = 'fosp record'
MAGIC = b'\x89MCAP0\r\n'
CHUNK_BYTES = 1 << 20
_HEAD = struct.Struct('<BQ')        # opcode and length of every record
_MESSAGE = struct.Struct('<HIQ')    # channel, sequence and time of a message


@dataclasses.dataclass(frozen=True)
class Mark:
    """A place to which a bag can be cut back."""

    size: int
    chunks: int
    counts: dict[int, int]
    episodes: int


class LiveBag:
    """One bag in the making. Not thread-safe: one thread writes.

    Parameters
    ----------
    path : Path
        Folder to be; it and `path.recording` must not exist.
    contract : Contract
        Its hash goes to the sidecar.
    topics : sequence of (str, str)
        Name and type, as `geometry_msgs/msg/PoseStamped`, of all that will be written.

    """

    def __init__(self, path: Path | str, contract: Contract, topics: Sequence[tuple[str, str]]):
        self.path = Path(path)
        self.folder = self.path.with_name(self.path.name + SUFFIX)
        self.contract = contract
        self.episodes: list[dict] = []
        free(self.path)
        kinds = sorted({kind for _, kind in topics})
        schemas = [mcap.Schema(i + 1, definition(kind).encode(), 'ros2msg', kind) for i, kind in enumerate(kinds)]
        channels = [mcap.Channel(i + 1, topic, 'cdr', {'offered_qos_profiles': ''}, kinds.index(kind) + 1)
                    for i, (topic, kind) in enumerate(topics)]
        self._index = _Index(schemas, channels)
        self._ids = {channel.topic: channel.id for channel in channels}
        try:
            self.folder.mkdir(parents=True)
            self._file = os.open(self.folder / f'{self.path.name}.mcap', os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except OSError as error:
            raise FospError(f'{self.folder}: cannot be written: {error.strerror}') from None
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)      # `mend` keeps off while we live
        head = RecordBuilder()
        for record in (mcap.Header('ros2', LIBRARY), *schemas, *channels):
            record.write(head)
        self._size = 0
        self._append(MAGIC + head.end())
        self._begin()
        self._sidecar()

    def write(self, topic: str, received: int, data: bytes) -> None:
        """Append a serialised message (CDR), received at `received` ns; a full chunk goes to the disk."""
        number = self._ids[topic]
        self._offsets[number].append((received, self._chunk.count))
        mcap.Message(number, received, data, received, 0).write(self._chunk)
        if self._chunk.count > CHUNK_BYTES:
            self.sync()

    def sync(self) -> None:
        """Bring everything to the disk: from here on it survives."""
        if not self._offsets:
            return
        data = self._chunk.end()
        times = [at for rows in self._offsets.values() for at, _ in rows]
        out = RecordBuilder()
        mcap.Chunk('', data, max(times), min(times), zlib.crc32(data), len(data)).write(out)
        length, places = out.count, {}
        for number, rows in self._offsets.items():
            places[number] = self._size + out.count
            mcap.MessageIndex(number, rows).write(out)
            self._index.counts[number] += len(rows)
        self._index.chunks.append(mcap.ChunkIndex(
            chunk_length=length, chunk_start_offset=self._size, compression='', compressed_size=len(data),
            message_end_time=max(times), message_index_length=out.count - length, message_index_offsets=places,
            message_start_time=min(times), uncompressed_size=len(data)))
        self._append(out.end())
        os.fdatasync(self._file)
        self._begin()

    def mark(self) -> Mark:
        """Return the place reached."""
        self.sync()
        return Mark(self._size, len(self._index.chunks), dict(self._index.counts), len(self.episodes))

    def rewind(self, mark: Mark) -> None:
        """Cut off all that was written after `mark`."""
        self._begin()
        os.ftruncate(self._file, mark.size)
        os.lseek(self._file, mark.size, os.SEEK_SET)
        os.fdatasync(self._file)
        self._size = mark.size
        del self._index.chunks[mark.chunks:]
        self._index.counts = collections.Counter(mark.counts)
        if len(self.episodes) != mark.episodes:
            del self.episodes[mark.episodes:]
            self._sidecar()

    def episode(self, first_stamp: int, last_stamp: int, steps: int, meta: dict) -> None:
        """Note a finished episode in the sidecar."""
        self.sync()
        self.episodes.append({'first_stamp': first_stamp, 'last_stamp': last_stamp, 'steps': steps, 'meta': meta})
        self._sidecar()

    def finish(self) -> None:
        """Write index and metadata, and give the folder its name."""
        self.sync()
        self._append(self._index.tail(self._size))
        os.fsync(self._file)
        os.close(self._file)
        _metadata(self.folder, f'{self.path.name}.mcap', self._index)
        free(self.path, folder=False)
        os.rename(self.folder, self.path)

    def abandon(self) -> None:
        """Remove it all; after `finish` nothing is left to remove."""
        os.close(self._file)
        for file in self.folder.iterdir():
            file.unlink()
        self.folder.rmdir()

    def _begin(self) -> None:
        self._chunk, self._offsets = RecordBuilder(), collections.defaultdict(list)

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view):]
        self._size += len(data)

    def _sidecar(self) -> None:
        lines = ',\n  '.join(json.dumps(entry) for entry in self.episodes)
        atomic_write_bytes(self.folder / bag.SIDECAR, f'{{"schema": 1, "contract": "{self.contract.hash}", "episodes": '
                           f'[\n  {lines}\n]}}\n'.encode())


class _Index:
    """What the end of the file says about the rest."""

    def __init__(self, schemas, channels):
        self.schemas, self.channels = schemas, channels
        self.chunks: list[mcap.ChunkIndex] = []
        self.counts: collections.Counter[int] = collections.Counter()

    @property
    def times(self) -> tuple[int, int]:
        """First and last time of a message, ns; zeros when there is none."""
        return (min((c.message_start_time for c in self.chunks), default=0),
                max((c.message_end_time for c in self.chunks), default=0))

    def tail(self, size: int) -> bytes:
        """Return what follows `size` bytes of header and chunks."""
        out = RecordBuilder()
        mcap.DataEnd(0).write(out)
        summary = size + out.count
        for record in (*self.schemas, *self.channels, *self.chunks):
            record.write(out)
        first, last = self.times
        mcap.Statistics(
            attachment_count=0, channel_count=len(self.channels), channel_message_counts=dict(self.counts),
            chunk_count=len(self.chunks), message_count=sum(self.counts.values()), message_end_time=last,
            message_start_time=first, metadata_count=0, schema_count=len(self.schemas)).write(out)
        mcap.Footer(summary_start=summary, summary_offset_start=0, summary_crc=0).write(out)
        return out.end() + MAGIC


@functools.cache
def definition(kind: str) -> str:
    """Return the definition of a message type; the first call takes a second, so call it before the clock runs."""
    store = bag.typestore()
    if kind not in store.fielddefs:
        raise DataError(f'message type {kind!r} is unknown, expected a standard type of ROS 2 Jazzy')
    store.hash_rihs01(kind)
    return store.generate_msgdef(kind, ros_version=2)[0]


def _metadata(folder: Path, file: str, index: _Index) -> None:
    """Write `metadata.yaml`: with it a folder is a rosbag2."""
    first, last = index.times
    kinds = {schema.id: schema.name for schema in index.schemas}
    total = sum(index.counts.values())
    span = {'starting_time': {'nanoseconds_since_epoch': first}, 'duration': {'nanoseconds': last - first},
            'message_count': total}
    about = {
        'version': bag.METADATA_VERSION, 'storage_identifier': 'mcap', 'relative_file_paths': [file], **span,
        'topics_with_message_count': [{
            'topic_metadata': {
                'name': channel.topic, 'type': kinds[channel.schema_id], 'serialization_format': 'cdr',
                'offered_qos_profiles': [],
                'type_description_hash': bag.typestore().hash_rihs01(kinds[channel.schema_id])},
            'message_count': index.counts[channel.id]} for channel in index.channels],
        'compression_format': '', 'compression_mode': '', 'files': [{'path': file, **span}], 'custom_data': None,
        'ros_distro': 'rosbags'}
    text = yaml.safe_dump({'rosbag2_bagfile_information': about}, sort_keys=False)
    atomic_write_bytes(folder / 'metadata.yaml', text.encode())


def free(path: Path, folder: bool = True) -> None:
    """Raise FospError when a bag of that name exists, or (`folder`) one that was never finished."""
    if path.exists() or path.is_symlink():
        raise FospError(f'{path}: exists already; choose another name or remove it')
    left = path.with_name(path.name + SUFFIX)
    if folder and left.exists():
        raise FospError(f'{left}: left by a recorder that was killed, or one that is running; rename it (it is a bag) '
                        'or remove it')


def unfinished(folder: Path) -> Path | None:
    """Return the storage file of a folder that a recorder of ours did not finish, else None."""
    if not folder.is_dir() or (folder / 'metadata.yaml').exists():
        return None
    files = list(folder.glob('*.mcap'))
    if len(files) != 1:
        return None
    head = RecordBuilder()
    mcap.Header('ros2', LIBRARY).write(head)
    head = MAGIC + head.end()
    with open(files[0], 'rb') as stream:
        return files[0] if stream.read(len(head)) == head else None


def mend(folder: Path) -> int | None:
    """Finish what a killed recorder left, in its folder; return the messages saved, None when nothing was to be done.

    Half of a chunk at the end is cut off. Raises DataError when the recorder still runs, or nothing can be saved.
    """
    file = unfinished(folder)
    if file is None:
        return None
    try:
        with open(file, 'r+b') as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(f'{folder}: is being recorded; end the recorder first') from None
            index, size = _scan(stream)
            if not index.chunks:
                raise DataError(f'{folder}: the recording was cut off before its first second: nothing in it')
            stream.truncate(size)
            stream.seek(size)
            stream.write(index.tail(size))
            stream.flush()
            os.fsync(stream.fileno())
            _metadata(folder, file.name, index)
    except OSError as error:
        raise DataError(f'{folder}: the recording was not closed, and cannot be finished: {error.strerror}') from None
    return sum(index.counts.values())


def _scan(stream) -> tuple[_Index, int]:
    """Read record after record as far as they are whole; return the index, and where the last whole chunk ends."""
    index = _Index([], [])
    stream.seek(len(MAGIC))
    good, chunk, rows, length = len(MAGIC), None, {}, 0
    while True:
        start = stream.tell()
        head = stream.read(_HEAD.size)
        if len(head) < _HEAD.size:
            break
        kind, size = _HEAD.unpack(head)
        # A record is at most a chunk with one big picture: a larger number is no length but garbage.
        body = stream.read(size) if size < 1 << 30 else b''
        if len(body) < size:
            break
        data = ReadDataStream(BytesIO(body))
        try:
            if kind == Opcode.SCHEMA:
                index.schemas.append(mcap.Schema.read(data))
            elif kind == Opcode.CHANNEL:
                index.channels.append(mcap.Channel.read(data))
            elif kind == Opcode.CHUNK and chunk is None:
                chunk, rows, length = mcap.Chunk.read(data), {}, 0
                if zlib.crc32(chunk.data) != chunk.uncompressed_crc:
                    break
                whole = _HEAD.size + size
            elif kind == Opcode.MESSAGE_INDEX and chunk is not None:
                row = mcap.MessageIndex.read(data)
                rows[row.channel_id] = start, row.records
                length += _HEAD.size + size
            elif kind != Opcode.HEADER:
                break       # what an interrupted mending had begun to write
        except Exception:  # noqa: BLE001 - garbage behind the end can make the parser raise anything
            break
        if chunk is None:
            good = stream.tell()
        elif {number: found for number, (_, found) in rows.items()} == _messages(chunk.data):
            index.counts.update({number: len(found) for number, (_, found) in rows.items()})
            index.chunks.append(mcap.ChunkIndex(
                chunk_length=whole, chunk_start_offset=good, compression='', compressed_size=len(chunk.data),
                message_end_time=chunk.message_end_time, message_index_length=length,
                message_index_offsets={number: place for number, (place, _) in rows.items()},
                message_start_time=chunk.message_start_time, uncompressed_size=chunk.uncompressed_size))
            good, chunk = stream.tell(), None
    return index, good


def _messages(data: bytes) -> dict[int, list[tuple[int, int]]]:
    """Return what the index of a chunk must say: channel -> (time, offset) of each message."""
    found, at = collections.defaultdict(list), 0
    while at < len(data):
        number, _, received = _MESSAGE.unpack_from(data, at + _HEAD.size)
        found[number].append((received, at))
        at += _HEAD.size + _HEAD.unpack_from(data, at)[1]
    return found
