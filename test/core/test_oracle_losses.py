# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every loss of the agent against its equation written out in plain loops: masks, weights, factors, thresholds.

Tables in place of networks and numbers without symmetry, so that any term left out, doubled or taken from the wrong
record changes the sum. Equations: docs/explanation/algorithm.md; nothing here calls the code that it checks.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch

from fosp_core.agent.agent import Rollout
from fosp_core.agent.alignment import alignment_loss
from fosp_core.agent.tabular import TABULAR, TabularAgent

F64 = torch.float64
S, A = 5, 2                 # states, actions
B, T = 3, 6                 # windows
N, H = 4, 3                 # imagined starts, horizon
GAMMA, LAM, REG, ETA = 0.9, 0.7, 0.3, 0.2
TAU = {'reward': 0.8, 'cost': 0.3}
GAMMA_P, THRESHOLD, IMAGINED = 0.8, 0.4, 0.6
SCALE = {'reward': 4.0, 'cost': 2.5}
GATE, BETA_R, BETA_C = 0.1, 1.5, 0.7
TABLES = {'q_reward': (S, A), 'q_cost': (S, A), 'q_reward_target': (S, A), 'q_cost_target': (S, A), 'v_reward': (S, 1),
          'v_cost': (S, 1), 'reach': (S, A), 'reach_target': (S, A), 'actor': (S, A), 'offline_actor': (S, A)}


@dataclasses.dataclass
class Case:
    """The agent, its tables as arrays, and batch and rollout as indices and numbers."""

    agent: TabularAgent
    table: dict
    s: np.ndarray           # (B, T)
    a: np.ndarray
    drawn: np.ndarray       # (B, T), what the policy draws at each record
    log_drawn: np.ndarray
    reward: np.ndarray
    cost: np.ndarray
    first: np.ndarray
    end: np.ndarray
    rs: np.ndarray          # (H + 1, N)
    ra: np.ndarray
    signal: dict            # reward, cost: (H, N)
    rcont: np.ndarray
    rweight: np.ndarray     # (H + 1, N)
    feature: torch.Tensor
    batch: dict
    rollout: Rollout

    def pairs(self):
        """Yield (b, t) of the records whose successor belongs to the same episode."""
        for b in range(B):
            for t in range(T - 1):
                if not self.first[b, t + 1]:
                    yield b, t

    def p(self, s, a, name='reach_target'):
        return 1.0 / (1.0 + math.exp(-self.table[name][s, a]))

    def imagined_return(self, side, n):
        v = self.table[f'v_{side}'][self.rs[:, n], 0]
        out, later = [0.0] * H, v[H]
        for t in reversed(range(H)):
            later = self.signal[side][t, n] + GAMMA * self.rcont[t, n] * ((1 - LAM) * v[t + 1] + LAM * later)
            out[t] = later
        return out

    def advantages(self, s, a):
        return [(self.table[f'q_{x}_target'][s, a] - self.table[f'v_{x}'][s, 0]) / SCALE[x] for x in ('reward', 'cost')]

    def log_pi(self, s):
        row = self.table['actor'][s]
        return row - math.log(sum(math.exp(x) for x in row))


def one_hot(index, size):
    return torch.from_numpy(np.eye(size)[index])


