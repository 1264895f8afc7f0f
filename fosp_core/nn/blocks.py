# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Layers shared by all networks: normalised MLPs, channel norm, initialisation."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fosp_core.nn import parallel
from fosp_core.nn.onehot import Feature, OneHot, Path
from fosp_core.nn.products import linear, mixed_linear


def init_weights(module: nn.Module, scale: float = 1.0) -> None:
    """Truncated normal, std sqrt(scale / mean(fan_in, fan_out)) / 0.8796 (the released preset); biases zero."""
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        if scale == 0.0:
            nn.init.zeros_(module.weight)
        else:
            shape = module.weight.shape
            space = 1 if len(shape) == 2 else shape[2] * shape[3]
            fan = 0.5 * (shape[0] + shape[1]) * space
            std = (scale / fan) ** 0.5 / 0.87962566103423978
            nn.init.trunc_normal_(module.weight, 0.0, std, -2 * std, 2 * std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (N, C, H, W); free of copies in channels-last memory."""

    def __init__(self, channels: int, eps: float = 1e-3):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each position over its channels."""
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class InputLinear(nn.Linear):
    """A linear layer that also takes features and one-hot rows kept as column numbers."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        super().__init__(inputs, outputs, bias)
        init_weights(self)

    def forward(self, x: Tensor | Feature | OneHot, right: Tensor | None = None) -> Tensor:
        """x (..., n), joined with right (..., inputs - n) -> (..., outputs)."""
        if isinstance(x, Tensor):
            return linear(x if right is None else torch.cat([x, right], -1), self.weight, self.bias)
        left, hot = (x.deter, x.stoch) if isinstance(x, Feature) else (None, x)
        out = mixed_linear(left, hot, right, self.weight)
        return out if self.bias is None else out + self.bias


class NormedLinear(nn.Module):
    """Linear without bias, LayerNorm, SiLU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear = InputLinear(inputs, outputs, bias=False)
        self.norm = nn.LayerNorm(outputs, eps=1e-3)

    def forward(self, x: Tensor | Feature | OneHot, right: Tensor | None = None) -> Tensor:
        """x (..., n), joined with right (..., inputs - n) -> (..., outputs)."""
        return F.silu(self.norm(self.linear(x, right)))


class MLP(nn.Module):
    """`layers` NormedLinear of `units`, then an output layer of `outputs` (absent when 0)."""

    def __init__(self, inputs: int, layers: int, units: int, outputs: int = 0, output_scale: float = 1.0):
        super().__init__()
        sizes = [inputs] + [units] * layers
        self.hidden = nn.Sequential(*(NormedLinear(a, b) for a, b in zip(sizes, sizes[1:])))
        self.output = nn.Linear(units, outputs) if outputs else nn.Identity()
        init_weights(self.output, output_scale)

    def forward(self, x: Tensor | Feature | Path, right: Tensor | None = None, drop: float = 0.0,
                generator: torch.Generator | None = None, axis: int = 0) -> Tensor:
        """x (..., n), joined with right (..., inputs - n) -> (..., outputs or units).

        `drop` is the dropout rate behind each hidden layer; its mask comes from `generator`, so that a run resumes
        exactly (nn.Dropout draws from torch's global one); `axis` is the batch's.
        """
        if isinstance(x, Path):     # the first axis is the steps'
            return torch.stack([self(f, None if right is None else right[t], drop, generator, axis - 1)
                                for t, f in enumerate(x)])
        for i, layer in enumerate(self.hidden):
            x = layer(x) if i else layer(x, right)
            if drop:
                keep = parallel.draw(torch.rand, x.shape, generator, axis).to(x.device) >= drop
                x = x * keep / (1.0 - drop)
        if isinstance(self.output, nn.Identity):
            return x
        x = linear(x, self.output.weight, self.output.bias)
        return x.float() if x.dtype == torch.bfloat16 else x  # whatever follows a head is done in float32
