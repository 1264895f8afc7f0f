# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One gradient step of the whole agent: world model, actor, critics, reachability, targets, in that order.

Holds the optimisers and the random generators, so that a run can be saved and resumed exactly.
"""

import numpy as np
import torch
from torch import Tensor

from fosp_core.agent.agent import Agent, Rollout
from fosp_core.config import Config
from fosp_core.contract import Contract
from fosp_core.errors import TrainingError
from fosp_core.nn import parallel
from fosp_core.nn.distributions import gumbel_like
from fosp_core.world_model.model import States


class Learner:
    """Agent, optimisers and RNG; `update` makes one step on a replay batch."""

    def __init__(self, contract: Contract, config: Config, device: str = 'cpu', seed: int | None = None):
        self.contract, self.config, self.device = contract, config, torch.device(device)
        seed = config.train.seed if seed is None else seed
        # Weight initialisation draws from torch's global generator; fork it, so that building an agent is repeatable
        # and leaves a caller's own random stream alone.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.agent = Agent(contract, config).to(self.device)
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.rng = np.random.default_rng(seed + 2)
        self.step = 0
        self.online = False
        wm, bh = config.world_model, config.behaviour
        agent = self.agent
        self.critics = [agent.q_reward, agent.q_cost, agent.v_reward, agent.v_cost]
        critic_parameters = [p for c in self.critics for p in c.parameters()]
        fused = self.device.type == 'cuda'
        options = {'fused': True} if fused else {'foreach': True}
        self.optimizers = {
            'world_model': torch.optim.Adam(agent.world_model.parameters(), wm.lr, eps=wm.eps, **options),
            'actor': torch.optim.Adam(agent.actor.parameters(), bh.lr, eps=bh.eps, **options),
            'critic': torch.optim.Adam(critic_parameters, bh.lr, eps=bh.eps, **options),
            'reach': torch.optim.Adam(agent.reach.parameters(), bh.lr * bh.reach_lr_scale, eps=bh.eps, **options)}
        self._lr = {name: o.param_groups[0]['lr'] for name, o in self.optimizers.items()}

    def scale_lr(self, factor: float) -> None:
        """Set every learning rate to `factor` times the configured one."""
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group['lr'] = factor * self._lr[name]

    def begin_online(self, adapted: bool = False) -> None:
        """Freeze the offline policy and go on with the online phase's losses.

        With `expansion.init: fresh` the online policy starts anew, unless it is `adapted` already.
        """
        seed = None
        if self.config.expansion.init == 'fresh' and not adapted:
            seed = int(torch.randint(2 ** 31, (), generator=self.generator))
            self.optimizers['actor'].state.clear()  # moments of another network
        self.agent.freeze_offline(seed)
        self.online = True
        self.scale_lr(self.config.expansion.online_lr_scale)

    def end_episode(self, cost: float, identity: int | None = None) -> None:
        """Tell the constraint the measured cost of a finished real episode (pid and apid; no-op for the others).

        `identity` (> 0) keeps an episode that is seen again by the next fine-tune from being counted twice; without one
        it is counted.
        """
        constraint = self.agent.constraint
        if constraint.per_episode and (identity is None or constraint.first_time(identity)):
            constraint.update(cost)

    def to_device(self, batch: dict[str, np.ndarray]) -> dict[str, Tensor]:
        """Numpy batch -> tensors on the device."""
        return {k: torch.from_numpy(v).to(self.device, non_blocking=True) for k, v in batch.items()}

    def update(self, batch: dict[str, np.ndarray]) -> dict[str, float]:
        """One gradient step; returns metrics as floats; raises TrainingError when a loss is not finite."""
        for key, value in batch.items():
            if value.dtype == np.float32 and not np.isfinite(value).all():
                raise TrainingError(f'gradient step {self.step + 1}: batch key {key} not finite; '
                                    f'the last checkpoint is intact')
        tensors = self.to_device(batch)
        states, metrics = self._world_model(tensors)
        return self._finish(metrics | self._behaviour(states, states.feature, tensors))

    def update_behaviour(self, states: States, batch: dict[str, Tensor]) -> dict[str, float]:
        """One gradient step of everything but the world model, on its posterior states (B, T, ...)."""
        return self._finish(self._behaviour(states, states.feature, batch))

    def _finish(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        self.agent.update_targets()
        self.step += 1
        values = parallel.mean(torch.stack([v.to(torch.float64).reshape(()) for v in metrics.values()])).tolist()
        out = dict(zip(metrics, values))
        bad = [k for k, v in out.items() if not np.isfinite(v)]
        if bad:
            raise TrainingError(f'gradient step {self.step}: {", ".join(bad)} not finite; '
                                f'the last checkpoint is intact')
        return out

    def _world_model(self, batch: dict[str, Tensor]) -> tuple[States, dict]:
        rssm = self.agent.world_model.rssm
        b, t = batch['reward'].shape
        gumbel = gumbel_like((b, t, rssm.stoch, rssm.classes), self.generator, self.device)
        loss, states, metrics = self.agent.world_model.loss(batch, gumbel)
        self._apply('world_model', loss, [self.agent.world_model], self.config.world_model.clip)
        metrics['model/loss'] = loss.detach()
        return states, metrics

    def _behaviour(self, states: States, feature: Tensor, batch: dict[str, Tensor]) -> dict:
        agent, cfg = self.agent, self.config.behaviour
        deter, stoch = states.deter.flatten(0, 1), states.stoch.flatten(0, 1)
        cont = 1.0 - batch['is_terminal'].flatten().to(feature.dtype)
        states_in_batch = len(deter) * parallel.size()
        if cfg.imagine_starts and cfg.imagine_starts < states_in_batch:
            pick = torch.randperm(states_in_batch, generator=self.generator)[:cfg.imagine_starts].to(self.device)
            deter, stoch, cont = (parallel.take(x, pick) for x in (deter, stoch, cont))
        # In-sample, the rollout's graph serves the constraint's gradient alone; without one, imagine without it.
        constrained = self.config.constraint.kind != 'none'
        with torch.set_grad_enabled(constrained or cfg.actor_objective == 'dynamics'):
            rollout = agent.imagine(States(deter, stoch), cont, self.generator)
        metrics = self._actor(rollout, feature, batch, constrained)
        rollout = Rollout(*(x.detach() for x in vars(rollout).values()))
        loss, extra = agent.critic_loss(rollout, feature, batch)
        self._apply('critic', loss, self.critics, cfg.clip)
        metrics |= extra
        loss, extra = agent.reach_loss(rollout, feature, batch, self.generator)
        self._apply('reach', loss, [agent.reach], cfg.clip)
        return metrics | extra

    def _actor(self, rollout: Rollout, feature: Tensor, batch: dict[str, Tensor], constrained: bool) -> dict:
        agent, expansion = self.agent, self.config.expansion
        if self.config.behaviour.actor_objective == 'dynamics':
            loss, metrics = agent.dynamics_actor_loss(rollout), {}
        else:
            mask = (1.0 - batch['is_first'][:, 1:].to(feature.dtype)).flatten()
            loss, metrics = agent.offline_actor_loss(feature[:, :-1].flatten(0, 1),
                                                     batch['action'][:, :-1].flatten(0, 1), mask,
                                                     self.generator)
            if self.online and expansion.online_weight != 'none':
                loss = expansion.online_in_sample * loss + agent.online_actor_loss(rollout)
            if self.online and expansion.enabled:
                metrics['expansion/online_share'] = agent.online_share(feature[:, -1])
        if constrained:
            cost = parallel.global_value(agent.predicted_cost(rollout))
            loss = agent.constraint.reward_scale * loss + agent.constraint.penalty(cost)
            if not agent.constraint.per_episode:
                agent.constraint.update(cost.detach().item())
            metrics |= {'constraint/predicted_cost': cost.detach(),
                        'constraint/multiplier': agent.constraint.multiplier}
        parameters = list(agent.actor.parameters())
        # Only the actor's parameters: the penalty's graph runs through the world model and the critics.
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
            parameter.grad = gradient
        parallel.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, self.config.behaviour.clip)
        self.optimizers['actor'].step()
        return metrics | {'actor/loss': loss.detach()}

    def _apply(self, name: str, loss: Tensor, modules: list, clip: float) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parallel.average_gradients(p for module in modules for p in module.parameters())
        for module in modules:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
