# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Exact answers to the finite problems of `fosp_core.agent.tabular`, by dynamic programming; and the comparison.

Nothing here comes from the agent's losses: each quantity is iterated from its own definition, in numpy. So

    difference(data, states=3, actions=2)

says how far the agent's own losses end from the truth on anybody's problem.
"""

from collections.abc import Sequence

import numpy as np

from fosp_core.agent.tabular import TABULAR, Solution, Transition, fit
from fosp_core.config import Config


def solve(transitions: Sequence[Transition], states: int, actions: int, config: Config = TABULAR, *,
          policy: np.ndarray | None = None, tolerance: float = 1e-12, most: int = 100_000) -> Solution:
    """Solve a data set of transitions exactly: the fixed points that `fit` on data alone must reach.

    Q(s, a) is the mean of r + gamma cont V(s') over the records of the pair; V(s) the expectile of Q(s, a) over the
    actions of the data; p(s, a) the mean of max(1[c > 0], gamma_p cont sum_a' pi(a'|s') p(s', a')); pi(a|s) is the
    actions' frequency times their weight, or the `policy` (states, actions) given. A pair without a record keeps what
    it began with: Q and V of 0, p of one half. Raises ValueError for a configuration that `fit` does not solve on data
    alone, and when nothing settles.
    """
    cfg = config.behaviour
    unlike = {'in_sample': True, 'actor_objective': 'in_sample', 'feasibility': 'action', 'entropy': 0.0,
              'value_loss': 'squared', 'ema_regulariser': 0.0, 'reach_lam': 0.0}
    for key, value in unlike.items():
        if getattr(cfg, key) != value:
            raise ValueError(f'behaviour.{key} is {getattr(cfg, key)!r}, expected {value!r}')
    count = np.zeros((states, actions))
    for t in transitions:
        count[t.state, t.action] += 1
    s, a, reward, cost, following, terminal = (np.array(column) for column in zip(*transitions))
    cont = 1.0 - terminal.astype(float)
    share = 1.0 / count[s, a]
    known = count > 0

    def mean(target: np.ndarray, missing: float) -> np.ndarray:
        out = np.zeros((states, actions))
        np.add.at(out, (s, a), share * target)
        return np.where(known, out, missing)

    def values(signal: np.ndarray, tau: float) -> tuple[np.ndarray, np.ndarray]:
        v = np.zeros(states)
        for _ in range(most):
            q = mean(signal + cfg.discount * cont * v[following], 0.0)
            new = np.array([_expectile(q[i], count[i], tau) for i in range(states)])
            if np.abs(new - v).max() < tolerance:
                return q, new
            v = new
        raise ValueError(f'values do not settle in {most} sweeps')

    q_reward, v_reward = values(reward.astype(float), cfg.reward_expectile)
    q_cost, v_cost = values(cost.astype(float), cfg.cost_expectile)

    def weight(reach: np.ndarray) -> np.ndarray:
        u = 1.0 - reach if cfg.use_reachability else np.ones_like(reach)
        good, bad = cfg.beta_reward * (q_reward - v_reward[:, None]), cfg.beta_cost * (q_cost - v_cost[:, None])
        gate = q_cost <= cfg.feasible_gate if cfg.feasible_gate >= 0 else np.ones_like(known)
        if cfg.weight_form == 'uniform':
            return np.ones_like(reach)
        if cfg.weight_form == 'product':
            return np.minimum(np.exp(u * good - (1 - u) * bad) * gate, cfg.weight_clip)
        return np.minimum(u * np.exp(good) * gate + (1 - u) * np.exp(-bad), cfg.weight_clip)

    def extracted(reach: np.ndarray) -> np.ndarray:
        mass = count * weight(reach)
        total = mass.sum(1, keepdims=True)
        return np.where(total > 0, mass / np.where(total > 0, total, 1.0), 1.0 / actions)

    acting = np.full((states, actions), 1.0 / actions) if policy is None else np.asarray(policy, float)
    reach = np.full((states, actions), 0.5)
    for _ in range(most):
        bootstrap = (acting * reach).sum(1)[following]
        new = mean(np.maximum(cost > 0, cfg.reach_discount * cont * bootstrap), 0.5)
        moved = np.abs(new - reach).max()
        reach = new
        if policy is None:
            changed = extracted(reach)
            moved = max(moved, np.abs(changed - acting).max())
            acting = changed
        if moved < tolerance:
            return Solution(q_reward, q_cost, v_reward, v_cost, reach, acting)
    raise ValueError(f'reachability and policy do not settle in {most} sweeps')


def _expectile(value: np.ndarray, count: np.ndarray, tau: float) -> float:
    """Expectile of values that occur `count` times: the root of sum n |tau - 1[x < m]| (x - m); 0 of none."""
    x, n = value[count > 0], count[count > 0]
    if not len(x):
        return 0.0
    order = np.argsort(x)
    x, n = x[order], n[order]
    # Between two neighbouring values the condition is linear: its root is a weighted mean, and one of them is right.
    for k in range(1, len(x) + 1):
        w = n * np.where(np.arange(len(x)) < k, 1.0 - tau, tau)
        m = float((w * x).sum() / w.sum())
        if x[k - 1] <= m and (k == len(x) or m <= x[k]):
            return m
    return float(x[-1])


def difference(transitions: Sequence[Transition], states: int, actions: int, config: Config = TABULAR, *,
               policy: np.ndarray | None = None, **options) -> dict[str, float]:
    """Largest absolute difference between `fit` (which takes `options`) and `solve`, by quantity.

    Keys: q_reward, q_cost, reach, policy over the pairs that occur in the data, v_reward, v_cost over their states.
    """
    found = fit(transitions, states, actions, config, policy=policy, **options)
    true = solve(transitions, states, actions, config, policy=policy)
    pairs = tuple(np.array([[t.state, t.action] for t in transitions]).T)
    out = {}
    for name in ('q_reward', 'q_cost', 'v_reward', 'v_cost', 'reach', 'policy'):
        index = pairs if name in ('q_reward', 'q_cost', 'reach', 'policy') else pairs[0]
        out[name] = float(np.abs(getattr(found, name)[index] - getattr(true, name)[index]).max())
    return out
