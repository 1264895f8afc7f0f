# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Symlog, two-hot and categorical distributions of the world model (DreamerV3's, as FOSP uses them)."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd import Function

from fosp_core.nn import parallel
from fosp_core.nn.products import plain


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


def _below(x: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the bin below symlog(x), and the weight of the one above it."""
    # The spacing from the ends: the difference of neighbours loses three digits in float32.
    low, spacing = centres[0], (centres[-1] - centres[0]) / (len(centres) - 1)
    position = ((symlog(x) - low) / spacing).clamp(0, len(centres) - 1)
    below = position.floor().clamp(max=len(centres) - 2)
    # NaN as an index would end in a traceback, on a GPU in a lost device; as a weight it ends in one clear error.
    return below.long().clamp(0, len(centres) - 2), position - below


def twohot(x: Tensor, centres: Tensor) -> Tensor:
    """Two-hot weights (..., bins) of symlog(x), x of shape (...); values beyond the ends clip to the end bin."""
    index, weight = (v.unsqueeze(-1) for v in _below(x, centres))
    out = torch.zeros(*x.shape, len(centres), dtype=weight.dtype, device=x.device)
    out.scatter_(-1, index, 1 - weight)
    out.scatter_(-1, index + 1, weight)
    return out


def twohot_mean(logits: Tensor, centres: Tensor) -> Tensor:
    """symexp of the expectation in symlog space; logits (..., bins) -> (...)."""
    # Not a matrix product: a row's rounding would depend on how many rows there are.
    return symexp((torch.softmax(logits, -1) * centres).sum(-1))


class _TwohotLoss(Function):
    """Reads two logits of each row and the normaliser; nothing of the size of the bins but the gradient is made."""

    @staticmethod
    def forward(ctx, logits, target, centres):
        index, weight = _below(target, centres)
        index = torch.stack([index, index + 1], -1)
        weight = torch.stack([1 - weight, weight], -1)
        normaliser = torch.logsumexp(logits, -1)
        ctx.save_for_backward(logits, normaliser, index, weight)
        return normaliser - (weight * logits.gather(-1, index)).sum(-1)

    @staticmethod
    def backward(ctx, grad):
        logits, normaliser, index, weight = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        out = (logits - normaliser.unsqueeze(-1)).exp_().mul_(grad)
        return out.scatter_add_(-1, index, -weight * grad), None, None


def twohot_loss(logits: Tensor, target: Tensor, centres: Tensor) -> Tensor:
    """Cross-entropy of logits (..., bins) against the two-hot of target (...); shape (...)."""
    if plain() or target.requires_grad:
        return -(twohot(target, centres) * torch.log_softmax(logits, -1)).sum(-1)
    return _TwohotLoss.apply(logits, target, centres)


def unimix_probs(logits: Tensor, unimix: float) -> Tensor:
    """Probabilities (1 - unimix) softmax + unimix uniform, over the last axis; never in less than float32."""
    if logits.dtype == torch.bfloat16:
        logits = logits.float()
    return (1 - unimix) * torch.softmax(logits, -1) + unimix / logits.shape[-1]


def unimix_logits(logits: Tensor, unimix: float) -> Tensor:
    """Log-probabilities of (1 - unimix) softmax + unimix uniform, over the last axis."""
    return torch.log(unimix_probs(logits, unimix))


def sample_classes(probs: Tensor, uniform: Tensor) -> Tensor:
    """Class (...) drawn from probs (..., K) by inversion with one number in [0, 1) each, uniform (...).

    The first class at which the summed probability exceeds the number.
    """
    cumulative = probs.cumsum(-1)
    # The sum may end at 1 - 1e-7: scaled, so that no number lies beyond it.
    level = uniform.unsqueeze(-1) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, level, right=True).squeeze(-1).clamp_(max=probs.shape[-1] - 1)


def straight_through(classes: Tensor, probs: Tensor) -> Tensor:
    """One-hot rows of classes (...) with the gradient of probs (..., K)."""
    return F.one_hot(classes, probs.shape[-1]).to(probs.dtype) + probs - probs.detach()


def sample_onehot(log_probs: Tensor, gumbel: Tensor) -> Tensor:
    """Straight-through one-hot sample by the Gumbel-max trick; a zero `gumbel` gives the mode. Shape of log_probs."""
    return straight_through((log_probs + gumbel).argmax(-1), log_probs.exp())


def categorical_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL[p || q] summed over the variables: (..., stoch, classes) -> (...)."""
    return (log_p.exp() * (log_p - log_q)).sum((-2, -1))


def gumbel_like(shape, generator: torch.Generator, device, axis: int = 0) -> Tensor:
    """Gumbel(0, 1) noise from an explicit generator, so that a run can be repeated; `axis` is the batch's."""
    uniform = parallel.draw(torch.rand, shape, generator, axis).clamp_(1e-10, 1 - 1e-7)
    return (-torch.log(-torch.log(uniform))).to(device)
