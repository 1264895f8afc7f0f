# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The learner: exact resume, learning on small data, a really frozen offline policy, clear failure on bad numbers."""

import dataclasses

import numpy as np
import pytest
import torch

from fosp_core.config import Config
from fosp_core.contract import Contract
from fosp_core.data.episode import Episode
from fosp_core.data.replay import MixedReplay, Replay
from fosp_core.errors import DataError, FospError, TrainingError
from fosp_core.paths import config_file
from fosp_core.train.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from fosp_core.train.learner import Learner

CONTRACT = Contract.load(config_file('contract_safereach.yaml'))
DEBUG = Config.load('debug')


def moving_square(seed: int, length: int = 20, first_step: int = 0) -> Episode:
    """A square whose place in the picture is the pose; cost on the right half; the goal ends the episode."""
    rng = np.random.default_rng(seed)
    place = np.cumsum(rng.choice([-4, 0, 4], size=(length, 2)), 0) + 28
    place = place.clip(0, 56)
    images = np.zeros((length, 64, 64, 3), np.uint8)
    for t, (y, x) in enumerate(place):
        images[t, y:y + 8, x:x + 8] = (255, 40, 40)
    pose = np.concatenate([place / 64.0, np.zeros((length, 1))], 1).astype(np.float32)
    action = np.zeros((length, 3), np.float32)
    action[:-1, :2] = np.clip(np.diff(place, axis=0) / 4.0, -1, 1)
    last = np.arange(length) == length - 1
    success = bool(seed % 2)
    return Episode(images={'image': images}, vectors={'ee_pose': pose}, action=action,
                   reward=np.where(last & success, 1.0, 0.0).astype(np.float32),
                   cost=(place[:, 1] > 36).astype(np.float32), is_first=np.arange(length) == 0, is_last=last,
                   is_terminal=last & success, stamp=np.arange(length, dtype=np.int64) * 10**8,
                   step=np.arange(length, dtype=np.int64) + first_step)


def make_replay(n: int = 12) -> Replay:
    return Replay(CONTRACT).extend(moving_square(i) for i in range(n))


def train(learner: Learner, replay, steps: int) -> list[dict]:
    cfg = learner.config.train
    return [learner.update(replay.sample(cfg.batch, cfg.length, learner.rng)) for _ in range(steps)]


def weights(learner: Learner) -> dict:
    return {k: v.clone() for k, v in learner.agent.state_dict().items()}


def test_train_20_equals_train_10_save_load_train_10(tmp_path):
    """lessons.md 18: resume that does not resume."""
    replay = make_replay()
    whole = Learner(CONTRACT, DEBUG)
    log_whole = train(whole, replay, 20)
    half = Learner(CONTRACT, DEBUG)
    train(half, replay, 10)
    path = save_checkpoint(tmp_path, half)
    resumed = Learner(CONTRACT, DEBUG, seed=99)  # everything must come from the checkpoint
    load_checkpoint(path, resumed)
    log_resumed = train(resumed, make_replay(), 10)
    assert log_resumed == log_whole[10:]
    a, b = weights(whole), weights(resumed)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_same_seed_same_weights_other_seed_other_weights():
    a, b, c = (Learner(CONTRACT, DEBUG, seed=s) for s in (3, 3, 4))
    wa, wb, wc = weights(a), weights(b), weights(c)
    assert all(torch.equal(wa[k], wb[k]) for k in wa)
    assert not torch.equal(wa['actor.output.weight'], wc['actor.output.weight'])


def test_world_model_and_actor_learn():
    replay = make_replay()
    learner = Learner(CONTRACT, DEBUG)
    log = train(learner, replay, 120)

    def mean(key, part):
        return np.mean([m[key] for m in part])

    assert mean('model/picture', log[-10:]) < 0.5 * mean('model/picture', log[:3])
    assert mean('actor/log_prob', log[-10:]) > mean('actor/log_prob', log[:5]) + 0.5


def test_relabelling_all_costs_to_zero_drives_reachability_down():
    """Oracle 8.5: the released code's reachability never looked at cost."""
    # Fast time-scales: the oracle is about the fixed point, not about the way there.
    config = Config.load('debug', ['behaviour.reach_lr_scale=3', 'behaviour.ema=0.2', 'behaviour.reach_discount=0.9'])
    results = []
    for scale in (1.0, 0.0):
        episodes = [dataclasses.replace(e, cost=e.cost * np.float32(scale)) for e in make_replay().episodes]
        learner = Learner(CONTRACT, config)
        log = train(learner, Replay(CONTRACT).extend(episodes), 100)
        results.append(np.mean([m['reach/data'] for m in log[-20:]]))
    print(results)
    assert results[0] > 0.3 and results[1] < 0.6 * results[0]


