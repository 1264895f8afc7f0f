# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Makes replay records: observation, the command that was really executed, label, step counter. Pure Python.

The command of a tick is the newest one that the arm was sent before the next tick; only then is the record complete.
The last record of an episode has no command and is complete at once.
"""

import dataclasses
from typing import Any

import numpy as np

from fosp_ros.observing import Observation


@dataclasses.dataclass(frozen=True)
class Record:
    """One replay step. `command`: the executed command message, or None for no motion; `action`: it, normalised."""

    observation: Observation
    command: Any
    step: int
    action: np.ndarray | None = None


class Recorder:
    """Turns observations and executed commands, in their order of arrival, into records.

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
        self._command: tuple[Any, np.ndarray, float] | None = None
        self.step = 0  # counter of the next record; a jump tells the trainer that something is missing

    def command(self, message: Any, action: np.ndarray, now: float) -> None:
        """Note a command that was sent to the arm, and its normalised action (A,)."""
        self._command = (message, action, now)

    def executed(self, now: float) -> tuple[Any, np.ndarray] | None:
        """Return message and action of what the arm does now, None when it stands still."""
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

    def interrupt(self) -> None:
        """Drop the open record, whose command nobody has watched, and its number; an operator's episode is over."""
        self.step += self._open is not None
        self._open, self._recording = None, self._continuous

    def _close(self, observation: Observation, command: Any, action: np.ndarray | None) -> Record:
        record = Record(observation, command, self.step, action)
        self.step += 1
        return record
