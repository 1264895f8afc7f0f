# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Constraint handlers behind one interface: none, augmented Lagrangian, PID and adaptive PID multipliers.

`penalty(cost)` is added to the actor's loss, `reward_scale` multiplies its reward part. `per_episode` tells when
`update` is due: after each gradient step on the predicted cost-to-go (False), or after each finished real episode on
its measured cost (True). All state is in buffers, so it is part of every checkpoint.
"""

import torch
from torch import Tensor, nn

from fosp_core.config import ConstraintConfig

_F64 = torch.float64
_COUNTED = 1000  # identities of measured episodes that are kept


class NoConstraint(nn.Module):
    """No penalty."""

    per_episode = False
    reward_scale = 1.0

    def penalty(self, cost: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros((), device=cost.device)

    def update(self, cost: float) -> None:
        """Do nothing."""


class AugmentedLagrangian(nn.Module):
    """Phi = lambda g + c/2 g^2 if lambda + c g > 0, else -lambda^2 / (2 c); g = J_c - d (algorithm.md 2.5)."""

    per_episode = False
    reward_scale = 1.0

    def __init__(self, config: ConstraintConfig):
        super().__init__()
        self.config = config
        # float64: increments of 5e-9 g vanish in float32 next to lambda.
        self.register_buffer('multiplier', torch.tensor(config.lambda_init, dtype=_F64))
        self.register_buffer('penalty_factor', torch.tensor(config.penalty_init, dtype=_F64))

    def penalty(self, cost: Tensor) -> Tensor:
        """Phi of the mean predicted cost-to-go (scalar tensor), differentiable in `cost`."""
        g = cost.double() - self.config.cost_limit
        # Clones: `update` changes both before the backward pass.
        lam, c = self.multiplier.clone(), self.penalty_factor.clone()
        value = torch.where(lam + c * g > 0, lam * g + 0.5 * c * g * g, -lam * lam / (2 * c))
        return value.to(cost.dtype)

    @torch.no_grad()
    def update(self, cost: float | Tensor) -> None:
        """One multiplier step on the mean predicted cost-to-go; does not wait for a device."""
        g = torch.as_tensor(cost, dtype=_F64, device=self.multiplier.device) - self.config.cost_limit
        self.multiplier.copy_((self.multiplier + self.penalty_factor * g).clamp(min=0.0))
        grown = self.penalty_factor * (1.0 + self.config.penalty_growth)
        self.penalty_factor.copy_(torch.maximum(grown, self.penalty_factor).clamp(max=self.config.penalty_max))


class _Multiplier(nn.Module):
    """Loss (reward part + lambda J_c) / (1 + lambda): step sizes stay bounded whatever lambda is."""

    per_episode = True

    def __init__(self, config: ConstraintConfig):
        super().__init__()
        self.config = config
        self.register_buffer('multiplier', torch.zeros((), dtype=_F64))
        self.register_buffer('counted', torch.zeros(_COUNTED, dtype=torch.int64))

    def first_time(self, episode: int) -> bool:
        """Note the identity (> 0) of an episode; False when it was counted before: replays hold it many times."""
        if (self.counted == episode).any():
            return False
        self.counted.copy_(torch.cat([self.counted[1:], self.counted.new_tensor([episode])]))
        return True

    @property
    def reward_scale(self) -> float:
        """1 / (1 + lambda)."""
        return 1.0 / (1.0 + self.multiplier.item())

    def penalty(self, cost: Tensor) -> Tensor:
        """lambda / (1 + lambda) J_c."""
        return cost * (1.0 - self.reward_scale)


class PIDLagrangian(_Multiplier):
    """Positional PID on the episode's cost with EMA and delayed difference (SafeDreamer's form; oracle 8.12)."""

    def __init__(self, config: ConstraintConfig):
        super().__init__(config)
        for name in ('integral', 'error_ema', 'cost_ema'):
            self.register_buffer(name, torch.zeros((), dtype=_F64))
        self.register_buffer('history', torch.zeros(config.pid_delay, dtype=_F64))

    @torch.no_grad()
    def update(self, cost: float) -> None:
        """One step on the cost of a finished episode."""
        cfg = self.config
        error = float(cost) - cfg.cost_limit
        self.integral.add_(cfg.gain_i * error).clamp_(min=0.0)
        self.error_ema.mul_(cfg.pid_ema).add_((1 - cfg.pid_ema) * error)
        self.cost_ema.mul_(cfg.pid_ema).add_((1 - cfg.pid_ema) * float(cost))
        slope = (self.cost_ema - self.history[0]).clamp(min=0.0)
        self.multiplier.copy_((cfg.gain_p * self.error_ema + self.integral + cfg.gain_d * slope).clamp(min=0.0))
        self.history.copy_(torch.cat([self.history[1:], self.cost_ema.reshape(1)]))


class AdaptivePID(_Multiplier):
    """Marvel's aPID: incremental PID whose gains follow the mean and spread of the last n RAW costs (oracle 8.13).

    Raw, since an EMA that starts at 0 makes the gains fall while the cost is above its limit (the released code).
    """

    def __init__(self, config: ConstraintConfig):
        super().__init__(config)
        gains = torch.tensor([config.gain_p, config.gain_i, config.gain_d], dtype=_F64)
        self.register_buffer('gains', gains.clone())
        self.register_buffer('bounds', torch.stack([gains / config.gain_bound, gains * config.gain_bound]))
        self.register_buffer('error_sum', torch.zeros((), dtype=_F64))
        self.register_buffer('last_error', torch.zeros((), dtype=_F64))
        self.register_buffer('costs', torch.full((config.window,), -1.0, dtype=_F64))  # -1: none yet

    @torch.no_grad()
    def adapt(self, mean: float | Tensor, deviation: float | Tensor) -> None:
        """Scale the gains by the mean and (n - 1)-deviation of the last costs; clip to [K / bound, K bound]."""
        cfg = self.config
        mean, deviation = (torch.as_tensor(x, dtype=_F64, device=self.gains.device) for x in (mean, deviation))
        # A window without cost must not divide by zero, nor count as an overshoot of a limit of zero.
        over, spread = ((x / mean.clamp(min=1e-8)) for x in (mean - cfg.cost_limit, deviation))
        factor = torch.stack([1 + cfg.adapt_p * torch.tanh(over), 1 + cfg.adapt_i * over, 1 + cfg.adapt_d * spread])
        self.gains.copy_(torch.clamp(self.gains * factor, self.bounds[0], self.bounds[1]))

    @torch.no_grad()
    def update(self, cost: float) -> None:
        """One step on the cost of a finished episode, at least 0; waits for no device."""
        self.costs.copy_(torch.cat([self.costs[1:], self.costs.new_tensor([float(cost)])]))
        known = (self.costs >= 0).to(_F64)
        mean = (known * self.costs).sum() / known.sum()
        squares = (known * (self.costs - mean).square()).sum()
        self.adapt(mean, (squares / (known.sum() - 1).clamp(min=1.0)).sqrt())
        error = float(cost) - self.config.cost_limit
        self.error_sum.add_(error)
        kp, ki, kd = self.gains
        self.multiplier.add_(kp * error + ki * self.error_sum + kd * (error - self.last_error)).clamp_(min=0.0)
        self.last_error.fill_(error)


def make_constraint(config: ConstraintConfig) -> nn.Module:
    """Build the handler that `config.kind` names; raise ValueError for an unknown one."""
    handlers = {'none': lambda c: NoConstraint(), 'alm': AugmentedLagrangian, 'pid': PIDLagrangian,
                'apid': AdaptivePID}
    if config.kind not in handlers:
        raise ValueError(f'constraint.kind {config.kind!r}, expected one of {", ".join(handlers)}')
    return handlers[config.kind](config)
