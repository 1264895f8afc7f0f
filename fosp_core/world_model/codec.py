# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Encoder and decoder of several cameras and vectors, as the contract names them."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fosp_core.contract import Contract
from fosp_core.errors import ContractError
from fosp_core.nn.blocks import MLP, ChannelNorm, init_weights
from fosp_core.nn.distributions import symlog

STAGES = 4  # each halves the picture


def picture_shape(contract: Contract) -> tuple[int, int, int]:
    """Channels, height, width of all cameras stacked on channels; raise ContractError when sizes differ."""
    sizes = {(c.height, c.width) for c in contract.cameras}
    if len(sizes) != 1:
        raise ContractError(f'contract {contract.name}: cameras of sizes {sorted(sizes)}, expected one size')
    height, width = sizes.pop()
    if height % 2 ** STAGES or width % 2 ** STAGES:
        raise ContractError(f'contract {contract.name}: camera size {height}x{width}, expected multiples of '
                            f'{2 ** STAGES}')
    return sum(c.shape[2] for c in contract.cameras), height, width


def stack_cameras(contract: Contract, observation: dict[str, Tensor]) -> Tensor:
    """uint8 (..., H, W, C) of each camera -> float (N, sum C, H, W) in [0, 1], leading axes flattened."""
    pictures = [observation[c.name] for c in contract.cameras]
    picture = pictures[0] if len(pictures) == 1 else torch.cat(pictures, -1)
    # A permuted NHWC tensor is channels-last memory: the convolutions use it as it is.
    return picture.flatten(0, -4).permute(0, 3, 1, 2).to(torch.float32) / 255.0


class Encoder(nn.Module):
    """Four strided convolutions over the stacked cameras, an MLP over symlog vectors, concatenated."""

    def __init__(self, contract: Contract, depth: int, multipliers: tuple[int, ...], vector_layers: int,
                 vector_units: int):
        super().__init__()
        self.contract = contract
        channels, height, width = picture_shape(contract)
        sizes = [channels] + [depth * m for m in multipliers]
        layers = []
        for a, b in zip(sizes, sizes[1:]):
            conv = nn.Conv2d(a, b, 4, 2, padding=1, bias=False)
            init_weights(conv)
            layers += [conv, ChannelNorm(b), nn.SiLU()]
        self.convs = nn.Sequential(*layers)
        self.size = sizes[-1] * (height >> STAGES) * (width >> STAGES)
        inputs = sum(v.size for v in contract.vectors)
        self.vectors = MLP(inputs, vector_layers, vector_units) if inputs else None
        if inputs:
            self.size += vector_units

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        """Observation of leading shape (...) -> embedding (..., size)."""
        lead = observation[self.contract.cameras[0].name].shape[:-3]
        x = self.convs(stack_cameras(self.contract, observation) - 0.5)
        x = x.permute(0, 2, 3, 1).flatten(1).unflatten(0, lead)
        if self.vectors is None:
            return x
        vector = torch.cat([observation[v.name] for v in self.contract.vectors], -1)
        return torch.cat([x, self.vectors(symlog(vector))], -1)


class Decoder(nn.Module):
    """Mirror of the encoder; losses are summed squared errors over pixels, and over raw vector entries."""

    def __init__(self, contract: Contract, feature: int, depth: int, multipliers: tuple[int, ...], vector_layers: int,
                 vector_units: int, norm: bool = True):
        super().__init__()
        self.contract = contract
        channels, height, width = picture_shape(contract)
        sizes = [depth * m for m in reversed(multipliers)]
        self.start = (sizes[0], height >> STAGES, width >> STAGES)
        self.linear = nn.Linear(feature, sizes[0] * self.start[1] * self.start[2])
        init_weights(self.linear)
        layers = []
        for a, b in zip(sizes, sizes[1:]):
            conv = nn.ConvTranspose2d(a, b, 4, 2, padding=1, bias=False)
            init_weights(conv)
            # With few channels the norm takes away the amplitude that small objects are drawn with: see the preset.
            layers += [conv, ChannelNorm(b), nn.SiLU()] if norm else [conv, nn.SiLU()]
        last = nn.ConvTranspose2d(sizes[-1], channels, 4, 2, padding=1)
        init_weights(last)
        self.convs = nn.Sequential(*layers, last)
        outputs = sum(v.size for v in contract.vectors)
        self.vectors = MLP(feature, vector_layers, vector_units, outputs) if outputs else None

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor | None]:
        """Feature (N, F) -> pictures (N, C, H, W) in about [0, 1], vectors (N, n) or None."""
        c, h, w = self.start
        x = self.linear(feature).unflatten(-1, (h, w, c)).permute(0, 3, 1, 2)
        return self.convs(x) + 0.5, self.vectors(feature) if self.vectors is not None else None

    def loss(self, feature: Tensor, observation: dict[str, Tensor], colour_weight: float = 0.0) -> dict[str, Tensor]:
        """Squared errors, feature (..., F) -> each (...); keys `picture` and `vector`.

        With `colour_weight` k a pixel weighs 1 + k s, s its saturation (largest minus smallest channel) in the target
        or in the prediction, whichever is larger: else a few coloured pixels vanish beside a large grey arm.
        """
        lead = feature.shape[:-1]
        picture, vector = self(feature.flatten(0, -2))
        target = stack_cameras(self.contract, observation)
        error = F.mse_loss(picture, target, reduction='none')
        if colour_weight:
            error = error * (1.0 + colour_weight * torch.maximum(self._saturation(target),
                                                                 self._saturation(picture.detach())))
        losses = {'picture': error.sum((1, 2, 3)).unflatten(0, lead)}
        if vector is not None:
            raw = torch.cat([observation[v.name] for v in self.contract.vectors], -1).flatten(0, -2)
            losses['vector'] = (vector - raw).square().sum(-1).unflatten(0, lead)
        return losses

    def _saturation(self, picture: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape, each camera's saturation repeated over its channels, in [0, 1]."""
        parts = picture.split([c.shape[2] for c in self.contract.cameras], 1)
        return torch.cat([(p.amax(1, keepdim=True) - p.amin(1, keepdim=True)).clamp(0.0, 1.0).expand_as(p)
                          for p in parts], 1)
