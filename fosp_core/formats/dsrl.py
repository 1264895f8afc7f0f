# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Flat transitions in one HDF5 file, as DSRL (and, without costs, D4RL) lays them out. Needs h5py.

N transitions in a row: `observations`, `next_observations` (N, n), `actions` (N, A), `rewards`, `costs` (N,), and
`terminals`, `timeouts` (N,), of which one is set at the end of each episode. An episode of T records makes T - 1
transitions. `observations` are the vectors of the contract, side by side; pictures, for which that layout has no place,
lie in `images/NAME` and `next_images/NAME` (N, H, W, C). `infos/*` (N, ...) holds what transitions forget: stamps,
counters, the first reward and cost of a fragment, its last action, and on the first row of an episode its meta, as text
of fixed length.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from fosp_core.contract import Contract
from fosp_core.data.episode import Episode
from fosp_core.errors import DataError
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
from fosp_core.formats.hdf5 import append, created, dataset, opened, rows, sparse_text
from fosp_core.io import atomic_dir

FILE = 'data.hdf5'
_LONGEST = 1_000_000    # transitions without an end: then ends are missing, and nothing is gained by reading on


def write(path: Path, contract: Contract, episodes: Iterable[Episode]) -> dict:
    """Write `path`/data.hdf5; one episode in memory at a time."""
    count = steps = rows_so_far = 0
    metas = {}
    with atomic_dir(path) as folder, created(folder / FILE) as file:
        for key, text in zip(CONTRACT_KEYS, (contract.hash, json.dumps(contract.to_dict()))):
            file.attrs[key] = np.bytes_(text)
        for episode in checked(path, contract, episodes):
            if (episode.is_terminal & ~episode.is_last).any():
                raise DataError(f'{path}: episode {count}: is_terminal is set without is_last at step '
                                f'{int((episode.is_terminal & ~episode.is_last).argmax())}: this layout would end it')
            for key, values in _transitions(contract, episode).items():
                append(file, key, values, compress='images/' in key)
            metas[rows_so_far] = meta_text(episode.meta)
            count, steps, rows_so_far = count + 1, steps + len(episode), rows_so_far + len(episode) - 1
        sparse_text(file, 'infos/meta', metas, rows_so_far)
    return {'episodes': count, 'steps': steps}


def _transitions(contract: Contract, e: Episode) -> dict[str, np.ndarray]:
    n = len(e) - 1
    state = _state(contract, e)
    last = np.zeros(n, bool)
    last[-1] = True
    out = {'observations': state[:-1], 'next_observations': state[1:], 'actions': e.action[:-1],
           'rewards': e.reward[1:], 'costs': e.cost[1:], 'terminals': last & e.is_terminal[-1],
           'timeouts': last & ~e.is_terminal[-1]}
    for name, frames in e.images.items():
        out |= {f'images/{name}': frames[:-1], f'next_images/{name}': frames[1:]}
    return out | {'infos/stamp': np.stack([e.stamp[:-1], e.stamp[1:]], 1), 'infos/step': e.step[:-1],
                  'infos/reward': e.reward[:-1], 'infos/cost': e.cost[:-1], 'infos/next_action': e.action[1:],
                  'infos/is_last': e.is_last[1:]}


def _state(contract: Contract, e: Episode) -> np.ndarray:
    return np.concatenate([e.vectors[v.name] for v in contract.vectors] or [np.zeros((len(e), 0), np.float32)], axis=1)


def read(path: Path, contract: Contract, options: Options = PLAIN) -> Iterator[Episode]:
    """Yield the episodes of a file, or of `path`/data.hdf5, one at a time.

    Raises
    ------
    DataError
        Naming file and key of what is missing, truncated, of another length, shape or type; or when
        `next_observations` are not the observations that follow.

    """
    path = path / FILE if path.is_dir() else path
    with opened(path) as file:
        where = str(path)
        with damage(where):
            found = [file.attrs.get(key) for key in CONTRACT_KEYS]
        same_contract(contract, *found, where)
        total = (*dataset(file, 'actions', where).shape, 0)[0]
        if not total:
            raise DataError(f'{where}: key actions is empty')
        ends = np.zeros(total, bool)
        for key in ('terminals', 'timeouts'):
            ends |= number_array(rows(file, key, where, count=total), (total,), f'{where}: key {key}', bool)
        ends = np.flatnonzero(ends) + 1
        starts = np.concatenate([[0], ends]).astype(int)
        stops = np.append(ends, total).astype(int)
        clock = Clock(contract)
        for number, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist())):
            if start == stop:
                continue        # the file ends with an end
            if stop - start > _LONGEST:
                raise DataError(f'{where}: no terminals or timeouts in {stop - start} transitions from {start} on')
            with damage(f'{where}: episode {number}'):
                episode = _episode(file, f'{where}: episode {number}', total, start, stop, contract, options, clock)
            yield episode


