# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Constraint handlers behind one interface: none and the augmented Lagrangian (algorithm.md 2.5)."""

import torch
from torch import Tensor, nn

from fosp_core.config import ConstraintConfig


class NoConstraint(nn.Module):
    """No penalty."""

    def penalty(self, cost: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros((), device=cost.device)

    def update(self, cost: float) -> None:
        """Do nothing."""


class AugmentedLagrangian(nn.Module):
    """Phi = lambda g + c/2 g^2 if lambda + c g > 0, else -lambda^2 / (2 c); g = J_c - d."""

    def __init__(self, config: ConstraintConfig):
        super().__init__()
        self.config = config
        # float64: increments of 5e-9 g vanish in float32 next to lambda.
        self.register_buffer('multiplier', torch.tensor(config.lambda_init, dtype=torch.float64))
        self.register_buffer('penalty_factor', torch.tensor(config.penalty_init, dtype=torch.float64))

    def penalty(self, cost: Tensor) -> Tensor:
        """Phi of the mean predicted cost-to-go (scalar tensor), differentiable in `cost`."""
        g = cost.double() - self.config.cost_limit
        lam, c = self.multiplier.clone(), self.penalty_factor.clone()  # `update` changes both before the backward pass
        value = torch.where(lam + c * g > 0, lam * g + 0.5 * c * g * g, -lam * lam / (2 * c))
        return value.to(cost.dtype)

    @torch.no_grad()
    def update(self, cost: float) -> None:
        """One multiplier step on the mean predicted cost-to-go."""
        g = float(cost) - self.config.cost_limit
        self.multiplier.copy_((self.multiplier + self.penalty_factor * g).clamp(min=0.0))
        grown = self.penalty_factor * (1.0 + self.config.penalty_growth)
        self.penalty_factor.copy_(grown.clamp(min=self.penalty_factor.item(), max=self.config.penalty_max))


def make_constraint(config: ConstraintConfig) -> nn.Module:
    """Build the handler that `config.kind` names; raise ValueError for an unknown one."""
    handlers = {'none': lambda: NoConstraint(), 'alm': lambda: AugmentedLagrangian(config)}
    if config.kind not in handlers:
        raise ValueError(f'constraint.kind {config.kind!r}, expected one of {", ".join(handlers)}')
    return handlers[config.kind]()
