# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The agent of networks against oracles 8.9 and 8.10 and the released code's defects: expansion, freezing, KL, ends."""

import dataclasses

import numpy as np
import pytest
import torch

from fosp_core.agent.agent import Rollout
from fosp_core.config import Config
from fosp_core.contract import Contract
from fosp_core.deploy.graphs import PolicyGraph, example_inputs
from fosp_core.paths import config_file
from fosp_core.train.bench_step import random_replay
from fosp_core.train.checkpoint import load_checkpoint, save_checkpoint
from fosp_core.train.features import FeatureReplay
from fosp_core.train.learner import Learner

CONTRACT = Contract.load(config_file('contract_safereach.yaml'))
DEBUG = Config.load('debug')


@pytest.fixture(scope='module')
def replay():
    return random_replay(CONTRACT, 200)


def weights(module) -> dict:
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -- 8.9 --------------------------------------------------------------------------------------------------------------
def test_the_offline_policy_is_unchanged_after_100_online_updates(replay):
    """8.9 a, defect 7.2.1: both actors of the released code were one network."""
    learner = Learner(CONTRACT, Config.load('debug', ['train.behaviour_batch=4']))
    learner.begin_online()
    agent = learner.agent
    storages = [{p.data_ptr() for p in m.parameters()} for m in (agent.actor, agent.offline_actor)]
    assert storages[0].isdisjoint(storages[1])
    frozen, start = weights(agent.offline_actor), weights(agent.actor)
    features = FeatureReplay(agent, replay)
    for _ in range(100):
        learner.update_behaviour(*features.sample(4, 5, learner.rng))
    assert same(frozen, weights(agent.offline_actor)) and not same(start, weights(agent.actor))
    assert all(p.grad is None and not p.requires_grad for p in agent.offline_actor.parameters())


def _policy_outputs(graph: PolicyGraph, agent, seed: int) -> dict:
    inputs = example_inputs(agent, 'policy', torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return dict(zip(graph.outputs, graph(*inputs)))


def test_each_candidate_is_scored_by_itself_and_the_scored_one_is_executed():
    """8.9 b and c, defect 7.2.2: one dictionary held both actions, so both scores were of the second."""
    agent = Learner(CONTRACT, Config.load('debug', ['expansion.reach_gate=-1'])).agent
    with torch.no_grad():
        agent.actor.output.bias.add_(0.5)       # another policy than the frozen one
        for q in (agent.q_reward_target, agent.q_cost_target):
            q.net.output.weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(1))
    seen = {}

    def spy(name):
        return lambda module, args, out: seen.setdefault(name, []).append((args[1].clone(), out.clone()))

    hooks = [getattr(agent, n).register_forward_hook(spy(n)) for n in ('q_reward_target', 'q_cost_target', 'reach')]
    graph, chosen = PolicyGraph(agent).eval(), set()
    for seed in range(8):
        seen.clear()
        out = _policy_outputs(graph, agent, seed)
        candidates, index = out['candidates'][0], int(out['index'])
        assert not torch.equal(candidates[0], candidates[1])
        for name in ('q_reward_target', 'q_cost_target', 'reach'):
            (action, _), = seen[name]
            assert torch.equal(action[0], candidates), f'{name} was asked about other actions'
        value, cost = seen['q_reward_target'][0][1], seen['q_cost_target'][0][1]
        assert torch.equal(out['scores'], value - agent.config.expansion.cost_coefficient * cost)
        assert out['scores'][0, 0] != out['scores'][0, 1]
        assert torch.equal(out['action'][0], candidates[index]), 'executed and scored action differ'
        chosen.add(index)
    assert chosen == {0, 1}, 'one candidate was never chosen: the test would prove little'
    for hook in hooks:
        hook.remove()


def test_the_logged_share_is_the_chance_of_the_deployed_choice():
    """8.9: equal scores are a coin; the gate decides alone; the graph and the log see the same networks."""
    agent = Learner(CONTRACT, Config.load('debug', ['expansion.reach_gate=-1'])).agent
    feature = torch.randn(5, agent.world_model.rssm.feature_size, generator=torch.Generator().manual_seed(0))
    assert agent.online_share(feature).item() == pytest.approx(0.5)
    with torch.no_grad():
        agent.actor.output.bias.add_(0.5)
        agent.q_reward_target.net.output.weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(1))
        modes = [a(feature)[0] for a in (agent.offline_actor, agent.actor)]
        value = torch.stack([agent.q_reward_target(feature, m) for m in modes], 1)
    expected = torch.softmax(5.0 * value, -1)[:, 1].mean().item()
    assert agent.online_share(feature).item() == pytest.approx(expected, abs=1e-5) and abs(expected - 0.5) > 1e-3


