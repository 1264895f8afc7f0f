# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Finite problems through the agent's own losses: data sets of (s, a, r, c, s') whose answer can be worked out by hand.

States are one-hot features, critics are tables with a squared error, the policy is a table of logits; targets, masks,
weights, gates and every loss are those of `Agent`. Anyone may use it to check the learner against a problem of his own:

    fit([Transition(0, 0, 1.0, 0.0, 2, True), Transition(0, 1, 0.0, 0.0, 1, False), ...], states=3, actions=2)
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fosp_core.agent import returns
from fosp_core.agent.agent import Agent, Rollout
from fosp_core.agent.alignment import alignment_loss
from fosp_core.agent.networks import Reachability
from fosp_core.config import BehaviourConfig, Config, ConstraintConfig
from fosp_core.world_model.model import States

_F64 = torch.float64
# Targets without lag or regulariser, advantages as they are, the printed (squared) form of the expectile.
TABULAR = Config(behaviour=BehaviourConfig(discount=0.9, ema=1.0, ema_regulariser=0.0, entropy=0.0,
                                           value_loss='squared'), constraint=ConstraintConfig(kind='none'))


class Transition(NamedTuple):
    """One record: in `state`, `action` gave `reward` and `cost` on arrival at `next`; `terminal` ends the episode."""

    state: int
    action: int
    reward: float
    cost: float
    next: int
    terminal: bool


@dataclasses.dataclass(frozen=True)
class Solution:
    """What was learned, float64: q_reward, q_cost, reach, policy (states, actions); v_reward, v_cost (states,)."""

    q_reward: np.ndarray
    q_cost: np.ndarray
    v_reward: np.ndarray
    v_cost: np.ndarray
    reach: np.ndarray
    policy: np.ndarray


class Table(nn.Module):
    """A critic's interface over one-hot inputs: one number per state, or per state and action; squared error."""

    def __init__(self, states: int, actions: int = 1):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(states, actions, dtype=_F64))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Value (...)."""
        return self.logits(*inputs)

    def mean(self, logits: Tensor) -> Tensor:
        """Value (...) of `logits` (...): the same."""
        return logits

    def logits(self, feature: Tensor, action: Tensor | None = None) -> Tensor:
        """Entry (...) of feature (..., S) and action (..., A)."""
        row = feature @ self.table
        return row[..., 0] if action is None else (row * action).sum(-1)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Squared error (...)."""
        return (logits - target).square()


class ReachTable(Reachability):
    """p(s, a) as the sigmoid of a table."""

    def __init__(self, states: int, actions: int):
        nn.Module.__init__(self)
        self.table = nn.Parameter(torch.zeros(states, actions, dtype=_F64))

    def logit(self, feature: Tensor, action: Tensor, drop: float = 0.0,
              generator: torch.Generator | None = None, axis: int = 0) -> Tensor:
        """Logit (...); a table has no dropout."""
        return ((feature @ self.table) * action).sum(-1)


