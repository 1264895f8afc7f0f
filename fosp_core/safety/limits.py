# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Limits that hold whatever was learned: range, speed, acceleration, step, workspace, joints. Pure; all may import it.

Each rule only ever takes away: it returns a shorter command, and zero always satisfies it. So the rules cannot undo one
another, the most restrictive one wins, and applying them twice changes nothing.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from fosp_core.errors import FospError
from fosp_core.safety.reasons import Reason

EPSILON = 1e-9  # a difference below this is rounding, not an action of a rule


@dataclasses.dataclass(frozen=True)
class FilterLimits:
    """What the filter may let through. SI units; the box is in the frame of the command.

    An empty box or an empty list of joints switches that rule off; the node reports it as weakened.
    """

    low: tuple[float, ...]                      # range of the contract, per entry, m/s
    high: tuple[float, ...]
    period: float                               # control period, s
    staleness: float                            # s after which an input is stale
    acts: float = 0.2                           # s for which a command may act before the stop that replaces it
    max_speed: float = 0.42                     # m/s, Euclidean norm
    max_acceleration: float = 4.0               # m/s^2
    max_step: float = 0.10                      # m from where the arm was measured to where a stop would find it
    box_low: tuple[float, ...] = ()             # m
    box_high: tuple[float, ...] = ()
    box_margin: float = 0.05                    # m outside the box at which the measurement itself is a fault
    joint_names: tuple[str, ...] = ()
    joint_low: tuple[float, ...] = ()           # rad
    joint_high: tuple[float, ...] = ()
    joint_speed: tuple[float, ...] = ()         # rad/s
    joint_margin: float = 0.02                  # rad beyond a limit at which the measurement itself is a fault
    joint_ahead: float = 0.3                    # s of motion that must fit before a position limit
    max_jump: float = 0.06                      # m between two poses beyond what the commands explain
    frozen_distance: float = 0.03               # m of motion without a changed picture
    release: float = 0.3                        # s during which all must be well before motion
    ramp: float = 0.5                           # s from RAMP_START of the speed to all of it
    slow_factor: float = 0.5                    # speed while surprised
    retreat_speed: float = 0.1                  # m/s
    alert_factor: float = 0.2                   # of the level, while alert; 1 switches the alert off
    alert_hold: float = 1.0                     # s for which an alert outlasts the last risk beyond the level
    latch_after: float = 2.0                    # s of surprise beyond the stop level until it latches

    def __post_init__(self) -> None:
        """Refuse limits that limit nothing: NaN, infinity, a negative one, lists of unequal length."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            entries = value if isinstance(value, tuple) else (value,)
            if not all(isinstance(entry, str) or math.isfinite(entry) for entry in entries):
                raise FospError(f'limit {field.name} is {value}, expected finite numbers')
            if not isinstance(value, tuple) and (value < 0 or (value == 0 and field.name in _POSITIVE)):
                raise FospError(f'limit {field.name} is {value}, expected a positive number')
        if self.acts < self.period:
            raise FospError(f'limit acts is {self.acts}, expected at least the period {self.period}')
        if self.alert_factor > 1:
            raise FospError(f'limit alert_factor is {self.alert_factor}, expected 0 to 1')
        n, joints = len(self.low), len(self.joint_names)
        if not n or len(self.high) != n or any(lo > 0 or hi < 0 for lo, hi in zip(self.low, self.high)):
            raise FospError(f'limits low {self.low} and high {self.high} must be of equal length with zero between')
        if len(self.box_low) != len(self.box_high) or len(self.box_low) not in (0, n):
            raise FospError(f'limits box_low and box_high need {n} entries each, or none')
        if any(lo >= hi for lo, hi in zip(self.box_low, self.box_high)):
            raise FospError(f'limit box_low {self.box_low} is not below box_high {self.box_high}')
        if not len(self.joint_low) == len(self.joint_high) == len(self.joint_speed) == joints:
            raise FospError(f'limits joint_low, joint_high and joint_speed need {joints} entries each, '
                            'one per joint name')
        if any(lo >= hi for lo, hi in zip(self.joint_low, self.joint_high)) or min(self.joint_speed, default=1) <= 0:
            raise FospError('limit joint_low must be below joint_high, and joint_speed positive')

    @property
    def size(self) -> int:
        """Number of entries of a command."""
        return len(self.low)


_POSITIVE = ('period', 'staleness', 'max_speed', 'max_acceleration', 'max_step')


@dataclasses.dataclass(frozen=True, eq=False)
class Situation:
    """What is measured: position (A,) m, joint positions and speeds (J,) in the order of `joint_names`, or None.

    age: seconds since the position was measured, during which the arm has followed the last command.
    """

    position: np.ndarray | None = None
    joint_position: np.ndarray | None = None
    joint_velocity: np.ndarray | None = None
    age: float = 0.0


@dataclasses.dataclass(frozen=True)
class Rule:
    """A named rule: `shorten(command, limits, situation, last)` returns a command no further from zero."""

    reason: Reason
    shorten: Callable[[np.ndarray, FilterLimits, Situation, np.ndarray], np.ndarray]


def checked_command(command, size: int) -> np.ndarray | None:
    """Return the command as float64 (size,), or None when any of it is wrong: a part of a command is no command."""
    try:
        array = np.asarray(command, np.float64)
    except (TypeError, ValueError):
        return None
    return array.copy() if array.shape == (size,) and np.isfinite(array).all() else None


def _range(command, limits, situation, last):
    # Scaled as a whole: clipping one entry would turn the direction of motion.
    bound = np.where(command > 0, limits.high, limits.low)
    over = np.abs(command) > np.abs(bound)
    return command * np.min(bound[over] / command[over]) if over.any() else command


def _workspace(command, limits, situation, last):
    if not limits.box_low:
        return command
    if situation.position is None or not np.isfinite(situation.position).all():
        return np.zeros_like(command)
    here = situation.position + last * min(situation.age, limits.acts)
    room_low, room_high = ((np.array(wall) - here) / limits.acts for wall in (limits.box_low, limits.box_high))
    # Entry by entry, so that the arm slides along a wall; outside the box only the way back is open.
    return np.clip(command, np.minimum(room_low, 0.0), np.maximum(room_high, 0.0))


def _speed(command, limits, situation, last):
    speed = _norm(command)
    return command * (limits.max_speed / speed) if speed > limits.max_speed else command


def _step(command, limits, situation, last):
    """Keep the arm within `max_step` of where it was measured, for as long as the command may act."""
    gone = last * min(situation.age, limits.acts)
    if _norm(gone) >= limits.max_step:
        return np.zeros_like(command)   # the way back too begins with a stop: what is shorter must be allowed as well
    return _within(command, -gone / limits.acts, limits.max_step / limits.acts)


def _acceleration(command, limits, situation, last):
    """Keep within reach of the last command. Braking straight is free; what is out of reach begins with a stop."""
    reach, before, speed = limits.max_acceleration * limits.period, _norm(last), _norm(command)
    if speed <= EPSILON:
        return np.zeros_like(command)
    if speed <= before and _norm(command - last * (speed / before)) <= EPSILON * speed:
        return command
    return _within(command, last, reach)


def _within(command, centre, radius):
    """Return the largest part of the command that lies within `radius` of `centre`; zero when none does."""
    if _norm(command - centre) <= radius + EPSILON:
        return command
    square = float(command @ command)
    half = float(command @ centre) / square
    root = half * half - (float(centre @ centre) - radius * radius) / square
    scale = half + math.sqrt(root) if root >= 0 else 0.0
    return command * scale if 0.0 < scale < 1.0 else np.zeros_like(command)


def _joint_position(command, limits, situation, last):
    if not limits.joint_names:
        return command
    if situation.joint_position is None or situation.joint_velocity is None:
        return np.zeros_like(command)
    speed = situation.joint_velocity
    room = np.where(speed > 0, np.array(limits.joint_high) - situation.joint_position,
                    situation.joint_position - np.array(limits.joint_low))
    way = np.abs(speed) * limits.joint_ahead
    tight = way > np.maximum(room, 0.0) + EPSILON
    # The joints answer to the last command: measured against its speed, the new one may be as much of it as fits.
    return _cap(command, last, float(np.min(np.maximum(room[tight], 0.0) / way[tight]))) if tight.any() else command


def _joint_velocity(command, limits, situation, last):
    if not limits.joint_names:
        return command
    if situation.joint_velocity is None:
        return np.zeros_like(command)
    speed, bound = np.abs(situation.joint_velocity), np.array(limits.joint_speed)
    fast = speed > bound
    return _cap(command, last, float(np.min(bound[fast] / speed[fast]))) if fast.any() else command


def _cap(command: np.ndarray, last: np.ndarray, fraction: float) -> np.ndarray:
    bound, speed = fraction * _norm(last), _norm(command)
    return command * (bound / speed) if speed > bound else command


def _norm(vector: np.ndarray) -> float:
    return math.sqrt(float(vector @ vector))


RULES = (Rule(Reason.LIMIT_RANGE, _range), Rule(Reason.LIMIT_WORKSPACE, _workspace), Rule(Reason.LIMIT_SPEED, _speed),
         Rule(Reason.LIMIT_STEP, _step), Rule(Reason.LIMIT_JOINT_POSITION, _joint_position),
         Rule(Reason.LIMIT_JOINT_VELOCITY, _joint_velocity), Rule(Reason.LIMIT_ACCELERATION, _acceleration))


def apply_limits(command: np.ndarray, limits: FilterLimits, situation: Situation,
                 last: np.ndarray) -> tuple[np.ndarray, tuple[Reason, ...]]:
    """Shorten a finite command until every rule is satisfied.

    Parameters
    ----------
    command, last : array of shape (A,)
        The command, and the one that was really sent before it, m/s.
    limits : FilterLimits
        What is allowed.
    situation : Situation
        What is measured.

    Returns
    -------
    tuple
        The command (A,), and the reasons of the rules that acted.

    """
    acted = []
    for rule in RULES:
        shorter = rule.shorten(command, limits, situation, last)
        if np.abs(shorter - command).max() > EPSILON:
            acted.append(rule.reason)
        command = shorter
    return command, tuple(acted)


def violations(command: np.ndarray, limits: FilterLimits, situation: Situation, last: np.ndarray,
               tolerance: float = 1e-6) -> tuple[Reason, ...]:
    """Return the limits that a command breaks: the last look before it leaves."""
    if checked_command(command, limits.size) is None:
        return (Reason.COMMAND_INVALID,)
    return tuple(rule.reason for rule in RULES
                 if np.abs(rule.shorten(command, limits, situation, last) - command).max() > tolerance)


def measured_faults(limits: FilterLimits, situation: Situation) -> tuple[Reason, ...]:
    """Return the latching causes in the measurement itself: something has already gone wrong."""
    found = []
    if limits.joint_names and situation.joint_position is not None and situation.joint_velocity is not None:
        position, speed = situation.joint_position, np.abs(situation.joint_velocity)
        if (position < np.array(limits.joint_low) - limits.joint_margin).any() \
                or (position > np.array(limits.joint_high) + limits.joint_margin).any() \
                or (speed > JOINT_SPEED_FAULT * np.array(limits.joint_speed)).any():
            found.append(Reason.JOINT_LIMIT_MEASURED)
    if limits.box_low and situation.position is not None:
        low, high = np.array(limits.box_low) - limits.box_margin, np.array(limits.box_high) + limits.box_margin
        if (situation.position < low).any() or (situation.position > high).any():
            found.append(Reason.WORKSPACE_MEASURED)
    return tuple(found)


JOINT_SPEED_FAULT = 1.2  # times the joint's speed limit: more than measurement noise
