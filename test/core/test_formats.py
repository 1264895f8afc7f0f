# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Data sets of DSRL, Minari and LeRobot: what goes out comes back bit for bit, and has the layout of each project."""

import dataclasses
import json
import tracemalloc

import cv2
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from fosp_core import cli
from fosp_core.contract import ActionSpec, CameraSpec, VectorSpec
from fosp_core.data.sources import read_dataset
from fosp_core.errors import ContractError, DataError
from fosp_core.formats import detect, lerobot
from fosp_core.formats.detect import Options
from fosp_core.train.dataset import load_dataset

ALL = ('hdf5', 'minari', 'lerobot')


@pytest.fixture
def three(make_episodes, tiny):
    """Three episodes: one with a violation, one a fragment with all that transitions forget, one a time-out."""
    episodes = make_episodes([9, 4, 6], contract=tiny)
    episodes[0].cost[3:5] = 1.5
    cut = episodes[1]
    cut.is_last[:] = cut.is_terminal[:] = False
    cut.reward[0], cut.cost[0], cut.action[-1] = 0.25, 2, [0.1, -0.0, 1]
    cut.meta.update(gap=True, task='a part', share=0.1 + 0.2, text='äöü')
    episodes[2].is_terminal[:] = False
    return episodes


def same_all(same, left, right):
    for a, b in zip(left, right, strict=True):
        same(a, b)


@pytest.mark.parametrize('name', ALL)
def test_round_trip_is_bit_for_bit(tmp_path, tiny, three, same, name):
    assert detect.write(tmp_path / 'x', tiny, three, name) == {'episodes': 3, 'steps': 19}
    assert detect.format_of(tmp_path / 'x') == name
    same_all(same, three, detect.read(tmp_path / 'x', tiny))
    same_all(same, three, load_dataset([tmp_path / 'x'], tiny))     # what `fosp pretrain` reads


VARIANTS = {
    'bgr': lambda c: dataclasses.replace(c, cameras=(CameraSpec('image', 'image', 5, 7, 'bgr8'),)),
    'no vectors': lambda c: dataclasses.replace(c, vectors=()),
    'one number each': lambda c: dataclasses.replace(
        c, vectors=(VectorSpec('x', 'x', 'std_msgs/msg/Float32', ('data',), 'm', 'base'),),
        action=ActionSpec('std_msgs/msg/Float32', ('data',), (-0.3,), (0.3,), 'm', 'base')),
    'odd limits': lambda c: dataclasses.replace(c, action=dataclasses.replace(
        c.action, low=(-0.1, -0.7, -1e-3), high=(0.1, 0.7, 1e-3))),
}


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('name', ALL)
def test_round_trip_of_other_contracts(tmp_path, tiny, make_episodes, same, name, variant):
    contract = VARIANTS[variant](tiny)
    episodes = make_episodes([5, 3], contract=contract)
    detect.write(tmp_path / 'x', contract, episodes, name)
    same_all(same, episodes, detect.read(tmp_path / 'x', contract))


@pytest.mark.parametrize('name', ALL)
def test_commands_from_bag_to_bag(tmp_path, contract, make_episodes, write_bag, same, capsys, name):
    episodes = make_episodes([5, 4])
    write_bag(tmp_path / 'source', contract, episodes)
    out = str(tmp_path / 'x')
    assert cli.main(['export', str(tmp_path / 'source'), '--format', name, '--out', out, '--json', '-']) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said['episodes'], said['steps'], said['out']) == (2, 9, out) and said['bytes'] > 1000
    for to in ('pack', 'bag'):
        assert cli.main(['import', out, '--out', str(tmp_path / to), '--to', to]) == 0
        assert capsys.readouterr().out.startswith(f'{tmp_path / to}: 2 episodes, 9 records, ')
        same_all(same, episodes, read_dataset([tmp_path / to], contract))
    assert cli.main(['export', str(tmp_path / 'source'), '--format', name, '--out', out]) == 2     # exists already
    assert cli.main(['inspect', out]) == 1 and 'cost-never' in capsys.readouterr().out