def make(**behaviour) -> Case:
    rng = np.random.default_rng(7)
    settings = dataclasses.replace(
        TABULAR.behaviour, discount=GAMMA, lam=LAM, ema_regulariser=REG, entropy=ETA, reward_expectile=TAU['reward'],
        cost_expectile=TAU['cost'], reach_discount=GAMMA_P, cost_threshold=THRESHOLD, reach_imagined=IMAGINED,
        beta_reward=BETA_R, beta_cost=BETA_C, feasible_gate=GATE, **behaviour)
    agent = TabularAgent(S, A, dataclasses.replace(TABULAR, behaviour=settings))
    table = {name: rng.normal(size=shape) for name, shape in TABLES.items()}
    for name, values in table.items():
        getattr(agent, name).table.data.copy_(torch.from_numpy(values))
    for side in SCALE:
        getattr(agent, f'{side}_scale').low.fill_(-0.5)
        getattr(agent, f'{side}_scale').high.fill_(SCALE[side] - 0.5)
    s, a, drawn = rng.integers(0, S, (B, T)), rng.integers(0, A, (B, T)), rng.integers(0, A, (B, T))
    first, end = np.zeros((B, T), bool), np.zeros((B, T), bool)
    # Two windows hold the end of one episode and the start of another; one of those episodes was cut off, not ended.
    first[:, 0] = first[0, 3] = first[2, 2] = True
    end[0, 2] = end[1, 5] = True
    cost = np.zeros((B, T))
    cost[0, 3] = cost[1, 4] = 0.2           # the first record of the second episode: nothing before it led there
    cont0, rcont = np.array([1.0, 1.0, 0.0, 1.0]), np.ones((H, N))
    rcont[1, 3] = 0.0
    rweight = np.ones((H + 1, N))
    for t in range(H + 1):
        for n in range(N):
            rweight[t, n] = GAMMA ** t * cont0[n] * np.prod(rcont[:t, n])
    signal = {'reward': rng.normal(size=(H, N)), 'cost': rng.choice([0.0, 0.39, 0.4, 0.45, 0.6], (H, N))}
    signal['cost'][0, :3] = 0.39, 0.4, 0.45
    rs, ra = rng.integers(0, S, (H + 1, N)), rng.integers(0, A, (H + 1, N))
    case = Case(agent, table, s, a, drawn, -rng.random((B, T)), rng.normal(size=(B, T)), cost, first, end, rs, ra,
                signal, rcont, rweight, one_hot(s, S), {}, None)
    case.batch = {'action': one_hot(a, A), 'reward': torch.from_numpy(case.reward), 'cost': torch.from_numpy(cost),
                  'is_first': torch.from_numpy(first), 'is_terminal': torch.from_numpy(end)}
    case.rollout = Rollout(one_hot(rs, S), one_hot(ra, A), torch.from_numpy(signal['reward']),
                           torch.from_numpy(signal['cost']), torch.from_numpy(rcont), torch.from_numpy(rweight))

    def known_draw(feature, generator):
        where = slice(T - feature.shape[1], T)
        return one_hot(drawn, A)[:, where], torch.from_numpy(case.log_drawn)[:, where]
    for actor in (agent.actor, agent.offline_actor):
        actor.sample = known_draw
    return case


def bce(y, p):
    return -(y * math.log(p) + (1 - y) * math.log(1 - p))


# -- critics ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('known', [False, True])
@pytest.mark.parametrize('side', ['reward', 'cost'])
def test_critic_loss_is_imagined_and_data_terms_and_the_pull_to_the_averages(side, known):
    """L_Q1 with its weights + L_Q2 over pairs of one episode, each with its cross term; V's expectile on data."""
    case = make()
    if known:       # the constraint has computed V^c along the rollout already
        case.rollout.cost_value = torch.from_numpy(case.table['v_cost'][case.rs, 0])
    loss, metrics = case.agent.critic_loss(case.rollout, case.feature, case.batch)
    loss.backward()
    q, target, v = (case.table[k] for k in (f'q_{side}', f'q_{side}_target', f'v_{side}'))
    arrived = case.reward if side == 'reward' else case.cost
    q_loss, v_loss, v_grad, count = 0.0, 0.0, np.zeros((S, 1)), len(list(case.pairs()))
    for n in range(N):
        for t, r in enumerate(case.imagined_return(side, n)):
            at = case.rs[t, n], case.ra[t, n]
            q_loss += case.rweight[t, n] * ((q[at] - r) ** 2 + REG * (q[at] - target[at]) ** 2) / (H * N)
    for b, t in case.pairs():
        at, there = (case.s[b, t], case.a[b, t]), case.s[b, t + 1]
        y = arrived[b, t + 1] + GAMMA * (not case.end[b, t + 1]) * v[there, 0]
        q_loss += ((q[at] - y) ** 2 + REG * (q[at] - target[at]) ** 2) / count
        error = target[at] - v[at[0], 0]
        share = (1 - TAU[side] if error < 0 else TAU[side]) / count
        v_loss += share * error ** 2
        v_grad[at[0], 0] -= 2 * share * error
    assert metrics[f'critic/q_{side}'].item() == pytest.approx(q_loss, rel=1e-6)
    assert metrics[f'critic/v_{side}'].item() == pytest.approx(v_loss, rel=1e-6)
    total = sum(metrics[f'critic/{x}_{y}'].item() for x in 'qv' for y in ('reward', 'cost'))
    assert loss.item() == pytest.approx(total, rel=1e-6)
    # V learns from the expectile alone: what it gives to the targets is a constant there.
    np.testing.assert_allclose(getattr(case.agent, f'v_{side}').table.grad.numpy(), v_grad, atol=1e-7)


