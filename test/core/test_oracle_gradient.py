# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From the formulas to the gradient: signs, alignment and masks of the losses that the learner really steps on."""

import numpy as np
import pytest
import torch

from fosp_core.agent import actor_loss, returns
from fosp_core.config import Config
from fosp_core.contract import Contract
from fosp_core.data.replay import Replay
from fosp_core.nn.distributions import twohot_loss
from fosp_core.paths import config_file
from fosp_core.train.bench_step import random_replay
from fosp_core.train.learner import Learner
from fosp_core.world_model.model import States

CONTRACT = Contract.load(config_file('contract_safereach.yaml'))


@pytest.fixture(scope='module')
def replay() -> Replay:
    return random_replay(CONTRACT, 200)


def make(*overrides) -> Learner:
    """A learner whose heads do not begin at zero."""
    learner = Learner(CONTRACT, Config.load('debug', ['behaviour.horizon=4', *overrides]), seed=0)
    torch.manual_seed(5)
    for parameter in learner.agent.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter.data, std=0.2)
    model = learner.agent.world_model
    with torch.no_grad():
        model.cost.output.bias.add_(torch.linspace(-1.0, 3.0, len(model.bins)))     # not clamped to zero
    return learner


def imagined(learner: Learner):
    agent, rssm = learner.agent, learner.agent.world_model.rssm
    deter, stoch = rssm.initial_state(6)
    start = States(deter + 0.1 * torch.randn(6, rssm.deter, generator=torch.Generator().manual_seed(1)),
                   stoch.expand(6, -1))
    return agent.imagine(start, torch.ones(6), learner.generator)


def test_imagined_reward_cost_and_end_come_on_arrival():
    learner = make('behaviour.actor_objective=dynamics')
    rollout, model = imagined(learner), learner.agent.world_model
    feature = torch.stack([f.dense() if hasattr(f, 'dense') else f for f in rollout.feature])
    for values, head in ((rollout.reward, model.predict_reward), (rollout.cost, model.predict_cost),
                         (rollout.cont, model.predict_cont)):
        assert values.shape == (4, 6) and torch.allclose(values, head(feature[1:]), atol=1e-5)
    assert not torch.allclose(rollout.reward, model.predict_reward(feature[:-1]), atol=1e-3)
    assert not torch.allclose(rollout.cost, model.predict_cost(feature[:-1]), atol=1e-3)


def test_online_actor_loss_is_minus_the_weighted_likelihood_and_entropy():
    learner = make('behaviour.entropy=0.3')
    agent, rollout = learner.agent, imagined(learner)
    cfg = agent.config.behaviour
    feature, action = rollout.feature[:-1].detach(), rollout.action[:-1].detach()
    advantage, cost_advantage, _ = agent.advantages(feature, action)
    weight = actor_loss.online_weight(agent.feasibility(feature, action), advantage, cost_advantage, cfg.beta_reward,
                                      cfg.beta_cost)
    log_prob, entropy = agent.actor.log_prob(feature, action)
    loss = agent.online_actor_loss(rollout)
    assert float(loss) == pytest.approx(-float((rollout.weight[:-1] * (weight * log_prob + 0.3 * entropy)).mean()),
                                        rel=1e-4)
    assert weight.abs().max() > 1e-3


def test_dynamics_actor_climbs_the_imagined_return_and_the_entropy():
    for overrides, value in ((('behaviour.entropy=0.0',), 'return'), (('behaviour.entropy=1000.0',), 'entropy')):
        learner = make('behaviour.actor_objective=dynamics', 'constraint.kind=none', *overrides)
        agent, state = learner.agent, learner.generator.get_state()
        cfg = agent.config.behaviour

        def measured(agent=agent, learner=learner, state=state, what=value, cfg=cfg):
            learner.generator.set_state(state)
            rollout = imagined(learner)
            if what == 'entropy':
                return agent.actor.log_prob(rollout.feature[:-1].detach(), rollout.action[:-1].detach())[1].mean()
            value = agent.v_reward(rollout.feature)
            returned = returns.lambda_return(rollout.reward, rollout.cont, value, cfg.discount, cfg.lam)
            return (rollout.weight[:-1] * returned).mean()
        before = float(measured())
        learner.generator.set_state(state)
        parameters = list(agent.actor.parameters())
        gradients = torch.autograd.grad(agent.dynamics_actor_loss(imagined(learner)), parameters)
        with torch.no_grad():
            scale = 1e-2 / torch.cat([g.flatten() for g in gradients]).norm()
            for parameter, gradient in zip(parameters, gradients):
                parameter -= scale * gradient
        assert float(measured()) > before, value