@pytest.mark.parametrize('name', ALL)
def test_another_contract_is_refused_and_nothing_is_left(tmp_path, tiny, three, contract, name, capsys):
    detect.write(tmp_path / 'x', tiny, three, name)
    with pytest.raises(ContractError, match='made for contract .* they differ in'):
        list(detect.read(tmp_path / 'x', contract))
    assert cli.main(['import', str(tmp_path / 'x'), '--out', str(tmp_path / 'y')]) == 2
    assert capsys.readouterr().err.count('\n') == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ['x']


@pytest.mark.parametrize('name', ALL)
def test_memory_does_not_grow_with_the_data(tmp_path, contract, make_episode, name):
    def peak(count):
        tracemalloc.start()
        detect.write(tmp_path / f'{count}', contract, (make_episode(30, n) for n in range(count)), name)
        for _ in detect.read(tmp_path / f'{count}', contract):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found
    peak(1)
    assert peak(20) < 1.3 * peak(4)


# ----------------------------------------------------------------------------------------------- layouts

def test_layout_of_dsrl(tmp_path, tiny, three):
    detect.write(tmp_path / 'x', tiny, three, 'hdf5')
    with h5py.File(tmp_path / 'x' / 'data.hdf5') as file:
        found = {key: (file[key].shape, file[key].dtype) for key in
                 ('observations', 'next_observations', 'actions', 'rewards', 'costs', 'terminals', 'timeouts')}
        f, b = np.dtype('f4'), np.dtype(bool)
        assert found == {'observations': ((16, 6), f), 'next_observations': ((16, 6), f), 'actions': ((16, 3), f),
                         'rewards': ((16,), f), 'costs': ((16,), f), 'terminals': ((16,), b), 'timeouts': ((16,), b)}
        assert np.flatnonzero(file['terminals']).tolist() == [7]
        assert np.flatnonzero(file['timeouts']).tolist() == [10, 15]
        assert np.flatnonzero(file['costs']).tolist() == [2, 3]         # on the transition that arrives there
        assert (file['next_observations'][:7] == file['observations'][1:8]).all()
        assert (file['next_images/image'][7] == three[0].images['image'][8]).all()
        # DSRL reads every data set and cuts it by transitions, so each must be that long.
        lengths = []
        file.visititems(lambda key, item: lengths.append(len(item)) if isinstance(item, h5py.Dataset) else None)
        assert set(lengths) == {16}


def test_layout_of_minari(tmp_path, tiny, three):
    detect.write(tmp_path / 'x', tiny, three, 'minari')
    metadata = json.loads((tmp_path / 'x' / 'data' / 'metadata.json').read_text())
    assert (metadata['total_episodes'], metadata['total_steps']) == (3, 16)
    assert json.loads(metadata['action_space']) == {'type': 'Box', 'dtype': 'float32', 'shape': [3], 'low': [-1] * 3,
                                                    'high': [1] * 3}
    space = json.loads(metadata['observation_space'])['subspaces']
    assert space['wrist']['shape'] == [3, 5, 1] and space['joints']['shape'] == [3]
    with h5py.File(tmp_path / 'x' / 'data' / 'main_data.hdf5') as file:
        group = file['episode_0']
        assert len(group['actions']) == len(group['rewards']) == len(group['truncations']) == 8
        assert len(group['observations/image']) == len(group['infos/cost']) == 9
        assert group['terminations'][:].tolist() == [False] * 7 + [True]
        assert group['infos/cost'][:].tolist() == three[0].cost.tolist()
        assert dict(group.attrs)['total_steps'] == 8 and dict(group.attrs)['seed'] == 0


