# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Random finite problems: the agent's own losses against exact dynamic programming, and that against 8.4 and 8.6."""

import dataclasses

import numpy as np
import pytest

from fosp_core.agent.tabular import TABULAR, Transition, fit
from fosp_core.agent.tabular_exact import difference, solve
from fosp_core.config import Config


def config(**behaviour) -> Config:
    return dataclasses.replace(TABULAR, behaviour=dataclasses.replace(TABULAR.behaviour, **behaviour))


def problem(seed: int, states: int = 4, actions: int = 2) -> list[Transition]:
    """Each pair leads to one or two places; some end the episode, some cost, and cost always ends it."""
    rng = np.random.default_rng(seed)
    data = []
    for s in range(states - 1):
        for a in range(actions):
            for _ in range(rng.integers(1, 3)):
                cost = float(rng.random() < 0.3)
                end = bool(cost or rng.random() < 0.3)
                there = states - 1 if end else int(rng.integers(0, states - 1))
                data.append(Transition(s, a, float(rng.integers(-2, 3)), cost, there, end))
    return data


SETTINGS = [{'reward_expectile': 0.8, 'cost_expectile': 0.2, 'weight_form': 'mixture'},
            {'reward_expectile': 0.6, 'cost_expectile': 0.5, 'weight_form': 'product', 'feasible_gate': -1.0},
            {'reward_expectile': 0.7, 'cost_expectile': 0.3, 'discount': 0.8, 'reach_discount': 0.9,
             'use_reachability': False, 'feasible_gate': -1.0}]


@pytest.mark.parametrize('seed', range(6))
def test_the_losses_end_at_the_exact_solution(seed):
    """The learned policy feeds p, and p feeds the policy's weight: both have to settle where the equations do."""
    data, settings = problem(seed), config(**SETTINGS[seed % 3])
    found = difference(data, 4, 2, settings, steps=250, draws=32)
    assert max(found[k] for k in ('q_reward', 'q_cost', 'v_reward', 'v_cost')) < 2e-3, found
    assert found['reach'] < 0.03 and found['policy'] < 0.03, found


@pytest.mark.parametrize('seed', [10, 11])
def test_reachability_of_a_given_policy(seed):
    policy = np.random.default_rng(seed).permuted([[0.25, 0.75]] * 4, axis=1)
    found = difference(problem(seed), 4, 2, config(), policy=policy, steps=250, draws=4)
    assert max(found.values()) < 3e-3, found


def lasting(seed: int, states: int = 5, actions: int = 2) -> list[Transition]:
    """Episodes that end by a rare contact alone: values of hundreds, and p far from 0 and 1."""
    rng, data = np.random.default_rng(seed), []
    for s in range(states - 1):
        for a in range(actions):
            data += [Transition(s, a, float(rng.integers(0, 4)), 0.0, int(rng.integers(0, states - 1)), False)] * 9
    return [*data, Transition(0, 0, 0.0, 1.0, states - 1, True)]


@pytest.mark.parametrize(('discount', 'tau', 'cost_tau'), [(0.99, 0.5, 0.5), (0.99, 0.999, 0.001), (0.999, 0.9, 0.2)])
def test_a_discount_near_one_needs_no_sweeps(discount, tau, cost_tau):
    """Against dynamic programming, which takes tens of thousands of sweeps for it; and the residual says how good."""
    data, policy = lasting(3), np.full((5, 2), 0.5)
    settings = config(discount=discount, reach_discount=discount, reward_expectile=tau, cost_expectile=cost_tau)
    found = fit(data, 5, 2, settings, policy=policy, draws=2)
    true = solve(data, 5, 2, settings, policy=policy, most=300_000)
    assert found.sweeps == 0 and found.residual < 1e-8
    assert np.abs(true.v_reward).max() > 20 and 0.1 < true.reach[0, 0] < 0.99, 'nothing lasts in this problem'
    used = tuple(np.array([[t.state, t.action] for t in data]).T)
    for name, near in (('q_reward', 1e-6), ('q_cost', 1e-6), ('reach', 1e-8)):
        assert getattr(found, name)[used] == pytest.approx(getattr(true, name)[used], abs=near), name
    for name in ('v_reward', 'v_cost'):
        assert getattr(found, name)[used[0]] == pytest.approx(getattr(true, name)[used[0]], abs=1e-6), name


def test_the_residual_says_when_sweeps_were_too_few():
    """Pre-alignment is sampled: it is swept, until its residual is below the tolerance or there are no steps left."""
    loop = [Transition(0, 0, 1.0, 0.0, 0, False)]
    few, enough = (fit(loop, 1, 1, config(discount=0.9, reach_discount=0.9), policy=np.ones((1, 1)), align=True,
                        draws=1, steps=steps) for steps in (3, 3000))
    assert few.sweeps == 3 and few.residual > 0.1 and abs(few.q_reward[0, 0] - 10) > 1
    assert enough.sweeps < 3000 and enough.residual < 1e-8 and enough.q_reward[0, 0] == pytest.approx(10, abs=1e-6)


def test_the_exact_solution_has_the_numbers_known_by_hand():
    in_sample = [Transition(0, 0, 1.0, 1.0, 2, True), Transition(0, 1, 0.0, 0.0, 1, False),
                 Transition(1, 0, 0.0, 0.0, 2, True), Transition(1, 1, 10.0, 1.0, 2, True)]
    exact = solve(in_sample, 3, 2, config(reward_expectile=0.8, use_reachability=False, feasible_gate=-1.0))
    assert (exact.v_reward[1], exact.q_reward[0, 1], exact.v_reward[0]) == pytest.approx((8.0, 7.2, 5.96))
    assert (exact.v_cost[1], exact.q_cost[0, 1], exact.v_cost[0]) == pytest.approx((0.2, 0.18, 0.344))
    assert exact.policy[0, 1] == pytest.approx(0.997975, abs=1e-6)
    corridor = [Transition(cell, action, float(there == 4), float(there == 0), there, there in (0, 4))
                for cell in (1, 2, 3) for action, there in ((0, cell - 1), (1, cell + 1))]
    exact = solve(corridor, 5, 2, config(discount=0.99, reward_expectile=0.8), policy=np.full((5, 2), 0.5))
    assert exact.v_reward[1:4] == pytest.approx((0.731111, 0.923120, 0.982778), abs=1e-6)
    assert exact.v_cost[1:4] == pytest.approx((0.245694, 0.057695, 0.011424), abs=1e-6)
    assert exact.reach[1:4].mean(1) == pytest.approx((0.740244, 0.485342, 0.240244), abs=1e-6)


def test_a_configuration_that_is_not_solved_is_named():
    with pytest.raises(ValueError, match='behaviour.in_sample is False, expected True'):
        solve(problem(0), 4, 2, config(in_sample=False))