def _episode(file, where: str, total: int, start: int, stop: int, contract: Contract, options: Options,
             clock: Clock) -> Episode:
    n = stop - start

    def get(key: str, shape: tuple[int, ...], kind=np.float32) -> np.ndarray:
        return number_array(rows(file, key, where, start, stop, total), (n, *shape), f'{where}: key {key}', kind)

    def reward_or_cost(key: str) -> np.ndarray:
        if f'{key}s' not in file:
            return missing(key, options, n, f'{where}: key {key}s is missing')
        return get(f'{key}s', ())

    state = dataset(file, 'observations', where)
    if state.ndim != 2:
        raise DataError(f'{where}: key observations has shape {state.shape}, expected (N, n)')
    vectors = _vectors(get('observations', state.shape[1:]), get('next_observations', state.shape[1:]), where, contract,
                       options)
    images = {}
    for camera in contract.cameras:
        key = options.keys.get(camera.name, f'images/{camera.name}')
        first = pictures(rows(file, key, where, start, stop, total), (n, *camera.shape), f'{where}: key {key}')
        last = pictures(rows(file, f'next_{key}', where, stop - 1, stop, total), (1, *camera.shape),
                        f'{where}: key next_{key}')
        images[camera.name] = np.concatenate([first, last])
    action = np.zeros((n + 1, contract.action.size), np.float32)
    action[:-1] = to_action(get('actions', (contract.action.size,), np.float64), options.actions or 'normalised',
                            contract, where)
    reward = np.concatenate([[0], reward_or_cost('reward')]).astype(np.float32)
    cost = np.concatenate([[0], reward_or_cost('cost')]).astype(np.float32)
    first, last, terminal = (np.zeros(n + 1, bool) for _ in range(3))
    first[0] = True
    terminal[-1] = get('terminals', (), bool)[-1]
    last[-1] = terminal[-1] | get('timeouts', (), bool)[-1]
    meta = {}
    if CONTRACT_KEYS[0] in file.attrs:      # ours: nothing was forgotten
        stamp = get('infos/stamp', (2,), np.int64)
        counter = get('infos/step', (), np.int64)
        stamps, steps = np.append(stamp[:, 0], stamp[-1, 1]), np.append(counter, counter[-1] + 1)
        reward[0], cost[0] = get('infos/reward', ())[0], get('infos/cost', ())[0]
        action[-1] = get('infos/next_action', (contract.action.size,))[-1]
        last[1:] = get('infos/is_last', (), bool)
        with damage(f'{where}: key infos/meta'):
            meta = meta_of(dataset(file, 'infos/meta', where)[start], f'{where}: key infos/meta')
    else:
        stamps, steps = clock.next(n + 1)
    return Episode(images, vectors, action, reward, cost, first, last, terminal, stamps, steps, meta)


def _vectors(state: np.ndarray, following: np.ndarray, where: str, contract: Contract, options: Options) -> dict:
    different = (state[1:] != following[:-1]).any(1) & np.isfinite(following[:-1]).all(1)
    if different.any():
        raise DataError(f'{where}: key next_observations is not the observation that follows at transition '
                        f'{int(different.argmax())}: shuffled, or an end is not marked')
    state = np.concatenate([state, following[-1:]])
    out, begin = {}, 0
    if not options.keys and state.shape[1] != sum(v.size for v in contract.vectors):
        raise DataError(f'{where}: key observations has {state.shape[1]} entries, expected '
                        f'{sum(v.size for v in contract.vectors)}: the vectors of contract {contract.name!r}')
    for vector in contract.vectors:
        name, which = part(options.keys.get(vector.name, f'observations[{begin}:{begin + vector.size}]'))
        begin += vector.size
        if name != 'observations':
            raise DataError(f'{where}: {vector.name} is mapped to {name}, expected a part of observations')
        out[vector.name] = number_array(state[:, which], (len(state), vector.size), f'{where}: key observations, '
                                        f'part for {vector.name}')
    return out
