# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp pretrain` on bad training data: exit code 2, one line that names file, episode and step, nothing written.

Bags that are damaged as storage are in test_bag_faults.py, packed folders in test_pack.py.
"""

import dataclasses
import os

import numpy as np
import pytest

from fosp_core.cli import main
from fosp_core.data.bag import read_episodes
from fosp_core.data.store import load_episode, save_episode
from fosp_core.errors import ContractError, DataError


@pytest.fixture
def pretrain(tmp_path, capsys):
    """Return a function that runs `fosp pretrain PATH...` and returns its one line of error."""
    def run(*paths):
        capsys.readouterr()
        out = tmp_path / 'run'
        assert main(['pretrain', *map(str, paths), '--preset', 'debug', '--steps', '2', '--out', str(out)]) == 2
        err = capsys.readouterr().err
        assert err.startswith('error: ') and err.count('\n') == 1, err
        assert not out.exists()
        return err
    return run


def spoilt(episode, key, step, value, dtype=None):
    """Return the episode with one value of one key set, past any check; images can be made floats first."""
    source = episode.images if key in episode.images else episode.vectors if key in episode.vectors else vars(episode)
    source[key] = source[key].astype(dtype or source[key].dtype)
    source[key][step] = value
    return episode


@pytest.mark.parametrize(('key', 'value', 'dtype'), [
    ('image', np.nan, np.float32), ('image', np.inf, np.float64), ('reward', np.nan, None), ('reward', -np.inf, None),
    ('action', np.nan, None), ('action', np.inf, None), ('cost', np.nan, None), ('ee_pose', np.inf, None)])
def test_not_finite_in_an_episode_file(tmp_path, contract, make_episode, pretrain, key, value, dtype):
    save_episode(tmp_path / 'data' / '000.npz', make_episode(6))
    save_episode(tmp_path / 'data' / '001.npz', spoilt(make_episode(8), key, 5, value, dtype))
    line = pretrain(tmp_path / 'data')
    assert f'{tmp_path}/data/001.npz: key {key} is ' in line and 'not finite at step 5' in line


@pytest.mark.parametrize(('end', 'field', 'value'), [
    ('action', 'twist.linear.x', np.nan), ('action', 'twist.linear.z', np.inf), ('ee_pose', 'pose.position.y', -np.inf),
    ('label', 'axes', [np.nan, 0.0]), ('label', 'axes', [0.0, np.inf]), ('label', 'axes', [0.0, -2.0])])
def test_not_finite_in_a_bag(tmp_path, contract, make_episodes, records, write_raw, pretrain, end, field, value):
    rows = [row for episode in make_episodes([6, 4, 9]) for row in records(contract, episode)]
    message = [r for r in rows if r[0].endswith(end)][6 + 4 + 7][3]
    *parents, last = field.split('.')
    for part in parents:
        message = getattr(message, part)
    setattr(message, last, np.asarray(value, np.float32) if isinstance(value, list) else value)
    line = pretrain(write_raw(tmp_path / 'bag', rows))
    assert f'{tmp_path}/bag: /fosp/replay/{end}, stamp' in line and line.endswith('(episode 2, step 7)\n')


def test_steps_that_wait_for_a_lost_one_are_counted(tmp_path, contract, make_episode, records, write_raw, pretrain):
    rows = records(contract, make_episode(12))
    label = [r for r in rows if r[0].endswith('label')][3]
    [r for r in rows if r[0].endswith('label')][7][3].axes = np.float32([np.nan, 0.0])
    line = pretrain(write_raw(tmp_path / 'bag', [r for r in rows if r is not label]))
    assert line.endswith('(episode 0, step 6)\n')      # the seventh that arrived: the lost one is not among them


def test_a_hole_in_a_bag_says_how_far_it_was_read(tmp_path, contract, make_episodes, write_bag, pretrain):
    """As after a failed disk: the size is right, opening succeeds, and the reading breaks off."""
    path = write_bag(tmp_path / 'bag', contract, make_episodes([100, 100]))
    file = path / 'bag.mcap'
    data = bytearray(file.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle:middle + 8 * 4096] = bytes(8 * 4096)
    file.write_bytes(data)
    line = pretrain(path)
    assert f'{path}: damaged storage' in line and '(episode ' in line


@pytest.mark.parametrize('part', [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_episode_file(tmp_path, make_episode, pretrain, part):
    for i in range(2):
        save_episode(tmp_path / 'data' / f'{i}.npz', make_episode(6, i))
    file = tmp_path / 'data' / '1.npz'
    os.truncate(file, int(part * file.stat().st_size))
    assert f'{file}: not an episode file (truncated or damaged): ' in pretrain(tmp_path / 'data')


def test_a_damaged_episode_file_never_ends_in_a_traceback(tmp_path, contract, make_episode):
    file = tmp_path / 'e.npz'
    save_episode(file, make_episode(3))
    data, rng, refusals = np.frombuffer(file.read_bytes(), np.uint8), np.random.default_rng(0), 0
    for _ in range(300):
        damaged = data.copy()
        # The ends hold the names and sizes of the arrays; most of the middle is one compressed picture.
        at = rng.choice([rng.integers(0, len(data)), rng.integers(0, 200), len(data) - rng.integers(1, 1200)],
                        rng.integers(1, 5))
        damaged[at] = rng.integers(0, 256, len(at))
        file.write_bytes(damaged.tobytes())
        try:
            load_episode(file, contract)
        except DataError as error:
            refusals += 1
            assert str(file) in str(error) and '\n' not in str(error)
    assert refusals > 100


def test_a_single_record_is_no_episode_and_a_short_episode_is_one(tmp_path, contract, make_episode, pretrain):
    """Shorter than the window of 12 is no fault (test_replay.py has the windows); a lone record makes no pair."""
    for i in range(10):
        save_episode(tmp_path / 'data' / f'{i}.npz', make_episode(6, i, violation=True))
    out = tmp_path / 'good'
    assert main(['pretrain', str(tmp_path / 'data'), '--preset', 'debug', '--steps', '1', '--holdout', '0.3', '--out',
                 str(out)]) == 0
    save_episode(tmp_path / 'data' / '5.npz', make_episode(1, 5, success=False))
    assert f'{tmp_path}/data/5.npz: 1 steps, expected at least 2' in pretrain(tmp_path / 'data')


def test_cost_never_positive(tmp_path, contract, make_episodes, write_bag, pretrain):
    path = write_bag(tmp_path / 'bag', contract, make_episodes([6] * 8))
    assert f'{path}: key cost is never positive in 7 training episodes' in pretrain(path)


def test_no_violation_left_to_calibrate_with(tmp_path, contract, make_episode, pretrain):
    for i in range(8):
        save_episode(tmp_path / 'data' / f'{i}.npz', make_episode(6, i, violation=i == 0))
    assert f'{tmp_path}/data: no violating episode held out' in pretrain(tmp_path / 'data')


def test_violations_that_come_too_early_to_be_warned_of(tmp_path, contract, make_episode, pretrain):
    for i in range(14):
        episode = make_episode(3, i, violation=True)        # at record 1
        save_episode(tmp_path / 'data' / f'{i:02d}.npz', episode)
    said = pretrain(tmp_path / 'data')
    assert f'{tmp_path}/data: no held-out episode whose first violation comes at record 3' in said


def test_another_contract(tmp_path, contract, make_episodes, write_bag, same):
    """The very same messages would mean other actions: 0.2 m/s is 0.8 of one limit and 0.4 of the other."""
    episodes = make_episodes([6, 4])
    path = write_bag(tmp_path / 'bag', contract, episodes)
    faster = dataclasses.replace(contract, action=dataclasses.replace(contract.action, low=(-0.5,) * 3,
                                                                      high=(0.5,) * 3))
    with pytest.raises(ContractError, match=r'episodes\.yaml: key contract: made for contract .* is '):
        list(read_episodes(path, faster))
    # A bag of another recorder says nothing of contracts; its content is all there is to go by.
    (path / 'episodes.yaml').unlink()
    assert np.abs(next(read_episodes(path, faster)).action).max() <= 0.5 + 1e-6
    same(next(read_episodes(path, contract)), episodes[0], meta=False)