def test_offline_policy_is_frozen_online():
    """Defects 7.2.1 of the released code: both actors were one network."""
    replay = make_replay()
    learner = Learner(CONTRACT, DEBUG)
    train(learner, replay, 3)
    learner.begin_online()
    before = {k: v.clone() for k, v in learner.agent.offline_actor.state_dict().items()}
    start = {k: v.clone() for k, v in learner.agent.actor.state_dict().items()}
    train(learner, MixedReplay(replay, make_replay(4)), 20)
    assert all(torch.equal(before[k], v) for k, v in learner.agent.offline_actor.state_dict().items())
    assert not torch.equal(start['output.weight'], learner.agent.actor.state_dict()['output.weight'])
    assert all(p.grad is None for p in learner.agent.offline_actor.parameters())


def test_not_finite_is_one_clear_error():
    replay = make_replay(2)
    learner = Learner(CONTRACT, DEBUG)
    batch = replay.sample(4, 8, np.random.default_rng(0))
    batch['reward'][0, 3] = np.nan
    with pytest.raises(TrainingError, match='gradient step 1: .*not finite'):
        learner.update(batch)


def test_checkpoints_rotate_and_name_what_is_wrong(tmp_path):
    learner = Learner(CONTRACT, DEBUG)
    for step in (1, 2, 3):
        learner.step = step
        save_checkpoint(tmp_path, learner)
    assert [p.name for p in list_checkpoints(tmp_path)] == ['step_00000002', 'step_00000003']
    path = list_checkpoints(tmp_path)[-1]
    bigger = Learner(CONTRACT, Config.from_dict({'network': dataclasses.asdict(DEBUG.network) | {'deter': 48}}))
    with pytest.raises(TrainingError, match='key .* has shape'):
        load_checkpoint(path, bigger)
    data = (path / 'agent.safetensors').read_bytes()
    (path / 'agent.safetensors').write_bytes(data[:len(data) // 2])
    with pytest.raises(TrainingError, match='unreadable checkpoint'):
        load_checkpoint(path, learner)


def test_replay_windows_are_slices_of_the_stream():
    """Oracle 8.15: reward and cost stay beside their record; a window resets where an episode starts."""
    replay = make_replay(3)
    batch = replay.sample(64, 12, np.random.default_rng(1))
    assert batch['image'].shape == (64, 12, 64, 64, 3) and batch['image'].dtype == np.uint8
    assert batch['is_first'][:, 0].all()
    for row in range(64):
        place = batch['ee_pose'][row, :, :2] * 64
        for t in range(12):
            y, x = place[t].round().astype(int)
            assert batch['image'][row, t, y, x, 0] == 255
            assert batch['cost'][row, t] == float(x > 36)
    boundaries = np.flatnonzero(batch['is_first'][:, 1:].any(1))
    assert len(boundaries), 'no window crossed an episode: the test would prove nothing'


def test_replay_refuses_bad_episodes_and_emptiness():
    with pytest.raises(DataError, match='empty'):
        Replay(CONTRACT).sample(1, 2, np.random.default_rng(0))
    bad = moving_square(0)
    bad.reward[4] = np.inf
    with pytest.raises(DataError, match='key reward is not finite at step 4'):
        Replay(CONTRACT).add(bad)


def test_config_names_unknown_and_ill_typed_keys():
    with pytest.raises(FospError, match='unknown key detr'):
        Config.from_dict({'network': {'detr': 3}}, 'x.yaml')
    with pytest.raises(FospError, match='key deter is .*expected int'):
        Config.from_dict({'network': {'deter': 'many'}}, 'x.yaml')
    assert Config.load('debug', ['behaviour.lr=2e-4']).behaviour.lr == 2e-4
    assert Config.from_dict(DEBUG.to_dict()) == DEBUG


def test_a_checkpoint_without_a_key_names_it(tmp_path):
    path = save_checkpoint(tmp_path, Learner(CONTRACT, DEBUG))
    (path / 'state.json').write_text('{"schema": 1}')
    with pytest.raises(TrainingError, match=r'state\.json: keys missing: config, contract_hash, online'):
        load_checkpoint(path, Learner(CONTRACT, DEBUG))


@pytest.mark.parametrize(('override', 'words'), [
    ('method=bc', 'chosen with --method'), ('replaced={}', 'chosen with --method'),
    ('train.batch=.inf', 'key batch is inf, expected int')])
def test_overrides_that_mean_nothing_are_refused(override, words):
    with pytest.raises(FospError, match=words):
        Config.load('debug', [override])


def test_a_scalar_in_place_of_a_series_is_named(make_episode):
    with pytest.raises(DataError, match='key reward has shape'):
        dataclasses.replace(make_episode(6), reward=np.float32(1.0)).validate(CONTRACT)
