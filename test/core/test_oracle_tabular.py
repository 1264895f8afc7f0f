# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Problems whose answer is known, solved by the agent's own losses: oracles 8.3, 8.4, 8.5, 8.6, 8.7, 8.14, 8.15."""

import dataclasses

import numpy as np
import pytest
import torch

from fosp_core.agent.alignment import discounted_to_go, rank_correlation
from fosp_core.agent.networks import Critic
from fosp_core.agent.tabular import TABULAR, Table, TabularAgent, Transition, extract, fit, make_batch
from fosp_core.config import AlignmentConfig, Config, NetworkConfig
from fosp_core.world_model.model import States

F64 = torch.float64


def config(alignment: dict | None = None, **behaviour) -> Config:
    return dataclasses.replace(TABULAR, behaviour=dataclasses.replace(TABULAR.behaviour, **behaviour),
                               alignment=AlignmentConfig(**(alignment or {})))


# -- 8.3 --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(('loss', 'tau', 'expected'), [
    ('twohot_ce', 0.8, 5.809483), ('twohot_ce', 0.2, 0.615394), ('squared', 0.8, 8.0), ('squared', 0.5, 5.0)])
def test_expectile_of_a_twohot_critic(loss, tau, expected):
    """The fixed points of the two forms on {0, 10}; 0.2 is what the released code has for both signals."""
    agent = TabularAgent(1, 1, config(value_loss=loss))
    critic = Critic(1, NetworkConfig(units=8))
    critic.net = torch.nn.Linear(1, 255, bias=False)
    torch.nn.init.zeros_(critic.net.weight)
    optimizer = torch.optim.Adam(critic.parameters(), 0.5)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 400)
    feature, target = torch.ones(2, 1), torch.tensor([0.0, 10.0])
    for _ in range(400):
        optimizer.zero_grad()
        agent.expectile_loss(critic, feature, target, tau).mean().backward()
        optimizer.step()
        schedule.step()
    assert critic(feature)[0].item() == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(('low', 'high', 'tau'), [(0.0, 1.0, 0.2), (0.0, 10.0, 0.8), (-2.0, 3.0, 0.9)])
def test_expectile_of_two_equally_frequent_values(low, high, tau):
    data = [Transition(0, 0, low, 0.0, 1, True), Transition(0, 1, high, 0.0, 1, True)]
    solution = fit(data, 2, 2, config(reward_expectile=tau))
    assert solution.v_reward[0] == pytest.approx((1 - tau) * low + tau * high, abs=1e-3)


# -- 8.4 --------------------------------------------------------------------------------------------------------------
A, B, C, D, E = 0, 1, 0, 1, 2       # a, b at s0; c, d, and e, which no record has, at s1
IN_SAMPLE = [Transition(0, A, 1.0, 1.0, 2, True), Transition(0, B, 0.0, 0.0, 1, False),
             Transition(1, C, 0.0, 0.0, 2, True), Transition(1, D, 10.0, 1.0, 2, True)]
# Extraction by reward alone: u = 1, no gate.
REWARD_ONLY = {'use_reachability': False, 'feasible_gate': -1.0}


@pytest.mark.parametrize(('tau', 'cost_tau', 'reward', 'cost'), [
    (0.5, 0.2, (5.0, 4.5, 2.75), (0.2, 0.18, 0.344)), (0.8, 0.5, (8.0, 7.2, 5.96), (0.5, 0.45, 0.725)),
    (0.9, 0.2, (9.0, 8.1, 7.39), (0.2, 0.18, 0.344))])
def test_in_sample_values(tau, cost_tau, reward, cost):
    solution = fit(IN_SAMPLE, 3, 3, config(reward_expectile=tau, cost_expectile=cost_tau, **REWARD_ONLY))
    assert (solution.v_reward[1], solution.q_reward[0, B], solution.v_reward[0]) == pytest.approx(reward, abs=1e-4)
    assert (solution.v_cost[1], solution.q_cost[0, B], solution.v_cost[0]) == pytest.approx(cost, abs=1e-4)
    if tau == 0.8:
        assert solution.policy[0, B] / solution.policy[0, [A, B]].sum() == pytest.approx(0.997975, abs=1e-6)