@pytest.mark.parametrize('side', ['reward', 'cost'])
def test_without_data_terms_both_values_come_from_the_rollout(side):
    case = make(in_sample=False)
    metrics = case.agent.critic_loss(case.rollout, case.feature, case.batch)[1]
    q, target, v = (case.table[k] for k in (f'q_{side}', f'q_{side}_target', f'v_{side}'))
    q_loss = v_loss = 0.0
    for n in range(N):
        for t, r in enumerate(case.imagined_return(side, n)):
            at, w = (case.rs[t, n], case.ra[t, n]), case.rweight[t, n] / (H * N)
            q_loss += w * ((q[at] - r) ** 2 + REG * (q[at] - target[at]) ** 2)
            error = target[at] - v[at[0], 0]
            v_loss += w * (1 - TAU[side] if error < 0 else TAU[side]) * error ** 2
    assert metrics[f'critic/q_{side}'].item() == pytest.approx(q_loss, rel=1e-6)
    assert metrics[f'critic/v_{side}'].item() == pytest.approx(v_loss, rel=1e-6)


@pytest.mark.parametrize('side', ['reward', 'cost'])
def test_each_scale_follows_the_percentiles_of_its_own_imagined_returns(side):
    case = make()
    case.agent.critic_loss(case.rollout, case.feature, case.batch)
    found = np.array([case.imagined_return(side, n) for n in range(N)])
    scale = getattr(case.agent, f'{side}_scale')
    for now, before, level in ((scale.low, -0.5, 5), (scale.high, SCALE[side] - 0.5, 95)):
        assert now.item() == pytest.approx(0.99 * before + 0.01 * np.percentile(found, level), rel=1e-6)


# -- reachability -----------------------------------------------------------------------------------------------------
def data_targets(case, lam=0.0):
    """y of each pair, by walking forwards from it as far as its episode goes in the window."""
    def y(b, t):
        follow = case.p(case.s[b, t + 1], case.drawn[b, t + 1])
        if t + 2 < T and not case.first[b, t + 2]:
            follow = (1 - lam) * follow + lam * y(b, t + 1)
        return max(float(case.cost[b, t + 1] > 0), GAMMA_P * (not case.end[b, t + 1]) * follow)
    return {(b, t): y(b, t) for b, t in case.pairs()}


