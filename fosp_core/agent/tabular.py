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
from scipy.optimize import root
from torch import Tensor, nn

from fosp_core.agent import returns
from fosp_core.agent.agent import Agent, Rollout
from fosp_core.agent.alignment import alignment_loss
from fosp_core.agent.networks import Reachability
from fosp_core.config import BehaviourConfig, Config, ConstraintConfig
from fosp_core.world_model.model import States

_F64 = torch.float64
_SURE = 1e-12                # no p is nearer to 0 or 1 than this
CRITICS = ('q_reward', 'q_cost', 'v_reward', 'v_cost')
TABLES = (*CRITICS, 'reach')
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
    """What was learned, float64: q_reward, q_cost, reach, policy (states, actions); v_reward, v_cost (states,).

    `residual` is the largest error of an entry in its own equation: of Q and p the Bellman residual, of V the slope of
    the expectile's loss. `sweeps` is how many sweeps were made, none where all was solved exactly.
    """

    q_reward: np.ndarray
    q_cost: np.ndarray
    v_reward: np.ndarray
    v_cost: np.ndarray
    reach: np.ndarray
    policy: np.ndarray
    residual: float = 0.0
    sweeps: int = 0


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
        agent: TabularAgent | None = None, steps: int | None = None, draws: int = 8, seed: int = 0,
        tolerance: float = 1e-9) -> Solution:
    """Fit Q, V, p and the policy of a data set of transitions with the agent's losses; deterministic.

    Where nothing is drawn at random, the tables at which the gradient of the losses vanishes are found by Newton's
    method, in a time that does not hang on the discount: Q and V on data alone, and p of a given policy whose
    probabilities are multiples of 1/draws. The rest is made of sweeps that take in less and less.

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
        Sweeps at most (default: enough for the discounts, at least 300), sampled actions per transition, seed of the
        sampling.
    tolerance : float
        Sweeps end as soon as `Solution.residual` is below it. It bounds the residual, not the error: that can be
        1 / (1 - discount) times as large.

    Returns
    -------
    Solution
        The tables, and what is left of their Bellman equations.

    """
    agent = agent or TabularAgent(states, actions, config, model or transitions, draws)
    behaviour = agent.config.behaviour
    exact = model is None and not align and behaviour.in_sample     # Q and V: no draw has a say
    if steps is None:
        # Each sweep takes (1 - discount) off the error, of V about half of that, and the rate falls to zero.
        factor, discount = (0.5, behaviour.reach_discount) if exact else (30, behaviour.discount)
        steps = max(300, round(factor / max(1.0 - discount, 1e-3)))
    generator = torch.Generator().manual_seed(seed)
    feature, batch = make_batch(transitions, states, actions, draws)
    if policy is not None:
        with torch.no_grad():
            agent.actor.table.copy_(torch.as_tensor(np.log(np.maximum(policy, 1e-30)), dtype=_F64))
        agent.freeze_offline()
    sweep = _Sweep(agent, feature, batch, generator, model is not None, align)
    learning = policy is None and not align
    if exact:
        sweep.solve(CRITICS)
        if policy is not None and np.allclose(np.asarray(policy) * draws, np.round(np.asarray(policy) * draws)):
            sweep.solve(('reach',))
    names = TABLES if not exact or sweep.residual(CRITICS) > tolerance else ('reach',)
    optimizer, done = torch.optim.Adam(agent.actor.parameters(), 0.2), 0
    while done < steps:
        errors = sweep.errors(names, learning)
        if not learning and max(e.abs().max().item() for e in errors.values()) <= tolerance:
            break
        for name in names:
            sweep.move(name, (1.0 - done / steps) * errors[name])
        if learning:
            optimizer.step()
        agent.update_targets()
        done += 1
    if learning:
        extract(agent, feature[:, 0], batch['action'][:, 0], seed)
    return dataclasses.replace(agent.solution(), residual=sweep.residual(TABLES), sweeps=done)