def test_offline_actor_loss_raises_what_the_data_did_and_ignores_masked_pairs():
    learner = make('behaviour.entropy=0.0')
    agent = learner.agent
    generator = torch.Generator().manual_seed(2)
    feature = torch.randn(8, agent.world_model.rssm.feature_size, generator=generator)
    action = torch.rand(8, 3, generator=generator) - 0.5
    mask = torch.tensor([1.0] * 4 + [0.0] * 4)
    loss, metrics = agent.offline_actor_loss(feature, action, mask, generator)
    assert metrics['actor/weight'] > 0
    parameters = list(agent.actor.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    poisoned = torch.where(mask[:, None] > 0, action, torch.full_like(action, 0.9))
    assert torch.allclose(agent.offline_actor_loss(feature, poisoned, mask, generator)[0], loss)
    before = agent.actor.log_prob(feature, action)[0].detach()
    with torch.no_grad():
        scale = 1e-3 / torch.cat([g.flatten() for g in gradients]).norm()
        for parameter, gradient in zip(parameters, gradients):
            parameter -= scale * gradient
    assert (agent.actor.log_prob(feature, action)[0] - before)[:4].mean() > 0


@pytest.mark.parametrize('online', [False, True])
def test_the_penalty_is_added_and_the_first_records_are_no_pairs(replay, online, monkeypatch):
    learner = make('constraint.kind=alm', 'behaviour.entropy=0.0')
    if online:
        learner.begin_online()
    agent = learner.agent
    agent.constraint.penalty = lambda cost: 7.0 * cost
    seen = {}
    original = agent.offline_actor_loss

    def spy(feature, action, mask, generator):
        seen['mask'] = mask
        out = original(feature, action, mask, generator)
        seen['loss'] = out[0].detach()
        return out
    monkeypatch.setattr(agent, 'offline_actor_loss', spy)
    batch = learner.to_device(replay.sample(4, 12, learner.rng))
    batch['is_first'][:, 5] = True
    rollout = imagined(learner)
    feature = torch.randn(4, 12, agent.world_model.rssm.feature_size)
    loss, metrics = learner._actor_loss(rollout, feature, batch, constrained=True)
    expected = float(seen['loss'])
    if online:
        expected = learner.config.expansion.online_in_sample * expected + float(agent.online_actor_loss(rollout))
    cost = float(metrics['constraint/predicted_cost'])
    assert abs(cost) > 1e-4
    assert float(loss) == pytest.approx(float(agent.constraint.reward_scale) * expected + 7.0 * cost, rel=1e-3)
    mask = seen['mask'].reshape(4, 11)
    assert torch.equal(mask, 1.0 - batch['is_first'][:, 1:].float()) and (mask[:, 4] == 0).all()


def test_the_world_model_learns_reward_cost_and_end_of_each_record(replay):
    learner = make()
    model = learner.agent.world_model
    batch = learner.to_device(replay.sample(4, 12, learner.rng))
    batch['cost'][:, 3], batch['is_terminal'][:, 7], batch['reward'][:, 5] = 1.0, True, 1.0
    gumbel = torch.zeros(4, 12, model.rssm.stoch, model.rssm.classes)
    with torch.no_grad():
        _, states, metrics = model.loss(batch, gumbel)
        feature = states.feature
        reward = twohot_loss(model.reward(feature), batch['reward'], model.bins).mean()
        cost = twohot_loss(model.cost(feature), batch['cost'], model.bins)
        weighted = torch.where(batch['cost'] > 0, 10.0 * cost, cost).mean()
        cont = torch.sigmoid(model.cont(feature).squeeze(-1))
        end = batch['is_terminal'].float()
        likelihood = -(end * torch.log1p(-cont) + (1 - end) * torch.log(cont)).mean()
    for key, value in (('reward', reward), ('cost', weighted), ('cont', likelihood)):
        assert float(metrics[f'model/{key}']) == pytest.approx(float(value), rel=1e-4), key


@pytest.mark.parametrize('online', [False, True])
@pytest.mark.parametrize('kind', ['pid', 'apid'])
def test_a_measured_multiplier_shares_the_loss_out(replay, online, kind):
    """(reward part + lambda J_c) / (1 + lambda), with lambda = 3: a quarter and three quarters."""
    learner = make(f'constraint.kind={kind}')
    agent = learner.agent
    agent.constraint.multiplier.fill_(3.0)
    if online:
        learner.begin_online()
    batch = learner.to_device(replay.sample(4, 12, learner.rng))
    rollout, feature = imagined(learner), torch.randn(4, 12, agent.world_model.rssm.feature_size)
    state = learner.generator.get_state()
    loss, metrics = learner._actor_loss(rollout, feature, batch, constrained=True)
    learner.generator.set_state(state)
    reward = float(learner._actor_loss(rollout, feature, batch, constrained=False)[0])
    cost = float(agent.predicted_cost(rollout))
    assert float(metrics['constraint/predicted_cost']) == pytest.approx(cost) and min(abs(reward), abs(cost)) > 1e-3
    assert float(loss) == pytest.approx(reward / 4 + 3 * cost / 4, rel=1e-5)
    assert agent.constraint.multiplier.item() == 3.0, 'measured costs move it, predicted ones do not'


def test_kl_pulls_the_prior_by_one_weight_and_the_posterior_by_the_other(replay):
    """0.5 max(1, KL[sg(q) || p]) + 0.1 max(1, KL[q || sg(p)]): gradients -q and q (ln q - ln p + 1), free bits 0."""
    model = make().agent.world_model
    batch = {k: torch.from_numpy(v) for k, v in replay.sample(2, 3, np.random.default_rng(0)).items()}
    shape, rng = (2, 3, model.rssm.stoch, model.rssm.classes), np.random.default_rng(1)
    logits = 2.0 * rng.normal(size=(2, *shape))
    logits[1, 0, 0] = logits[0, 0, 0]           # a record within the free bits
    q, p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    log_post, log_prior = (torch.tensor(np.log(x), dtype=torch.float32, requires_grad=True) for x in (q, p))
    state = torch.zeros(2, 3, model.rssm.deter), torch.zeros(2, 3, model.rssm.stoch * model.rssm.classes)
    model.rssm.observe = lambda *args: (*state, log_post, log_prior)
    loss, _, metrics = model.loss(batch, torch.zeros(shape))
    loss.backward()
    kl = (q * np.log(q / p)).sum((-2, -1))
    free = (kl > 1.0)[..., None, None] / kl.size
    assert kl[0, 0] < 1e-9 and (np.delete(kl.flatten(), 0) > 1.5).all()
    np.testing.assert_allclose(log_prior.grad.numpy(), -0.5 * free * q, atol=1e-6)
    np.testing.assert_allclose(log_post.grad.numpy(), 0.1 * free * q * (np.log(q / p) + 1), atol=1e-6)
    assert float(metrics['model/dynamic']) == pytest.approx(0.5 * np.maximum(kl, 1).mean(), rel=1e-5)
    assert float(metrics['model/representation']) == pytest.approx(0.1 * np.maximum(kl, 1).mean(), rel=1e-5)


def test_ends_and_costs_of_constant_heads(replay):
    """A head that says the same of every record: its loss and its gradient are a matter of counting."""
    model = make().agent.world_model
    batch = {k: torch.from_numpy(v) for k, v in replay.sample(4, 12, np.random.default_rng(0)).items()}
    batch['is_terminal'][...], batch['cost'][...] = False, 0.0
    batch['is_terminal'][0, :3] = True                          # 3 of 48
    batch['cost'][1, :5] = torch.tensor([0.5, 0.99, 1.0, 2.0, 3.0])     # three at 1 or above
    with torch.no_grad():
        for head in (model.cont, model.cost):
            head.output.weight.zero_()
        model.cont.output.bias.fill_(2.0)
        model.cost.output.bias.zero_()
    loss, states, metrics = model.loss(batch, torch.zeros(4, 12, model.rssm.stoch, model.rssm.classes))
    loss.backward()
    assert float(metrics['model/cont']) == pytest.approx(np.log1p(np.exp(2.0)) - 2.0 * 45 / 48, rel=1e-5)
    assert model.cont.output.bias.grad.item() == pytest.approx(1 / (1 + np.exp(-2.0)) - 45 / 48, rel=1e-4)
    assert float(metrics['model/cost']) == pytest.approx(np.log(255) * (45 + 3 * 10) / 48, rel=1e-5)
    assert (model.predict_cont(states.feature) == 1.0).all()
    with torch.no_grad():
        model.cont.output.bias.fill_(-2.0)
    assert (model.predict_cont(states.feature) == 0.0).all()


def test_imagination_starts_with_the_true_flag_of_its_record(replay, monkeypatch):
    """The weight of a rollout begins at 1 - is_terminal of the very record that it starts from."""
    learner = make('behaviour.imagine_starts=20')
    agent, seen = learner.agent, {}
    original = agent.imagine

    def spy(start, cont, generator):
        seen['start'], seen['cont'] = start, cont
        seen['rollout'] = original(start, cont, generator)
        return seen['rollout']
    monkeypatch.setattr(agent, 'imagine', spy)
    batch = learner.to_device(replay.sample(4, 12, learner.rng))
    batch['is_terminal'] = torch.rand(4, 12) < 0.5
    deter = torch.arange(48.0).reshape(4, 12, 1).expand(4, 12, agent.world_model.rssm.deter) / 48
    stoch = torch.zeros(4, 12, agent.world_model.rssm.stoch * agent.world_model.rssm.classes)
    states = States(deter, stoch)
    learner._behaviour(states, states.feature, batch)
    record = (seen['start'].deter[:, 0] * 48).round().long()
    assert len(record) == 20 and len(record.unique()) == 20
    expected = 1.0 - batch['is_terminal'].flatten()[record].float()
    assert torch.equal(seen['cont'], expected) and 0 < expected.sum() < 20
    torch.testing.assert_close(seen['rollout'].weight[0], expected)


def test_a_baseline_has_a_gradient_of_its_own_but_on_the_first_step():
    """V(s_t) hangs on the actions before t: an objective with the baseline taken off is another one."""
    learner = make('behaviour.actor_objective=dynamics')
    agent, rollout = learner.agent, imagined(learner)
    value, parameters = agent.v_reward(rollout.feature), list(agent.actor.parameters())
    for part, moves in ((value[0], False), (value[1:], True)):
        part = part + 0.0 * sum(p.sum() for p in parameters)
        gradients = torch.autograd.grad(part.sum(), parameters, retain_graph=True)
        assert any(g.abs().max() > 1e-6 for g in gradients) == moves


@pytest.mark.parametrize(('raw', 'std'), [(-30.0, 0.1), (-2.0, 0.55), (30.0, 1.0)])
def test_imagined_and_sampled_actions_spread_as_the_policy_says(raw, std):
    learner = make('behaviour.horizon=9')
    agent, rssm = learner.agent, learner.agent.world_model.rssm
    with torch.no_grad():
        agent.actor.output.weight.zero_()
        agent.actor.output.bias.copy_(torch.tensor([np.arctanh(0.5)] * 3 + [raw] * 3))
        deter, stoch = (x.expand(400, -1) for x in rssm.initial_state(1))
        imagined_action = agent.imagine(States(deter, stoch), torch.ones(400), learner.generator).action
        feature = torch.zeros(4000, rssm.feature_size)
        sampled, log_prob = agent.actor.sample(feature, learner.generator)
    for action in (imagined_action.flatten(0, 1), sampled):
        assert action.std(0).numpy() == pytest.approx([std] * 3, rel=0.05)
        assert action.mean(0).numpy() == pytest.approx([0.5] * 3, abs=0.08)
    normal = -0.5 * ((sampled - 0.5) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))
    torch.testing.assert_close(log_prob, normal.sum(-1), rtol=1e-4, atol=1e-3)
