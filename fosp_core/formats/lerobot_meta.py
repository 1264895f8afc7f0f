# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The folder `meta/` of a LeRobot data set: info, tasks, episodes and statistics. Needs pyarrow."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fosp_core.contract import Contract
from fosp_core.data.episode import Episode
from fosp_core.errors import DataError
from fosp_core.formats.common import CONTRACT_KEYS, damage, line

VERSION = 'v3.0'
READ = ('v3.0', 'v2.1')
CHUNK = 1000                    # files in a folder
DATA = 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'
INFO, OWN_FILE = 'meta/info.json', 'meta/fosp.json'
IMAGES, STATE = 'observation.images.', 'observation.state'
# The record itself, where LeRobot's rows have what follows it.
OWN = {'reward': 'float32', 'cost': 'float32', 'is_first': 'bool', 'is_last': 'bool', 'is_terminal': 'bool',
       'stamp': 'int64', 'step': 'int64'}
_COUNTERS = ('frame_index', 'episode_index', 'index', 'task_index')


def features(contract: Contract) -> dict:
    """Return the features of `info.json` for a contract."""
    found = {f'{IMAGES}{c.name}': {'dtype': 'image', 'shape': list(c.shape), 'names': ['height', 'width', 'channels']}
             for c in contract.cameras}
    if contract.vectors:
        names = [f'{v.name}.{field}' for v in contract.vectors for field in v.fields]
        found[STATE] = {'dtype': 'float32', 'shape': [len(names)], 'names': names}
    found['action'] = {'dtype': 'float64', 'shape': [contract.action.size], 'names': list(contract.action.fields)}
    single = {'next.reward': 'float32', 'next.cost': 'float32', 'next.done': 'bool',
              **{f'fosp.{key}': kind for key, kind in OWN.items()}, 'timestamp': 'float32',
              **dict.fromkeys(_COUNTERS, 'int64')}
    return found | {key: {'dtype': kind, 'shape': [1], 'names': None} for key, kind in single.items()}


def write(folder: Path, contract: Contract, rows: list[dict], tasks: dict[str, int], frames: int,
          stats: 'Stats') -> None:
    """Write all of `meta/`."""
    (folder / 'meta' / 'episodes' / 'chunk-000').mkdir(parents=True)
    rate = int(contract.rate_hz) if contract.rate_hz == int(contract.rate_hz) else contract.rate_hz
    info = {'codebase_version': VERSION, 'robot_type': contract.name, 'total_episodes': len(rows),
            'total_frames': frames, 'total_tasks': len(tasks), 'chunks_size': CHUNK, 'data_files_size_in_mb': 100,
            'video_files_size_in_mb': 200, 'fps': rate, 'splits': {'train': f'0:{len(rows)}'}, 'data_path': DATA,
            'video_path': None, 'features': features(contract)}
    (folder / INFO).write_text(json.dumps(info, indent=2))
    (folder / OWN_FILE).write_text(json.dumps({CONTRACT_KEYS[0]: contract.hash, CONTRACT_KEYS[1]: contract.to_dict()}))
    (folder / 'meta' / 'stats.json').write_text(json.dumps(stats.to_dict(), indent=1))
    pq.write_table(pa.Table.from_pylist(rows), folder / 'meta' / 'episodes' / 'chunk-000' / 'file-000.parquet')
    # LeRobot reads the tasks with pandas and needs `task` as the index, which pandas notes in the schema.
    table = pa.table({'task_index': pa.array(tasks.values(), pa.int64()), 'task': pa.array(tasks.keys(), pa.string())})
    column = {'field_name': None, 'metadata': None}
    note = {'index_columns': ['task'], 'column_indexes': [], 'pandas_version': '2.0.0', 'columns': [
        {**column, 'name': 'task_index', 'field_name': 'task_index', 'pandas_type': 'int64', 'numpy_type': 'int64'},
        {**column, 'name': 'task', 'field_name': 'task', 'pandas_type': 'unicode', 'numpy_type': 'object'}]}
    pq.write_table(table.replace_schema_metadata({'pandas': json.dumps(note)}), folder / 'meta' / 'tasks.parquet')


