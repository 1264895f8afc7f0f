# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Packed data sets: the steps of the bag, opened without reading the pictures, refused in one line when damaged."""

import dataclasses
import json
import os
import resource
import sys

import numpy as np
import pytest

from fosp_core.cli import main
from fosp_core.data.episode import Episode
from fosp_core.data.pack import INDEX, layout, open_pack, step_bytes, verify_pack, write_pack
from fosp_core.data.replay import Replay
from fosp_core.data.sources import read_dataset
from fosp_core.data.store import data_hash, save_episode
from fosp_core.errors import ContractError, DataError, FospError


@pytest.fixture
def pack(tmp_path, tiny, make_episodes):
    """A packed set of three episodes of 5, 3 and 9 steps, two cameras and two vectors."""
    path = tmp_path / 'pack'
    write_pack(path, tiny, make_episodes([5, 3, 9], contract=tiny, violation=True))
    return path


def refused(path, contract, *words):
    with pytest.raises(FospError) as error:
        open_pack(path, contract)
    assert '\n' not in str(error.value)
    for word in words:
        assert word in str(error.value), (word, str(error.value))


def test_bag_npz_and_pack_hold_the_same_steps(tmp_path, contract, make_episodes, write_bag, same):
    episodes = make_episodes([6, 4, 9], policy='safe')
    bag = write_bag(tmp_path / 'bag', contract, episodes)
    assert main(['pack', str(bag), '--out', str(tmp_path / 'pack')]) == 0
    assert main(['pack', str(tmp_path / 'pack'), '--out', str(tmp_path / 'again')]) == 0
    for i, episode in enumerate(episodes):
        save_episode(tmp_path / 'npz' / f'{i}.npz', episode)
    for folder in ('bag', 'npz', 'pack', 'again'):
        found = list(read_dataset([tmp_path / folder], contract))
        for a, b in zip(episodes, found, strict=True):
            same(a, b)
        assert data_hash(found) == data_hash(episodes)     # a run may go on from the packed form of its bags
        assert data_hash(found[1:]) == data_hash(episodes[1:]) != data_hash(episodes)


def test_windows_from_disk_are_those_from_memory(pack, tiny, make_episodes):
    memory = Replay(tiny).extend(make_episodes([5, 3, 9], contract=tiny, violation=True))
    disk = Replay(tiny).extend(open_pack(pack, tiny), check=False)
    for length in (1, 4, 40):
        a, b = (r.sample(16, length, np.random.default_rng(3)) for r in (memory, disk))
        for key in a:
            assert a[key].dtype == b[key].dtype and np.array_equal(a[key], b[key]), key


def test_the_arrays_are_read_only_views(pack, tiny):
    episode = open_pack(pack, tiny)[1]
    with pytest.raises(ValueError, match='read-only'):
        episode.action[0, 0] = 0.5
    with pytest.raises(ValueError, match='read-only'):
        episode.images['image'][0] = 0
    # A changed copy must not keep the hash of the original.
    assert dataclasses.replace(episode, cost=episode.cost * 0).digest is None


def test_numpy_reads_the_files(pack, tiny):
    total = 0
    for name, (kind, shape) in layout(tiny).items():
        array = np.load(pack / name, allow_pickle=False)
        assert array.dtype == kind and array.shape == (17, *shape), name
        total += array.nbytes
    assert total == 17 * step_bytes(tiny)


def test_a_large_set_opens_without_reading_the_pictures(tmp_path, monkeypatch, contract):
    """200,000 steps, their pictures holes in a 4.8 GB file: work per episode is counted, not timed."""
    from fosp_core.train.bench_replay import make_pack
    make_pack(tmp_path, contract, 200_000, dense=False)
    monkeypatch.setattr(Episode, 'validate', None)      # all at once, not one by one
    calls = 0

    def count(frame, event, arg):
        nonlocal calls
        calls += event in ('call', 'c_call')

    faults = resource.getrusage(resource.RUSAGE_SELF)
    sys.setprofile(count)
    try:
        replay = Replay(contract).extend(open_pack(tmp_path, contract), check=False)
        replay.sample(16, 12, np.random.default_rng(0))
    finally:
        sys.setprofile(None)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert len(replay) == 200_000 and len(replay.episodes) == 4000
    assert calls < 40 * 4000
    assert after.ru_minflt - faults.ru_minflt + after.ru_majflt - faults.ru_majflt < 120_000    # of 1.2 million pages


@pytest.mark.parametrize('name', ['camera_image.npy', 'camera_wrist.npy', 'vector_ee_pose.npy', 'reward.npy'])
def test_a_truncated_file_names_episode_and_step(pack, tiny, name):
    kind, shape = layout(tiny)[name]
    row = kind.itemsize * int(np.prod(shape))
    size = (pack / name).stat().st_size
    os.truncate(pack / name, size - 8 * row - 1)     # the last nine steps are those of episode 2
    refused(pack, tiny, f'{pack}/{name}', 'truncated', 'episode 2, step 0')
    os.truncate(pack / name, size - 9 * row - 1)
    refused(pack, tiny, 'episode 1, step 2')
    os.truncate(pack / name, 40)
    refused(pack, tiny, f'{pack}/{name}', 'truncated')
    os.truncate(pack / name, 0)
    refused(pack, tiny, f'{pack}/{name}')
    (pack / name).unlink()
    refused(pack, tiny, f'{pack}/{name}', 'No such file')


