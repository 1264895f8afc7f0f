# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Scripted controllers for the Safety-Gymnasium tasks, with privileged knowledge of the ground; they see no picture.

For `fosp collect`. Each steers towards a target; the safe one takes the direction nearest to it that is free.
"""

import numpy as np

from fosp_core.errors import FospError
from fosp_sim.safetygym import Ground, SafetyGymEnv

KINDS = ('safe', 'unsafe', 'random')
HELD = (3, 12)                  # decisions for which a random action is kept
DIRECTIONS = np.deg2rad(5.0 * np.arange(-36, 36))
MARGIN = 0.09                   # metres, beyond the circles that cost
LOOK = 1.0                      # metres that must be free ahead
BRAKING = {'Point': 2.0, 'Car': 0.7}           # m/s^2, of what each can
DRIFT = {'Point': 1.0, 'Car': 0.3}
PUSH = {'Point': 3.0, 'Car': 1.2}               # share of full drive per m/s of error
TURN = {'Point': (2.5, 0.12), 'Car': (1.0, 0.10)}   # share of full turning per rad, and per rad/s
BEHIND = 0.22                   # metres between the robot's centre and the box, where pushing begins


def _wrap(angle: float) -> float:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _unit(angle) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def clear_direction(position: np.ndarray, target: np.ndarray, avoid: np.ndarray, margin: float) -> tuple[float, float]:
    """Return the direction (rad, world) nearest to that of `target` (2,) whose way is clear, and its room in metres.

    `avoid` (n, 3): x, y, radius. Clear means `margin` beyond each circle, over LOOK or as far as the target. When no
    way is, the one that intrudes least is returned; its room is negative.
    """
    way = target - position
    distance = float(np.hypot(*way))
    angles = np.arctan2(way[1], way[0]) + DIRECTIONS
    if not len(avoid):
        return float(np.arctan2(way[1], way[0])), LOOK
    rays = _unit(angles)
    relative = avoid[:, :2] - position
    # The nearest point to each centre along each ray, not behind the robot.
    along = np.clip(rays @ relative.T, 0.0, min(LOOK, distance))
    gaps = np.linalg.norm(relative[None] - along[..., None] * rays[:, None], axis=-1) - avoid[:, 2]
    # A circle that the robot is in already limits no direction that leads out of it.
    leaving = (np.linalg.norm(relative, axis=1) < avoid[:, 2] + margin) & (rays @ relative.T < 0.0)
    room = np.where(leaving, LOOK, gaps).min(1)
    turn = np.abs(DIRECTIONS)
    best = int(np.argmin(np.where(room >= margin, turn, 10.0 + turn - 20.0 * np.minimum(room - margin, 0.0))))
    return float(angles[best]), float(room[best])


def steer(ground: Ground, direction: float, speed: float) -> np.ndarray:
    """Return the action (2,) that makes the robot move in `direction` (rad, world) at `speed` (m/s)."""
    way = _unit(direction)
    # The Point is a ball that slides: it must also push against where it drifts.
    drift = ground.velocity - float(ground.velocity @ way) * way
    aim = max(speed, 0.4) * way - DRIFT[ground.robot] * drift
    error = _wrap(float(np.arctan2(aim[1], aim[0])) - ground.heading)
    ahead = _unit(ground.heading)
    drive = PUSH[ground.robot] * (speed * max(float(np.cos(error)), 0.0) ** 2 - float(ground.velocity @ ahead))
    turn = TURN[ground.robot][0] * error - TURN[ground.robot][1] * ground.turn_rate
    return np.clip([drive, turn], -1.0, 1.0).astype(np.float32)


def way_to_stop(ground: Ground, avoid: np.ndarray) -> float:
    """Return the metres to the first circle of `avoid` (n, 3) in the direction in which the robot moves now."""
    speed = float(np.hypot(*ground.velocity))
    if speed < 0.05 or not len(avoid):
        return LOOK
    way = ground.velocity / speed
    relative = avoid[:, :2] - ground.position
    along = relative @ way
    aside = np.abs(relative[:, 0] * way[1] - relative[:, 1] * way[0])
    radius = avoid[:, 2] + 0.3 * MARGIN
    hit = (aside < radius) & (along > 0.0) & (np.hypot(*relative.T) > radius)     # out of one, no need to stop
    return float(np.where(hit, along - np.sqrt(np.maximum(radius ** 2 - aside ** 2, 0.0)), LOOK).min(initial=LOOK))


def _aim(ground: Ground) -> tuple[np.ndarray, bool]:
    """Return where to go (2,), and whether the box is being pushed: the way to behind it comes first."""
    if ground.box is None:
        return ground.target, False
    way = ground.target - ground.box
    way = way / max(float(np.hypot(*way)), 1e-6)
    relative = ground.position - ground.box
    aside = abs(float(relative[0] * way[1] - relative[1] * way[0]))
    if float(relative @ way) < 0.0 and aside < 0.6 * ground.box_half:
        return ground.target, True
    return ground.box - (ground.box_half + BEHIND) * way, False


class Unsafe:
    """Straight to the goal, over whatever lies there."""

    speed = 1.5

    def action(self, env: SafetyGymEnv) -> np.ndarray:
        """Return the next action (2,) in [-1, 1], float32."""
        ground = env.ground()
        target, pushing = _aim(ground)
        round_box = np.empty((0, 3)) if ground.box is None or pushing else np.array(
            [[*ground.box, 1.3 * ground.box_half + 0.1]])
        return steer(ground, clear_direction(ground.position, target, round_box, 0.0)[0], self.speed)


class Safe:
    """Around everything that costs, slower where there is little room."""

    speed = 1.0

    def action(self, env: SafetyGymEnv) -> np.ndarray:
        """Return the next action (2,) in [-1, 1], float32."""
        ground = env.ground()
        target, pushing = _aim(ground)
        avoid = ground.avoid
        if ground.box is not None and not pushing:
            avoid = np.concatenate([avoid, [[*ground.box, 1.3 * ground.box_half + 0.1]]])
        direction, _ = clear_direction(ground.position, target, avoid, MARGIN)
        near = (np.linalg.norm(avoid[:, :2] - ground.position, axis=1) - avoid[:, 2]).min(initial=1.0)
        speed = min(0.4 + 2.0 * near, self.speed) if near > 0.0 else self.speed     # out of a circle at once
        room = max(way_to_stop(ground, avoid) - 0.1 * float(np.hypot(*ground.velocity)), 0.0)
        return steer(ground, direction, min(speed, float(np.sqrt(2.0 * BRAKING[ground.robot] * room))))


class Random:
    """Uniform actions, each kept for a while."""

    def __init__(self, rng: np.random.Generator):
        self._rng, self._left = rng, 0

    def action(self, env: SafetyGymEnv) -> np.ndarray:
        """Return the next action (2,) in [-1, 1], float32."""
        if not self._left:
            self._left = int(self._rng.integers(*HELD))
            self._action = self._rng.uniform(-1.0, 1.0, 2).astype(np.float32)
        self._left -= 1
        return self._action


def make_demonstrator(kind: str, env: SafetyGymEnv, rng: np.random.Generator):
    """Return a controller for the episode that `env` has just been reset to; it has `action(env) -> (2,)`."""
    if kind == 'safe':
        return Safe()
    if kind == 'unsafe':
        return Unsafe()
    if kind == 'random':
        return Random(rng)
    raise FospError(f'demonstrator {kind!r} is unknown, expected one of {", ".join(KINDS)}')
