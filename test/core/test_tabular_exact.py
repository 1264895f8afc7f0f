# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Random finite problems: the agent's own losses against exact dynamic programming, and that against 8.4 and 8.6."""

import dataclasses

import numpy as np
import pytest

from fosp_core.agent.tabular import TABULAR, Transition
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
