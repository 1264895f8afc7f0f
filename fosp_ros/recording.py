# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Makes replay records: observation, the command that was really executed, label, step counter. Pure Python.

The command of a tick is the newest one that the arm was sent before the next tick; only then is the record complete.
The last record of an episode has no command and is complete at once. Their stamps tell which command was before and
which after a picture: a process that is served late gets both at once, in any order.
"""

import collections
import dataclasses
from typing import Any

import numpy as np

from fosp_ros.observing import Observation

SAME_CLOCK_S = 1.0  # stamps that are further apart are not of one clock
WAITING = 64        # commands that no picture followed yet


@dataclasses.dataclass(frozen=True)
class Record:
    """One replay step. `command`: the executed command message, or None for no motion; `action`: it, normalised."""

    observation: Observation
    command: Any
    step: int
    action: np.ndarray | None = None


class Recorder:
    """Turns observations and executed commands into records.

    Parameters
    ----------
    hold : float
        Seconds for which the arm goes on with a command when no newer one comes; then it stands still.
    continuous : bool
        True: every observation is recorded. False: only those between `is_first` and `is_last` (an operator's labels).

    """

    def __init__(self, hold: float, continuous: bool = True):
        self._hold, self._continuous = hold, continuous
        self._open: Observation | None = None
        self._recording = continuous
        self._sent: collections.deque = collections.deque(maxlen=WAITING)   # after the last picture, for all we know
        self._command: tuple[Any, np.ndarray, float] | None = None
        self.step = 0  # counter of the next record; a jump tells the trainer that something is missing

    def command(self, message: Any, action: np.ndarray, now: float, stamp: int | None = None) -> None:
        """Note a command that was sent to the arm: its normalised action (A,), and its stamp (ns) where it has one.

        Any thread may call it. What the command belongs to is settled by the next observation.
        """
        self._sent.append((message, action, now, stamp))

    def settle(self, observation: Observation) -> None:
        """Take over the commands that were sent before this observation: `executed` then tells what led to it."""
        while self._sent and self._precedes(*self._sent[0][2:], observation):
            self._command = self._sent.popleft()[:3]

    @staticmethod
    def _precedes(arrived: float, stamp: int | None, observation: Observation) -> bool:
        """Tell whether a command was sent before a picture, and therefore belongs to the one before it.

        The answer to a picture carries its stamp, a stop or a teleoperator's command the time at which it was made.
        """
        apart = np.inf if stamp is None else stamp - observation.stamp
        return apart < 0 if abs(apart) < SAME_CLOCK_S * 1e9 else arrived < observation.arrived

    def executed(self, now: float) -> tuple[Any, np.ndarray] | None:
        """Return message and action of what the arm did last, None when it stands still; see `settle`."""
        if self._command is None:
            return None
        message, action, arrived = self._command
        since = self._open.arrived if self._open is not None else float('inf')
        if arrived < since and now - arrived > self._hold:
            return None
        return message, action

    def observe(self, observation: Observation, now: float) -> list[Record]:
        """Take the next observation; return the records that are complete by it (none, one or two)."""
        done = []
        self.settle(observation)
        if self._open is not None:
            executed = self.executed(observation.arrived)
            done.append(self._close(self._open, *(executed or (None, None))))
        self.step += observation.missed if self._recording else 0
        if observation.label.is_first:
            self._recording = True
        self._open = observation if self._recording else None
        if observation.label.is_last and self._recording:
            done.append(self._close(observation, None, None))
            self._open = None
            self._recording = self._continuous
        return done

    def end(self) -> list[Record]:
        """Close the open observation as the last of its episode: nobody sees how it would have gone on."""
        last, self._open = self._open, None
        self._recording = self._continuous
        return [] if last is None else [self._close(
            dataclasses.replace(last, label=last.label._replace(is_last=True)), None, None)]

    def interrupt(self, step: int | None = None) -> None:
        """Drop the open record, whose command nobody has watched, and its number; an operator's episode is over.

        `step`: the counter goes on there, since what was recorded from it on is dropped, too.
        """
        self.step = self.step + (self._open is not None) if step is None else step
        self._open, self._recording = None, self._continuous

    def _close(self, observation: Observation, command: Any, action: np.ndarray | None) -> Record:
        record = Record(observation, command, self.step, action)
        self.step += 1
        return record
