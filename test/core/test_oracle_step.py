# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the learner makes of the losses: learning rates, clipping, targets, starts of imagination, the multiplier."""

import numpy as np
import pytest
import torch

from fosp_core.config import Config
from fosp_core.contract import Contract
from fosp_core.paths import config_file
from fosp_core.train.bench_step import random_replay
from fosp_core.train.features import FeatureReplay
from fosp_core.train.learner import Learner

CONTRACT = Contract.load(config_file('contract_safereach.yaml'))


@pytest.fixture(scope='module')
def replay():
    return random_replay(CONTRACT, 100)


def make(*overrides) -> Learner:
    return Learner(CONTRACT, Config.load('debug', ['behaviour.horizon=2', *overrides]), seed=0)


def norm(module) -> float:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).norm().item()


def test_each_network_is_clipped_by_itself(replay):
    """The released preset's global-norm clips: 1000 for the world model, 100 for the actor and for every critic."""
    learner = make('behaviour.clip=1e-3', 'world_model.clip=0.5')
    agent = learner.agent
    with torch.no_grad():      # zero heads would have no gradient behind them
        for module in (*learner.critics, agent.reach):
            module.net.output.weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(1))
    learner.update(replay.sample(4, 6, learner.rng))
    assert norm(agent.world_model) == pytest.approx(0.5, rel=1e-3)
    for module in (agent.actor, *learner.critics, agent.reach):
        assert norm(module) == pytest.approx(1e-3, rel=1e-3)


def test_learning_rates_offline_and_online():
    learner = make('world_model.lr=0.01', 'behaviour.lr=0.02', 'behaviour.reach_lr_scale=0.3',
                   'expansion.online_lr_scale=0.5', 'world_model.eps=1e-7', 'behaviour.eps=1e-6')

    def settings(key):
        return {name: o.param_groups[0][key] for name, o in learner.optimizers.items()}
    expected = {'world_model': 0.01, 'actor': 0.02, 'critic': 0.02, 'reach': 0.006}
    assert settings('lr') == pytest.approx(expected)
    assert settings('eps') == {'world_model': 1e-7, 'actor': 1e-6, 'critic': 1e-6, 'reach': 1e-6}
    learner.scale_lr(0.25)
    assert settings('lr') == pytest.approx({k: 0.25 * v for k, v in expected.items()})
    learner.begin_online()
    assert settings('lr') == pytest.approx({k: 0.5 * v for k, v in expected.items()})


@pytest.mark.parametrize('behaviour', [False, True])
def test_averaged_copies_move_by_their_fraction_after_the_step(replay, behaviour):
    learner = make('behaviour.ema=0.25')
    agent, names = learner.agent, ('q_reward', 'q_cost', 'reach')
    before = {n: [p.clone() for p in getattr(agent, f'{n}_target').parameters()] for n in names}
    model = [p.clone() for p in agent.world_model.parameters()]
    if behaviour:
        learner.update_behaviour(*FeatureReplay(agent, replay).sample(4, 5, learner.rng))
    else:
        learner.update(replay.sample(4, 5, learner.rng))
    for n in names:
        moved = 0.0
        for old, now, online in zip(before[n], getattr(agent, f'{n}_target').parameters(),
                                    getattr(agent, n).parameters()):
            torch.testing.assert_close(now.data, 0.75 * old + 0.25 * online.data)
            moved += (now - old).abs().sum().item()
        assert moved > 0.0, n
    assert all(torch.equal(a, b) for a, b in zip(model, agent.world_model.parameters())) == behaviour


def test_imagination_starts_at_records_drawn_anew(replay):
    learner = make('behaviour.imagine_starts=20')
    picks = [learner._pick(200, 20) for _ in range(3)]
    for pick in picks:
        assert len(pick.unique()) == 20 and 0 <= pick.min() and pick.max() < 200
        assert not torch.equal(pick.sort().values, torch.arange(20))
    assert not torch.equal(picks[0], picks[1])
    assert torch.cat([learner._pick(10, 5) for _ in range(20)]).unique().tolist() == list(range(10))


def test_the_lagrangian_moves_once_a_step_by_the_predicted_cost(replay):
    learner = make('constraint.kind=alm', 'constraint.lambda_init=0.5', 'constraint.penalty_init=0.1',
                   'constraint.penalty_growth=0.2', 'constraint.cost_limit=1.5')
    lam, c = 0.5, 0.1
    for _ in range(3):
        metrics = learner.update(replay.sample(4, 5, learner.rng))
        lam, c = max(0.0, lam + c * (metrics['constraint/predicted_cost'] - 1.5)), c * 1.2
        assert learner.agent.constraint.multiplier.item() == pytest.approx(lam, rel=1e-6)
        assert learner.agent.constraint.penalty_factor.item() == pytest.approx(c, rel=1e-9)


def test_an_episode_moves_a_measured_multiplier_once():
    learner = make('constraint.kind=pid', 'constraint.gain_p=0', 'constraint.gain_d=0', 'constraint.gain_i=0.5')
    for cost, identity, total in ((4.0, 11, 2.0), (4.0, 11, 2.0), (2.0, 12, 3.0), (1.0, None, 3.5), (1.0, None, 4.0)):
        learner.end_episode(cost, identity)
        assert learner.agent.constraint.multiplier.item() == pytest.approx(total)


@pytest.mark.parametrize('share', [0.0, 0.3, 1.0])
def test_online_the_data_term_has_its_own_weight(replay, share):
    learner = make('constraint.kind=none', f'expansion.online_in_sample={share}')
    learner.begin_online()
    agent = learner.agent
    agent.offline_actor_loss = lambda *args: (torch.tensor(7.0), {})
    agent.online_actor_loss = lambda rollout: torch.tensor(2.0)
    batch = learner.to_device(replay.sample(4, 5, np.random.default_rng(0)))
    feature = torch.zeros(4, 5, agent.world_model.rssm.feature_size)
    assert learner._actor_loss(None, feature, batch, False)[0].item() == pytest.approx(7.0 * share + 2.0)
    if not share:   # a term that is off cannot be what makes the loss infinite
        agent.offline_actor_loss = lambda *args: (torch.tensor(torch.inf), {})
        assert learner._actor_loss(None, feature, batch, False)[0].item() == 2.0
