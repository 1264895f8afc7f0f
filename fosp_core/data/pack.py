# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A data set as one folder of flat .npy files, read through the page cache: opened in a second, whatever its size.

`DIR/index.json` names contract and episodes; beside it lies one array per key, the records of all episodes in a row:
`camera_<name>.npy` uint8 (N, H, W, C), `vector_<name>.npy` float32 (N, n), and those of `Episode`. Numpy alone.
"""

import contextlib
import functools
import json
import mmap
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import numpy as np

from fosp_core.contract import Contract
from fosp_core.data.episode import Episode
from fosp_core.data.store import episode_digest, hash_of_digests
from fosp_core.errors import DataError, FospError
from fosp_core.io import atomic_dir

SCHEMA = 1
INDEX = 'index.json'

_SCALARS = {'reward': np.float32, 'cost': np.float32, 'is_first': np.bool_, 'is_last': np.bool_,
            'is_terminal': np.bool_, 'stamp': np.int64, 'step': np.int64}


def is_pack(path: Path | str) -> bool:
    """Return whether `path` is a folder with an index."""
    return (Path(path) / INDEX).is_file()


def layout(contract: Contract) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Return file name -> type and shape of one record."""
    found = {f'camera_{quote(c.name, safe="")}.npy': (np.uint8, c.shape) for c in contract.cameras}
    found |= {f'vector_{quote(v.name, safe="")}.npy': (np.float32, (v.size,)) for v in contract.vectors}
    found['action.npy'] = (np.float32, (contract.action.size,))
    found |= {f'{key}.npy': (kind, ()) for key, kind in _SCALARS.items()}
    return {name: (np.dtype(kind), shape) for name, (kind, shape) in found.items()}


def step_bytes(contract: Contract) -> int:
    """Raw bytes of one record."""
    return sum(kind.itemsize * int(np.prod(shape)) for kind, shape in layout(contract).values())


def write_pack(path: Path | str, contract: Contract, episodes: Iterable[Episode]) -> dict:
    """Write episodes, one at a time, as a folder that appears whole or not at all; return its index.

    Raises
    ------
    DataError
        When an episode does not fit the contract, naming its number, key and step; when there is none.

    """
    path, files = Path(path), layout(contract)
    entries, steps = [], 0
    with atomic_dir(path) as folder, contextlib.ExitStack() as stack:
        streams = {name: stack.enter_context(open(folder / name, 'wb')) for name in files}
        # numpy leaves room in a header for the length to grow.
        offsets = {name: _write_header(streams[name], kind, (0, *shape)) for name, (kind, shape) in files.items()}
        for episode in episodes:
            episode.validate(contract, f'{path}: episode {len(entries)}')
            for name, array in zip(files, _arrays(contract, episode)):
                streams[name].write(np.ascontiguousarray(array).data)
            entries.append({'steps': len(episode), 'digest': episode_digest(episode), 'meta': episode.meta})
            steps += len(episode)
        if not entries:
            raise DataError(f'{path}: no episode to write')
        for name, (kind, shape) in files.items():
            streams[name].seek(0)
            if _write_header(streams[name], kind, (steps, *shape)) != offsets[name]:
                raise FospError(f'{path}/{name}: {steps} steps do not fit the header')
        index = {'schema': SCHEMA, 'contract_hash': contract.hash, 'contract': contract.to_dict(), 'steps': steps,
                 'data_hash': hash_of_digests([e['digest'] for e in entries]), 'episodes': entries}
        (folder / INDEX).write_text(json.dumps(index, default=lambda value: value.item()))
    return index


def open_pack(path: Path | str, contract: Contract, check: bool = True) -> list[Episode]:
    """Map a packed folder; its pictures are read when they are needed, everything else is checked now.

    The arrays of the episodes are read-only views of the files. Without `check` their values are not looked at.

    Raises
    ------
    DataError
        Naming file, episode and step of what is missing, truncated or out of bounds.
    ContractError
        When it was packed for another contract.

    """
    path = Path(path)
    index = _read_index(path, contract)
    ends = np.cumsum([e['steps'] for e in index['episodes']])
    starts = np.concatenate([[0], ends[:-1]])
    files = {name: _File(path / name, kind, (index['steps'], *shape), starts)
             for name, (kind, shape) in layout(contract).items()}
    flat = {name: file.array for name, file in files.items()}
    cameras, vectors = [c.name for c in contract.cameras], [v.name for v in contract.vectors]
    pictures, series = list(files.values())[:len(cameras)], list(flat.values())
    episodes = []
    for start, end, entry in zip(starts.tolist(), ends.tolist(), index['episodes']):
        views = [array[start:end] for array in series]
        n = len(cameras)
        episode = Episode(dict(zip(cameras, views)), dict(zip(vectors, views[n:])), *views[n + len(vectors):],
                          meta=entry['meta'])
        episode.digest = entry['digest']
        episode.will_need = functools.partial(_will_need, pictures, start)
        episodes.append(episode)
    for number in _suspects(flat, starts) if check else ():
        episodes[number].validate(contract, f'{path}: episode {number}')
    return episodes


