# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""LeRobot's on-disk data sets: v3.0 written, v3.0 and v2.1 read. Needs pyarrow; LeRobot itself is not needed.

One row for each record: `observation.images.NAME` as PNG, `observation.state` (the vectors side by side), `action` in
the contract's unit, float64, `next.reward`, `next.cost`, `next.done` (of the transition that begins here). The last row
of an episode is its final observation; its action was not executed and its `next.*` are zero. `fosp.*` keeps what this
layout forgets: the record's own reward, cost, stamp, counter and flags, so that reading gives the very same episodes.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fosp_core.contract import CameraSpec, Contract
from fosp_core.data.episode import Episode
from fosp_core.errors import DataError
from fosp_core.formats import lerobot_meta as meta_files
from fosp_core.formats.common import (
    CONTRACT_KEYS,
    Clock,
    checked,
    damage,
    meta_of,
    meta_text,
    missing,
    number_array,
    part,
    pictures,
    same_contract,
    to_action,
)
from fosp_core.formats.detect import PLAIN, Options
from fosp_core.formats.lerobot_meta import IMAGES, OWN, STATE
from fosp_core.io import atomic_dir

FILE_BYTES = 100 * 2 ** 20      # of pictures in one Parquet file, as LeRobot's own default


def write(path: Path, contract: Contract, episodes: Iterable[Episode]) -> dict:
    """Write a v3.0 data set; one episode in memory at a time, besides a line of statistics for each."""
    with atomic_dir(path) as folder:
        files, rows, frames = _Files(folder), [], 0
        stats, tasks = meta_files.Stats(contract), {}
        for number, episode in enumerate(checked(path, contract, episodes)):
            task = str(episode.meta.get('task', contract.name))
            index = tasks.setdefault(task, len(tasks))
            table, size = _table(contract, episode, number, frames, index)
            place = files.add(table, size)
            rows.append({'episode_index': number, 'tasks': [task], 'length': len(episode),
                         'data/chunk_index': place[0], 'data/file_index': place[1], 'dataset_from_index': frames,
                         'dataset_to_index': frames + len(episode), 'meta/episodes/chunk_index': 0,
                         'meta/episodes/file_index': 0, 'fosp/meta': meta_text(episode.meta),
                         **stats.add(episode, table)})
            frames += len(episode)
        files.close()
        meta_files.write(folder, contract, rows, tasks, frames, stats)
    return {'episodes': len(rows), 'steps': frames}


class _Files:
    """The Parquet files of the records: one row group for each episode, a new file when one is full."""

    def __init__(self, folder: Path):
        self._folder, self._number, self._bytes, self._writer = folder, -1, 0, None

    def add(self, table: pa.Table, size: int) -> tuple[int, int]:
        """Write one episode; return chunk and file."""
        if self._writer is None or self._bytes + size > FILE_BYTES:
            self.close()
            self._number, self._bytes = self._number + 1, 0
            chunk, file = divmod(self._number, meta_files.CHUNK)
            name = self._folder / meta_files.DATA.format(chunk_index=chunk, file_index=file)
            name.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(name, table.schema, compression='snappy')
        self._writer.write_table(table)
        self._bytes += size
        return divmod(self._number, meta_files.CHUNK)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _table(contract: Contract, e: Episode, number: int, first: int, task: int) -> tuple[pa.Table, int]:
    """Return the rows of one episode, and the bytes of its pictures."""
    n, size = len(e), 0
    columns = {}
    for camera in contract.cameras:
        data = [_encode(camera, frame) for frame in e.images[camera.name]]
        size += sum(map(len, data))
        columns[f'{IMAGES}{camera.name}'] = pa.array(
            [{'bytes': d, 'path': f'frame-{t:06d}.png'} for t, d in enumerate(data)],
            pa.struct([('bytes', pa.binary()), ('path', pa.string())]))
    if contract.vectors:
        columns[STATE] = _rows(np.concatenate([e.vectors[v.name] for v in contract.vectors], axis=1))
    columns['action'] = _rows(contract.action.denormalise(e.action))
    done = np.zeros(n, bool)
    done[-2:] = True
    columns |= {'next.reward': pa.array(np.append(e.reward[1:], np.float32(0))),
                'next.cost': pa.array(np.append(e.cost[1:], np.float32(0))), 'next.done': pa.array(done)}
    columns |= {f'fosp.{key}': pa.array(getattr(e, key)) for key in OWN}
    columns |= {'timestamp': pa.array((np.arange(n) / contract.rate_hz).astype(np.float32)),
                'frame_index': pa.array(np.arange(n)), 'episode_index': pa.array(np.full(n, number)),
                'index': pa.array(first + np.arange(n)), 'task_index': pa.array(np.full(n, task))}
    return pa.table(columns), size


