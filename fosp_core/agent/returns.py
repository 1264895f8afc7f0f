# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Targets: lambda-returns, expectile weights, reachability recursions, alignment of dataset pairs."""

import torch
from torch import Tensor

from fosp_core.nn import parallel


def lambda_return(reward: Tensor, cont: Tensor, value: Tensor, discount: float, lam: float) -> Tensor:
    """Lambda-returns along a rollout (algorithm.md 2.2).

    reward, cont (H, N): at the arrival states 1..H; value (H + 1, N): at states 0..H. Returns (H, N): R_0..R_{H-1},
    R_t = r_{t+1} + discount cont_{t+1} [(1 - lam) V_{t+1} + lam R_{t+1}], R_H = V_H.
    """
    returns = [value[-1]]
    for t in reversed(range(reward.shape[0])):
        mixed = (1 - lam) * value[t + 1] + lam * returns[-1]
        returns.append(reward[t] + discount * cont[t] * mixed)
    return torch.stack(returns[:0:-1])


def rollout_weight(cont: Tensor, discount: float) -> Tensor:
    """Weight of each imagined step: product of discount cont up to it, (H + 1, N) -> (H + 1, N), starting at cont_0."""
    return torch.cumprod(discount * cont, 0) / discount


def expectile_weight(error: Tensor, expectile: float) -> Tensor:
    """|tau - 1[u < 0]| for u = Q - V (IQL convention)."""
    # In the dtype of the error: `where` of two numbers is float32.
    return torch.full_like(error, expectile).masked_fill(error < 0, 1.0 - expectile)


def reach_rollout(violation: Tensor, cont: Tensor, bootstrap: Tensor, discount: float) -> Tensor:
    """Arrival-form reachability targets along a rollout (algorithm.md 2.3).

    violation, cont (H, N) at arrival states 1..H; bootstrap (N,) = p(s_H). Returns (H, N):
    y_t = max(violation_{t+1}, discount cont_{t+1} y_{t+1}).
    """
    target, out = bootstrap, []
    for t in reversed(range(violation.shape[0])):
        target = torch.maximum(violation[t], discount * cont[t] * target)
        out.append(target)
    return torch.stack(out[::-1])


def reach_windows(violation: Tensor, cont: Tensor, following: Tensor, last: Tensor, discount: float,
                  lam: float) -> Tensor:
    """Arrival-form reachability targets of dataset pairs, multi-step by `lam` (ours; 0 is RESPO's one step).

    violation, cont, following (B, T - 1) belong to the arrival records 1..T-1 of windows of T: cost there, continue
    flag, p(s, a' ~ pi). last (B, T - 1): nothing of the same episode follows the arrival in the window. Returns
    (B, T - 1): y_t = max(violation_{t+1}, discount cont_{t+1} m_{t+1}), m = (1 - lam) following + lam y, following
    alone where `last`.
    """
    target, out = following[:, -1], []
    for t in reversed(range(violation.shape[1])):
        mixed = torch.where(last[:, t], following[:, t], (1.0 - lam) * following[:, t] + lam * target)
        target = torch.maximum(violation[:, t], discount * cont[:, t] * mixed)
        out.append(target)
    return torch.stack(out[::-1], 1)


def last_of_window(is_first: Tensor) -> Tensor:
    """Whether the arrival record of each pair has no successor in its window: is_first (B, T) -> bool (B, T - 1)."""
    return torch.cat([is_first[:, 2:], torch.ones_like(is_first[:, :1])], 1).to(torch.bool)


def pair_mask(is_first: Tensor) -> Tensor:
    """1 where (s_t, a_t) -> s_{t+1} stays in one episode: is_first (B, T) -> float (B, T - 1)."""
    return 1.0 - is_first[:, 1:].to(torch.float32)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over the entries with mask, 0 when there is none."""
    # With several processes: such that the mean of all is that of the whole batch, however the mask is spread.
    return (x * mask).sum() / parallel.mean(mask.sum()).clamp(min=1.0 / parallel.size())
