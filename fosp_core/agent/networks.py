# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Actor, critics and reachability network on the world model's feature, and their EMA copies."""

import copy

import torch
from torch import Tensor, nn

from fosp_core.config import NetworkConfig
from fosp_core.nn import parallel
from fosp_core.nn.blocks import MLP
from fosp_core.nn.distributions import twohot_bins, twohot_loss, twohot_mean


class Actor(MLP):
    """Normal(tanh(mean), std), std = 0.1 + 0.9 sigmoid(raw + 2); the sample is not squashed."""

    def __init__(self, feature: int, action: int, network: NetworkConfig):
        super().__init__(feature, network.layers, network.units, 2 * action)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """(..., F) -> mean (..., A) in (-1, 1), std (..., A) in (0.1, 1)."""
        mean, raw = super().forward(feature).chunk(2, -1)
        return torch.tanh(mean), 0.1 + 0.9 * torch.sigmoid(raw + 2.0)

    def sample(self, feature: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Action (..., A) drawn from the policy, not clipped, and its log-density (...)."""
        mean, std = self(feature)
        noise = parallel.draw(torch.randn, mean.shape, generator).to(mean.device)
        action = mean + std * noise
        return action, torch.distributions.Normal(mean, std, validate_args=False).log_prob(action).sum(-1)

    def log_prob(self, feature: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density of `action` and entropy, each (...)."""
        mean, std = self(feature)
        normal = torch.distributions.Normal(mean, std, validate_args=False)
        return normal.log_prob(action).sum(-1), normal.entropy().sum(-1)


class Critic(nn.Module):
    """Two-hot symlog value of a state, or of a state and an action; zero at the start."""

    def __init__(self, inputs: int, network: NetworkConfig):
        super().__init__()
        self.net = MLP(inputs, network.layers, network.units, network.bins, output_scale=0.0)
        self.register_buffer('bins', twohot_bins(network.bins), persistent=False)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Mean value (...); inputs are concatenated."""
        return self.mean(self.logits(*inputs))

    def mean(self, logits: Tensor) -> Tensor:
        """Value (...) of logits (..., bins)."""
        return twohot_mean(logits, self.bins)

    def logits(self, *inputs: Tensor) -> Tensor:
        """Logits (..., bins)."""
        return self.net(*inputs)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy to the two-hot of target, (...)."""
        return twohot_loss(logits, target, self.bins)


class Reachability(nn.Module):
    """p(s, a): probability that a violation will be reached (RESPO's REF in arrival form); a sigmoid head."""

    def __init__(self, feature: int, action: int, network: NetworkConfig):
        super().__init__()
        self.net = MLP(feature + action, network.layers, network.units, 1, output_scale=0.0)

    def logit(self, feature: Tensor, action: Tensor, drop: float = 0.0,
              generator: torch.Generator | None = None, axis: int = 0) -> Tensor:
        """Logit (...); with dropout when a rate and a generator are given; `axis` is the batch's."""
        return self.net(feature, action, drop, generator, axis).squeeze(-1)

    def forward(self, feature: Tensor, action: Tensor) -> Tensor:
        """Probability (...) in [0, 1]."""
        return torch.sigmoid(self.logit(feature, action))


def frozen_copy(module: nn.Module) -> nn.Module:
    """A deep copy with its own storage that never receives gradients."""
    return copy.deepcopy(module).requires_grad_(False).eval()


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, fraction: float) -> None:
    """target <- (1 - fraction) target + fraction online, parameter by parameter."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), fraction)


class PercentileScale(nn.Module):
    """EMA of the 5th and 95th percentiles without bias correction; scale = max(1, P95 - P5)."""

    def __init__(self, decay: float = 0.99):
        super().__init__()
        self.decay = decay
        self.register_buffer('low', torch.zeros(()))
        self.register_buffer('high', torch.zeros(()))
        self.register_buffer('levels', torch.tensor([0.05, 0.95]), persistent=False)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in a batch of any shape."""
        x = parallel.gather(x.detach().flatten().to(self.levels.dtype))
        low, high = torch.quantile(x, self.levels)
        self.low.mul_(self.decay).add_((1 - self.decay) * low)
        self.high.mul_(self.decay).add_((1 - self.decay) * high)

    @property
    def scale(self) -> Tensor:
        """Scalar >= 1."""
        return (self.high - self.low).clamp(min=1.0)
