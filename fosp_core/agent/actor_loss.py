# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Weights of the actor's regression (algorithm.md 2.4 and 3.2): one equation per function."""

import torch
from torch import Tensor


def offline_weight(feasible: Tensor, advantage: Tensor, cost_advantage: Tensor, beta_reward: float, beta_cost: float,
                   form: str, gate: Tensor | None, clip: float) -> Tensor:
    """Weight of a dataset action; all inputs (...).

    mixture (P1): u exp(b1 A^r) gate + (1 - u) exp(-b2 A^c); product (the exact closed form of the single objective):
    exp(u b1 A^r - (1 - u) b2 A^c) gate; uniform: 1, behaviour cloning. `gate` is 1[Q^c <= threshold] or None.
    """
    if form == 'uniform':
        return torch.ones_like(feasible)
    gate = torch.ones_like(feasible) if gate is None else gate
    if form == 'mixture':
        # Clip the exponents first: exp(200) is inf, and 0 * inf would be NaN.
        good = torch.exp((beta_reward * advantage).clamp(max=20.0)) * gate
        bad = torch.exp((-beta_cost * cost_advantage).clamp(max=20.0))
        weight = feasible * good + (1 - feasible) * bad
    elif form == 'product':
        weight = torch.exp((feasible * beta_reward * advantage
                            - (1 - feasible) * beta_cost * cost_advantage).clamp(max=20.0)) * gate
    else:
        raise ValueError(f'weight_form {form!r}, expected mixture, product or uniform')
    return weight.clamp(max=clip)


def online_weight(feasible: Tensor, advantage: Tensor, cost_advantage: Tensor, beta_reward: float,
                  beta_cost: float) -> Tensor:
    """P1's linear weight of an imagined action: u b1 A^r - (1 - u) b2 A^c; may be negative."""
    return feasible * beta_reward * advantage - (1 - feasible) * beta_cost * cost_advantage
