# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Lambda-returns, expectiles, reachability recursions and dataset alignment (oracles 8.2, 8.3, 8.5, 8.15)."""

import numpy as np
import pytest
import torch

from fosp_core.agent import returns
from fosp_core.agent.returns import expectile_weight, lambda_return, masked_mean, pair_mask, reach_rollout

GAMMA, LAM = 1 - 1 / 333, 0.95


def _column(values):
    return torch.tensor(values, dtype=torch.float64).unsqueeze(-1)


def test_lambda_return_without_value():
    returns = lambda_return(torch.ones(15, 1), torch.ones(15, 1), torch.zeros(16, 1), GAMMA, LAM)
    assert returns[0].item() == pytest.approx(10.541431, abs=1e-5)
    assert returns[14].item() == pytest.approx(1.0)


def test_lambda_return_of_the_fixed_point():
    returns = lambda_return(torch.ones(15, 1), torch.ones(15, 1), torch.full((16, 1), 333.0), GAMMA, LAM)
    assert torch.allclose(returns, torch.full((15, 1), 333.0), rtol=1e-5)


def test_value_does_not_leak_past_the_end_of_an_episode():
    returns = lambda_return(_column([0., 0., 1.]), _column([1., 1., 0.]), _column([0., 0., 0., 7.]), GAMMA, LAM)
    assert returns.flatten().tolist() == pytest.approx([0.897088, 0.947147, 1.0], abs=1e-6)


@pytest.mark.parametrize(('values', 'tau', 'expected'), [
    ([0., 1.], 0.3, 0.3), ([0., 10.], 0.8, 8.0), ([1., 2., 6.], 0.2, 2.0), ([1., 2., 6.], 0.5, 3.0),
    ([1., 2., 6.], 0.7, 3.923077), ([1., 2., 6.], 0.8, 4.5), ([1., 2., 6.], 0.9, 5.181818)])
def test_expectile_minimiser(values, tau, expected):
    targets = torch.tensor(values, dtype=torch.float64)
    v = targets.mean()
    for _ in range(200):  # fixed point of the weighted mean
        w = expectile_weight(targets - v, tau)
        v = (w * targets).sum() / w.sum()
    assert v.item() == pytest.approx(expected, abs=1e-5)


def test_expectile_of_the_twohot_form_has_its_own_fixed_point():
    targets = torch.log1p(torch.tensor([0., 10.], dtype=torch.float64))
    w = expectile_weight(torch.tensor([-1., 1.]), 0.8).double()
    assert torch.expm1((w * targets).sum() / w.sum()).item() == pytest.approx(5.809483, abs=1e-5)


def test_reach_recursion_in_arrival_form():
    # Distance k to a certain violation: 0.99^(k - 1).
    violation = torch.zeros(15, 1, dtype=torch.float64)
    violation[14] = 1.0
    target = reach_rollout(violation, torch.ones_like(violation), torch.zeros(1, dtype=torch.float64), 0.99).flatten()
    for k in (1, 2, 5, 10, 15):
        assert target[15 - k].item() == pytest.approx(0.99 ** (k - 1), abs=1e-9)


def test_reach_bootstraps_and_stops_at_the_end():
    none = torch.zeros(5, 1, dtype=torch.float64)
    boot = torch.full((1,), 0.5, dtype=torch.float64)
    target = reach_rollout(none, torch.ones_like(none), boot, 0.99).flatten()
    assert target.tolist() == pytest.approx([0.475495, 0.480298, 0.485150, 0.49005, 0.495], abs=1e-6)
    cont = torch.ones_like(none)
    cont[2] = 0.0
    assert reach_rollout(none, cont, boot, 0.99)[:3].abs().sum() == 0


def test_reach_depends_on_cost_alone():
    boot = torch.zeros(1)
    assert reach_rollout(torch.zeros(5, 1), torch.ones(5, 1), boot, 0.99).sum() == 0
    assert reach_rollout(torch.ones(5, 1), torch.ones(5, 1), boot, 0.99).sum() == 5


def test_pairs_take_the_arrival_record_and_never_cross_an_episode():
    is_first = torch.tensor([[True, False, False, True, False]])
    reward = torch.arange(5.0).unsqueeze(0)
    mask = pair_mask(is_first)
    assert mask.tolist() == [[1, 1, 0, 1]]
    assert (reward[:, 1:] * mask).tolist() == [[1, 2, 0, 4]]
    assert masked_mean(torch.tensor([[1., 2., 100., 3.]]), mask).item() == pytest.approx(2.0)
    assert np.isfinite(masked_mean(torch.ones(2), torch.zeros(2)).item())


def test_multi_step_reachability_is_one_step_at_zero_and_the_recursion_at_one():
    violation = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    cont, following = torch.ones(1, 4), torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    last = returns.last_of_window(torch.tensor([[True, False, False, False, False]]))
    assert last.tolist() == [[False, False, False, True]]
    one = returns.reach_windows(violation, cont, following, last, 0.9, 0.0)
    torch.testing.assert_close(one, torch.maximum(violation, 0.9 * following))
    full = returns.reach_windows(violation, cont, following, last, 0.9, 1.0)
    torch.testing.assert_close(full, torch.tensor([[0.81, 0.9, 1.0, 0.36]]))
    half = returns.reach_windows(violation, cont, following, last, 0.9, 0.5)
    torch.testing.assert_close(half[0, 1], torch.tensor(0.9 * (0.5 * 0.2 + 0.5 * 1.0)))


def test_multi_step_reachability_ends_with_the_episode():
    """Records 0, 1 | 2, 3: a violation of the second episode must not reach the first one; a terminal stops too."""
    is_first = torch.tensor([[True, False, True, False]])
    last = returns.last_of_window(is_first)
    assert last.tolist() == [[True, False, True]]
    violation = torch.tensor([[0.0, 0.0, 1.0]])
    following = torch.tensor([[0.5, 0.2, 0.0]])
    target = returns.reach_windows(violation, torch.ones(1, 3), following, last, 0.9, 1.0)
    torch.testing.assert_close(target[0, 0], torch.tensor(0.45))
    ended = returns.reach_windows(violation, torch.zeros(1, 3), following, last, 0.9, 1.0)
    assert ended[0, 0] == 0.0