@pytest.mark.parametrize('lam', [0.0, 0.5])
def test_reachability_loss_is_of_pairs_of_one_episode_and_of_weighted_imagined_steps(lam):
    case = make(reach_lam=lam)
    loss, metrics = case.agent.reach_loss(case.rollout, case.feature, case.batch, torch.Generator())
    loss.backward()
    targets = data_targets(case, lam)
    expected, grad = 0.0, np.zeros((S, A))
    for (b, t), y in targets.items():
        at = case.s[b, t], case.a[b, t]
        expected += bce(y, case.p(*at, 'reach')) / len(targets)
        grad[at] += (case.p(*at, 'reach') - y) / len(targets)
    imagined = []
    for n in range(N):
        y = case.p(case.rs[H, n], case.ra[H, n])
        for t in reversed(range(H)):
            y = max(float(case.signal['cost'][t, n] >= THRESHOLD), GAMMA_P * case.rcont[t, n] * y)
            at, share = (case.rs[t, n], case.ra[t, n]), IMAGINED * case.rweight[t, n] / (H * N)
            expected += share * bce(y, case.p(*at, 'reach'))
            grad[at] += share * (case.p(*at, 'reach') - y)
            imagined.append(y)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert metrics['reach/imagined'].item() == pytest.approx(np.mean(imagined), rel=1e-6)
    np.testing.assert_allclose(case.agent.reach.table.grad.numpy(), grad, atol=1e-7)
    assert len(targets) == B * (T - 1) - 2 and 1.0 in imagined and min(imagined) < 1.0


def test_dropout_is_on_in_both_terms_of_reachability_and_off_in_its_targets():
    case, seen = make(reach_dropout=0.25), []
    plain = case.agent.reach.logit
    case.agent.reach.logit = lambda f, a, drop=0.0, *rest, **named: seen.append(drop) or plain(f, a, drop)
    case.agent.reach_target.logit = lambda f, a, drop=0.0: seen.append(-drop) or plain(f, a)
    case.agent.reach_loss(case.rollout, case.feature, case.batch, torch.Generator())
    assert sorted(seen) == [0.0, 0.0, 0.25, 0.25]


@pytest.mark.parametrize(('threshold', 'violations'), [(0.39, 3), (0.4, 2), (0.45, 1), (0.46, 0)])
def test_an_imagined_cost_at_the_threshold_is_a_violation(threshold, violations):
    case = make()
    behaviour = dataclasses.replace(case.agent.config.behaviour, cost_threshold=threshold, horizon=1)
    case.agent.config = dataclasses.replace(case.agent.config, behaviour=behaviour)
    case.agent.reach_target.table.fill_(-1e9)       # nothing else will be reached
    step = Rollout(case.rollout.feature[:2], case.rollout.action[:2], *(
        x[:1, :3] for x in (case.rollout.reward, case.rollout.cost, case.rollout.cont)), case.rollout.weight[:2, :3])
    step.feature, step.action = step.feature[:, :3], step.action[:, :3]
    metrics = case.agent.reach_loss(step, case.feature, case.batch, torch.Generator())[1]
    assert metrics['reach/imagined'].item() == pytest.approx(violations / 3)


# -- actor ------------------------------------------------------------------------------------------------------------
def weight(case, s, a, form):
    u = 1.0 - case.p(s, a)
    reward, cost = case.advantages(s, a)
    gate = float(case.table['q_cost_target'][s, a] <= GATE)
    if form == 'linear':
        return u * BETA_R * reward - (1 - u) * BETA_C * cost
    if form == 'product':
        return math.exp(u * BETA_R * reward - (1 - u) * BETA_C * cost) * gate
    return u * math.exp(BETA_R * reward) * gate + (1 - u) * math.exp(-BETA_C * cost)


def actor_term(case, s, a, form):
    log_pi = case.log_pi(s)
    return weight(case, s, a, form) * log_pi[a] - ETA * sum(math.exp(x) * x for x in log_pi)