def test_extraction_weights():
    agent = TabularAgent(3, 3, config(reward_expectile=0.8, **REWARD_ONLY), IN_SAMPLE)
    fit(IN_SAMPLE, 3, 3, agent=agent)
    for action, weight in ((A, 0.007013), (B, 3.455613)):
        pair = torch.eye(3, dtype=F64)[:1], torch.eye(3, dtype=F64)[action:action + 1]
        metrics = agent.offline_actor_loss(*pair, torch.ones(1), torch.Generator())[1]
        assert metrics['actor/weight'].item() == pytest.approx(weight, rel=1e-4)


def test_an_absent_action_influences_nothing():
    """Whatever the critics extrapolate for e, what was learned from the data stays the same bit for bit."""
    solutions = []
    for wrong in (-100.0, 100.0):
        agent = TabularAgent(3, 3, config(reward_expectile=0.8, **REWARD_ONLY), IN_SAMPLE)
        with torch.no_grad():
            for table in (agent.q_reward, agent.q_cost, agent.q_reward_target, agent.q_cost_target):
                table.table[1, E] = wrong
        solutions.append(fit(IN_SAMPLE, 3, 3, agent=agent))
    low, high = solutions
    assert low.q_reward[1, E] == -100.0 and high.q_reward[1, E] == 100.0
    for name in ('v_reward', 'v_cost', 'policy'):
        assert np.array_equal(getattr(low, name), getattr(high, name)), name
    for name in ('q_reward', 'q_cost'):
        assert np.array_equal(getattr(low, name)[:, :2], getattr(high, name)[:, :2]), name
    assert low.v_reward[1] == pytest.approx(8.0, abs=1e-4) and low.policy[1, E] < 0.01


# -- 8.5 --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(('discount', 'expected'), [(0.99, 0.396040), (0.9, 0.363636), (1.0, 0.4)])
def test_reachability_of_a_state_of_chance(discount, expected):
    """Stays with 0.5, violates with 0.2, reaches the goal with 0.3; arrival form."""
    data = ([Transition(0, 0, 0.0, 0.0, 0, False)] * 5 + [Transition(0, 0, 0.0, 1.0, 1, True)] * 2
            + [Transition(0, 0, 1.0, 0.0, 2, True)] * 3)
    solution = fit(data, 3, 1, config(reach_discount=discount), draws=1)
    assert solution.reach[0, 0] == pytest.approx(expected, abs=2e-4)


def _reach_targets(agent: TabularAgent, data: list[Transition]) -> tuple[float, float]:
    feature, batch = make_batch(data, agent.states, agent.actions)
    generator = torch.Generator().manual_seed(0)
    rollout = agent.imagine(States(feature[:, 0], feature[:, 0, :0]), torch.ones(len(data), dtype=F64), generator)
    metrics = agent.reach_loss(rollout, feature, batch, generator)[1]
    return metrics['reach/imagined'].item(), metrics['reach/data'].item()


def test_violation_labels_come_from_cost_and_never_from_the_network():
    """Defect 7.2.5 of the released code: its labels were the network's own output being positive."""
    ends = [Transition(0, 0, 0.0, 1.0, 1, True), Transition(0, 1, 1.0, 0.0, 2, True)]
    found = []
    for sign in (-3.0, 3.0):
        agent = TabularAgent(3, 2, config(horizon=4), ends)
        with torch.no_grad():
            agent.reach.table.fill_(sign)
            agent.reach_target.table.fill_(sign)
        found.append(_reach_targets(agent, ends))
    assert found[0] == found[1] and found[0][1] == 0.5
    harmless = [t._replace(cost=0.0) for t in ends]
    assert _reach_targets(TabularAgent(3, 2, config(horizon=4), harmless), harmless) == (0.0, 0.0)
    with torch.no_grad():   # and the recursion bootstraps from the averaged copy, not from the network in training
        agent = TabularAgent(2, 1, config(horizon=2), [Transition(0, 0, 0.0, 0.0, 0, False)])
        agent.reach.table.fill_(50.0)
    imagined, data = _reach_targets(agent, [Transition(0, 0, 0.0, 0.0, 0, False)])
    assert data == pytest.approx(0.495) and imagined == pytest.approx((0.495 + 0.49005) / 2)


