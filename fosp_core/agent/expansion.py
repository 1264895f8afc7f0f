# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Safe policy expansion: score the frozen offline and the online candidate, choose one, execute exactly it.

algorithm.md 3.1. Written in operations that export to ONNX; each row of a batch chooses on its own.
"""

import torch
from torch import Tensor

from fosp_core.config import ExpansionConfig

TIE = 1e-3


def scores(value: Tensor, cost_value: Tensor, config: ExpansionConfig) -> Tensor:
    """S_k = Q^r - kappa Q^c, (N, K) each."""
    return value - config.cost_coefficient * cost_value


def probabilities(score: Tensor, cost_value: Tensor, reach: Tensor, config: ExpansionConfig) -> Tensor:
    """Choice probabilities (N, 2) for candidates (offline, online).

    softmax(inverse temperature * S). With the reachability gate: if exactly one candidate has p <= gate it is taken; if
    none has, the one with the lower Q^c (the offline one when they are equal to within TIE: rounding in another
    runtime must not flip the choice).
    """
    soft = torch.softmax(config.inverse_temperature * score, -1)
    if config.reach_gate < 0:
        return soft
    ok = (reach <= config.reach_gate).to(soft.dtype)
    count = ok.sum(-1, keepdim=True)
    first = (cost_value[:, :1] <= cost_value[:, 1:] + TIE).to(soft.dtype)
    lower = torch.cat([first, 1.0 - first], -1)
    return torch.where(count == 2, soft, torch.where(count == 1, ok, lower))


def choose(probability: Tensor, uniform: Tensor) -> Tensor:
    """Index (N,) int64 drawn by one uniform (N, 1) per row; 1 is the online candidate."""
    return (uniform[:, 0] >= probability[:, 0]).to(torch.int64)


def take(candidates: Tensor, index: Tensor) -> Tensor:
    """candidates (N, 2, A), index (N,) -> the chosen action (N, A), bit for bit."""
    return torch.where(index.unsqueeze(-1) == 0, candidates[:, 0], candidates[:, 1])