def overwrite(path, index, value):
    array = np.load(path, mmap_mode='r+', allow_pickle=False)
    array[index] = value
    array.flush()


@pytest.mark.parametrize(('name', 'index', 'value', 'words'), [
    ('reward', 6, np.nan, ['episode 1', 'reward is not finite at step 1']),
    ('cost', 16, -1.0, ['episode 2', 'cost is negative at step 8']),
    ('action', (9, 1), np.inf, ['episode 2', 'action is not finite at step 1']),
    ('action', (4, 0), 1.5, ['episode 0', 'action leaves [-1, 1] at step 4']),
    ('vector_joints', (8, 2), np.nan, ['episode 2', 'joints is not finite at step 0']),
    ('is_first', 5, False, ['episode 1', 'is_first']),
    ('is_first', 6, True, ['episode 1', 'is_first']),
    ('is_last', 2, True, ['episode 0', 'is_last is set at step 2']),
    ('step', 7, 3, ['episode 1', 'step must rise']),
    ('stamp', 12, 0, ['episode 2', 'stamp must rise']),
])
def test_wrong_numbers_name_episode_key_and_step(pack, tiny, name, index, value, words):
    overwrite(pack / f'{name}.npy', index, value)
    refused(pack, tiny, str(pack), *words)


def test_verify_finds_a_changed_picture(pack, tiny, capsys):
    assert verify_pack(pack, tiny) == 3
    overwrite(pack / 'camera_image.npy', (6, 1, 2, 0), 77)
    open_pack(pack, tiny)      # pictures are not read when it opens
    with pytest.raises(DataError, match=r'episode 1 \(steps 5 to 7\): its content is not what was packed'):
        verify_pack(pack, tiny)


def test_another_contract_is_refused_by_what_differs(pack, tiny):
    slower = dataclasses.replace(tiny, action=dataclasses.replace(tiny.action, high=(0.5, 0.25, 0.25)))
    with pytest.raises(ContractError, match=r'index\.json: made for contract .*differ in action$'):
        open_pack(pack, slower)


@pytest.mark.parametrize('change', [
    lambda text: text[:-40], lambda text: '', lambda text: '[]', lambda text: '{"schema": 1}',
    lambda text: text.replace('"schema": 1', '"schema": 7', 1), lambda text: text.replace('"steps": 5', '"steps": 6'),
    lambda text: text.replace('"steps": 5', '"steps": "5"'), lambda text: text.replace('"steps": 3', '"steps": 1', 1),
    lambda text: text.replace('"meta": {"seed": 1}', '"meta": 3'),
    lambda text: json.dumps({**json.loads(text), 'episodes': json.loads(text)['episodes'][::-1]}),
])
def test_a_damaged_index(pack, tiny, change):
    text = (pack / INDEX).read_text()
    assert change(text) != text
    (pack / INDEX).write_text(change(text))
    refused(pack, tiny, str(pack / INDEX))


def test_a_source_that_breaks_off_leaves_nothing(tmp_path, tiny, make_episode):
    def source():
        yield make_episode(5, contract=tiny)
        bad = make_episode(6, contract=tiny)
        bad.reward[4] = np.inf
        yield bad
    with pytest.raises(DataError, match='episode 1: key reward is not finite at step 4'):
        write_pack(tmp_path / 'pack', tiny, source())
    with pytest.raises(DataError, match='no episode'):
        write_pack(tmp_path / 'pack', tiny, [])
    assert list(tmp_path.iterdir()) == []


def test_the_command(tmp_path, contract, make_episodes, write_bag, capsys):
    bag = write_bag(tmp_path / 'bag', contract, make_episodes([6, 4]))
    pack = str(tmp_path / 'pack')
    assert main(['pack', str(bag), '--out', pack, '--json', '-']) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result['episodes'], result['steps'], result['raw_bytes']) == (2, 10, 10 * step_bytes(contract))
    assert main(['pack', '--verify', pack]) == 0
    assert capsys.readouterr().out == f'{pack}: 2 episodes as packed\n'
    before = (tmp_path / 'pack' / INDEX).read_bytes()
    for argv in (['pack', str(bag), '--out', pack], ['pack', str(bag)], ['pack', pack, '--verify', '--out', 'x'],
                 ['pack', '--verify', str(bag)], ['pack', str(tmp_path / 'absent'), '--out', str(tmp_path / 'p2')]):
        assert main(argv) == 2
        err = capsys.readouterr().err
        assert err.startswith('error: ') and err.count('\n') == 1
    assert (tmp_path / 'pack' / INDEX).read_bytes() == before and not (tmp_path / 'p2').exists()