class PolicyTable(nn.Module):
    """A categorical actor: one-hot actions."""

    def __init__(self, states: int, actions: int, draws: int):
        super().__init__()
        self.table, self.draws = nn.Parameter(torch.zeros(states, actions, dtype=_F64)), draws

    def probabilities(self, feature: Tensor) -> Tensor:
        """(..., S) -> (..., A)."""
        return torch.softmax(feature @ self.table, -1)

    def sample(self, feature: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One-hot action (N, ..., A) and its log-probability (N, ...).

        Along the first axis come groups of `draws` equal rows; each is sampled by strata in random order: unbiased, and
        exact where the probabilities are multiples of 1/draws.
        """
        n, rest = feature.shape[0], feature.shape[1:-1]
        groups = -(-n // self.draws)
        # In random order: a row that kept its stratum would take the same branch at each step of a rollout.
        strata = torch.rand(groups, self.draws, *rest, generator=generator, dtype=_F64).argsort(1)
        offset = torch.rand(groups, 1, *rest, generator=generator, dtype=_F64)
        uniform = ((offset + strata) / self.draws).flatten(0, 1)[:n].unsqueeze(-1)
        cumulative = self.probabilities(feature).cumsum(-1)
        index = (cumulative < uniform).sum(-1).clamp(max=cumulative.shape[-1] - 1)
        action = nn.functional.one_hot(index, cumulative.shape[-1]).to(_F64)
        return action, self.log_prob(feature, action)[0]

    def log_prob(self, feature: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of the one-hot `action` and entropy, each (...)."""
        log_p = torch.log_softmax(feature @ self.table, -1)
        return (log_p * action).sum(-1), -(log_p.exp() * log_p).sum(-1)


class TabularAgent(Agent):
    """An `Agent` whose networks are tables and whose world model is a list of transitions."""

    def __init__(self, states: int, actions: int, config: Config = TABULAR, model: Sequence[Transition] = (),
                 draws: int = 8):
        nn.Module.__init__(self)
        self._assemble(config, PolicyTable(states, actions, draws), Table(states, actions), Table(states, actions),
                       Table(states), Table(states), ReachTable(states, actions))
        for scale in (self.reward_scale, self.cost_scale):
            scale.double()
        self.states, self.actions = states, actions
        self.model: dict[tuple[int, int], list[Transition]] = {}
        for t in model:
            self.model.setdefault((t.state, t.action), []).append(t)

    def imagine(self, start: States, cont: Tensor, generator: torch.Generator) -> Rollout:
        """As `Agent.imagine`, but through the listed transitions; a pair that the model lacks ends with nothing.

        `start.deter` (N, S) are one-hot states. Not differentiable in the actor.
        """
        cfg, state = self.config.behaviour, start.deter
        eye = torch.eye(self.states, dtype=_F64)
        features, actions, arrivals = [], [], []
        for t in range(cfg.horizon + 1):
            action = self.actor.sample(state, generator)[0]
            features.append(state)
            actions.append(action)
            if t == cfg.horizon:
                break
            rows = []
            luck = torch.rand(len(state), generator=generator, dtype=_F64).tolist()
            for s, a, u in zip(state.argmax(-1).tolist(), action.argmax(-1).tolist(), luck):
                known = self.model.get((s, a)) or [Transition(s, a, 0.0, 0.0, s, True)]
                rows.append(known[int(u * len(known))])
            arrivals.append(torch.tensor([[r.reward, r.cost, 1.0 - r.terminal] for r in rows], dtype=_F64))
            state = eye[[r.next for r in rows]]
        reward, cost, predicted = torch.stack(arrivals).unbind(-1)
        weight = returns.rollout_weight(torch.cat([cont.unsqueeze(0), predicted]), cfg.discount)
        return Rollout(torch.stack(features), torch.stack(actions), reward, cost, predicted, weight)

    def no_rollout(self, feature: Tensor) -> Rollout:
        """Return one imagined step of weight zero: the losses on data alone."""
        n = len(feature)
        state, action = feature[:, 0].unsqueeze(0).expand(2, -1, -1), torch.zeros(2, n, self.actions, dtype=_F64)
        nothing = torch.zeros(1, n, dtype=_F64)
        return Rollout(state, action, nothing, nothing, nothing, torch.zeros(2, n, dtype=_F64))

    def solution(self) -> Solution:
        """Return the tables as arrays."""
        eye = torch.eye(self.states, dtype=_F64)
        with torch.no_grad():
            return Solution(self.q_reward.table.numpy().copy(), self.q_cost.table.numpy().copy(),
                            self.v_reward.table[:, 0].numpy().copy(), self.v_cost.table[:, 0].numpy().copy(),
                            torch.sigmoid(self.reach.table).numpy(), self.actor.probabilities(eye).numpy())


def make_batch(transitions: Sequence[Transition], states: int, actions: int,
               repeat: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
    """Windows of two records, each transition `repeat` times: feature (B, 2, S), and the batch as replay makes it."""
    rows = [t for t in transitions for _ in range(repeat)]
    eye = torch.eye(states, dtype=_F64)
    feature = torch.stack([eye[[t.state for t in rows]], eye[[t.next for t in rows]]], 1)
    action = torch.zeros(len(rows), 2, actions, dtype=_F64)
    action[range(len(rows)), 0, [t.action for t in rows]] = 1.0

    def arrival(values: list, dtype) -> Tensor:
        return torch.tensor([[0, v] for v in values], dtype=dtype)

    return feature, {'action': action, 'reward': arrival([t.reward for t in rows], _F64),
                     'cost': arrival([t.cost for t in rows], _F64),
                     'is_terminal': arrival([t.terminal for t in rows], torch.bool),
                     'is_first': torch.tensor([[True, False]] * len(rows))}


def fit(transitions: Sequence[Transition], states: int, actions: int, config: Config = TABULAR, *,
        policy: np.ndarray | None = None, model: Sequence[Transition] | None = None, align: bool = False,
        agent: TabularAgent | None = None, steps: int | None = None, draws: int = 8, seed: int = 0) -> Solution:
    """Fit Q, V, p and the policy of a data set of transitions with the agent's losses; deterministic.

    Parameters
    ----------
    transitions : sequence of Transition
        The data; a transition that occurs twice as often is listed twice.
    states, actions : int
        Sizes. A terminal state is a state like any other.
    config : Config
        `behaviour` (discount, expectiles, reach_discount, betas, gate, entropy, ...), `alignment`.
    policy : array (states, actions), optional
        Hold this policy instead of learning one: p and the imagined returns are then its own.
    model : sequence of Transition, optional
        Imagine through these transitions as well; without it the losses on data stand alone.
    align : bool
        Marvel's value pre-alignment of `policy` instead of the offline losses.
    agent : TabularAgent, optional
        Start from its tables, and change them.
    steps, draws, seed
        Gradient steps (default: enough for the discount, at least 300), sampled actions per transition, seed of the
        sampling.

    Returns
    -------
    Solution
        The tables.

    """
    if steps is None:
        behaviour = (agent.config if agent else config).behaviour
        # Each sweep takes about half of (1 - discount) off the error, and the rate falls to zero.
        steps = max(300, round(30 / max(1.0 - behaviour.discount, 1e-3)))
    agent = agent or TabularAgent(states, actions, config, model or transitions, draws)
    generator = torch.Generator().manual_seed(seed)
    feature, batch = make_batch(transitions, states, actions, draws)
    if policy is not None:
        with torch.no_grad():
            agent.actor.table.copy_(torch.as_tensor(np.log(np.maximum(policy, 1e-30)), dtype=_F64))
        agent.freeze_offline()
    optimizer = torch.optim.Adam(agent.actor.parameters(), 0.2)
    start, alive = States(feature[:, 0], feature[:, 0, :0]), torch.ones(len(feature), dtype=_F64)
    alignment, in_sample = agent.config.alignment, agent.config.behaviour.in_sample
    for k in range(steps):
        agent.zero_grad(set_to_none=True)
        rollout = None
        if align:
            loss = alignment_loss(agent, feature, batch, alignment.alpha_reward, alignment.alpha_cost, generator)[0]
        else:
            with torch.no_grad():
                rollout = agent.no_rollout(feature) if model is None else agent.imagine(start, alive, generator)
            loss = agent.critic_loss(rollout, feature, batch)[0]
            loss = loss + agent.reach_loss(rollout, feature, batch, generator)[0]
            if policy is None:
                loss = loss + agent.offline_actor_loss(feature[:, 0], batch['action'][:, 0], alive, generator)[0]
        loss.backward()
        pairs, imagined = _visits(feature[:, 0], batch['action'][:, 0]), 0.0
        if rollout is not None:
            imagined = _visits(rollout.feature[:-1].flatten(0, 1), rollout.action[:-1].flatten(0, 1),
                               rollout.weight[:-1].flatten())
        if align:
            visited = feature.mean((0, 1)).unsqueeze(1)
        else:
            visited = (pairs if in_sample else imagined).sum(1, keepdim=True)
        rate = 1.0 - k / steps
        for table, share, size in ((agent.q_reward, pairs + imagined, 0.5), (agent.q_cost, pairs + imagined, 0.5),
                                   (agent.v_reward, visited, 0.5), (agent.v_cost, visited, 0.5),
                                   (agent.reach, pairs + imagined, 4.0)):
            # A loss is a mean over all pairs: divided by an entry's share of them, each entry sees its own mean error,
            # and a whole step goes to it. Adam would overshoot where an expectile hardly pulls back.
            with torch.no_grad():
                table.table -= size * rate * torch.where(share > 0, table.table.grad / share.clamp(min=1e-12), 0.0)
        if policy is None and not align:
            optimizer.step()
        agent.update_targets()
    if policy is None and not align:
        extract(agent, feature[:, 0], batch['action'][:, 0], seed)
    return agent.solution()


def extract(agent: TabularAgent, state: Tensor, action: Tensor, seed: int = 0) -> None:
    """Bring the actor to the minimum of its loss, which is convex once the critics stand."""
    optimizer = torch.optim.LBFGS(agent.actor.parameters(), max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14,
                                  line_search_fn='strong_wolfe')
    mask = torch.ones(len(state), dtype=_F64)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = agent.offline_actor_loss(state, action, mask, torch.Generator().manual_seed(seed))[0]
        loss.backward()
        return loss

    optimizer.step(closure)


def _visits(state: Tensor, action: Tensor, weight: Tensor | None = None) -> Tensor:
    """Share of each (state, action) in rows of one-hots (N, S) and (N, A), each of weight (N,); (S, A)."""
    weight = torch.ones(len(state), dtype=_F64) if weight is None else weight
    return torch.einsum('n,ns,na->sa', weight, state, action) / len(state)