def test_without_expansion_the_online_policy_acts_alone():
    agent = Learner(CONTRACT, Config.load('debug', ['expansion.enabled=false'])).agent
    with torch.no_grad():
        agent.actor.output.bias.add_(0.5)
    graph = PolicyGraph(agent).eval()
    for seed in range(3):
        out = _policy_outputs(graph, agent, seed)
        assert int(out['index']) == 1 and torch.equal(out['action'], out['candidates'][:, 1])


@pytest.mark.parametrize('init', ['copy', 'fresh'])
def test_going_online_can_be_repeated_and_resumed(replay, init, tmp_path):
    """lessons.md 18, online: a resumed run went on at the offline learning rates; a fresh actor was never the same."""
    config = Config.load('debug', [f'expansion.init={init}'])

    def online(steps: int) -> Learner:
        learner = Learner(CONTRACT, config, seed=5)
        learner.begin_online()
        for _ in range(steps):
            learner.update(replay.sample(4, 6, learner.rng))
        return learner

    torch.manual_seed(1)
    whole = online(4)
    torch.manual_seed(2)    # the global stream must have no say
    half = online(2)
    resumed = Learner(CONTRACT, config, seed=99)
    load_checkpoint(save_checkpoint(tmp_path, half), resumed)
    assert resumed.online
    for _ in range(2):
        resumed.update(replay.sample(4, 6, resumed.rng))
    assert same(weights(whole.agent), weights(resumed.agent))
    copied = torch.equal(online(0).agent.actor.output.weight, online(0).agent.offline_actor.output.weight)
    assert copied == (init == 'copy')


# -- 8.10 -------------------------------------------------------------------------------------------------------------
def test_equal_prior_and_posterior_cost_the_free_bits_and_pull_at_nothing(replay):
    gradients = {}
    for scale in (1.0, 0.0):
        config = Config.load('debug', [f'world_model.kl_dynamic={0.5 * scale}',
                                       f'world_model.kl_representation={0.1 * scale}'])
        model = Learner(CONTRACT, config).agent.world_model
        with torch.no_grad():
            for layer in (model.rssm.prior_logits, model.rssm.post_logits):
                layer.weight.zero_()
        batch = {k: torch.from_numpy(v) for k, v in replay.sample(2, 4, np.random.default_rng(0)).items()}
        loss, _, metrics = model.loss(batch, torch.zeros(2, 4, model.rssm.stoch, model.rssm.classes))
        if scale:
            assert metrics['model/kl'].item() == pytest.approx(0.0, abs=1e-6)
            total = metrics['model/dynamic'] + metrics['model/representation']
            assert total.item() == pytest.approx(0.6, abs=1e-6)
        loss.backward()
        gradients[scale] = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert gradients[1.0].keys() == gradients[0.0].keys()
    assert all(torch.equal(g, gradients[0.0][n]) for n, g in gradients[1.0].items())


# -- imagination and the constraint -----------------------------------------------------------------------------------
def test_what_is_imagined_after_the_end_of_an_episode_costs_nothing():
    agent = Learner(CONTRACT, Config.load('debug', ['behaviour.use_reachability=false', 'behaviour.lam=1'])).agent
    feature = torch.zeros(4, 2, agent.world_model.rssm.feature_size)
    cont = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])   # the first rollout ends on arrival at its second step
    weight = torch.cumprod(torch.cat([torch.ones(1, 2), cont]), 0)
    rollout = Rollout(feature, torch.zeros(4, 2, 3), torch.zeros(3, 2), torch.ones(3, 2), cont, weight)
    config = dataclasses.replace(agent.config, behaviour=dataclasses.replace(agent.config.behaviour, discount=1.0))
    agent.config = config
    # Costs to go 2, 1, (1) and 3, 2, 1.
    assert agent.predicted_cost(rollout).item() == pytest.approx((3 + 6) / 2)
