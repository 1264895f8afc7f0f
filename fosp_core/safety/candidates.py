# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The commands among which the filter chooses. Pure numpy; anyone may import it.

All of them are within the limits, so that what is scored is what can be sent. The first is always the proposal.
"""

import dataclasses
import math

import numpy as np

from fosp_core.safety.limits import FilterLimits, Situation, apply_limits, checked_command
from fosp_core.safety.reasons import Reason

MOST = 16
SCALES = (0.75, 0.5, 0.25)
TURNS = (35.0, 70.0)    # degrees aside, in the horizontal plane, to both sides
RETREAT_AFTER = 0.02    # m: the point of the path to go back to lies at least so far away


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """Commands (N, A) in m/s, N <= MOST, and for each the reason that is given when it is chosen."""

    commands: np.ndarray
    labels: tuple[Reason, ...]

    def with_command(self, command: np.ndarray, label: Reason) -> 'Candidates':
        """Return these and one more."""
        return Candidates(np.concatenate([self.commands, command[None]]), (*self.labels, label))


def candidates(proposal, limits: FilterLimits, situation: Situation, last: np.ndarray,
               path: tuple[np.ndarray, ...] = ()) -> Candidates:
    """Make the candidates of one tick.

    Parameters
    ----------
    proposal : array of shape (A,) or None
        The proposed command as received; without a sound one the list begins with zero.
    limits, situation, last
        As in `apply_limits`.
    path : tuple of arrays (A,)
        Recent positions, oldest first, m.

    """
    wanted = checked_command(proposal, limits.size) if proposal is not None else None
    if wanted is None:
        wanted = np.zeros(limits.size)
    # Slower and turned copies are of what the limits leave of the proposal: of 3 m/s, three quarters are no help.
    wanted = apply_limits(wanted, limits, situation, last)[0]
    made = [(wanted, Reason.PASS)]
    made += [(scale * wanted, Reason.RISK_SCALED) for scale in SCALES]
    made.append((np.zeros(limits.size), Reason.RISK_HOLD))
    back = _retreat(situation, path, limits.retreat_speed)
    if back is not None:
        made.append((back, Reason.RISK_RETREAT))
    if limits.size == 3:
        made += [(command, Reason.RISK_ESCAPE) for command in _escapes(wanted, limits)]
    limited = [(apply_limits(command, limits, situation, last)[0], label) for command, label in made]
    return Candidates(np.stack([command for command, _ in limited]), tuple(label for _, label in limited))


def _retreat(situation: Situation, path: tuple[np.ndarray, ...], speed: float) -> np.ndarray | None:
    if situation.position is None or not np.isfinite(situation.position).all():
        return None
    for point in reversed(path):
        way = point - situation.position
        length = math.sqrt(float(way @ way))
        if length >= RETREAT_AFTER:
            return way * (speed / length)
    return None


def _escapes(wanted: np.ndarray, limits: FilterLimits) -> list[np.ndarray]:
    """Up, forward and up, and the proposal turned aside: ways around or over what stands in the way."""
    speed = math.sqrt(float(wanted @ wanted))
    up = np.array([0.0, 0.0, max(speed, limits.retreat_speed)])
    made = [up]
    if speed > 0:
        made.append((wanted + up) / math.sqrt(2.0))
        for degrees in TURNS:
            for sign in (1.0, -1.0):
                c, s = math.cos(math.radians(degrees)), sign * math.sin(math.radians(degrees))
                x, y, z = wanted
                made.append(np.array([c * x - s * y, s * x + c * y, z]))
    return made
