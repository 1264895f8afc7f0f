# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Symlog, two-hot and categorical distributions of the world model (DreamerV3's, as FOSP uses them)."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fosp_core.nn import parallel


def symlog(x: Tensor) -> Tensor:
    """sign(x) ln(1 + |x|)."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """Inverse of `symlog`."""
    return torch.sign(x) * (torch.exp(torch.abs(x)) - 1.0)  # not expm1: ONNX has none


def twohot_bins(bins: int, low: float = -20.0, high: float = 20.0) -> Tensor:
    """Bin centres (bins,), equally spaced in symlog space."""
    # float64 first, so that the middle bin is exactly 0 and zero logits decode to 0.
    return torch.linspace(low, high, bins, dtype=torch.float64).to(torch.float32)


def twohot(x: Tensor, centres: Tensor) -> Tensor:
    """Two-hot weights (..., bins) of symlog(x), x of shape (...); values beyond the ends clip to the end bin."""
    # The spacing from the ends: the difference of neighbours loses three digits in float32.
    low, spacing = centres[0], (centres[-1] - centres[0]) / (len(centres) - 1)
    position = ((symlog(x) - low) / spacing).clamp(0, len(centres) - 1)
    below = position.floor().clamp(max=len(centres) - 2)
    weight = (position - below).unsqueeze(-1)
    # NaN as an index would end in a traceback, on a GPU in a lost device; as a weight it ends in one clear error.
    index = below.long().clamp(0, len(centres) - 2).unsqueeze(-1)
    out = torch.zeros(*x.shape, len(centres), dtype=weight.dtype, device=x.device)
    out.scatter_(-1, index, 1 - weight)
    out.scatter_(-1, index + 1, weight)
    return out


def twohot_mean(logits: Tensor, centres: Tensor) -> Tensor:
    """symexp of the expectation in symlog space; logits (..., bins) -> (...)."""
    return symexp((torch.softmax(logits, -1) * centres).sum(-1))


def twohot_loss(logits: Tensor, target: Tensor, centres: Tensor) -> Tensor:
    """Cross-entropy of logits (..., bins) against the two-hot of target (...); shape (...)."""
    return -(twohot(target, centres) * torch.log_softmax(logits, -1)).sum(-1)


def unimix_logits(logits: Tensor, unimix: float) -> Tensor:
    """Log-probabilities of (1 - unimix) softmax + unimix uniform, over the last axis."""
    probs = (1 - unimix) * torch.softmax(logits, -1) + unimix / logits.shape[-1]
    return torch.log(probs)


def sample_onehot(log_probs: Tensor, gumbel: Tensor) -> Tensor:
    """Straight-through one-hot sample by the Gumbel-max trick; a zero `gumbel` gives the mode. Shape of log_probs."""
    hard = F.one_hot((log_probs + gumbel).argmax(-1), log_probs.shape[-1]).to(log_probs.dtype)
    probs = log_probs.exp()
    return hard + probs - probs.detach()


def categorical_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL[p || q] summed over the variables: (..., stoch, classes) -> (...)."""
    return (log_p.exp() * (log_p - log_q)).sum((-2, -1))


def gumbel_like(shape, generator: torch.Generator, device, axis: int = 0) -> Tensor:
    """Gumbel(0, 1) noise from an explicit generator, so that a run can be repeated; `axis` is the batch's."""
    uniform = parallel.draw(torch.rand, shape, generator, axis).clamp_(1e-10, 1 - 1e-7)
    return (-torch.log(-torch.log(uniform))).to(device)