def test_layout_of_lerobot(tmp_path, tiny, three):
    detect.write(tmp_path / 'x', tiny, three, 'lerobot')
    info = json.loads((tmp_path / 'x' / 'meta' / 'info.json').read_text())
    assert (info['codebase_version'], info['fps'], info['total_episodes'], info['total_frames'], info['total_tasks'],
            info['splits']) == ('v3.0', 10, 3, 19, 2, {'train': '0:3'})
    assert info['features']['observation.images.wrist'] == {'dtype': 'image', 'shape': [3, 5, 1],
                                                            'names': ['height', 'width', 'channels']}
    assert info['features']['observation.state']['shape'] == [6]
    table = pq.read_table(tmp_path / 'x' / 'data' / 'chunk-000' / 'file-000.parquet')
    assert set(table.column_names) == set(info['features'])
    assert table['index'].to_pylist() == list(range(19)) and table['episode_index'].to_pylist()[8:10] == [0, 1]
    assert np.allclose(np.stack(table['action'].to_pylist())[:9], 0.25 * three[0].action, atol=0)
    assert table['next.reward'].to_pylist()[7:9] == [1.0, 0.0] and table['next.cost'].to_pylist()[2:4] == [1.5, 1.5]
    picture = table['observation.images.image'].to_pylist()[4]
    assert picture['bytes'].startswith(b'\x89PNG')
    decoded = cv2.imdecode(np.frombuffer(picture['bytes'], np.uint8), cv2.IMREAD_COLOR)
    assert (decoded[..., ::-1] == three[0].images['image'][4]).all()        # red first in the file
    tasks = pq.read_table(tmp_path / 'x' / 'meta' / 'tasks.parquet')
    assert tasks['task'].to_pylist() == ['tiny', 'a part']
    assert json.loads(tasks.schema.metadata[b'pandas'])['index_columns'] == ['task']
    rows = pq.read_table(tmp_path / 'x' / 'meta' / 'episodes' / 'chunk-000' / 'file-000.parquet').to_pylist()
    assert [(r['dataset_from_index'], r['dataset_to_index'], r['length']) for r in rows] == [(0, 9, 9), (9, 13, 4),
                                                                                            (13, 19, 6)]


def test_statistics_of_lerobot_are_those_of_all_records(tmp_path, tiny, three):
    detect.write(tmp_path / 'x', tiny, three, 'lerobot')
    stats = json.loads((tmp_path / 'x' / 'meta' / 'stats.json').read_text())
    state = np.concatenate([np.concatenate([e.vectors['ee_pose'], e.vectors['joints']], 1) for e in three])
    state = state.astype(float)
    found = stats['observation.state']
    for key, expected in (('mean', state.mean(0)), ('std', state.std(0)), ('min', state.min(0)), ('max', state.max(0))):
        assert np.allclose(found[key], expected, rtol=1e-12), key
    assert found['count'] == [19]
    frames = np.concatenate([e.images['image'] for e in three]) / 255
    assert np.allclose(stats['observation.images.image']['mean'], frames.mean((0, 1, 2)).reshape(3, 1, 1))
    stamps = np.concatenate([e.stamp for e in three]).astype(float)
    assert np.isclose(stats['fosp.stamp']['std'][0], stamps.std(), rtol=1e-6)    # 1e18 ns: sums of squares would fail


def test_lerobot_fills_several_files(tmp_path, tiny, make_episodes, same, monkeypatch):
    monkeypatch.setattr(lerobot, 'FILE_BYTES', 3000)
    episodes = make_episodes([9, 4, 6, 12, 5], contract=tiny)
    detect.write(tmp_path / 'x', tiny, episodes, 'lerobot')
    assert len(list((tmp_path / 'x' / 'data').rglob('*.parquet'))) > 1
    same_all(same, episodes, detect.read(tmp_path / 'x', tiny))


# ------------------------------------------------------------------------------- data of others, without what is ours

