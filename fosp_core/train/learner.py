# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One gradient step of the whole agent: world model, actor, critics, reachability, targets, in that order.

Holds the optimisers and the random generators, so that a run can be saved and resumed exactly.
"""

import contextlib

import numpy as np
import torch
from torch import Tensor

from fosp_core.agent.agent import Agent, Rollout
from fosp_core.config import Config
from fosp_core.contract import Contract
from fosp_core.errors import TrainingError
from fosp_core.nn import parallel
from fosp_core.nn.distributions import gumbel_like
from fosp_core.nn.products import constant_weights
from fosp_core.train import execution
from fosp_core.world_model.model import States

COLUMNS_FROM = 1024  # entries of the latent: with 16 x 16 it is no gain


@contextlib.contextmanager
def frozen(module: torch.nn.Module, but: torch.nn.Module):
    """Make all parameters of `module` constants but those of `but`: nothing is kept or computed for their gradients."""
    spared = set(but.parameters())
    parameters = [p for p in module.parameters() if p.requires_grad and p not in spared]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class Learner:
    """Agent, optimisers and RNG; `update` makes one step on a replay batch."""

    def __init__(self, contract: Contract, config: Config, device: str = 'cpu', seed: int | None = None):
        self.contract, self.config, self.device = contract, config, execution.as_device(device)
        execution.check(config.train, self.device)
        seed = config.train.seed if seed is None else seed
        # Weight initialisation draws from torch's global generator; fork it, so that building an agent is repeatable
        # and leaves a caller's own random stream alone.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.agent = Agent(contract, config).to(self.device)
        self.generator = torch.Generator(self.device).manual_seed(seed + 1)
        self.rng = np.random.default_rng(seed + 2)
        self.step = 0
        self.online = False
        wm, bh, run = config.world_model, config.behaviour, config.train
        agent = self.agent
        # Wide latents as column numbers, products with them as sums of columns: less work for a CPU, not for a GPU.
        self.columns = (self.device.type == 'cpu' and run.precision != 'bfloat16' and not run.compile
                        and config.network.stoch * config.network.classes >= COLUMNS_FROM)
        self._programs = execution.Programs(agent) if run.compile else contextlib.nullcontext()
        self.forget_graph()
        self.critics = [agent.q_reward, agent.q_cost, agent.v_reward, agent.v_cost]
        critic_parameters = [p for c in self.critics for p in c.parameters()]
        self._lr = {'world_model': wm.lr, 'actor': bh.lr, 'critic': bh.lr, 'reach': bh.lr * bh.reach_lr_scale}
        self.optimizers = {name: self._adam(name, parameters, wm.eps if name == 'world_model' else bh.eps)
                           for name, parameters in (('world_model', agent.world_model.parameters()),
                                                    ('actor', agent.actor.parameters()),
                                                    ('critic', critic_parameters),
                                                    ('reach', agent.reach.parameters()))}

    def _adam(self, name: str, parameters, eps: float) -> torch.optim.Adam:
        captured, lr = self.config.train.cuda_graph, self._lr[name]
        return torch.optim.Adam(parameters, torch.tensor(lr, device=self.device) if captured else lr, eps=eps,
                                fused=True, capturable=captured)

    def scale_lr(self, factor: float, policy: float = 1.0) -> None:
        """Set every learning rate to `factor` times the configured one; of actor and critics, `policy` times that."""
        for name, optimizer in self.optimizers.items():
            rate = factor * self._lr[name] * (policy if name in ('actor', 'critic') else 1.0)
            for group in optimizer.param_groups:
                if isinstance(group['lr'], Tensor):  # a captured step reads it from there
                    group['lr'].fill_(rate)
                else:
                    group['lr'] = rate

    def forget_graph(self) -> None:
        """Record the step anew: what was constant in a captured one has changed."""
        self._execute = self._step
        if self.config.train.cuda_graph:
            self._execute = execution.Capture(self._step, self.generator)

    def begin_online(self, adapted: bool = False) -> None:
        """Freeze the offline policy and go on with the online phase's losses.

        With `expansion.init: fresh` the online policy starts anew, unless it is `adapted` already.
        """
        seed = None
        if self.config.expansion.init == 'fresh' and not adapted:
            seed = int(torch.randint(2 ** 31, (), generator=self.generator, device=self.device))
            self.optimizers['actor'].state.clear()  # moments of another network
        self.agent.freeze_offline(seed)
        self.online = True
        self.scale_lr(self.config.expansion.online_lr_scale)
        self.forget_graph()

    def end_episode(self, cost: float, identity: int | None = None) -> None:
        """Tell the constraint the measured cost of a finished real episode (pid and apid; no-op for the others).

        `identity` (> 0) keeps an episode that is seen again by the next fine-tune from being counted twice; without one
        it is counted.
        """
        constraint = self.agent.constraint
        if constraint.per_episode and (identity is None or constraint.first_time(identity)):
            constraint.update(cost)
            self.forget_graph()

    def to_device(self, batch: dict[str, np.ndarray]) -> dict[str, Tensor]:
        """Numpy batch -> tensors on the device."""
        return {k: torch.from_numpy(v).to(self.device, non_blocking=True) for k, v in batch.items()}

    def update(self, batch: dict[str, np.ndarray]) -> dict[str, float]:
        """One gradient step; returns metrics as floats; raises TrainingError when a loss is not finite."""
        for key, value in batch.items():
            if value.dtype == np.float32 and not np.isfinite(value).all():
                raise TrainingError(f'gradient step {self.step + 1}: batch key {key} not finite; '
                                    f'the last checkpoint is intact')
        with execution.products(self.config.train):
            metrics = self._execute(self.to_device(batch))
        return self._finish(metrics)

    def update_behaviour(self, states: States, batch: dict[str, Tensor]) -> dict[str, float]:
        """One gradient step of everything but the world model, on its posterior states (B, T, ...)."""
        if self.columns:
            states = states.to_columns(self.config.network.classes)
        with execution.products(self.config.train), self._programs:
            metrics = self._behaviour(states, states.feature, batch)
        self.agent.update_targets()
        return self._finish(metrics)

    def update_reachability(self, feature: Tensor, batch: dict[str, Tensor]) -> dict[str, float]:
        """One gradient step of the reachability estimate alone, on dataset pairs: feature (B, T, F)."""
        with execution.products(self.config.train):
            with self._forward():
                loss, data = self.agent.reach_data_loss(feature, batch, self.generator)
            self._apply('reach', loss, [self.agent.reach], self.config.behaviour.clip)
        self.agent.update_reach_target()
        return self._finish({'reach/loss': loss.detach(), 'reach/data': data.mean()})

    def _step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The whole gradient step, on tensors; waits for nothing."""
        with self._programs:
            states, metrics = self._world_model(batch)
            self.part_done('world_model')
            if self.online or self.config.train.joint:
                metrics = metrics | self._behaviour(states, states.feature, batch)
        self.agent.update_targets()
        return metrics

    def part_done(self, name: str) -> None:
        """Called when a part of the step is done; the benchmark puts a clock here."""

    def _finish(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        self.step += 1
        values = parallel.mean(torch.stack([v.to(torch.float64).reshape(()) for v in metrics.values()])).tolist()
        out = dict(zip(metrics, values))
        bad = [k for k, v in out.items() if not np.isfinite(v)]
        if bad:
            raise TrainingError(f'gradient step {self.step}: {", ".join(bad)} not finite; '
                                f'the last checkpoint is intact')
        return out

    @contextlib.contextmanager
    def _forward(self):
        """Context of every forward pass."""
        with execution.autocast(self.config.train, self.device), constant_weights():
            yield

    def _world_model(self, batch: dict[str, Tensor]) -> tuple[States, dict]:
        rssm = self.agent.world_model.rssm
        b, t = batch['reward'].shape
        gumbel = gumbel_like((b, t, rssm.stoch, rssm.classes), self.generator, self.device)
        with self._forward():
            loss, states, metrics = self.agent.world_model.loss(batch, gumbel, self.columns)
        self._apply('world_model', loss, [self.agent.world_model], self.config.world_model.clip)
        metrics['model/loss'] = loss.detach()
        return states, metrics

    def _behaviour(self, states: States, feature: Tensor, batch: dict[str, Tensor]) -> dict:
        agent, cfg = self.agent, self.config.behaviour
        deter, stoch = states.deter.flatten(0, 1), states.stoch.flatten(0, 1)
        cont = 1.0 - batch['is_terminal'].flatten().to(feature.dtype)
        states_in_batch = len(deter) * parallel.size()
        if cfg.imagine_starts and cfg.imagine_starts < states_in_batch:
            pick = self._pick(states_in_batch, cfg.imagine_starts)
            deter, cont = parallel.take(deter, pick), parallel.take(cont, pick)
            stoch = stoch.map(lambda x: parallel.take(x, pick)) if self.columns else parallel.take(stoch, pick)
        # In-sample, the rollout's graph serves the constraint's gradient alone; without one, imagine without it.
        constrained = self.config.constraint.kind != 'none'
        with frozen(agent, but=agent.actor):
            with torch.set_grad_enabled(constrained or cfg.actor_objective == 'dynamics'), self._forward():
                rollout = agent.imagine(States(deter, stoch), cont, self.generator)
            metrics = self._actor(rollout, feature, batch, constrained)
        self.part_done('imagination_actor')
        rollout = rollout.detach()
        with self._forward():
            loss, extra = agent.critic_loss(rollout, feature, batch)
        self._apply('critic', loss, self.critics, cfg.clip)
        self.part_done('critics')
        metrics |= extra
        with self._forward():
            loss, extra = agent.reach_loss(rollout, feature, batch, self.generator)
        self._apply('reach', loss, [agent.reach], cfg.clip)
        self.part_done('reachability')
        return metrics | extra

    def _pick(self, count: int, size: int) -> Tensor:
        """`size` different numbers below `count`, drawn at random."""
        if self.device.type == 'cpu':
            return torch.randperm(count, generator=self.generator)[:size]
        # A graph of this can be captured.
        return torch.rand(count, generator=self.generator, device=self.device).argsort()[:size]

    def _actor_loss(self, rollout: Rollout, feature: Tensor, batch: dict[str, Tensor],
                    constrained: bool) -> tuple[Tensor, dict]:
        agent, expansion = self.agent, self.config.expansion
        if self.config.behaviour.actor_objective == 'dynamics':
            loss, metrics = agent.dynamics_actor_loss(rollout), {}
        else:
            mask = (1.0 - batch['is_first'][:, 1:].to(feature.dtype)).flatten()
            imagined = self.online and expansion.online_weight != 'none'
            share = expansion.online_in_sample if imagined else 1.0
            with torch.set_grad_enabled(share > 0 and torch.is_grad_enabled()):     # at 0 for its metrics alone
                loss, metrics = agent.offline_actor_loss(feature[:, :-1].flatten(0, 1),
                                                         batch['action'][:, :-1].flatten(0, 1), mask,
                                                         self.generator)
            if imagined:
                imitated, loss = loss, agent.online_actor_loss(rollout)
                loss = share * imitated + loss if share else loss
            if self.online and expansion.enabled:
                metrics['expansion/online_share'] = agent.online_share(feature[:, -1])
        if constrained:
            cost = parallel.global_value(agent.predicted_cost(rollout))
            loss = agent.constraint.reward_scale * loss + agent.constraint.penalty(cost)
            if not agent.constraint.per_episode:
                agent.constraint.update(cost.detach())
            metrics |= {'constraint/predicted_cost': cost.detach(),
                        'constraint/multiplier': agent.constraint.multiplier}
        return loss, metrics | {'actor/loss': loss.detach()}

    def _actor(self, rollout: Rollout, feature: Tensor, batch: dict[str, Tensor], constrained: bool) -> dict:
        with self._forward():
            loss, metrics = self._actor_loss(rollout, feature, batch, constrained)
        parameters = list(self.agent.actor.parameters())
        # Only the actor's parameters: the penalty's graph runs through the world model and the critics.
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
            parameter.grad = gradient
        parallel.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, self.config.behaviour.clip)
        self.optimizers['actor'].step()
        return metrics

    def _apply(self, name: str, loss: Tensor, modules: list, clip: float) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parallel.average_gradients(p for module in modules for p in module.parameters())
        for module in modules:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