# -- 8.6 --------------------------------------------------------------------------------------------------------------
LEFT, RIGHT = 0, 1


def _corridor() -> list[Transition]:
    data = []
    for cell in (1, 2, 3):
        for action, there in ((LEFT, cell - 1), (RIGHT, cell + 1)):
            data.append(Transition(cell, action, float(there == 4), float(there == 0), there, there in (0, 4)))
    return data


CORRIDOR = _corridor()
UNIFORM = np.full((5, 2), 0.5)


@pytest.mark.parametrize(('tau', 'cost_tau', 'reward', 'cost', 'tolerance'), [
    (0.5, 0.5, (0.240244, 0.485342, 0.740244), (0.740244, 0.485342, 0.240244), 1e-4),
    (0.8, 0.2, (0.731111, 0.923120, 0.982778), (0.245694, 0.057695, 0.011424), 1e-4),
    (0.9, 0.2, (0.867543, 0.973674, 0.996394), (0.245694, 0.057695, 0.011424), 1e-4),
    (0.9999, 0.0001, (0.9801, 0.99, 1.0), (0.0, 0.0, 0.0), 1e-3)])
def test_corridor_under_the_uniform_policy(tau, cost_tau, reward, cost, tolerance):
    settings = config(discount=0.99, reach_discount=0.99, reward_expectile=tau, cost_expectile=cost_tau)
    solution = fit(CORRIDOR, 5, 2, settings, policy=UNIFORM, draws=2)
    assert solution.v_reward[1:4] == pytest.approx(reward, abs=tolerance)
    assert solution.v_cost[1:4] == pytest.approx(cost, abs=tolerance)
    assert solution.reach[1:4].mean(1) == pytest.approx((0.740244, 0.485342, 0.240244), abs=1e-3)


def test_corridor_undiscounted():
    solution = fit(CORRIDOR, 5, 2, config(reach_discount=1.0), policy=UNIFORM, draws=2)
    assert solution.reach[1:4].mean(1) == pytest.approx((0.75, 0.5, 0.25), abs=1e-3)


def test_corridor_policy_learned_offline():
    """Imagination, critics, reachability, gate and weights together, then what the greedy policy does."""
    settings = config(discount=0.99, horizon=6, beta_reward=40.0, beta_cost=40.0)
    learned = fit(CORRIDOR, 5, 2, settings, model=CORRIDOR, draws=2, steps=150)
    assert (learned.policy[1:4].argmax(1) == RIGHT).all()
    assert (learned.policy[1:4, RIGHT] > 0.9).all()
    step = {(t.state, t.action): t for t in CORRIDOR}
    for cell in (1, 2, 3):
        cost, done = 0.0, False
        while not done:
            t = step[cell, int(learned.policy[cell].argmax())]
            cell, cost, done = t.next, cost + t.cost, t.terminal
        assert (cell, cost) == (4, 0.0)
    greedy = np.eye(2)[learned.policy.argmax(1)]
    reach = fit(CORRIDOR, 5, 2, config(reach_discount=0.99), policy=greedy, draws=2).reach
    assert (reach[1:4, RIGHT] < 0.01).all(), 'the feasible set under the learned policy is {1, 2, 3}'
    assert reach[1, LEFT] > 0.99


# -- 8.7 --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(('behaviour', 'expected'), [
    ({}, 0.788962), ({'feasible_gate': -1.0}, 0.497689),
    ({'feasible_gate': -1.0, 'use_reachability': False}, 0.268941)])
