# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What acts in an episode, a model or a script, with or without the safety filter behind it; and one episode of it.

Without ROS, in lockstep with the simulator. For `fosp evaluate`, `fosp rollout` and `fosp film`.
"""

import dataclasses

import numpy as np

from fosp_core.safety.reasons import STAGES
from fosp_sim.demonstrators import make_demonstrator
from fosp_sim.safereach import SafeReachEnv


@dataclasses.dataclass(frozen=True)
class Result:
    """One finished episode; `reward` and `cost` are sums, `interventions` counts the commands that the risk changed,
    `path` is the way of the fingertip in metres. `altered` counts the commands that are not the proposed ones by stage
    (of `reasons.STAGES`), `unwarned` is a contact with no intervention before it; both are None without a filter.
    `touched`: which part of the arm met what first, empty for nothing, None where nobody looked.
    """

    seed: int
    success: bool
    violation: bool
    steps: int
    reward: float
    cost: float
    interventions: int = 0
    path: float = float('nan')
    altered: dict | None = None
    unwarned: bool | None = None
    touched: str | None = None


class Actor:
    """What acts in an episode; with `guard` its commands pass the filter, else they are sent as they are.

    A subclass has `_begin(env, seed)` and `_propose(env, observation)`; `_previous` is what was really sent.
    """

    def __init__(self, name: str, guard=None):
        self.phase, self.guard = name if guard is None else f'{name}+filter', guard
        self.altered = dict.fromkeys(STAGES, 0)

    @property
    def interventions(self) -> int:
        """Commands of this episode that the risk changed."""
        return self.altered['risk']

    @property
    def pictures(self) -> bool:
        """Whether it needs rendered pictures."""
        return self.guard is not None

    def reset(self, env: SafeReachEnv, seed: int) -> None:
        """Begin the episode that `env` was reset to."""
        self.altered = dict.fromkeys(STAGES, 0)
        self._previous, self._first = np.zeros(3, np.float32), True
        if self.guard is not None:
            self.guard.reset()
        self._begin(env, seed)

    def action(self, env: SafeReachEnv, observation: dict) -> np.ndarray:
        """Return the action (3,) in [-1, 1] that is really sent."""
        action = self._propose(env, observation)
        if self.guard is not None:
            action, stage = self.guard(env, observation, self._previous, self._first, action)
            if stage:
                self.altered[stage] += 1
        self._previous, self._first = action, False
        return action


class Scripted(Actor):
    """A demonstrator (`straight` knows the goal alone, the others the layout), or uniformly random actions."""

    def __init__(self, kind: str, guard=None):
        super().__init__(kind, guard)
        self.kind = kind

    def _begin(self, env: SafeReachEnv, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 7])
        self._demonstrator = None if self.kind == 'random' else make_demonstrator(self.kind, env, self._rng)

    def _propose(self, env: SafeReachEnv, observation: dict) -> np.ndarray:
        if self._demonstrator is None:
            return self._rng.uniform(-1.0, 1.0, 3).astype(np.float32)
        return self._demonstrator.action(env)


class Learned(Actor):
    """The bundle's policy on ONNX Runtime, as the learner node runs it; it too is told what was really sent."""

    pictures = True

    def __init__(self, bundle, guard=None, explore: bool = False):
        from fosp_core.deploy.runtime import PolicyRuntime
        super().__init__('model', guard)
        self.policy, self.explore = PolicyRuntime(bundle), explore

    def _begin(self, env: SafeReachEnv, seed: int) -> None:
        self.policy.reset(seed)     # what it draws on a layout does not hang on the layouts before

    def _propose(self, env: SafeReachEnv, observation: dict) -> np.ndarray:
        return self.policy.step(observation, self._previous, self._first, self.explore).action


def run_episode(env: SafeReachEnv, actor, seed: int) -> Result:
    """Run one episode of `actor` on the layout of `seed`."""
    observation, info = env.reset(seed=seed)
    actor.reset(env, seed)
    reward_sum = cost_sum = 0.0
    done = unwarned = False
    while not done:
        observation, reward, cost, terminated, truncated, info = env.step(actor.action(env, observation))
        unwarned |= cost > 0 and not actor.interventions
        reward_sum, cost_sum, done = reward_sum + reward, cost_sum + cost, terminated or truncated
    filtered = actor.guard is not None
    return Result(seed, info['success'], info['violation'], info['steps'], reward_sum, cost_sum, actor.interventions,
                  info['path_m'], dict(actor.altered) if filtered else None, bool(unwarned) if filtered else None,
                  info['touched'])
