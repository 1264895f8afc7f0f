# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Minari's episode groups with costs in `infos`. Needs h5py; Minari itself is not needed.

`DIR/data/main_data.hdf5` has a group `episode_<i>` for each: `observations` (a group with T records of each camera and
vector), `actions`, `rewards`, `terminations`, `truncations` (T - 1), and `infos` (T: what came on arrival at each
observation): `cost`, and our `reward`, `stamp`, `step`, `is_last`, `is_terminal`. `DIR/data/metadata.json` has the
spaces. Pictures are stored raw (`jpeg_encoding` false, known to Minari from 0.5.4 on); JPEG ones are read.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np

from fosp_core.contract import CameraSpec, Contract
from fosp_core.data.episode import Episode
from fosp_core.errors import DataError
from fosp_core.formats.common import (
    CONTRACT_KEYS,
    Clock,
    checked,
    damage,
    line,
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
from fosp_core.formats.hdf5 import append, created, dataset, opened, rows
from fosp_core.io import atomic_dir

FILE, METADATA = 'main_data.hdf5', 'metadata.json'
VERSION = '0.5.4'       # of Minari, whose layout this is
_INFOS = ('cost', 'reward', 'stamp', 'step', 'is_last', 'is_terminal')


def write(path: Path, contract: Contract, episodes: Iterable[Episode]) -> dict:
    """Write `path`/data; one episode in memory at a time."""
    count = steps = 0
    with atomic_dir(path) as folder:
        (folder / 'data').mkdir()
        with created(folder / 'data' / FILE, track_order=True) as file:
            for episode in checked(path, contract, episodes):
                _add(file.create_group(f'episode_{count}'), count, episode)
                count, steps = count + 1, steps + len(episode)
        name = re.sub(r'[^-_\w]', '_', contract.name)
        metadata = {'dataset_id': f'fosp/{name}-v0', 'minari_version': VERSION, 'data_format': 'hdf5',
                    'jpeg_encoding': False, 'total_episodes': count, 'total_steps': steps - count,
                    'observation_space': json.dumps(_observation_space(contract)),
                    'action_space': json.dumps(_box('float32', -np.ones(contract.action.size),
                                                    np.ones(contract.action.size))),
                    'description': f'{contract.name}; costs in infos/cost; actions are normalised to [-1, 1]',
                    CONTRACT_KEYS[0]: contract.hash, CONTRACT_KEYS[1]: contract.to_dict()}
        (folder / 'data' / METADATA).write_text(json.dumps(metadata))
    return {'episodes': count, 'steps': steps}


def _add(group: h5py.Group, number: int, e: Episode) -> None:
    group.attrs['id'], group.attrs['total_steps'] = number, len(e) - 1
    if isinstance(e.meta.get('seed'), int):
        group.attrs['seed'] = e.meta['seed']
    group.attrs['fosp_meta'], group.attrs['fosp_final_action'] = np.bytes_(meta_text(e.meta)), e.action[-1]
    for name, values in {**e.images, **e.vectors}.items():
        append(group, f'observations/{name}', values, compress=values.dtype == np.uint8)
    last = np.zeros(len(e) - 1, bool)
    last[-1] = True
    for key, values in {'actions': e.action[:-1], 'rewards': e.reward[1:], 'terminations': last & e.is_terminal[-1],
                        'truncations': last & ~e.is_terminal[-1],
                        **{f'infos/{key}': getattr(e, key) for key in _INFOS}}.items():
        append(group, key, values)


def _box(kind: str, low: np.ndarray, high: np.ndarray) -> dict:
    return {'type': 'Box', 'dtype': kind, 'shape': list(low.shape), 'low': low.tolist(), 'high': high.tolist()}


def _observation_space(contract: Contract) -> dict:
    spaces = {c.name: _box('uint8', np.zeros(c.shape, int), np.full(c.shape, 255)) for c in contract.cameras}
    spaces |= {v.name: _box('float32', np.full(v.size, -np.inf), np.full(v.size, np.inf)) for v in contract.vectors}
    return {'type': 'Dict', 'subspaces': spaces}


def read(path: Path, contract: Contract, options: Options = PLAIN) -> Iterator[Episode]:
    """Yield the episodes, one at a time.

    Raises
    ------
    DataError
        Naming file, episode and key of what is missing, truncated, of another length, shape or type.

    """
    file_path = next((p for p in (path / 'data' / FILE, path / FILE) if p.is_file()), path)
    metadata = _metadata(file_path.parent / METADATA)
    same_contract(contract, *(metadata.get(key) for key in CONTRACT_KEYS), str(file_path.parent / METADATA))
    unit = options.actions or _unit(metadata, contract, file_path.parent / METADATA)
    clock = Clock(contract)
    with opened(file_path) as file:
        total = metadata.get('total_episodes', len(file))
        if not total:
            raise DataError(f'{file_path}: no episode')
        for number in range(total):
            where = f'{file_path}: episode_{number}'
            with damage(where):
                group = file.get(f'episode_{number}')
            if not isinstance(group, h5py.Group):
                raise DataError(f'{where} is missing; {METADATA} counts {total} episodes')
            with damage(where):
                episode = _episode(group, where, contract, options, unit, clock)
            yield episode


def _metadata(file: Path) -> dict:
    try:
        metadata = json.loads(file.read_text())
        if not isinstance(metadata, dict) or not isinstance(metadata.get('total_episodes', 0), int):
            raise ValueError('no mapping with total_episodes')
    except OSError as error:
        raise DataError(f'{file}: {error.strerror}') from None
    except ValueError as error:
        raise DataError(f'{file}: not the metadata of a Minari data set: {line(error)}') from None
    if metadata.get('data_format', 'hdf5') != 'hdf5':
        raise DataError(f'{file}: key data_format is {metadata["data_format"]!r}, expected hdf5')
    return metadata


def _unit(metadata: dict, contract: Contract, file: Path) -> str:
    """Return what the action space says of the actions: normalised, or in the contract's unit."""
    try:
        space = json.loads(metadata['action_space'])
        low, high = np.ravel(space['low']).astype(float), np.ravel(space['high']).astype(float)
    except (KeyError, TypeError, ValueError):
        raise DataError(f'{file}: key action_space is no box with low and high (name the unit of the actions: '
                        'fosp import --actions)') from None
    size = contract.action.size
    if low.shape != (size,) or high.shape != (size,):
        raise DataError(f'{file}: key action_space has {low.size} entries, expected {size}')
    if (low == -1).all() and (high == 1).all():
        return 'normalised'
    if np.allclose(low, contract.action.low, 1e-6) and np.allclose(high, contract.action.high, 1e-6):
        return 'unit'
    raise DataError(f'{file}: key action_space is {low.tolist()} to {high.tolist()}, expected -1 to 1 or the limits of '
                    f'the contract, {list(contract.action.low)} to {list(contract.action.high)}')


def _episode(group: h5py.Group, where: str, contract: Contract, options: Options, unit: str, clock: Clock) -> Episode:
    n = (*dataset(group, 'rewards', where).shape, 0)[0]
    if n < 1:
        raise DataError(f'{where}: key rewards is empty')

    def get(key: str, shape: tuple[int, ...], kind=np.float32) -> np.ndarray:
        return number_array(rows(group, key, where, count=shape[0]), shape, f'{where}: key {key}', kind)

    observed = group.get('observations')
    if observed is None:
        raise DataError(f'{where}: key observations is missing')
    images = {c.name: _frames(group, _key(c.name, observed, options), n + 1, c, where) for c in contract.cameras}
    vectors = {}
    for vector in contract.vectors:
        key, which = part(_key(vector.name, observed, options))
        values = rows(group, key, where, count=n + 1)
        values = values[:, None] if values.ndim == 1 else values[..., which]
        vectors[vector.name] = number_array(values, (n + 1, vector.size), f'{where}: key {key}')
    action = np.zeros((n + 1, contract.action.size), np.float32)
    action[:-1] = to_action(get('actions', (n, contract.action.size), np.float64), unit, contract, where)
    reward = np.append(np.float32(0), get('rewards', (n,)))
    infos = group.get('infos', {})
    first, last, terminal = (np.zeros(n + 1, bool) for _ in range(3))
    first[0] = True
    terminal[-1] = get('terminations', (n,), bool)[-1]
    last[-1] = terminal[-1] | get('truncations', (n,), bool)[-1]
    ours = 'fosp_meta' in group.attrs
    if ours:        # nothing was forgotten
        reward[0] = get('infos/reward', (n + 1,))[0]
        last, terminal = (get(f'infos/{key}', (n + 1,), bool) for key in ('is_last', 'is_terminal'))
        stamps, steps = (get(f'infos/{key}', (n + 1,), np.int64) for key in ('stamp', 'step'))
        with damage(f'{where}: attribute fosp_final_action'):
            action[-1] = group.attrs['fosp_final_action']
        meta = meta_of(group.attrs['fosp_meta'], f'{where}: attribute fosp_meta')
    else:
        stamps, steps = clock.next(n + 1)
        meta = {'seed': int(group.attrs['seed'])} if isinstance(group.attrs.get('seed'), (int, np.integer)) else {}
    if 'cost' not in infos:
        cost = missing('cost', options, n + 1, f'{where}: key infos/cost is missing')
    elif not ours and dataset(group, 'infos/cost', where).shape[:1] == (n,):     # none for the reset
        cost = np.append(np.float32(0), get('infos/cost', (n,)))
    else:
        cost = get('infos/cost', (n + 1,))
    return Episode(images, vectors, action, reward, cost, first, last, terminal, stamps, steps, meta)


def _key(name: str, observed, options: Options) -> str:
    """Return the key of an observation; `.` is `observations` itself."""
    key = options.keys.get(name, name if isinstance(observed, h5py.Group) else '.')
    if key.startswith('.'):
        return f'observations{key[1:]}'
    return f'observations/{key}'


def _frames(group: h5py.Group, key: str, count: int, camera: CameraSpec, where: str) -> np.ndarray:
    values = rows(group, key, where, count=count)
    where = f'{where}: key {key}'
    if values.dtype == object or (values.ndim == 2 and values.dtype == np.uint8 and camera.shape[0] > 1):
        import cv2
        mode = cv2.IMREAD_GRAYSCALE if camera.encoding == 'mono8' else cv2.IMREAD_COLOR
        decoded = [cv2.imdecode(np.frombuffer(row.tobytes(), np.uint8), mode) for row in values]
        bad = [t for t, frame in enumerate(decoded) if frame is None]
        if bad:
            raise DataError(f'{where}: picture {bad[0]} cannot be decoded')
        if len({f.shape for f in decoded}) != 1:
            raise DataError(f'{where}: pictures of different sizes')
        values = np.stack(decoded)
        if camera.encoding == 'rgb8':
            values = values[..., ::-1]      # OpenCV decodes to blue first
    return pictures(values, (count, *camera.shape), where)