def _rows(values: np.ndarray) -> pa.Array:
    """Return (n, k) values as lists of fixed length, or as plain numbers when k is 1, as LeRobot's readers expect."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return flat if values.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _encode(camera: CameraSpec, frame: np.ndarray) -> bytes:
    import cv2
    good, data = cv2.imencode('.png', frame[..., ::-1] if camera.encoding == 'rgb8' else frame)
    assert good
    return data.tobytes()


def read(path: Path, contract: Contract, options: Options = PLAIN) -> Iterator[Episode]:
    """Yield the episodes, one at a time.

    Raises
    ------
    DataError
        Naming file, episode and key of what is missing, truncated, of another length, shape or type.

    """
    info = meta_files.Info(path)
    same_contract(contract, *(info.own.get(key) for key in CONTRACT_KEYS), str(path / meta_files.OWN_FILE))
    reader, number = _Reader(path, contract, options, info), 0
    for number, (file, table) in enumerate(_episodes(path, reader.columns)):
        where = f'{file}: episode {number}'
        expected = info.length(number)
        if expected is None or len(table) != expected:
            raise DataError(f'{where}: {len(table)} records, expected '
                            f'{"no such episode" if expected is None else expected} by {info.episodes_file}')
        with damage(where):
            episode = reader.episode(where, number, table)
        yield episode
    if number + 1 != info.total or not info.total:
        raise DataError(f'{path}: {number + 1} episodes in data/, expected {info.total} by meta/info.json')


def _episodes(path: Path, columns: list[str]) -> Iterator[tuple[Path, pa.Table]]:
    """Yield file and rows of each episode in the order of the files; an episode lies within one file."""
    files = sorted((path / 'data').glob('*/*.parquet'))
    if not files:
        raise DataError(f'{path}: no data/*/*.parquet')
    number = 0
    for file in files:
        held: list[pa.Table] = []
        with damage(str(file)):
            source = pq.ParquetFile(file)
            absent = [c for c in columns if c not in source.schema_arrow.names]
            if absent:
                raise DataError(f'{file}: key {", ".join(absent)} is missing; there is '
                                f'{", ".join(source.schema_arrow.names)}')
            batches = source.iter_batches(batch_size=256, columns=columns)
        while True:
            with damage(str(file)):
                batch = next(batches, None)
            if batch is None:
                break
            table = pa.Table.from_batches([batch])
            with damage(f'{file}: key episode_index'):
                index = number_array(table['episode_index'].to_numpy(), (len(table),),
                                     f'{file}: key episode_index', np.int64)
            cuts = [0, *(np.flatnonzero(np.diff(index)) + 1).tolist(), len(index)]
            for start, stop in zip(cuts, cuts[1:]):
                if held and index[start] != number:
                    yield file, pa.concat_tables(held)
                    held, number = [], number + 1
                if index[start] != number:
                    raise DataError(f'{file}: key episode_index is {index[start]}, expected {number}')
                held.append(table.slice(start, stop - start))
        if held:
            yield file, pa.concat_tables(held)
            number += 1


class _Reader:
    """Turns rows into episodes, by the features of the data set and the user's options."""

    def __init__(self, path: Path, contract: Contract, options: Options, info: meta_files.Info):
        self._contract, self._options, self._info = contract, options, info
        self._where = f'{path / meta_files.INFO}'
        self._clock = Clock(contract)
        self._own = bool(info.own)
        self._pictures = {c.name: self._picture_key(c) for c in contract.cameras}
        self._vectors, begin, total = {}, 0, sum(v.size for v in contract.vectors)
        for v in contract.vectors:
            key, which = part(options.keys.get(v.name, f'{STATE}[{begin}:{begin + v.size}]'))
            begin += v.size
            size = int(np.prod(self._feature(key).get('shape', (0,))))
            if v.name not in options.keys and size != total:
                raise DataError(f'{self._where}: key {key} has {size} entries, expected {total}: the vectors of '
                                f'contract {contract.name!r} (name a part of it: fosp import --map '
                                f'{v.name}={STATE}[0:{v.size}])')
            self._vectors[v.name] = (key, which, size)
        if (size := int(np.prod(self._feature('action').get('shape', (0,))))) != contract.action.size:
            raise DataError(f'{self._where}: key action has {size} entries, expected {contract.action.size}')
        more = [f'fosp.{key}' for key in OWN] if self._own else [
            k for k in ('next.reward', 'next.cost', 'next.done', 'next.success') if k in info.features]
        self.columns = [*self._pictures.values(), *{key for key, _, _ in self._vectors.values()}, 'action',
                        'frame_index', 'episode_index', *more]

    def _feature(self, key: str) -> dict:
        if key not in self._info.features:
            raise DataError(f'{self._where}: key {key} is no feature; there is {", ".join(self._info.features)}')
        return self._info.features[key]

    def _picture_key(self, camera: CameraSpec) -> str:
        key = self._options.keys.get(camera.name, f'{IMAGES}{camera.name}')
        kind = self._feature(key).get('dtype')
        if kind == 'video':
            raise DataError(f'{self._where}: key {key} is stored as video, expected image: the pictures of a video are '
                            'not those that were recorded; convert it with LeRobot')
        if kind != 'image':
            raise DataError(f'{self._where}: key {key} is of type {kind}, expected image')
        return key

    def episode(self, where: str, number: int, table: pa.Table) -> Episode:
        """Return one episode from its rows."""
        n, contract = len(table), self._contract

        def get(key: str, shape: tuple[int, ...], kind=np.float32) -> np.ndarray:
            with damage(f'{where}: key {key}'):
                values = table[key].combine_chunks()
                if values.null_count:
                    raise ValueError('there are empty entries')
                if pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
                    width = shape[0] if shape else 1
                    flat = values.flatten().to_numpy(zero_copy_only=False)
                    if flat.size != n * width:
                        raise ValueError(f'{flat.size} numbers in {n} records, expected {width} each')
                    array = flat.reshape(n, width)
                else:
                    array = values.to_numpy(zero_copy_only=False).reshape(n, *([1] if shape else []))
            return number_array(array, (n, *shape), f'{where}: key {key}', kind)

        if (get('frame_index', (), np.int64) != np.arange(n)).any():
            raise DataError(f'{where}: key frame_index does not count from 0 by one')
        images = {c.name: self._frames(table[self._pictures[c.name]], c, where) for c in contract.cameras}
        vectors = {}
        for v in contract.vectors:
            key, which, size = self._vectors[v.name]
            vectors[v.name] = number_array(get(key, (size,))[:, which], (n, v.size), f'{where}: key {key}')
        action = to_action(get('action', (contract.action.size,), np.float64), self._options.actions or 'unit',
                           contract, where)
        if self._own:
            reward, cost = (get(f'fosp.{key}', ()) for key in ('reward', 'cost'))
            first, last, terminal = (get(f'fosp.{key}', (), bool) for key in ('is_first', 'is_last', 'is_terminal'))
            stamps, steps = (get(f'fosp.{key}', (), np.int64) for key in ('stamp', 'step'))
            meta = meta_of(self._info.meta(number), f'{where}: key fosp/meta')
        else:
            reward, cost = (self._arrived(key, get, n, where) for key in ('reward', 'cost'))
            first, last, terminal = (np.zeros(n, bool) for _ in range(3))
            first[0] = last[-1] = True
            ended = next((k for k in ('next.success', 'next.done') if k in self._info.features), None)
            terminal[-1] = ended is not None and bool(get(ended, (), bool)[-1])
            stamps, steps = self._clock.next(n)
            action[-1] = 0      # what follows it was not recorded
            meta = {'task': self._info.task(number)}
        return Episode(images, vectors, action, reward, cost, first, last, terminal, stamps, steps, meta)

    def _arrived(self, key: str, get, n: int, where: str) -> np.ndarray:
        """Return what came on arrival at each record; that of the last row is added to the last record's."""
        if f'next.{key}' not in self._info.features:
            return missing(key, self._options, n, f'{where}: key next.{key} is missing')
        following = get(f'next.{key}', ())
        out = np.append(np.float32(0), following[:-1])
        out[-1] += following[-1]
        return out

    def _frames(self, column: pa.ChunkedArray, camera: CameraSpec, where: str) -> np.ndarray:
        import cv2
        where = f'{where}: key {self._pictures[camera.name]}'
        mode = cv2.IMREAD_GRAYSCALE if camera.encoding == 'mono8' else cv2.IMREAD_COLOR
        frames = np.empty((len(column), *camera.shape), np.uint8)
        for t, entry in enumerate(column):
            data = entry.as_py() if not isinstance(entry, pa.StructScalar) else entry['bytes'].as_py()
            frame = cv2.imdecode(np.frombuffer(data, np.uint8), mode) if isinstance(data, bytes) and data else None
            if frame is None:
                raise DataError(f'{where}: picture {t} is missing or cannot be decoded')
            frame = frame[..., ::-1] if camera.encoding == 'rgb8' else frame
            frames[t] = pictures(frame[None], (1, *camera.shape), f'{where}: picture {t}')[0]
        return frames