def verify_pack(path: Path | str, contract: Contract) -> int:
    """Read every byte; return the number of episodes; raise DataError naming the first whose content has changed."""
    episodes = open_pack(path, contract)
    start = 0
    for number, episode in enumerate(episodes):
        expected, episode.digest = episode.digest, None
        if episode_digest(episode) != expected:
            raise DataError(f'{path}: episode {number} (steps {start} to {start + len(episode) - 1}): its content is '
                            f'not what was packed')
        start += len(episode)
    return len(episodes)


def _arrays(contract: Contract, episode: Episode) -> list[np.ndarray]:
    """Return the arrays of an episode in the order of `layout`."""
    return [*(episode.images[c.name] for c in contract.cameras), *(episode.vectors[v.name] for v in contract.vectors),
            episode.action, *(getattr(episode, key) for key in _SCALARS)]


def _write_header(stream, kind: np.dtype, shape: tuple[int, ...]) -> int:
    np.lib.format.write_array_header_1_0(
        stream, {'descr': np.lib.format.dtype_to_descr(kind), 'fortran_order': False, 'shape': shape})
    return stream.tell()


def _read_index(path: Path, contract: Contract) -> dict:
    file = path / INDEX
    try:
        index = json.loads(file.read_text())
        if index['schema'] != SCHEMA:
            raise DataError(f'{file}: schema {index["schema"]!r}, expected {SCHEMA}')
        contract.require_same(index['contract_hash'], str(file), index['contract'])
        lengths = [e['steps'] for e in index['episodes']]
        digests = [e['digest'] for e in index['episodes']]
        if not all(isinstance(n, int) and n >= 2 for n in lengths) or not lengths or sum(lengths) != index['steps']:
            raise DataError(f'{file}: {len(lengths)} episodes of {sum(lengths)} steps, expected {index["steps"]}')
        if not all(isinstance(e['meta'], dict) for e in index['episodes']):
            raise DataError(f'{file}: key meta of an episode is no mapping')
        if hash_of_digests(digests) != index['data_hash']:
            raise DataError(f'{file}: data_hash is not that of its episodes: changed or damaged')
    except OSError as error:
        raise DataError(f'{file}: {error.strerror}') from None
    except KeyError as error:
        raise DataError(f'{file}: key {error.args[0]} is missing') from None
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f'{file}: not an index (truncated?): {" ".join(str(error).split())}') from None
    return index


class _File:
    """One array of the folder, mapped read-only; DataError names the first episode and step that is missing."""

    def __init__(self, file: Path, kind: np.dtype, shape: tuple[int, ...], starts: np.ndarray):
        self.row = kind.itemsize * int(np.prod(shape[1:]))
        try:
            with open(file, 'rb') as stream:
                if np.lib.format.read_magic(stream) != (1, 0):
                    raise ValueError('version of the format')
                found, fortran, descr = np.lib.format.read_array_header_1_0(stream)
                self.offset = stream.tell()
                self.map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise DataError(f'{file}: {error.strerror}') from None
        except Exception as error:  # noqa: BLE001 - a damaged header can make the parser raise anything
            raise DataError(f'{file}: not an array (truncated?): {" ".join(str(error).split())}') from None
        if (found, fortran, descr) != (shape, False, kind):
            raise DataError(f'{file}: {descr} {found}, expected {kind} {shape}')
        size, expected = len(self.map), self.offset + self.row * shape[0]
        if size != expected:
            step = min(max(0, (size - self.offset) // self.row), shape[0] - 1)
            number = int(np.searchsorted(starts, step, side='right')) - 1
            raise DataError(f'{file}: {size} bytes, expected {expected}: truncated or damaged from episode {number}, '
                            f'step {step - starts[number]} on')
        # Not np.memmap: its slices are ten times as slow, and it does not lend its mapping.
        self.array = np.frombuffer(self.map, kind, offset=self.offset).reshape(shape)


def _will_need(files: list[_File], first: int, start: int, stop: int) -> None:
    """Have the disk fetch records first + start to first + stop: 9 to 17 times as fast as waiting page by page."""
    for file in files:
        begin = file.offset + (first + start) * file.row
        page = begin // mmap.PAGESIZE * mmap.PAGESIZE
        file.map.madvise(mmap.MADV_WILLNEED, page, begin - page + (stop - start) * file.row)


def _suspects(flat: dict[str, np.ndarray], starts: np.ndarray) -> list[int]:
    """Numbers of the episodes in which anything but a picture looks wrong: `Episode.validate` over all at once."""
    wrong = np.zeros(len(flat['reward.npy']), bool)
    for array in flat.values():
        if array.dtype == np.float32:
            wrong |= ~np.isfinite(array.reshape(len(array), -1)).all(1)
    wrong |= (np.abs(flat['action.npy']) > 1.0 + 1e-6).any(1) | (flat['cost.npy'] < 0)
    first = np.zeros(len(wrong), bool)
    first[starts] = True
    wrong |= flat['is_first.npy'] != first
    inner = ~first[1:]      # the record before belongs to the same episode
    wrong[1:] |= inner & flat['is_last.npy'][:-1]
    wrong[1:] |= inner & (np.diff(flat['step.npy']) != 1)
    wrong[1:] |= inner & (np.diff(flat['stamp.npy']) <= 0)
    return sorted({int(n) for n in np.searchsorted(starts, np.flatnonzero(wrong), side='right') - 1})