@pytest.mark.parametrize('form', ['mixture', 'product'])
def test_offline_actor_loss_divides_each_advantage_by_its_own_scale(form):
    case = make(weight_form=form)
    rows = list(case.pairs())
    mask = torch.tensor([float((b, t) in rows) for b in range(B) for t in range(T - 1)], dtype=F64)
    feature, action = (x[:, :-1].flatten(0, 1) for x in (case.feature, case.batch['action']))
    loss, metrics = case.agent.offline_actor_loss(feature, action, mask, torch.Generator())
    expected = -np.mean([actor_term(case, case.s[at], case.a[at], form) for at in rows])
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert metrics['actor/weight'].item() == pytest.approx(
        np.mean([weight(case, case.s[at], case.a[at], form) for at in rows]), rel=1e-6)


@pytest.mark.parametrize(('kind', 'form'), [('linear', 'linear'), ('exp', 'mixture')])
def test_online_actor_loss_weighs_each_imagined_step(kind, form):
    case = make()
    expansion = dataclasses.replace(case.agent.config.expansion, online_weight=kind)
    case.agent.config = dataclasses.replace(case.agent.config, expansion=expansion)
    expected = -np.mean([[case.rweight[t, n] * actor_term(case, case.rs[t, n], case.ra[t, n], form) for n in range(N)]
                         for t in range(H)])
    assert case.agent.online_actor_loss(case.rollout).item() == pytest.approx(expected, rel=1e-6)


def test_dynamics_actor_loss_is_the_scaled_return_and_the_entropy():
    case, expected = make(), 0.0
    for n in range(N):
        for t, r in enumerate(case.imagined_return('reward', n)):
            log_pi = case.log_pi(case.rs[t, n])
            entropy = -sum(math.exp(x) * x for x in log_pi)
            expected -= case.rweight[t, n] * (r / SCALE['reward'] + ETA * entropy) / (H * N)
    assert case.agent.dynamics_actor_loss(case.rollout).item() == pytest.approx(expected, rel=1e-6)


def test_predicted_cost_counts_each_step_by_its_feasibility():
    """J_c: mean over starts of the sum of u R^c; what comes after the end, or starts there, counts nothing."""
    case, expected = make(), 0.0
    for n in range(N):
        for t, r in enumerate(case.imagined_return('cost', n)):
            u = 1.0 - case.p(case.rs[t, n], case.ra[t, n])
            expected += (case.rweight[t, n] > 0) * u * r / N
    assert case.agent.predicted_cost(case.rollout).item() == pytest.approx(expected, rel=1e-6)


# -- value pre-alignment ----------------------------------------------------------------------------------------------
def test_alignment_loss_masks_pairs_and_takes_each_entropy_once():
    case, alphas = make(reach_lam=0.5), {'reward': 0.11, 'cost': 0.03}
    loss, parts = alignment_loss(case.agent, case.feature, case.batch, *alphas.values(), torch.Generator())
    rows, total = list(case.pairs()), 0.0
    for side, alpha in alphas.items():
        q, target, v = (case.table[k] for k in (f'q_{side}', f'q_{side}_target', f'v_{side}'))
        arrived, terms = case.reward if side == 'reward' else case.cost, []
        for b, t in rows:
            there, then = case.s[b, t + 1], case.drawn[b, t + 1]
            y = arrived[b, t + 1] + GAMMA * (not case.end[b, t + 1]) * (
                target[there, then] - alpha * case.log_drawn[b, t + 1])
            terms.append((q[case.s[b, t], case.a[b, t]] - y) ** 2)
        assert parts[f'align/q_{side}'].item() == pytest.approx(np.mean(terms), rel=1e-6)
        plain = np.mean([(target[case.s[b, t], case.drawn[b, t]] - v[case.s[b, t], 0]) ** 2 for b in range(B)
                         for t in range(T)])
        assert parts[f'align/v_{side}'].item() == pytest.approx(plain, rel=1e-6)
        total += np.mean(terms) + plain
    reach = np.mean([bce(y, case.p(case.s[at], case.a[at], 'reach')) for at, y in data_targets(case, 0.5).items()])
    assert parts['align/reach'].item() == pytest.approx(reach, rel=1e-6)
    assert loss.item() == pytest.approx(total + reach, rel=1e-6)