def strip(path, name):
    """Remove what only we write."""
    if name == 'hdf5':
        with h5py.File(path / 'data.hdf5', 'a') as file:
            del file['infos']
            for key in list(file.attrs):
                del file.attrs[key]
    elif name == 'minari':
        with h5py.File(path / 'data' / 'main_data.hdf5', 'a') as file:
            for group in file.values():
                for key in ('reward', 'stamp', 'step', 'is_last', 'is_terminal'):
                    del group['infos'][key]
                for key in ('fosp_meta', 'fosp_final_action'):
                    del group.attrs[key]
        edit(path / 'data' / 'metadata.json', lambda d: [d.pop(k) for k in list(d) if k.startswith('fosp')])
    else:
        (path / 'meta' / 'fosp.json').unlink()


def edit(file, change):
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


@pytest.mark.parametrize('name', ALL)
def test_data_of_others_keeps_pictures_rewards_and_costs(tmp_path, tiny, three, name):
    detect.write(tmp_path / 'x', tiny, three, name)
    strip(tmp_path / 'x', name)
    found = list(detect.read(tmp_path / 'x', tiny))
    for was, now in zip(three, found, strict=True):
        for key in was.images:
            assert (was.images[key] == now.images[key]).all()
        for key in was.vectors:
            assert (was.vectors[key] == now.vectors[key]).all()
        assert (was.reward[1:] == now.reward[1:]).all() and (was.cost[1:] == now.cost[1:]).all()
        assert (was.action[:-1] == now.action[:-1]).all() and not now.action[-1].any()
        assert now.is_last[-1]
    # One clock over all of them: a bag can be made of them.
    assert (np.diff(np.concatenate([e.stamp for e in found])) > 0).all()
    assert np.concatenate([e.step for e in found]).tolist() == list(range(19))
    # LeRobot's `next.done` does not tell a goal from a time-out.
    assert [e.is_terminal[-1] for e in found] == ([True] * 3 if name == 'lerobot' else [True, False, False])


def test_lerobot_of_version_2_1(tmp_path, tiny, three, same):
    detect.write(tmp_path / 'x', tiny, three, 'lerobot')
    path = tmp_path / 'x'
    table = pq.read_table(path / 'data' / 'chunk-000' / 'file-000.parquet')
    (path / 'data' / 'chunk-000' / 'file-000.parquet').unlink()
    for number, (start, count) in enumerate(((0, 9), (9, 4), (13, 6))):
        pq.write_table(table.slice(start, count), path / 'data' / 'chunk-000' / f'episode_{number:06d}.parquet')
    rows = pq.read_table(path / 'meta' / 'episodes' / 'chunk-000' / 'file-000.parquet').to_pylist()
    (path / 'meta' / 'episodes' / 'chunk-000' / 'file-000.parquet').unlink()
    (path / 'meta' / 'episodes.jsonl').write_text(''.join(
        json.dumps({k: r[k] for k in ('episode_index', 'tasks', 'length', 'fosp/meta')}) + '\n' for r in rows))
    edit(path / 'meta' / 'info.json', lambda d: d.update(codebase_version='v2.1'))
    same_all(same, three, detect.read(path, tiny))


def test_the_reward_of_the_last_row_is_not_lost(tmp_path, tiny, three):
    """LeRobot's own recorders write no final observation: the last row has a reward that nothing follows."""
    detect.write(tmp_path / 'x', tiny, three, 'lerobot')
    strip(tmp_path / 'x', 'lerobot')
    file = tmp_path / 'x' / 'data' / 'chunk-000' / 'file-000.parquet'
    table = pq.read_table(file)
    values = table['next.reward'].to_numpy().copy()
    values[[7, 8]] = 0, 5
    index = table.column_names.index('next.reward')
    pq.write_table(table.set_column(index, 'next.reward', [values]), file)
    assert next(detect.read(tmp_path / 'x', tiny)).reward.tolist() == [0] * 8 + [5]