class _Sweep:
    """What the gradient of the agent's losses asks of each table entry, and steps that follow it."""

    def __init__(self, agent: TabularAgent, feature: Tensor, batch: dict[str, Tensor], generator: torch.Generator,
                 imagine: bool, align: bool):
        self.agent, self.feature, self.batch, self.generator = agent, feature, batch, generator
        self.imagine, self.align = imagine, align
        self.alive, self.used = torch.ones(len(feature), dtype=_F64), {}

    def errors(self, names: Sequence[str], learning: bool = False) -> dict[str, Tensor]:
        """By how much each entry of these tables misses its target; 0 for what the losses never look at.

        For Q the Bellman residual; for V the slope of the expectile's loss; for p the residual of its recursion. With
        `learning` the actor's gradient is left beside its table.
        """
        agent, feature, batch = self.agent, self.feature, self.batch
        agent.zero_grad(set_to_none=True)
        rollout, action = None, batch['action'][:, 0]
        if self.align:
            alphas = agent.config.alignment.alpha_reward, agent.config.alignment.alpha_cost
            loss = alignment_loss(agent, feature, batch, *alphas, self.generator)[0]
        else:
            with torch.no_grad():
                rollout = agent.no_rollout(feature)
                if self.imagine:
                    rollout = agent.imagine(States(feature[:, 0], feature[:, 0, :0]), self.alive, self.generator)
            loss = 0.0
            if set(CRITICS) & set(names):
                loss = agent.critic_loss(rollout, feature, batch)[0]
            if 'reach' in names:
                loss = loss + agent.reach_loss(rollout, feature, batch, self.generator)[0]
            if learning:
                loss = loss + agent.offline_actor_loss(feature[:, 0], action, self.alive, self.generator)[0]
        loss.backward()
        pairs, imagined = _visits(feature[:, 0], action), 0.0
        if rollout is not None:
            imagined = _visits(rollout.feature[:-1].flatten(0, 1), rollout.action[:-1].flatten(0, 1),
                               rollout.weight[:-1].flatten())
        if self.align:
            visited = feature.mean((0, 1)).unsqueeze(1)
        else:
            visited = (pairs if agent.config.behaviour.in_sample else imagined).sum(1, keepdim=True)
        out = {}
        for name in names:
            # A loss is a mean over all pairs: divided by an entry's share of them, each entry sees its own mean error.
            share = visited if name.startswith('v_') else pairs + imagined
            self.used[name] = (share > 0).expand_as(getattr(agent, name).table)
            size = 1.0 if name == 'reach' else 0.5      # the slope of a square is twice the error
            out[name] = -size * torch.where(share > 0, getattr(agent, name).table.grad / share.clamp(min=1e-12), 0.0)
        return out

    def residual(self, names: Sequence[str]) -> float:
        """Largest error of all entries; where actions are drawn, with the chance of one draw in it."""
        return max(e.abs().max().item() for e in self.errors(names).values())

    def get(self, name: str) -> Tensor:
        """A copy of a table; of p the probabilities."""
        table = getattr(self.agent, name).table.detach()
        return torch.sigmoid(table) if name == 'reach' else table.clone()

    def put(self, name: str, value: Tensor) -> None:
        """Set a table, and its averaged copy at once."""
        value = torch.logit(value, eps=_SURE) if name == 'reach' else value
        for module in (getattr(self.agent, name), getattr(self.agent, f'{name}_target', None)):
            if module is not None:
                module.table.data.copy_(value)

    def move(self, name: str, error: Tensor) -> None:
        """Take in an error; entries without one stay bit for bit."""
        table = getattr(self.agent, name).table
        moved = torch.logit(self.get(name) + error, eps=_SURE) if name == 'reach' else table + error
        table.data.copy_(torch.where(error == 0, table, moved))

    def solve(self, names: Sequence[str]) -> None:
        """Bring these tables to where their errors vanish, by Powell's hybrid of Newton and steepest descent."""
        self.errors(names)
        used = {n: self.used[n] for n in names}
        kept = {n: self.get(n) for n in names}
        sizes = [int(used[n].sum()) for n in names]

        def missing(x: np.ndarray) -> np.ndarray:
            for name, part in zip(names, torch.from_numpy(x).split(sizes)):
                self.put(name, kept[name].masked_scatter(used[name], part))
            errors = self.errors(names)
            reached = torch.cat([(self.get(n) + errors[n])[used[n]] for n in names])
            return reached.numpy() - x

        x = torch.cat([kept[n][used[n]] for n in names]).numpy()
        for _ in range(3):      # its Jacobian ages: begun anew it takes the last digits
            x = root(missing, x, method='hybr', options={'xtol': 1e-14}).x
            if np.abs(missing(x)).max() <= _SURE:
                break


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
