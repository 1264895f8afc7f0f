# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The two inference graphs as torch modules with flat tensor inputs: what ONNX holds. Random draws are inputs.

`policy`: one filtering step, both candidates, their scores, the choice. `filter`: one filtering step and the risk of
any number of candidate commands; it shares no state with the policy's.
"""

import torch
from torch import Tensor, nn

from fosp_core.agent import expansion
from fosp_core.agent.agent import Agent
from fosp_core.contract import Contract
from fosp_core.nn.distributions import categorical_kl, sample_onehot


class _Observer(nn.Module):
    """Shared recurrence: observation and previous action -> next state and surprise."""

    def __init__(self, agent: Agent):
        super().__init__()
        self.contract: Contract = agent.contract
        self.encoder, self.rssm = agent.world_model.encoder, agent.world_model.rssm

    def observe(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Inputs in the order of `observation_inputs` + prev_action, is_first, deter, stoch, gumbel."""
        names = self.contract.observation_names
        observation = dict(zip(names, inputs))
        action, is_first, deter, stoch, gumbel = inputs[len(names):]
        rssm = self.rssm
        deter0, stoch0 = rssm.initial_state(1)
        keep = 1.0 - is_first
        deter = keep * deter + is_first * deter0
        stoch = keep * stoch + is_first * stoch0
        deter = rssm.advance(deter, stoch, keep * action)
        log_prior = rssm.prior(deter)
        log_post = rssm.posterior(deter, rssm.post_embed(self.encoder(observation)))
        stoch = sample_onehot(log_post, gumbel).flatten(-2)
        return deter, stoch, torch.cat([deter, stoch], -1), categorical_kl(log_post, log_prior)


class PolicyGraph(_Observer):
    """observation, prev_action, is_first, deter, stoch, gumbel, noise (1, 2, A), uniform (1, 1) -> action and more."""

    outputs = ('deter_next', 'stoch_next', 'action', 'index', 'candidates', 'scores', 'risk', 'surprise')

    def __init__(self, agent: Agent):
        super().__init__(agent)
        self.offline, self.online = agent.offline_actor, agent.actor
        self.q_reward, self.q_cost, self.reach = agent.q_reward_target, agent.q_cost_target, agent.reach
        self.expansion = agent.config.expansion

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Tensors in the order of `input_names`; returns tensors in the order of `outputs`."""
        *observation, noise, uniform = inputs
        deter, stoch, feature, surprise = self.observe(tuple(observation))
        drawn = []
        for k, actor in enumerate((self.offline, self.online)):
            mean, std = actor(feature)
            # Clipped here, so that what is scored is what is executed.
            drawn.append((mean + std * noise[:, k]).clamp(-1.0, 1.0))
        candidates = torch.stack(drawn, 1)
        each = feature.unsqueeze(1).expand(-1, 2, -1)
        cost = self.q_cost(each, candidates)
        risk = self.reach(each, candidates)
        score = expansion.scores(self.q_reward(each, candidates), cost, self.expansion)
        if self.expansion.enabled:
            index = expansion.choose(expansion.probabilities(score, cost, risk, self.expansion), uniform)
        else:
            index = torch.ones_like(score[:, 0]).to(torch.int64) + (0 * uniform[:, 0]).to(torch.int64)
        return deter, stoch, expansion.take(candidates, index), index, candidates, score, risk, surprise


class FilterGraph(_Observer):
    """observation, prev_action, is_first, deter, stoch, gumbel, candidates (1, N, A) -> risk (1, N) and more."""

    outputs = ('deter_next', 'stoch_next', 'risk', 'offline_action', 'offline_risk', 'surprise')

    def __init__(self, agent: Agent):
        super().__init__(agent)
        self.offline, self.reach = agent.offline_actor, agent.reach

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Tensors in the order of `input_names`; returns tensors in the order of `outputs`."""
        *observation, candidates = inputs
        deter, stoch, feature, surprise = self.observe(tuple(observation))
        each = feature.unsqueeze(1).expand(-1, candidates.shape[1], -1)
        action = self.offline(feature)[0]
        return deter, stoch, self.reach(each, candidates), action, self.reach(feature, action), surprise


def input_names(contract: Contract, graph: str) -> list[str]:
    """Input names of `policy` or `filter`, in order."""
    names = [*contract.observation_names, 'prev_action', 'is_first', 'deter', 'stoch', 'gumbel']
    return names + (['noise', 'uniform'] if graph == 'policy' else ['candidates'])


def example_inputs(agent: Agent, graph: str, generator: torch.Generator, candidates: int = 8) -> list[Tensor]:
    """Random inputs of the right shapes, in the order of `input_names`."""
    contract, rssm = agent.contract, agent.world_model.rssm
    a = contract.action.size

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    inputs = [torch.randint(0, 256, (1, *c.shape), dtype=torch.uint8, generator=generator) for c in contract.cameras]
    inputs += [0.3 * normal(1, v.size) for v in contract.vectors]
    inputs += [normal(1, a).clamp(-1, 1), torch.zeros(1, 1), torch.tanh(normal(1, rssm.deter)),
               torch.nn.functional.one_hot(torch.randint(0, rssm.classes, (1, rssm.stoch), generator=generator),
                                           rssm.classes).float().flatten(1),
               normal(1, rssm.stoch, rssm.classes)]
    if graph == 'policy':
        return inputs + [normal(1, 2, a), torch.rand((1, 1), generator=generator)]
    return inputs + [normal(1, candidates, a).clamp(-1, 1)]
