# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Encoder and decoder of several cameras and vectors, as the contract names them."""

import functools

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd import Function

from fosp_core.contract import Contract
from fosp_core.errors import ContractError
from fosp_core.nn.blocks import MLP, ChannelNorm, InputLinear, init_weights
from fosp_core.nn.distributions import symlog
from fosp_core.nn.products import plain

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
    """uint8 (..., H, W, C) of each camera -> float (N, sum C, H, W) in [-0.5, 0.5], leading axes flattened."""
    pictures = [observation[c.name] for c in contract.cameras]
    picture = pictures[0] if len(pictures) == 1 else torch.cat(pictures, -1)
    # A permuted NHWC tensor is channels-last memory: the convolutions use it as it is. In place: it is large.
    return picture.flatten(0, -4).permute(0, 3, 1, 2).to(torch.float32, copy=True).div_(255.0).sub_(0.5)


class _SquaredError(Function):
    """Sum of squared differences of each picture; keeps the difference alone, and its layout for the gradient."""

    @staticmethod
    def forward(ctx, picture, target):
        difference = picture - target
        ctx.save_for_backward(difference)
        flat = difference.permute(0, 2, 3, 1).reshape(len(difference), 1, -1)
        return torch.bmm(flat, flat.transpose(1, 2)).view(-1)

    @staticmethod
    def backward(ctx, grad):
        difference, = ctx.saved_tensors
        return difference * (2.0 * grad).view(-1, 1, 1, 1), None


def squared_error(picture: Tensor, target: Tensor) -> Tensor:
    """Squared differences of pictures (N, C, H, W), summed over all but the first axis; no gradient to `target`."""
    if plain():
        return F.mse_loss(picture, target, reduction='none').sum((1, 2, 3))
    return _SquaredError.apply(picture, target)


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

    def forward(self, observation: dict[str, Tensor], picture: Tensor | None = None) -> Tensor:
        """Observation of leading shape (...) -> embedding (..., size); `picture` is its `stack_cameras`, if made."""
        lead = observation[self.contract.cameras[0].name].shape[:-3]
        x = self.convs(stack_cameras(self.contract, observation) if picture is None else picture)
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
        self.linear = InputLinear(feature, sizes[0] * self.start[1] * self.start[2])
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
        """Feature (N, F) -> pictures (N, C, H, W) in about [-0.5, 0.5], vectors (N, n) or None."""
        c, h, w = self.start
        x = self.linear(feature).unflatten(-1, (h, w, c)).permute(0, 3, 1, 2)
        x = self.convs(x)
        vector = self.vectors(feature) if self.vectors is not None else None
        return x.float() if x.dtype == torch.bfloat16 else x, vector

    def loss(self, feature: Tensor, observation: dict[str, Tensor], colour_weight: float = 0.0,
             target: Tensor | None = None) -> dict[str, Tensor]:
        """Squared errors, feature (..., F) -> each (...); keys `picture` and `vector`.

        With `colour_weight` k a pixel weighs 1 + k s, s its saturation (largest minus smallest channel) in the target
        or in the prediction, whichever is larger: else a few coloured pixels vanish beside a large grey arm. `target`
        is the observation's `stack_cameras`, if made.
        """
        lead = feature.shape[:-1]
        picture, vector = self(feature.flatten(0, len(lead) - 1))
        target = stack_cameras(self.contract, observation) if target is None else target
        if colour_weight:
            weight = self._colour_weights(target, picture.detach()).mul_(colour_weight).add_(1.0)
            error = (F.mse_loss(picture, target, reduction='none') * weight).sum((1, 2, 3))
        else:
            error = squared_error(picture, target)
        losses = {'picture': error.unflatten(0, lead)}
        if vector is not None:
            raw = torch.cat([observation[v.name] for v in self.contract.vectors], -1).flatten(0, -2)
            losses['vector'] = (vector - raw).square().sum(-1).unflatten(0, lead)
        return losses

    def _colour_weights(self, *pictures: Tensor) -> Tensor:
        """Largest saturation among pictures (N, C, H, W), of each camera for itself, in [0, 1]; broadcasts to them."""
        channels = [c.shape[2] for c in self.contract.cameras]
        cameras = []
        for parts in zip(*(p.split(channels, 1) for p in pictures)):
            # Plane by plane: to reduce an axis of three takes twice as long.
            spans = [functools.reduce(torch.maximum, p.unbind(1)) - functools.reduce(torch.minimum, p.unbind(1))
                     for p in parts]
            cameras.append(functools.reduce(torch.maximum, spans).clamp_(0.0, 1.0).unsqueeze(1))
        if len(cameras) == 1:
            return cameras[0]
        return torch.cat([c.expand(-1, n, -1, -1) for c, n in zip(cameras, channels)], 1)