def test_the_policy_takes_the_safe_action_over_the_short_cut(behaviour, expected):
    """One state, two actions: safe (r 1, c 0) and short (r 2, c 1), V the mean, p = 0.495, through the actor's loss."""
    agent = TabularAgent(1, 2, config(**behaviour))
    with torch.no_grad():
        for q, v, values in ((agent.q_reward_target, agent.v_reward, (1.0, 2.0)),
                             (agent.q_cost_target, agent.v_cost, (0.0, 1.0))):
            q.table.copy_(torch.tensor([values]))
            v.table.fill_(sum(values) / 2)
        agent.reach_target.table.fill_(np.log(0.495 / 0.505))
    assert _extracted(agent)[0] == pytest.approx(expected, abs=1e-5)


def _extracted(agent: TabularAgent) -> list[float]:
    """The policy of the only state at the minimum of the offline actor loss on one record of each action."""
    feature, action = torch.ones(agent.actions, 1, dtype=F64), torch.eye(agent.actions, dtype=F64)
    extract(agent, feature, action)
    return agent.solution().policy[0].tolist()


@pytest.mark.parametrize('form', ['mixture', 'product'])
def test_policy_of_two_advantages(form):
    agent = TabularAgent(1, 2, config(weight_form=form, use_reachability=False))
    with torch.no_grad():
        agent.q_reward_target.table.copy_(torch.tensor([[1.0, -1.0]]))
    assert _extracted(agent)[0] == pytest.approx(0.880797, abs=1e-5)


def test_behaviour_cloning_ignores_the_critics():
    agent = TabularAgent(1, 2, config(weight_form='uniform'))
    with torch.no_grad():
        agent.q_reward_target.table.copy_(torch.tensor([[1.0, -1.0]]))
    assert _extracted(agent)[0] == pytest.approx(0.5, abs=1e-6)


def test_feasibility_of_the_state_is_that_of_the_policys_action():
    """P1's u(s): the weight of a harmless record falls when the policy itself is on its way to a violation."""
    weights = {}
    for kind in ('action', 'state'):
        agent = TabularAgent(1, 2, config(feasibility=kind, feasible_gate=-1.0))
        with torch.no_grad():
            agent.actor.table.copy_(torch.tensor([[-30.0, 30.0]]))          # the policy takes action 1
            agent.reach_target.table.copy_(torch.tensor([[-30.0, 30.0]]))   # which ends in a violation
            agent.q_reward_target.table.copy_(torch.tensor([[2.0, 0.0]]))
        pair = torch.ones(1, 1, dtype=F64), torch.eye(2, dtype=F64)[:1]
        loss = agent.offline_actor_loss(*pair, torch.ones(1), torch.Generator().manual_seed(0))
        weights[kind] = loss[1]['actor/weight'].item()
    assert weights == pytest.approx({'action': np.exp(2.0), 'state': 1.0}, abs=1e-6)


# -- 8.14 -------------------------------------------------------------------------------------------------------------
LOOP = [Transition(0, action, 1.0, 0.5, 0, False) for action in (0, 1)]


@pytest.mark.parametrize(('alphas', 'reward', 'cost'), [((0.0, 0.0), 10.0, 5.0), ((0.1, 0.02), 10.623832, 5.124766)])
def test_pre_alignment_of_a_loop(alphas, reward, cost):
    settings = config({'alpha_reward': alphas[0], 'alpha_cost': alphas[1]})
    agent = TabularAgent(1, 2, settings, draws=2)
    with torch.no_grad():
        agent.actor.table.copy_(torch.tensor([[3.0, -3.0]]))    # the online policy has no say
    agent.offline_actor.table.zero_()
    before = agent.offline_actor.table.clone(), agent.actor.table.clone(), agent.constraint
    solution = fit(LOOP, 1, 2, agent=agent, align=True, draws=2)
    assert solution.q_reward == pytest.approx(np.full((1, 2), reward), abs=1e-4)
    assert solution.q_cost == pytest.approx(np.full((1, 2), cost), abs=1e-4)
    # V is the plain mean of Q under the offline policy.
    assert (solution.v_reward[0], solution.v_cost[0]) == pytest.approx((reward, cost), abs=1e-4)
    assert torch.equal(agent.offline_actor.table, before[0]) and torch.equal(agent.actor.table, before[1])
    assert agent.offline_actor.table.grad is None and agent.actor.table.grad is None


