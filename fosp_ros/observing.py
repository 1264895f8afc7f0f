# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pairs pictures, vectors and labels to one observation per control tick. Pure Python: no rclpy, no clock of its own.

The first camera of the contract sets the tick. What carries its very stamp is preferred (simulation, hardware sync); a
real arm's pose has another stamp and is taken when it is near enough. Nothing older than the tolerance is ever used.
"""

import collections
import dataclasses
from typing import Any

import numpy as np

from fosp_core.contract import Contract
from fosp_ros.operator_labels import BUTTONS
from fosp_ros.parameters import P
from fosp_ros.tick_label import TickLabel

STAMPED, EVENT, JOY = MODES = 'stamped', 'event', 'joy'
LABELS = P('labels', 'string', STAMPED, 'stamped: each picture has a label of its stamp (simulation). event: labels '
           'come now and then, from what knows reward and cost; rising edges of their buttons count. joy: a joystick '
           'or SpaceMouse as it is, with the buttons of `fosp record`: 0 begins an episode and ends it, 1 ends it at '
           'the goal, 2 is cost while held; axes mean nothing.', choices=MODES, read_only=True)
HELD_S = 1.0        # for which a held button counts without being repeated: its driver may be gone


@dataclasses.dataclass(frozen=True)
class Observation:
    """One tick: arrays per contract name, the messages they came from, the label, and what was missed before it."""

    stamp: int
    arrays: dict[str, np.ndarray]
    messages: dict[str, Any]
    label: TickLabel
    arrived: float   # monotonic seconds at which the picture came
    missed: int      # ticks since the last observation of which no picture came


class Observer:
    """Collects what arrives and hands out one observation per picture of the first camera.

    Parameters
    ----------
    contract : Contract
        Cameras and vectors to pair.
    tolerance : float
        Largest difference of stamps, in seconds, of a vector or a further camera from the picture.
    wait : float
        How long, in seconds after the picture's arrival, to wait for messages of the very same stamp.
    labels : str
        `stamped`: a label of the same stamp belongs to each tick (simulation); `event`: labels come now and then, and
        the rising edges of their buttons count for the next tick; `joy`: so do those of a joystick, whose axes are no
        reward and no cost (LABELS).

    """

    def __init__(self, contract: Contract, tolerance: float, wait: float, labels: str = STAMPED):
        self._contract = contract
        self._primary = contract.cameras[0].name
        self._others = [n for n in contract.observation_names if n != self._primary]
        self._tolerance, self._wait, self._labels = round(tolerance * 1e9), wait, labels
        self._period = contract.period * 1e9
        self.unpaired = collections.Counter()  # source -> pictures that were dropped for want of it
        self.skew: tuple[str, int | None] = '', None   # of the newest of them: what it lacked, and ns that it was ahead
        self.overtaken = 0                     # pictures that came before the one before them was served
        self.clear()

    def clear(self) -> None:
        """Forget everything that has arrived."""
        self._near = {name: collections.deque(maxlen=16) for name in self._others}
        self._tick_labels: collections.OrderedDict[int, TickLabel] = collections.OrderedDict()
        self._pending: tuple[int, np.ndarray, Any, float] | None = None
        self._event = TickLabel()
        self._buttons = (False, False, False)
        self._running, self._quiet = False, 0   # joy: within an episode; ticks since the last message
        self._last_stamp: int | None = None

    @property
    def pending(self) -> bool:
        """True while a picture waits for its companions."""
        return self._pending is not None

    def put(self, name: str, stamp: int, value: np.ndarray, message: Any, now: float) -> None:
        """Take a picture or a vector that arrived at monotonic `now`."""
        if name != self._primary:
            self._near[name].append((stamp, value, message))
            return
        if self._last_stamp is not None and stamp == self._last_stamp:
            return  # the same picture again: no new tick
        self.overtaken += self._pending is not None
        self._pending = (stamp, value, message, now)

    def put_label(self, stamp: int, axes, buttons) -> None:
        """Take one label message."""
        if self._labels == JOY:
            self._put_joy(list(buttons))
            return
        flags = tuple(bool(b) for b in [*list(buttons)[:3], 0, 0, 0][:3])
        axes = [float(a) for a in list(axes)[:2]] + [0.0] * (2 - len(axes))
        finite = [a if np.isfinite(a) else 0.0 for a in axes]
        label = TickLabel(finite[0], max(0.0, finite[1]), *flags)
        if self._labels == STAMPED:
            self._tick_labels[stamp] = label
            while len(self._tick_labels) > 64:
                self._tick_labels.popitem(last=False)
            return
        self._add_event(TickLabel(label.reward, label.cost, *self._rising(flags)))

    def _put_joy(self, buttons: list) -> None:
        flags = tuple(i < len(buttons) and bool(buttons[i]) for i in (BUTTONS[w] for w in ('start', 'success', 'cost')))
        toggled, goal, _ = self._rising(flags)
        goal = goal and self._running
        end = goal or (toggled and self._running)
        begin = toggled and not self._running
        self._running, self._quiet = (self._running or begin) and not end, 0
        self._add_event(TickLabel(float(goal), float(flags[2]), begin, end, goal))

    def _rising(self, flags: tuple[bool, ...]) -> list[bool]:
        rising = [now and not before for now, before in zip(flags, self._buttons)]
        self._buttons = flags
        return rising

    def _add_event(self, label: TickLabel) -> None:
        """Keep what is said between two ticks for the next one."""
        event = self._event
        self._event = TickLabel(max(event.reward, label.reward), max(event.cost, label.cost),
                                event.is_first or label.is_first, event.is_last or label.is_last,
                                event.is_terminal or label.is_terminal)

    def take(self, now: float) -> Observation | None:
        """Return the observation of the waiting picture once it is complete or has waited long enough."""
        if self._pending is None:
            return None
        stamp, pixels, message, arrived = self._pending
        chosen = {name: min(self._near[name], key=lambda entry: abs(entry[0] - stamp), default=None)
                  for name in self._others}
        exact = all(entry is not None and entry[0] == stamp for entry in chosen.values())
        if (not exact or (self._labels == STAMPED and stamp not in self._tick_labels)) and now - arrived < self._wait:
            return None
        self._pending = None
        for name, entry in chosen.items():
            if entry is None or abs(entry[0] - stamp) > self._tolerance:
                self.unpaired[name] += 1
                self.skew = name, None if entry is None else stamp - entry[0]
                return None
        label, missed = self._label_for(stamp)
        self._last_stamp = stamp
        arrays = {self._primary: pixels} | {name: entry[1] for name, entry in chosen.items()}
        messages = {self._primary: message} | {name: entry[2] for name, entry in chosen.items()}
        return Observation(stamp, arrays, messages, label, arrived, missed)

    def _label_for(self, stamp: int) -> tuple[TickLabel, int]:
        if self._labels != STAMPED:
            label, self._event = self._event, TickLabel()
            self._quiet += 1
            if self._labels == JOY and self._buttons[2] and self._quiet * self._period <= HELD_S * 1e9:
                label = label._replace(cost=1.0)    # drivers need not repeat it
            gap = 0 if self._last_stamp is None else stamp - self._last_stamp
            return label, max(0, round(gap / self._period) - 1)
        label = self._tick_labels.pop(stamp, TickLabel())
        older = [s for s in self._tick_labels if s < stamp]
        for s in older:
            # The border of an episode must not be lost with the picture that carried it.
            if self._tick_labels.pop(s).is_first and not label.is_first:
                label = label._replace(is_first=True)
        return label, len(older)