def test_names_and_parts_are_mapped(tmp_path, tiny, three, capsys):
    other = dataclasses.replace(tiny, cameras=(CameraSpec('front', 'front', 4, 6),),
                                vectors=(VectorSpec('pose', 'p', 't/msg/T', ('a', 'b'), 'm', 'base'),))
    detect.write(tmp_path / 'x', tiny, three, 'lerobot')
    strip(tmp_path / 'x', 'lerobot')
    keys = {'front': 'observation.images.image', 'pose': 'observation.state[1:3]'}
    found = next(detect.read(tmp_path / 'x', other, Options(keys=keys)))
    assert (found.vectors['pose'] == three[0].vectors['ee_pose'][:, 1:]).all()
    assert (found.images['front'] == three[0].images['image']).all()
    with pytest.raises(DataError, match=r'info.json: key observation.images.front is no feature; there is observation'):
        list(detect.read(tmp_path / 'x', other))
    assert cli.main(['import', str(tmp_path / 'x'), '--out', str(tmp_path / 'y'), '--map', 'side=x']) == 2
    assert 'expected NAME=KEY with NAME one of image, ee_pose' in capsys.readouterr().err


@pytest.mark.parametrize(('name', 'key'), [('hdf5', 'costs'), ('minari', 'infos/cost'), ('lerobot', 'next.cost')])
def test_missing_costs_are_refused_unless_zero_is_asked_for(tmp_path, tiny, three, name, key):
    detect.write(tmp_path / 'x', tiny, three, name)
    strip(tmp_path / 'x', name)
    if name == 'hdf5':
        with h5py.File(tmp_path / 'x' / 'data.hdf5', 'a') as file:
            del file['costs']
    elif name == 'minari':
        with h5py.File(tmp_path / 'x' / 'data' / 'main_data.hdf5', 'a') as file:
            for group in file.values():
                del group['infos']
    else:
        edit(tmp_path / 'x' / 'meta' / 'info.json', lambda d: d['features'].pop('next.cost'))
    with pytest.raises(DataError, match=rf'key {key} is missing \(to take it as zero: fosp import --zero cost\)'):
        list(detect.read(tmp_path / 'x', tiny))
    found = list(detect.read(tmp_path / 'x', tiny, Options(zero=('cost',))))
    assert not any(e.cost.any() for e in found) and found[0].reward.any()


def test_jpeg_pictures_of_minari(tmp_path, contract, make_episode):
    episode = make_episode(4)
    episode.images['image'] = np.broadcast_to(np.array([200, 30, 90], np.uint8), (4, 64, 64, 3)).copy()
    detect.write(tmp_path / 'x', contract, [episode], 'minari')
    jpeg = [cv2.imencode('.jpg', f[..., ::-1])[1] for f in episode.images['image']]
    with h5py.File(tmp_path / 'x' / 'data' / 'main_data.hdf5', 'a') as file:
        del file['episode_0/observations/image']
        file.create_dataset('episode_0/observations/image', data=np.stack(jpeg))
    found = next(detect.read(tmp_path / 'x', contract)).images['image']
    assert np.abs(found.astype(int) - episode.images['image']).max() <= 3


def test_unit_of_minaris_actions_is_that_of_its_space(tmp_path, tiny, three):
    detect.write(tmp_path / 'x', tiny, three, 'minari')
    metadata = tmp_path / 'x' / 'data' / 'metadata.json'

    def space(low, high):
        edit(metadata, lambda d: d.update(action_space=json.dumps({'low': [low] * 3, 'high': [high] * 3})))
    space(-0.25, 0.25)
    with pytest.raises(DataError, match=r'episode_0: action twist.linear.. is .* expected -0.25 to 0.25 m/s'):
        list(detect.read(tmp_path / 'x', tiny))
    space(-2, 2)
    with pytest.raises(DataError, match='key action_space is .* expected -1 to 1 or the limits of the contract'):
        list(detect.read(tmp_path / 'x', tiny))
    assert len(list(detect.read(tmp_path / 'x', tiny, Options(actions='normalised')))) == 3