class Stats:
    """Least, greatest, mean and deviation of every feature, for each episode and over all; pictures in 0 to 1."""

    def __init__(self, contract: Contract):
        self._cameras = {f'{IMAGES}{c.name}': c for c in contract.cameras}
        self._all: dict[str, list] = {}     # feature -> count, sum, squares, low, high

    def add(self, episode: Episode, table: pa.Table) -> dict[str, list]:
        """Take one episode; return its columns `stats/FEATURE/...`."""
        out = {}
        for key in table.column_names:
            if key in self._cameras:
                frames = episode.images[self._cameras[key].name]
                values = frames.reshape(-1, frames.shape[-1])
                count, scale, shape = len(frames), 255.0, (-1, 1, 1)
            else:
                column = table[key].combine_chunks()
                flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
                values = flat.to_numpy(zero_copy_only=False).reshape(len(episode), -1)
                count, scale, shape = len(episode), 1.0, (-1,)
            row = _moments(values, count, scale)
            self._all[key] = _joined(self._all.get(key), row)
            out |= {f'stats/{key}/{name}': value for name, value in _named(row, shape).items()}
        return out

    def to_dict(self) -> dict:
        """Return what `stats.json` holds."""
        return {key: _named(row, (-1, 1, 1) if key in self._cameras else (-1,)) for key, row in self._all.items()}


def _moments(values: np.ndarray, count: int, scale: float) -> list:
    values = values.astype(np.float64) / scale
    # Sums of stamps lose all digits of their deviation: mean and squared deviations instead.
    mean = values.mean(0)
    return [count, len(values), mean, ((values - mean) ** 2).sum(0), values.min(0), values.max(0)]


def _joined(a: list | None, b: list) -> list:
    """Return the moments of both together (Chan, Golub and LeVeque 1979, equation 1.5)."""
    if a is None:
        return b
    n, shift = a[1] + b[1], b[2] - a[2]
    return [a[0] + b[0], n, a[2] + shift * b[1] / n, a[3] + b[3] + shift ** 2 * a[1] * b[1] / n,
            np.minimum(a[4], b[4]), np.maximum(a[5], b[5])]


def _named(row: list, shape: tuple[int, ...]) -> dict[str, list]:
    count, n, mean, squares, low, high = row
    found = {'min': low, 'max': high, 'mean': mean, 'std': np.sqrt(squares / n)}
    return {k: v.reshape(shape).tolist() for k, v in found.items()} | {'count': [count]}


class Info:
    """`meta/` of a data set that is read: v3.0 or v2.1.

    Raises
    ------
    DataError
        Naming file and key of what is missing or wrong.

    """

    def __init__(self, path: Path):
        self._path = path
        raw = _json(path / INFO)
        version = raw.get('codebase_version')
        if version not in READ:
            raise DataError(f'{path / INFO}: key codebase_version is {version!r}, expected {" or ".join(READ)}')
        self.features = raw.get('features')
        if not isinstance(self.features, dict) or not all(isinstance(f, dict) for f in self.features.values()):
            raise DataError(f'{path / INFO}: key features is no mapping of features')
        self.total = raw.get('total_episodes')
        if not isinstance(self.total, int):
            raise DataError(f'{path / INFO}: key total_episodes is {self.total!r}, expected a number')
        self.own = _json(path / OWN_FILE) if (path / OWN_FILE).is_file() else {}
        self.episodes_file, self._rows = _episodes_v3(path) if version == 'v3.0' else _episodes_v2(path)

    def _row(self, number: int) -> dict:
        return self._rows.get(number, {})

    def length(self, number: int) -> int | None:
        """Records of an episode; None when there is no such episode."""
        return self._row(number).get('length')

    def task(self, number: int) -> str:
        """What was to be done in an episode."""
        tasks = self._row(number).get('tasks')
        return str(tasks[0]) if isinstance(tasks, list) and tasks else 'unknown'

    def meta(self, number: int):
        """Our own meta of an episode, as JSON."""
        return self._row(number).get('fosp/meta')


def _json(file: Path) -> dict:
    try:
        data = json.loads(file.read_text())
        if not isinstance(data, dict):
            raise ValueError('no mapping')
    except OSError as error:
        raise DataError(f'{file}: {error.strerror}') from None
    except ValueError as error:
        raise DataError(f'{file}: not JSON (truncated?): {line(error)}') from None
    return data


def _episodes_v3(path: Path) -> tuple[str, dict[int, dict]]:
    files = sorted((path / 'meta' / 'episodes').glob('*/*.parquet'))
    if not files:
        raise DataError(f'{path}: no meta/episodes/*/*.parquet')
    rows = {}
    for file in files:
        with damage(str(file)):
            source = pq.ParquetFile(file)
            names = [n for n in ('episode_index', 'length', 'tasks', 'fosp/meta') if n in source.schema_arrow.names]
            rows |= {row['episode_index']: row for row in source.read(names).to_pylist()}
    return 'meta/episodes', rows


def _episodes_v2(path: Path) -> tuple[str, dict[int, dict]]:
    file = path / 'meta' / 'episodes.jsonl'
    if not file.is_file():
        raise DataError(f'{file}: no such file')
    with damage(str(file)):
        return 'meta/episodes.jsonl', {row['episode_index']: row for row in map(
            json.loads, filter(None, file.read_text().splitlines()))}
