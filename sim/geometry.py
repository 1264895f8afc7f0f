# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Arm kinematics and clearances in plain numpy, no simulator: shared by scene, environment and demonstrators.

The arm is Franka's published Panda (modified DH). With the gripper down and joints 3 and 5 at zero it lies in the
vertical plane through the base axis, so that inverse kinematics and distances have a closed form.
"""

import dataclasses

import numpy as np

# Modified DH as published by Franka: (a, alpha, d) per joint, metres and radians.
DH = ((0.0, 0.0, 0.333), (0.0, -np.pi / 2, 0.0), (0.0, np.pi / 2, 0.316), (0.0825, np.pi / 2, 0.0),
      (-0.0825, -np.pi / 2, 0.384), (0.0, np.pi / 2, 0.0), (0.088, np.pi / 2, 0.0))
FLANGE = 0.107
TOOL = 0.1034
HAND_YAW = -np.pi / 4
READY = (0.0, -np.pi / 4, 0.0, -3 * np.pi / 4, 0.0, np.pi / 2, np.pi / 4)
JOINT_LOW = (-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973)
JOINT_HIGH = (2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973)
JOINT_SPEED = (2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61)
JOINT_NAMES = tuple(f'panda_joint{i}' for i in range(1, 8))

# Link radii of our capsules and half sizes of our boxes, metres (the hand opens its fingers along y).
RADIUS = {'upper': 0.060, 'elbow': 0.060, 'fore': 0.055, 'wrist': 0.050, 'flange': 0.045}
HAND_HALF = (0.030, 0.100, 0.033)
HAND_UP = TOOL - 0.033          # hand box centre above the fingertip
FINGER_HALF = (0.011, 0.022, 0.0187)
FINGER_UP = 0.0187


@dataclasses.dataclass(frozen=True)
class Obstacle:
    """An upright axis-aligned box or cylinder standing on the table; metres. A cylinder's radius is half[0].

    A box with a `sweep` (amplitude along x and y, metres) and a `period` (seconds) moves to and fro on a sine; what is
    planned around is then the box that holds all its places.
    """

    shape: str
    x: float
    y: float
    half: tuple[float, float]
    height: float
    sweep: tuple[float, float] = (0.0, 0.0)
    period: float = 0.0
    phase: float = 0.0

    def at(self, seconds: float) -> tuple[float, float]:
        """Return where the centre (x, y) is, metres, so long after the reset."""
        if not self.period:
            return self.x, self.y
        share = np.sin(2.0 * np.pi * seconds / self.period + self.phase)
        return self.x + float(share * self.sweep[0]), self.y + float(share * self.sweep[1])

    @property
    def top_speed(self) -> float:
        """Largest speed of the centre, m/s."""
        return 2.0 * np.pi * float(np.hypot(*self.sweep)) / self.period if self.period else 0.0


def _pose(q) -> tuple[np.ndarray, np.ndarray]:
    """Position (3,) and rotation (3, 3) of the tool point for joint angles `q` (7,), base frame."""
    transform = np.eye(4)
    for (a, alpha, d), angle in zip(DH, q, strict=True):
        ca, sa, ct, st = np.cos(alpha), np.sin(alpha), np.cos(angle), np.sin(angle)
        transform = transform @ np.array([[ct, -st, 0, a], [st * ca, ct * ca, -sa, -d * sa],
                                          [st * sa, ct * sa, ca, d * ca], [0, 0, 0, 1]])
    c, s = np.cos(HAND_YAW), np.sin(HAND_YAW)
    hand = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, FLANGE + TOOL], [0, 0, 0, 1]])
    transform = transform @ hand
    return transform[:3, 3], transform[:3, :3]


def forward(q) -> tuple[np.ndarray, np.ndarray]:
    """Return fingertip position (3,) in metres and rotation matrix (3, 3), base frame, for joint angles (7,)."""
    return _pose(np.asarray(q, float))


_UPPER = float(np.hypot(0.316, 0.0825))
_FORE = float(np.hypot(0.384, 0.0825))


def _skeleton(tip: np.ndarray) -> tuple[np.ndarray, ...]:
    """Points of the arm in its vertical plane for fingertips (..., 3): shoulder, knee, elbow, wrist, flange, in 3-D."""
    x, y, z = tip[..., 0], tip[..., 1], tip[..., 2]
    r = np.hypot(x, y)
    wr, wz = r - 0.088, z + FLANGE + TOOL - 0.333
    d = np.clip(np.hypot(wr, wz), 0.12, _UPPER + _FORE - 1e-6)
    inner = np.arccos(np.clip((_UPPER ** 2 + d ** 2 - _FORE ** 2) / (2 * _UPPER * d), -1, 1))
    lift = np.arctan2(wz, wr) + inner                     # direction shoulder -> elbow joint (joint 4), elbow up
    # Joint 4 lies 0.0825 m forward of the end of the upper arm; the upper arm itself points at `lift + offset`.
    along = lift + np.arctan2(0.0825, 0.316)
    zero = np.zeros_like(r)
    planar = [(zero, zero), (0.316 * np.cos(along), 0.316 * np.sin(along)),
              (_UPPER * np.cos(lift), _UPPER * np.sin(lift)), (wr, wz), (r, wz)]
    c, s = x / np.maximum(r, 1e-9), y / np.maximum(r, 1e-9)
    return tuple(np.stack([pr * c, pr * s, pz + 0.333], -1) for pr, pz in planar)


def inverse(tip) -> np.ndarray:
    """Return joint angles (7,) with the gripper down, fingers opening along y, for one fingertip position (3,)."""
    tip = np.asarray(tip, float)
    x, y, z = tip
    r = np.hypot(x, y)
    wr, wz = r - 0.088, z + FLANGE + TOOL - 0.333
    d = np.clip(np.hypot(wr, wz), 0.12, _UPPER + _FORE - 1e-6)
    inner = np.arccos(np.clip((_UPPER ** 2 + d ** 2 - _FORE ** 2) / (2 * _UPPER * d), -1, 1))
    along = np.arctan2(wz, wr) + inner + np.arctan2(0.0825, 0.316)
    q2 = np.pi / 2 - along
    elbow = np.arccos(np.clip((_UPPER ** 2 + _FORE ** 2 - d ** 2) / (2 * _UPPER * _FORE), -1, 1))
    straight = np.pi + np.arctan2(0.0825, 0.316) + np.arctan2(0.0825, 0.384)   # front angle at joint 4 for q4 = 0
    q4 = elbow - straight
    q1 = np.arctan2(y, x)
    return np.array([q1, q2, 0.0, q4, 0.0, q2 - q4, np.pi / 4 + q1])


def _segment(a: np.ndarray, b: np.ndarray, n: int) -> np.ndarray:
    w = np.linspace(0.0, 1.0, n)
    return a[..., None, :] * (1 - w)[:, None] + b[..., None, :] * w[:, None]


def _body_boxes(tips: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres (n, m, 3), half sizes (m, 3) and radii (m,) of rounded boxes that make up the arm at tips (n, 3)."""
    shoulder, knee, elbow, wrist, flange = _skeleton(tips)
    low = flange - np.array([0.0, 0.0, FLANGE])
    parts = [(_segment(shoulder, knee, 5), RADIUS['upper']), (_segment(knee, elbow, 2), RADIUS['elbow']),
             (_segment(elbow, wrist, 8), RADIUS['fore']), (_segment(wrist, flange, 3), RADIUS['wrist']),
             (_segment(flange, low, 3), RADIUS['flange'])]
    centres = [p for p, _ in parts]
    radii = np.concatenate([np.full(p.shape[-2], radius) for p, radius in parts])
    halves = np.zeros((len(radii), 3))
    up = np.array([0.0, 0.0, 1.0])
    centres += [(tips + HAND_UP * up)[:, None], (tips + FINGER_UP * up)[:, None]]
    halves = np.concatenate([halves, [HAND_HALF], [FINGER_HALF]])
    return np.concatenate(centres, 1), halves, np.concatenate([radii, [0.0, 0.0]])


def clearance(tips, obstacles) -> np.ndarray:
    """Signed distance (n,) in metres between the whole arm at fingertips (n, 3) and the nearest obstacle, wherever
    it may move.

    Negative: penetration. The arm is taken in its vertical plane, with the gripper down.
    """
    tips = np.atleast_2d(np.asarray(tips, float))
    centres, halves, radii = _body_boxes(tips)
    best = np.full(len(tips), np.inf)
    for obstacle in obstacles:
        gap = np.abs(centres - np.array([obstacle.x, obstacle.y, obstacle.height / 2])) - halves
        gap[..., 2] -= obstacle.height / 2
        if obstacle.shape == 'box':
            gap[..., 0] -= obstacle.half[0] + obstacle.sweep[0]
            gap[..., 1] -= obstacle.half[1] + obstacle.sweep[1]
        else:
            flat = np.linalg.norm(np.maximum(gap[..., :2], 0), axis=-1) + np.minimum(gap[..., :2].max(-1), 0)
            gap = np.stack([flat - obstacle.half[0], gap[..., 2]], -1)
        distance = np.linalg.norm(np.maximum(gap, 0), axis=-1) + np.minimum(gap.max(-1), 0) - radii
        best = np.minimum(best, distance.min(-1))
    return best
