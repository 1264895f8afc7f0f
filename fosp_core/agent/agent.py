# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The FOSP agent: every network, and the losses of one gradient step as functions of a batch's states.

One equation per method; optimisers and loops live in `fosp_core.train`. Shapes: B windows, T steps, N imagined starts,
H horizon, F feature, A action.
"""

import dataclasses

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fosp_core.agent import actor_loss, expansion, returns
from fosp_core.agent.constraints import make_constraint
from fosp_core.agent.networks import Actor, Critic, PercentileScale, Reachability, ema_update, frozen_copy
from fosp_core.config import Config
from fosp_core.contract import Contract
from fosp_core.nn import parallel
from fosp_core.nn.onehot import Feature, Path, stack
from fosp_core.world_model.model import States, WorldModel


@dataclasses.dataclass
class Rollout:
    """Imagined steps: feature (H + 1, N, F), action (H + 1, N, A), and reward, cost, cont (H, N) at arrival."""

    feature: Tensor | Feature | Path
    action: Tensor
    reward: Tensor
    cost: Tensor
    cont: Tensor
    weight: Tensor  # (H + 1, N)
    cost_value: Tensor | None = None  # V^c at all states (H + 1, N), once computed

    def detach(self) -> 'Rollout':
        """The same numbers as constants."""
        return Rollout(*(None if x is None else x.detach() for x in vars(self).values()))


class Agent(nn.Module):
    """World model, critics, reachability, and two actors: `offline_actor` is frozen once fine-tuning begins."""

    def __init__(self, contract: Contract, config: Config):
        super().__init__()
        self.contract = contract
        net, action = config.network, contract.action.size
        self.world_model = WorldModel(contract, net, config.world_model)
        feature = self.world_model.rssm.feature_size
        self._assemble(config, Actor(feature, action, net), Critic(feature + action, net),
                        Critic(feature + action, net), Critic(feature, net), Critic(feature, net),
                        Reachability(feature, action, net))

    def _assemble(self, config: Config, actor: nn.Module, q_reward: nn.Module, q_cost: nn.Module,
                   v_reward: nn.Module, v_cost: nn.Module, reach: nn.Module) -> None:
        """Take the trained networks; add their frozen and averaged copies, normalisers and multiplier."""
        self.config = config
        self.actor, self.q_reward, self.q_cost = actor, q_reward, q_cost
        self.v_reward, self.v_cost, self.reach = v_reward, v_cost, reach
        self.offline_actor = frozen_copy(self.actor)
        self.q_reward_target = frozen_copy(self.q_reward)
        self.q_cost_target = frozen_copy(self.q_cost)
        self.reach_target = frozen_copy(self.reach)
        self.reward_scale = PercentileScale(config.behaviour.normaliser_decay)
        self.cost_scale = PercentileScale(config.behaviour.normaliser_decay)
        self.constraint = make_constraint(config.constraint)

    def freeze_offline(self, fresh_seed: int | None = None) -> None:
        """Make the current actor the frozen offline policy; with `fresh_seed` the online one starts anew."""
        self.offline_actor = frozen_copy(self.actor)
        if fresh_seed is not None:
            # Initialisation draws from torch's global generator: fork it, so that a run can be repeated.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(fresh_seed)
                fresh = Actor(self.world_model.rssm.feature_size, self.contract.action.size, self.config.network)
            self.actor.load_state_dict(fresh.state_dict())

    def update_targets(self) -> None:
        """EMA step of every target network."""
        fraction = self.config.behaviour.ema
        ema_update(self.q_reward_target, self.q_reward, fraction)
        ema_update(self.q_cost_target, self.q_cost, fraction)
        self.update_reach_target()

    def update_reach_target(self) -> None:
        """EMA step of the reachability estimate's target alone."""
        ema_update(self.reach_target, self.reach, self.config.behaviour.ema)

    def imagine(self, start: States, cont: Tensor, generator: torch.Generator) -> Rollout:
        """Roll the actor through the prior for H steps from N states; differentiable in the actor's parameters.

        `cont` (N,) is the true continue flag of the start. Gradients reach the actor through its reparameterised
        actions and the dynamics, not through the actor's own input.
        """
        cfg, model = self.config.behaviour, self.world_model
        deter, stoch = start.deter, start.stoch
        n, size = deter.shape[0], self.contract.action.size
        shape = (cfg.horizon + 1, n, size)
        noise = parallel.draw(torch.randn, shape, generator, axis=1).to(deter.device)
        uniform = parallel.draw(torch.rand, (cfg.horizon, n, model.rssm.stoch), generator, axis=1).to(deter.device)
        features, actions = [], []
        for t in range(cfg.horizon + 1):
            feature = States(deter, stoch).feature
            mean, std = self.actor(feature.detach())
            action = mean + std * noise[t]
            features.append(feature)
            actions.append(action)
            if t < cfg.horizon:
                deter, stoch = model.rssm.imagine_step(deter, stoch, action, uniform[t])
        feature, action = stack(features), torch.stack(actions)
        arrival = feature[1:]
        differentiable = torch.is_grad_enabled() and cfg.actor_objective == 'dynamics'
        with torch.set_grad_enabled(differentiable):
            reward = model.predict_reward(arrival if differentiable else arrival.detach())
        with torch.no_grad():
            predicted = model.predict_cont(arrival.detach())
            weight = returns.rollout_weight(torch.cat([cont.unsqueeze(0), predicted]), cfg.discount)
        return Rollout(feature, action, reward, model.predict_cost(arrival), predicted, weight)

    def feasibility(self, feature: Tensor, action: Tensor) -> Tensor:
        """u = 1 - p(s, a), detached; 1 everywhere without reachability."""
        if not self.config.behaviour.use_reachability:
            return torch.ones(feature.shape[:-1], device=feature.device)
        with torch.no_grad():
            return 1.0 - self.reach_target(feature, action)

    @torch.no_grad()
    def online_share(self, feature: Tensor) -> Tensor:
        """Mean probability with which expansion lets the online policy act; the modes compete: feature (N, F)."""
        config = self.config.expansion
        candidates = torch.stack([self.offline_actor(feature)[0], self.actor(feature)[0]], 1).clamp(-1.0, 1.0)
        state = feature.unsqueeze(1).expand(-1, 2, -1)
        cost = self.q_cost_target(state, candidates)
        score = expansion.scores(self.q_reward_target(state, candidates), cost, config)
        return expansion.probabilities(score, cost, self.reach(state, candidates), config)[:, 1].mean()

    def advantages(self, feature: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A^r and A^c, each divided by its normaliser's scale, and Q^c; no gradient; each (...)."""
        with torch.no_grad():
            q_cost = self.q_cost_target(feature, action)
            reward = (self.q_reward_target(feature, action) - self.v_reward(feature)) / self.reward_scale.scale
            cost = (q_cost - self.v_cost(feature)) / self.cost_scale.scale
        return reward, cost, q_cost

    def offline_actor_loss(self, feature: Tensor, action: Tensor, mask: Tensor,
                           generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """-E_D[w log pi(a|s) + eta H] on dataset pairs: feature (M, F), action (M, A), mask (M,).

        u is that of the pair, or with `feasibility: state` P1's u(s): of an action drawn from the actor.
        """
        cfg = self.config.behaviour
        advantage, cost_advantage, q_cost = self.advantages(feature, action)
        with torch.no_grad():
            acted = self.actor.sample(feature, generator)[0] if cfg.feasibility == 'state' else action
        feasible = self.feasibility(feature, acted)
        gate = (q_cost <= cfg.feasible_gate).to(q_cost.dtype) if cfg.feasible_gate >= 0 else None
        weight = actor_loss.offline_weight(feasible, advantage, cost_advantage, cfg.beta_reward, cfg.beta_cost,
                                           cfg.weight_form, gate, cfg.weight_clip)
        log_prob, entropy = self.actor.log_prob(feature, action)
        loss = -returns.masked_mean(weight * log_prob + cfg.entropy * entropy, mask)
        return loss, {'actor/weight': returns.masked_mean(weight, mask), 'actor/feasible':
                      returns.masked_mean(feasible, mask), 'actor/entropy': returns.masked_mean(entropy, mask).detach(),
                      'actor/log_prob': returns.masked_mean(log_prob, mask).detach()}

    def online_actor_loss(self, rollout: Rollout) -> Tensor:
        """-E[w log pi(a|s) + eta H] on imagined actions, w = P1's linear weight, detached."""
        cfg = self.config.behaviour
        feature, action = rollout.feature[:-1].detach(), rollout.action[:-1].detach()
        advantage, cost_advantage, q_cost = self.advantages(feature, action)
        feasible = self.feasibility(feature, action)
        if self.config.expansion.online_weight == 'exp':
            gate = (q_cost <= cfg.feasible_gate).to(q_cost.dtype) if cfg.feasible_gate >= 0 else None
            weight = actor_loss.offline_weight(feasible, advantage, cost_advantage, cfg.beta_reward, cfg.beta_cost,
                                               cfg.weight_form, gate, cfg.weight_clip)
        else:
            weight = actor_loss.online_weight(feasible, advantage, cost_advantage, cfg.beta_reward, cfg.beta_cost)
        log_prob, entropy = self.actor.log_prob(feature, action)
        return -(rollout.weight[:-1] * (weight * log_prob + cfg.entropy * entropy)).mean()

    def dynamics_actor_loss(self, rollout: Rollout) -> Tensor:
        """-E[R / scale + eta H] differentiated through actions and dynamics (DreamerV3's and SafeDreamer's actor)."""
        cfg = self.config.behaviour
        returned = returns.lambda_return(rollout.reward, rollout.cont, self.v_reward(rollout.feature), cfg.discount,
                                         cfg.lam)
        entropy = self.actor.log_prob(rollout.feature[:-1].detach(), rollout.action[:-1].detach())[1]
        return -(rollout.weight[:-1] * (returned / self.reward_scale.scale + cfg.entropy * entropy)).mean()

    def predicted_cost(self, rollout: Rollout) -> Tensor:
        """J_c: mean over starts of the summed u R^c along the rollout; differentiable in the actor.

        What is imagined after the end of an episode counts nothing.
        """
        cfg = self.config.behaviour
        value = rollout.cost_value = self.v_cost(rollout.feature)
        cost_return = returns.lambda_return(rollout.cost, rollout.cont, value, cfg.discount, cfg.lam)
        feasible = self.feasibility(rollout.feature[:-1].detach(), rollout.action[:-1].detach())
        alive = (rollout.weight[:-1] > 0).to(cost_return.dtype)
        return (alive * feasible * cost_return).sum(0).mean()

    def critic_loss(self, rollout: Rollout, feature: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict]:
        """L_Q1 + L_Q2 (+ EMA regulariser) and the expectile losses of V, for reward and cost.

        `rollout` and `feature` (B, T, F) must be detached.
        """
        cfg = self.config.behaviour
        mask = returns.pair_mask(batch['is_first'])
        cont = 1.0 - batch['is_terminal'][:, 1:].to(feature.dtype)
        state, arrival, action = feature[:, :-1], feature[:, 1:], batch['action'][:, :-1]
        total, metrics = 0.0, {}
        sides = (('reward', self.q_reward, self.q_reward_target, self.v_reward, self.reward_scale, rollout.reward,
                  cfg.reward_expectile),
                 ('cost', self.q_cost, self.q_cost_target, self.v_cost, self.cost_scale, rollout.cost,
                  cfg.cost_expectile))
        for name, q, q_target, v, scale, signal, expectile in sides:
            with torch.no_grad():
                known = rollout.cost_value if v is self.v_cost else None
                value = v(rollout.feature) if known is None else known
                imagined = returns.lambda_return(signal, rollout.cont, value, cfg.discount, cfg.lam)
                scale.update(imagined)
                data = batch[name][:, 1:] + cfg.discount * cont * v(arrival)
            weight = rollout.weight[:-1]
            inputs = (rollout.feature[:-1], rollout.action[:-1])
            logits = q.logits(*inputs)
            loss = (weight * q.loss(logits, imagined)).mean()
            if cfg.ema_regulariser:
                loss = loss + cfg.ema_regulariser * (weight * q.loss(logits, q_target(*inputs))).mean()
            if cfg.in_sample:
                logits = q.logits(state, action)
                data_loss = q.loss(logits, data)
                if cfg.ema_regulariser:
                    data_loss = data_loss + cfg.ema_regulariser * q.loss(logits, q_target(state, action))
                loss = loss + returns.masked_mean(data_loss, mask)
                v_loss = returns.masked_mean(self.expectile_loss(v, state, q_target(state, action), expectile), mask)
            else:
                v_loss = (weight * self.expectile_loss(v, inputs[0], q_target(*inputs), expectile)).mean()
            total = total + loss + v_loss
            metrics |= {f'critic/q_{name}': loss.detach(), f'critic/v_{name}': v_loss.detach(),
                        f'critic/return_{name}': imagined.mean(), f'critic/target_{name}': data.mean()}
        return total, metrics

    def expectile_loss(self, v: Critic, feature: Tensor, target: Tensor, expectile: float) -> Tensor:
        """Expectile regression of V(s) towards Q(s, a): weighted two-hot cross-entropy or squared error, (...)."""
        logits = v.logits(feature)
        value = v.mean(logits)
        weight = returns.expectile_weight((target - value).detach(), expectile)
        if self.config.behaviour.value_loss == 'squared':
            return weight * (target - value).square()
        return weight * v.loss(logits, target)

    def reach_loss(self, rollout: Rollout, feature: Tensor, batch: dict[str, Tensor],
                   generator: torch.Generator) -> tuple[Tensor, dict]:
        """Binary cross-entropy of p(s, a) to the reachability recursion, imagined and on dataset pairs."""
        cfg = self.config.behaviour
        with torch.no_grad():
            violation = (rollout.cost >= cfg.cost_threshold).to(feature.dtype)
            bootstrap = self.reach_target(rollout.feature[-1], rollout.action[-1])
            imagined = returns.reach_rollout(violation, rollout.cont, bootstrap, cfg.reach_discount)
        data_loss, data = self.reach_data_loss(feature, batch, generator)
        loss = torch.zeros((), device=feature.device)
        if cfg.reach_imagined:
            logits = self.reach.logit(rollout.feature[:-1], rollout.action[:-1], cfg.reach_dropout, generator, axis=1)
            loss = cfg.reach_imagined * (rollout.weight[:-1] * F.binary_cross_entropy_with_logits(
                logits, imagined, reduction='none')).mean()
        loss = loss + data_loss
        return loss, {'reach/loss': loss.detach(), 'reach/imagined': imagined.mean(), 'reach/data': data.mean()}

    def reach_data_loss(self, feature: Tensor, batch: dict[str, Tensor],
                        generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy on dataset pairs alone: feature (B, T, F); the loss and its targets (B, T - 1)."""
        with torch.no_grad():
            data = self.reach_data_target(feature, batch, self.actor.sample(feature[:, 1:], generator)[0])
        logits = self.reach.logit(feature[:, :-1], batch['action'][:, :-1], self.config.behaviour.reach_dropout,
                                  generator)
        loss = F.binary_cross_entropy_with_logits(logits, data, reduction='none')
        return returns.masked_mean(loss, returns.pair_mask(batch['is_first'])), data

    def reach_data_target(self, feature: Tensor, batch: dict[str, Tensor], following: Tensor) -> Tensor:
        """Targets of p on dataset pairs, a' = `following` (B, T - 1, A) at the arrival states; (B, T - 1).

        max(1[cost > 0], gamma_p cont p(s', a')), over several steps with `reach_lam`.
        """
        cfg = self.config.behaviour
        cont = 1.0 - batch['is_terminal'][:, 1:].to(feature.dtype)
        reached = self.reach_target(feature[:, 1:], following)
        return returns.reach_windows((batch['cost'][:, 1:] > 0).to(feature.dtype), cont, reached,
                                     returns.last_of_window(batch['is_first']), cfg.reach_discount, cfg.reach_lam)
