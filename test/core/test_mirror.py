# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A contract may say that a scene in a mirror is a scene: what is then learned from, and what it does not touch."""

import dataclasses

import numpy as np
import pytest
import torch

from fosp_core.config import Config
from fosp_core.contract import Contract
from fosp_core.data import mirror
from fosp_core.data.mirror import mirrored
from fosp_core.data.replay import Replay
from fosp_core.errors import ContractError
from fosp_core.train.features import FeatureReplay
from fosp_core.train.learner import Learner

FIELDS = ('pose.position.y', 'twist.linear.y')


@pytest.fixture
def plain(contract) -> Contract:
    return dataclasses.replace(contract, mirror=())


def test_left_is_right_and_nothing_else(contract, make_episode):
    episode = make_episode(9, 3)
    other = mirrored(episode, contract)
    other.validate(contract)
    np.testing.assert_array_equal(other.images['image'], episode.images['image'][:, :, ::-1])
    np.testing.assert_array_equal(other.vectors['ee_pose'], episode.vectors['ee_pose'] * np.float32([1, -1, 1]))
    np.testing.assert_array_equal(other.action, episode.action * np.float32([1, -1, 1]))
    for key in ('reward', 'cost', 'is_first', 'is_last', 'is_terminal', 'stamp', 'step'):
        np.testing.assert_array_equal(getattr(other, key), getattr(episode, key))
    twice = mirrored(other, contract)
    np.testing.assert_array_equal(twice.images['image'], episode.images['image'])
    np.testing.assert_array_equal(twice.action, episode.action)


def test_half_of_the_windows_are_whole_windows_in_the_mirror(contract, plain, make_episode):
    episodes = [make_episode(7, seed) for seed in range(4)]
    there = [mirrored(e, contract) for e in episodes]
    seen, straight, turned = (Replay(c, mirror=True).extend(e).sample(200, 5, np.random.default_rng(2))
                              for c, e in ((contract, episodes), (plain, episodes), (plain, there)))
    assert Replay(plain, mirror=True).mirror is False
    rows = [all(np.array_equal(seen[k][row], batch[k][row]) for k in seen) for batch in (straight, turned)
            for row in range(200)]
    as_they_are, in_the_mirror = np.array(rows[:200]), np.array(rows[200:])
    assert (as_they_are ^ in_the_mirror).all() and 70 < in_the_mirror.sum() < 130
    again = Replay(contract).extend(episodes).sample(200, 5, np.random.default_rng(2))
    for key, value in again.items():
        np.testing.assert_array_equal(value, straight[key])     # without `mirror` nothing is mirrored


def test_parts_of_a_batch_are_the_batch(contract, make_episode):
    replay = Replay(contract, mirror=True).extend([make_episode(7, seed) for seed in range(4)])
    whole = replay.sample(12, 4, np.random.default_rng(5))
    parts = [replay.sample(12, 4, np.random.default_rng(5), slice(at, at + 4)) for at in (0, 4, 8)]
    for key, value in whole.items():
        np.testing.assert_array_equal(value, np.concatenate([p[key] for p in parts]))


def test_states_of_the_behaviour_phase_are_those_of_both(contract, plain, make_episode):
    agent = Learner(contract, Config.load('debug')).agent
    episodes = [make_episode(7, seed, violation=not seed) for seed in range(3)]
    both = FeatureReplay(agent, Replay(contract, mirror=True).extend(episodes))
    straight, turned = (FeatureReplay(agent, Replay(plain).extend(e))
                        for e in (episodes, [mirrored(e, contract) for e in episodes]))
    assert len(both) == 42 and not torch.equal(straight.deter, turned.deter)
    for name in ('deter', 'stoch'):
        torch.testing.assert_close(getattr(both, name), torch.cat([getattr(straight, name), getattr(turned, name)]))
    for key, value in both.series.items():
        assert torch.equal(value, torch.cat([straight.series[key], turned.series[key]]))
    assert both.violating.tolist() == [*range(7), *range(21, 28)]


def test_it_is_no_part_of_what_the_data_means(contract, plain):
    assert contract.mirror == FIELDS and contract.hash == plain.hash and contract == plain
    assert 'mirror' not in plain.to_dict()      # contracts of before it read the same
    assert Contract.from_dict(contract.to_dict()).mirror == FIELDS      # a bundle knows it, and so does a fine-tune
    other = dataclasses.replace(plain, rate_hz=20.0)
    with pytest.raises(ContractError, match=r'they differ in rate_hz$'):
        contract.require_same(other.hash, 'bundle', other.to_dict())


@pytest.mark.parametrize('value, found', [(['y'], "'y'"), (['pose.position.y', 3], '3'), ('y', "'y'")])
def test_an_unknown_field_is_named(contract, value, found):
    with pytest.raises(ContractError, match=f'here: key mirror has {found}, expected some of pose.position.x, '):
        Contract.from_dict({**contract.to_dict(), 'mirror': value}, 'here')


def test_without_joint_the_world_model_alone_learns(contract, make_episode):
    learner = Learner(contract, Config.load('debug', ['train.joint=false']))
    before = {k: v.clone() for k, v in learner.agent.state_dict().items()}
    metrics = learner.update(Replay(contract).extend([make_episode(20, 0)]).sample(4, 6, learner.rng))
    changed = {k.split('.')[0] for k, v in learner.agent.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {'world_model'} and all(k.startswith('model/') for k in metrics)
    learner.begin_online()      # a fine-tune trains all
    metrics = learner.update(Replay(contract).extend([make_episode(20, 0)]).sample(4, 6, learner.rng))
    assert 'actor/loss' in metrics and 'reach/loss' in metrics


def test_pictures_that_speak_against_it_are_named(contract, plain, make_episode):
    episodes = [make_episode(4, seed) for seed in range(20)]
    for episode in episodes:
        episode.images['image'][:] = np.minimum(episode.images['image'] // 8, 30)
    assert mirror.doubt(episodes, contract) == ''
    for episode in episodes:
        episode.images['image'][:, :, :20] += 60        # a wall on the left
    found = mirror.doubt(episodes, contract)
    assert 'key mirror: the mean picture of camera image is 3' in found and 'train.mirror=false' in found
    assert mirror.doubt(episodes, plain) == mirror.doubt(episodes[:19], contract) == ''


def test_states_of_episodes_side_by_side_are_those_of_each_alone(contract, plain, make_episode):
    """The latents at their mode; drawn, they are others with each generator, and the same with the same one."""
    agent = Learner(contract, Config.load('debug')).agent
    episodes = [make_episode(length, length) for length in (9, 3, 14, 2, *range(4, 24))]
    together = FeatureReplay(agent, Replay(plain).extend(episodes))
    alone = [FeatureReplay(agent, Replay(plain).extend([e])) for e in episodes]
    for name in ('deter', 'stoch'):
        torch.testing.assert_close(getattr(together, name), torch.cat([getattr(one, name) for one in alone]))
    drawn = [FeatureReplay(agent, Replay(plain).extend(episodes), torch.Generator().manual_seed(seed)).stoch
             for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], together.stoch)
    torch.testing.assert_close(drawn[0].sum(-1), together.stoch.sum(-1))