def test_pre_alignment_fits_reachability_under_the_offline_policy():
    """The corridor again: the frozen policy is uniform, the online one walks into the pit."""
    agent = TabularAgent(5, 2, config({'alpha_reward': 0.0, 'alpha_cost': 0.0}, discount=0.99), draws=2)
    with torch.no_grad():
        agent.actor.table[:, LEFT] = 9.0
    solution = fit(CORRIDOR, 5, 2, agent=agent, align=True, draws=2)
    assert solution.reach[1:4].mean(1) == pytest.approx((0.740244, 0.485342, 0.240244), abs=1e-3)
    assert solution.v_reward[1:4] == pytest.approx((0.240244, 0.485342, 0.740244), abs=2e-3)
    assert solution.v_cost[1:4] == pytest.approx((0.740244, 0.485342, 0.240244), abs=2e-3)


def test_rank_correlation():
    x = np.random.default_rng(0).normal(size=50)
    assert rank_correlation(np.exp(x), x) == pytest.approx(1.0)
    assert rank_correlation(-x ** 3, x) == pytest.approx(-1.0)
    assert rank_correlation(np.ones(50), x) == 0.0
    assert np.isnan(rank_correlation(x, np.ones(50)))
    assert discounted_to_go(np.array([9.0, 1.0, 0.0, 4.0]), 0.5).tolist() == [2.0, 2.0, 4.0]


# -- 8.15 -------------------------------------------------------------------------------------------------------------
class Recorder(Table):
    """A table of zeros, or of one value, that keeps what it was asked for and what its target was."""

    def __init__(self, states: int, actions: int = 1, value: float = 0.0):
        super().__init__(states, actions)
        self.table.data.fill_(value)
        self.asked, self.targets = [], []

    def logits(self, feature, action=None):
        self.asked.append((feature, action))
        return super().logits(feature, action)

    def loss(self, logits, target):
        self.targets.append(target)
        return super().loss(logits, target)


def test_a_pair_takes_reward_cost_and_end_of_the_next_record_and_never_crosses_an_episode():
    """Defect 7.2.7 of the released code: off by one, and across sequences."""
    length = 8      # records 0..4 of one episode, which ends at 4; records 5..7 of the next
    agent = TabularAgent(length, 1, config(discount=0.5, in_sample=True))
    agent.q_reward, agent.q_cost = Recorder(length), Recorder(length)
    agent.v_reward, agent.v_cost = Recorder(length, value=1000.0), Recorder(length, value=10.0)
    t = torch.arange(length, dtype=F64)
    batch = {'reward': t[None], 'cost': 100 + t[None], 'action': (t / 10)[None, :, None],
             'is_first': torch.tensor([[k in (0, 5) for k in range(length)]]),
             'is_terminal': torch.tensor([[k == 4 for k in range(length)]])}
    feature = torch.eye(length, dtype=F64)[None]
    loss, _ = agent.critic_loss(agent.no_rollout(feature), feature, batch)
    loss.backward()
    rewards, costs = agent.q_reward.targets[-1][0], agent.q_cost.targets[-1][0]
    # s_3: reward and cost of record 4, where the episode ends: no bootstrap.
    assert (rewards[3].item(), costs[3].item()) == (4.0, 104.0)
    assert (rewards[2].item(), costs[2].item()) == (3.0 + 500.0, 103.0 + 5.0)
    state, action = agent.q_reward.asked[-1]
    assert action[0, 3].item() == pytest.approx(0.3) and state[0, 3].argmax() == 3
    used = agent.q_reward.table.grad.abs().flatten() > 0
    assert used.tolist() == [False, True, True, True, False, True, True, False], \
        'action 0 is 0 here, 4 is the last of its episode, 7 that of the window'
    assert (agent.v_reward.table.grad.abs().flatten() > 0).tolist() == [True] * 4 + [False] + [True] * 2 + [False]
