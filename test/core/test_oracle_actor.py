# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Actor weights, augmented Lagrangian, policy expansion, normaliser (oracles 8.7, 8.8, 8.9, 8.11)."""

import dataclasses

import numpy as np
import pytest
import torch

from fosp_core.agent import expansion
from fosp_core.agent.actor_loss import offline_weight, online_weight
from fosp_core.agent.constraints import AdaptivePID, AugmentedLagrangian, PIDLagrangian, make_constraint
from fosp_core.agent.networks import Actor, PercentileScale, ema_update, frozen_copy
from fosp_core.config import ConstraintConfig, ExpansionConfig, NetworkConfig


def _t(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_offline_and_online_weight():
    u, a, c = _t(0.9), _t(0.5), _t(-0.2)
    assert offline_weight(u, a, c, 1, 1, 'mixture', None, 100).item() == pytest.approx(1.605989, abs=1e-6)
    assert online_weight(u, a, c, 1, 1).item() == pytest.approx(0.47, abs=1e-9)


def test_gate_makes_the_safe_action_win_over_the_shortcut():
    # Actions safe (r 1, c 0) and short (r 2, c 1), uniform data, V the mean, p = 0.495.
    u, advantage, cost = _t(0.505, 0.505), _t(-0.5, 0.5), _t(-0.5, 0.5)
    plain = offline_weight(u, advantage, cost, 1, 1, 'mixture', None, 100)
    assert plain.tolist() == pytest.approx([1.122415, 1.132837], abs=1e-6)
    assert (plain / plain.sum())[0].item() == pytest.approx(0.497689, abs=1e-6)
    gated = offline_weight(u, advantage, cost, 1, 1, 'mixture', _t(1.0, 0.0), 100)
    assert gated[1].item() == pytest.approx(0.300233, abs=1e-6)
    assert (gated / gated.sum())[0].item() == pytest.approx(0.788962, abs=1e-6)
    feasible = offline_weight(_t(1.0, 1.0), advantage, cost, 1, 1, 'mixture', None, 100)
    assert (feasible / feasible.sum())[0].item() == pytest.approx(0.268941, abs=1e-6)


def test_weight_is_clipped_and_finite():
    weight = offline_weight(_t(1.0, 0.0), _t(1e6, 0.0), _t(0.0, -1e6), 10, 10, 'mixture', _t(0.0, 1.0), 100)
    assert weight.tolist() == [0.0, 100.0]


def test_augmented_lagrangian_grows_as_computed():
    alm = AugmentedLagrangian(ConstraintConfig())
    phis = []
    for step in range(1, 10001):
        phis.append(alm.penalty(_t(10.0)).item()) if step <= 2 else None
        alm.update(10.0)
        if step == 1:
            assert alm.multiplier.item() == pytest.approx(1.05e-6, rel=1e-9)
            assert alm.penalty_factor.item() == pytest.approx(5.00005e-9, rel=1e-9)
        if step == 2:
            assert alm.multiplier.item() == pytest.approx(1.1000005e-6, rel=1e-9)
        if step == 3:
            assert alm.multiplier.item() == pytest.approx(1.1500015e-6, rel=1e-9)
        if step == 1000:
            assert alm.multiplier.item() == pytest.approx(5.12506e-5, rel=1e-5)
    assert phis == pytest.approx([1.025e-5, 1.07500025e-5], rel=1e-8)
    assert alm.multiplier.item() == pytest.approx(5.26852e-4, rel=1e-5)

    def closed(n: int) -> float:
        return 1e-6 + 10 * 5e-9 * ((1 + 1e-5) ** n - 1) / 1e-5

    # The recursion is the closed form, which then says where half a million steps lead.
    assert alm.multiplier.item() == pytest.approx(closed(10000), rel=1e-9)
    assert (closed(100_000), closed(500_000)) == pytest.approx((8.59234e-3, 0.737048), rel=1e-5)


def test_penalty_factor_never_falls_and_stops_at_its_cap():
    alm, seen = AugmentedLagrangian(ConstraintConfig(penalty_init=0.9, penalty_growth=0.05)), []
    for _ in range(5):
        alm.update(-1.0)
        seen.append(alm.penalty_factor.item())
    assert seen == sorted(seen) and seen[0] == pytest.approx(0.945) and seen[-1] == 1.0


@pytest.mark.parametrize(('lam', 'c', 'g', 'phi', 'new'), [(1, 0.5, -3, -1, 0), (1, 0.5, -1, -0.75, 0.5),
                                                           (0.2, 0.1, 4, 1.6, 0.6)])
def test_augmented_lagrangian_branches(lam, c, g, phi, new):
    alm = AugmentedLagrangian(ConstraintConfig(lambda_init=lam, penalty_init=c))
    cost = torch.tensor(float(g), dtype=torch.float64, requires_grad=True)
    value = alm.penalty(cost)
    value.backward()
    assert value.item() == pytest.approx(phi)
    assert cost.grad.item() == pytest.approx(max(0.0, lam + c * g))
    alm.update(float(g))
    assert alm.multiplier.item() == pytest.approx(new)


def test_positional_pid():
    """Oracle 8.12, SafeDreamer's form."""
    pid = PIDLagrangian(ConstraintConfig(kind='pid', cost_limit=20, gain_p=0.1, gain_i=0.01, gain_d=0.01))
    out = []
    for cost in (25, 25, 25, 15):
        pid.update(cost)
        out.append(pid.multiplier.item())
    assert out == pytest.approx([0.0875, 0.173125, 0.256969, 0.184120], abs=1e-6)


def test_incremental_pid():
    """Oracle 8.12, the paper's form: gains held still."""
    pid = AdaptivePID(ConstraintConfig(kind='apid', gain_p=1e-2, gain_i=1e-3, gain_d=1e-3, adapt_p=0, adapt_i=0,
                                       adapt_d=0))
    out = []
    for error in (10, 10, 5, 0, -5):
        pid.update(error)
        out.append(pid.multiplier.item())
    assert out == pytest.approx([0.12, 0.24, 0.31, 0.33, 0.295], abs=1e-9)


APID = ConstraintConfig(kind='apid', cost_limit=20, gain_p=1e-4, gain_i=1e-4, gain_d=1e-4)


def test_adaptive_gains():
    """Oracle 8.13."""
    pid = AdaptivePID(APID)
    pid.adapt(30.0, 5.0)
    assert pid.gains.tolist() == pytest.approx([1.016076e-4, 1.016667e-4, 1.008333e-4], abs=1e-10)
    pid = AdaptivePID(APID)
    pid.adapt(10.0, 0.0)
    assert pid.gains.tolist()[:2] == pytest.approx([0.961920e-4, 0.95e-4], abs=1e-10)
    pid, reached = AdaptivePID(APID), {}
    for step in range(1, 200):
        pid.adapt(30.0, 0.0)
        for i in (0, 1):
            if pid.gains[i] >= 1e-3 - 1e-12:
                reached.setdefault(i, step)
    assert reached == {0: 145, 1: 140}


def test_gains_rise_from_the_first_overshoot_and_survive_no_cost():
    """The released code's gains fell at first, its EMA of cost starting at 0."""
    pid = AdaptivePID(APID)
    pid.update(40.0)
    assert pid.gains[0] > 1e-4 and pid.gains[1] > 1e-4 and pid.multiplier > 0
    pid = AdaptivePID(APID)
    pid.update(0.0)
    assert torch.isfinite(pid.gains).all() and pid.gains[1].item() == pytest.approx(1e-5)
    # A limit of zero that is kept is no overshoot: the gains stay.
    pid = AdaptivePID(ConstraintConfig(kind='apid', cost_limit=0, gain_p=1e-4, gain_i=1e-4, gain_d=1e-4))
    pid.update(0.0)
    assert pid.gains.tolist() == [1e-4] * 3 and pid.multiplier == 0
    pid.update(1.0)
    assert pid.gains[0] > 1e-4 and pid.multiplier > 0


def test_the_spread_of_the_last_costs_is_the_sample_deviation():
    """Marvel's sigma_c is over n - 1: of 20 and 40 it is 14.142136, not 10; one cost alone has none."""
    pid = AdaptivePID(APID)
    pid.update(20.0)
    assert pid.gains.tolist() == pytest.approx([1e-4] * 3, rel=1e-12)
    pid.update(40.0)
    # mean 30: over the limit by a third of itself
    expected = [1e-4 * (1 + 0.05 * np.tanh(1 / 3)), 1e-4 * (1 + 0.05 / 3), 1e-4 * (1 + 0.05 * 14.142136 / 30)]
    assert pid.gains.tolist() == pytest.approx(expected, rel=1e-8)
    # e = 0, then 20: the multiplier is (K_p + K_i + K_d) 20 with the gains just adapted.
    assert pid.multiplier.item() == pytest.approx(20 * sum(expected), rel=1e-8)


@pytest.mark.parametrize('kind', ['alm', 'pid', 'apid'])
def test_a_multiplier_stays_on_its_device(kind):
    """Torch's device without memory stands for a GPU: a tensor made elsewhere, or a look at a value, is an error."""
    constraint = make_constraint(dataclasses.replace(APID, kind=kind)).to('meta')
    for cost in (30.0, 10.0):
        constraint.update(cost)
    assert {b.device.type for b in constraint.buffers()} == {'meta'}


def test_the_window_forgets_its_oldest_cost():
    pid = AdaptivePID(dataclasses.replace(APID, window=2))
    for cost in (1000.0, 20.0, 40.0):
        before = pid.gains.tolist()
        pid.update(cost)
    factors = [now / then for now, then in zip(pid.gains.tolist(), before)]
    assert factors[1:] == pytest.approx([1 + 0.05 / 3, 1 + 0.05 * 14.142136 / 30], rel=1e-8)


NO_GATE = ExpansionConfig(reach_gate=-1.0)


def test_expansion_probabilities():
    zero = torch.zeros(1, 2, dtype=torch.float64)
    q = _t(1.0, 1.5).unsqueeze(0)

    def p(value, cost, config=NO_GATE):
        return expansion.probabilities(expansion.scores(value, cost, config), cost, zero, config)[0].tolist()

    assert p(q, zero) == pytest.approx([0.075858, 0.924142], abs=1e-6)
    assert p(q, _t(0.0, 10.0).unsqueeze(0)) == pytest.approx([0.924142, 0.075858], abs=1e-6)
    assert p(zero, zero) == [0.5, 0.5]
    ten = ExpansionConfig(reach_gate=-1.0, inverse_temperature=10.0)
    assert p(q, zero, ten) == pytest.approx([0.006693, 0.993307], abs=1e-6)


def test_reachability_gate_takes_the_only_feasible_candidate_else_the_cheaper():
    config, score, cost = ExpansionConfig(reach_gate=0.1), _t(5.0, 0.0).unsqueeze(0), _t(2.0, 1.0).unsqueeze(0)
    gate = expansion.probabilities(score, cost, _t(0.5, 0.05).unsqueeze(0), config)
    assert gate.tolist() == [[0.0, 1.0]]
    neither = expansion.probabilities(score, cost, _t(0.5, 0.5).unsqueeze(0), config)
    assert neither.tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize(('reach', 'cost', 'expected'), [
    ((0.05, 0.1), (0.0, 0.0), (0.075858, 0.924142)),    # both within the gate, one at it: the softmax of the scores
    ((0.05, 0.1), (0.0, 10.0), (0.924142, 0.075858)),
    ((0.05, 0.2), (0.0, 0.0), (1.0, 0.0)), ((0.2, 0.05), (0.0, 0.0), (0.0, 1.0)),
    ((0.2, 0.3), (2.0, 1.0), (0.0, 1.0)), ((0.3, 0.2), (1.0, 2.0), (1.0, 0.0)),
    ((0.3, 0.2), (1.0005, 1.0), (1.0, 0.0))])           # equal to within rounding: the offline one
def test_what_the_gate_leaves_to_the_scores(reach, cost, expected):
    value, cost, reach = (_t(*x).unsqueeze(0) for x in ((1.0, 1.5), cost, reach))
    config = ExpansionConfig(reach_gate=0.1)
    found = expansion.probabilities(expansion.scores(value, cost, config), cost, reach, config)
    assert found[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_each_row_chooses_alone_and_executes_the_candidate_bit_for_bit():
    candidates = torch.rand(2, 2, 3)
    index = expansion.choose(torch.tensor([[0.3, 0.7]]).expand(4, 2), torch.tensor([[0.1], [0.9], [0.29], [0.31]]))
    assert index.tolist() == [0, 1, 0, 1]
    index = index[:2]
    taken = expansion.take(candidates, index)
    assert torch.equal(taken[0], candidates[0, 0]) and torch.equal(taken[1], candidates[1, 1])


def test_frozen_copy_has_its_own_storage_and_never_changes():
    actor = Actor(8, 3, NetworkConfig(units=16))
    frozen = frozen_copy(actor)
    before = [p.clone() for p in frozen.parameters()]
    assert {p.data_ptr() for p in frozen.parameters()}.isdisjoint({p.data_ptr() for p in actor.parameters()})
    optimizer = torch.optim.Adam(actor.parameters(), 0.1)
    for _ in range(3):
        loss = actor.log_prob(torch.randn(4, 8), torch.zeros(4, 3))[0].sum() + frozen(torch.randn(4, 8))[0].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(p.grad is None for p in frozen.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, frozen.parameters()))


def test_ema_moves_by_its_fraction():
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    expected = torch.lerp(a.weight, b.weight, 0.02)
    ema_update(a.requires_grad_(False), b, 0.02)
    assert torch.allclose(a.weight, expected)


def test_percentile_scale_has_no_bias_correction():
    scale = PercentileScale(0.99)
    # 0 and 10 in equal numbers: P5 = 0, P95 = 10.
    x = torch.tensor([0.0] * 50 + [10.0] * 50)
    highs = []
    for _ in range(11):
        scale.update(x)
        highs.append(scale.high.item())
    assert [highs[0], highs[9], highs[10]] == pytest.approx([0.1, 0.956179, 1.046617], abs=1e-5)
    assert scale.scale.item() == pytest.approx(1.046617, abs=1e-5)


def test_actor_std_at_zero_output():
    actor = Actor(4, 1, NetworkConfig(units=8))
    torch.nn.init.zeros_(actor.output.weight)
    mean, std = actor(torch.randn(1, 4))
    assert mean.item() == 0.0 and std.item() == pytest.approx(0.8927, abs=1e-4)
