# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Scripted demonstrators with privileged knowledge of the layout; they see no picture. For `fosp collect` and tables.

Each follows a planned path by pure pursuit, so that its action is a smooth function of the arm's position: a network
has to imitate it from one picture.
"""

import itertools

import numpy as np

from fosp_core.errors import FospError
from fosp_sim import geometry, scene

KINDS = ('safe', 'reckless', 'noisy')
SAFE_CLEARANCE = 0.05            # metres, whole arm
RECKLESS_CLEARANCE = (-0.03, 0.10)
LOOKAHEAD = 0.05                 # metres ahead on the path
SPACING = 0.015                  # metres between checked points
NOISE_TAU = 0.5                  # seconds
NOISE_SCALE = (0.5, 1.3)       # per episode; 1 = full speed
GOAL_ERROR = 0.045               # metres, standard deviation of the noisy demonstrator's idea of the goal
PATIENCE = (3, 40)               # steps without progress before the reckless one shifts, drawn per episode


def _dense(points: np.ndarray) -> np.ndarray:
    """Points (n, 3) every SPACING along the polyline `points` (k, 3)."""
    pieces = [points[:1]]
    for a, b in itertools.pairwise(points):
        n = max(int(np.ceil(np.linalg.norm(b - a) / SPACING)), 1)
        pieces.append(a + (b - a) * (np.arange(1, n + 1) / n)[:, None])
    return np.concatenate(pieces)


def _smooth(path: np.ndarray) -> np.ndarray:
    """Round the corners as pure pursuit does, ends kept."""
    width = int(LOOKAHEAD / SPACING) | 1
    padded = np.concatenate([np.repeat(path[:1], width // 2, 0), path, np.repeat(path[-1:], width // 2, 0)])
    kernel = np.ones(width) / width
    out = np.stack([np.convolve(padded[:, i], kernel, 'valid') for i in range(3)], 1)
    out[0], out[-1] = path[0], path[-1]
    return out


def plan(layout: scene.Layout, margin: float) -> tuple[np.ndarray, float]:
    """Return the shortest checked path (n, 3) with at least `margin` metres of clearance, and its clearance.

    Candidates cross the obstacles at one depth and one height: over low ones, nearer to the base around tall ones.
    When none has the margin, the one with the largest clearance is returned.
    """
    start, goal = np.array(layout.start), np.array(layout.goal)
    goal[2] = max(goal[2], scene.WORKSPACE_LOW[2] + 0.01)
    side = np.sign(goal[1] - start[1])
    reach = max(abs(o.y) + o.half[1] + o.sweep[1] for o in layout.obstacles)
    reach = reach + geometry.HAND_HALF[1] + max(margin, 0.0) + 0.01
    enter = min(reach, abs(start[1]))
    leave = min(reach, abs(goal[1]))
    xs = np.arange(scene.WORKSPACE_LOW[0] + 0.005, scene.WORKSPACE_HIGH[0], 0.015)
    zs = np.arange(0.07, scene.WORKSPACE_HIGH[2] + 0.001, 0.015)
    paths, keys = [], []
    for x in xs:
        for z in zs:
            corners = np.array([start, (x, -side * enter, z), (x, side * leave, z), goal])
            paths.append(corners)
            keys.append(np.linalg.norm(np.diff(corners, axis=0), axis=1).sum())
    order = np.argsort(keys, kind='stable')
    for index in order:
        path = _smooth(_dense(paths[index]))
        if geometry.clearance(path[::5], layout.obstacles).min() < margin:      # most fail here, at a fifth of the cost
            continue
        space = float(geometry.clearance(path, layout.obstacles).min())
        if space >= margin:
            return path, space
    spaces = [float(geometry.clearance(_smooth(_dense(paths[i])), layout.obstacles).min()) for i in order]
    best = int(np.argmax(spaces))
    return _smooth(_dense(paths[order[best]])), spaces[best]


class Demonstrator:
    """Follows one path by pure pursuit; make a new one for each episode.

    Parameters
    ----------
    env
        A SafeReachEnv just after reset (its layout is read).
    margin
        Clearance that the path is planned with, metres.
    speed
        Fraction of the full speed, in (0, 1].
    goal_error
        Offset (3,) of the goal that it believes in, metres.

    """

    def __init__(self, env, margin: float, speed: float = 1.0, goal_error=None):
        self.path, self.clearance = plan(env.layout, margin)
        if goal_error is not None:
            ramp = np.linspace(0.0, 1.0, len(self.path))[:, None]
            self.path = np.clip(self.path + ramp * goal_error, scene.WORKSPACE_LOW, scene.WORKSPACE_HIGH)
        self.speed = speed
        self._at = 0
        self._ahead = max(round(LOOKAHEAD / SPACING), 1)

    def action(self, env) -> np.ndarray:
        """Return the next action (3,) in [-1, 1], float32."""
        return np.clip(self._pursue(env.tip), -1.0, 1.0).astype(np.float32)

    def _pursue(self, tip: np.ndarray) -> np.ndarray:
        window = self.path[self._at:self._at + 20]
        self._at += int(np.argmin(np.linalg.norm(window - tip, axis=1)))
        target = self.path[min(self._at + self._ahead, len(self.path) - 1)]
        step = (target - tip) / 0.025                 # 0.025 m is one decision at full speed
        return self.speed * step / max(np.abs(step).max(), 1.0)


class Reckless(Demonstrator):
    """Passes with a random clearance, often negative; when it jams it slides up and towards the base, and goes on."""

    def __init__(self, env, rng: np.random.Generator):
        low, high = RECKLESS_CLEARANCE
        # Cubed, so that about half of the draws are negative: grazing is what the data must show.
        super().__init__(env, low + (high - low) * rng.random() ** 3)
        self._patience = rng.integers(*PATIENCE)
        self._last = env.tip
        self._stuck = 0
        self._shift = np.zeros(3)

    def action(self, env) -> np.ndarray:
        """Return the next action (3,) in [-1, 1], float32."""
        tip = env.tip
        self._stuck = self._stuck + 1 if np.linalg.norm(tip - self._last) < 0.006 else 0
        self._last = tip
        if self._stuck >= self._patience:
            self._shift += (-0.02, 0.0, 0.02)
        elif not self._stuck:
            self._shift *= 0.97
        return np.clip(self._pursue(tip - self._shift), -1.0, 1.0).astype(np.float32)


class Noisy(Demonstrator):
    """The safe path with correlated noise on the action and an error in where it believes the goal to be."""

    def __init__(self, env, rng: np.random.Generator):
        error = rng.normal(0.0, GOAL_ERROR, 3) * (1.0, 1.0, 0.5)
        super().__init__(env, SAFE_CLEARANCE, goal_error=error)
        self._rng = rng
        self._scale = rng.uniform(*NOISE_SCALE)
        self._noise = rng.normal(0.0, 1.0, 3)

    def action(self, env) -> np.ndarray:
        """Return the next action (3,) in [-1, 1], float32."""
        keep = np.exp(-0.1 / NOISE_TAU)
        self._noise = keep * self._noise + np.sqrt(1 - keep ** 2) * self._rng.normal(0.0, 1.0, 3)
        return np.clip(self._pursue(env.tip) + self._scale * self._noise, -1.0, 1.0).astype(np.float32)


class Straight:
    """Flies in a straight line to the goal and knows no obstacle. In no training data: not one of KINDS."""

    def action(self, env) -> np.ndarray:
        """Return the next action (3,) in [-1, 1], float32."""
        step = (np.array(env.layout.goal) - env.tip) / 0.025
        return (step / max(np.abs(step).max(), 1.0)).astype(np.float32)


def make_demonstrator(kind: str, env, rng: np.random.Generator):
    """Return a demonstrator for the episode that `env` has just been reset to; it has `action(env) -> (3,)`."""
    if kind == 'safe':
        return Demonstrator(env, SAFE_CLEARANCE)
    if kind == 'reckless':
        return Reckless(env, rng)
    if kind == 'noisy':
        return Noisy(env, rng)
    if kind == 'straight':
        return Straight()
    raise FospError(f'demonstrator {kind!r} is unknown, expected one of {", ".join(KINDS)}')
