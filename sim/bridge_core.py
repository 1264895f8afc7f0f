# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the simulation bridge decides, without ROS: which command acts, when episodes begin and end, who commands.

`bridge_node` alone imports it; time and stamps are arguments, so that each rule is tested in microseconds.
"""

import dataclasses

import numpy as np

SEQUENCE_REACH = 50     # a gap in one writer's sequence numbers up to which a message is still taken for its next


class CommandSlot:
    """Holds the newest command and says what the arm does with it: like a real arm it stops when commands cease.

    Parameters
    ----------
    size
        Entries of a command.
    timeout
        Seconds after its arrival until a command acts no more.

    """

    def __init__(self, size: int, timeout: float):
        self._zero = np.zeros(size)
        self._timeout = timeout
        self._not_before = 0
        self._command: tuple[np.ndarray, float] | None = None
        self.refused = 0    # not finite or of a wrong length
        self.old = 0        # answers to an observation of an earlier episode, or of longer ago than a command may act

    def clear(self, not_before: int) -> None:
        """Begin an episode whose first observation has stamp `not_before` (ns): earlier answers must not move it."""
        self._command, self._not_before = None, not_before

    def put(self, command, stamp: int, now: float, clock: int = 0) -> bool:
        """Take a command (size,) that arrived at monotonic `now`; False when it is not used. Stamp 0: unstamped.

        clock: the time (ns) by the clock that stamps the observations; what was held up on its way is no fresh command.
        A stop is taken however old it is, as the watchdog's has a stamp of another computer's clock.
        """
        command = np.asarray(command, float)
        if command.shape != self._zero.shape or not np.isfinite(command).all():
            self.refused += 1
            self._command = None    # what came last is unusable: stand still, do not go on with the one before
            return False
        if 0 < stamp < self._not_before or (0 < stamp < clock - round(1e9 * self._timeout) and command.any()):
            self.old += 1
            return False
        self._command = command, now
        return True

    def take(self, now: float) -> tuple[np.ndarray, bool]:
        """Return the command (size,) that acts now, and whether it is a fresh one; zeros otherwise."""
        if self._command is None or now - self._command[1] > self._timeout:
            return self._zero.copy(), False
        return self._command[0].copy(), True


class WriterWatch:
    """Counts commands of a second writer by the sequence numbers that each writer counts for itself.

    A filter that is started anew begins at 1 too, but then the old row of numbers never goes on: only rows that
    overlap in time are two writers, and the shorter row is the intruder's.
    """

    def __init__(self):
        self._rows: list[dict] = []
        self._count = 0

    def put(self, sequence: int) -> None:
        """Take the publication sequence number of one message."""
        self._count += 1
        near = [r for r in self._rows if 0 < sequence - r['last'] <= SEQUENCE_REACH
                and self._count - r['last_at'] <= SEQUENCE_REACH]
        if near:    # of equal rows the one that spoke last: a row that ended before a restart must stay ended
            row = min(near, key=lambda r: (sequence - r['last'], -r['last_at']))
        else:
            row = {'first_at': self._count, 'n': 0}
            self._rows = [*self._rows[-7:], row]
        row['last'], row['last_at'], row['n'] = sequence, self._count, row['n'] + 1

    @property
    def foreign(self) -> int:
        """Messages of writers other than the main one, since `clear`."""
        if not self._rows:
            return 0
        main = max(self._rows, key=lambda r: r['n'])
        return sum(r['n'] for r in self._rows if r is not main
                   and r['first_at'] < main['last_at'] and main['first_at'] < r['last_at'])

    def clear(self) -> None:
        """Begin to count anew; what is known of the writers stays."""
        for row in self._rows:
            row['n'], row['first_at'], row['last_at'] = 0, self._count, self._count


@dataclasses.dataclass(frozen=True)
class Tick:
    """What one control tick publishes; `result` is set on the last one of an episode that was not cut short."""

    observation: dict[str, np.ndarray]
    reward: float
    cost: float
    is_first: bool
    is_last: bool
    is_terminal: bool
    result: dict | None = None


class EpisodeLoop:
    """Runs `episodes` episodes of one environment with rising seeds, one tick at a time.

    After the last tick of an episode the next one resets; the order of events equals that of the Gymnasium loop, so
    that a policy sees through ROS what it sees in `fosp evaluate`.
    """

    def __init__(self, env, episodes: int, seed: int):
        self.env = env
        self.episodes, self.seed = episodes, seed
        self.done = 0
        self._reset_due = True
        self._return = self._cost = 0.0
        self._costs: dict[str, float] = {}
        self.steps = 0

    @property
    def finished(self) -> bool:
        """True when every episode has ended."""
        return self.done >= self.episodes

    @property
    def reset_due(self) -> bool:
        """True when the next tick resets instead of moving the arm."""
        return self._reset_due

    def tick(self, action, halt: bool = False) -> Tick:
        """Reset, or apply `action` (A,) in [-1, 1]; `halt` ends the episode with this tick, without a result."""
        if self._reset_due:
            observation, _ = self.env.reset(seed=self.seed + self.done)
            self._reset_due, self._return, self._cost, self._costs, self.steps = False, 0.0, 0.0, {}, 0
            return Tick(observation, 0.0, 0.0, True, False, False)
        observation, reward, cost, terminated, truncated, info = self.env.step(action)
        self._return += reward
        self._cost += cost
        for name, part in info.get('costs', {}).items():
            self._costs[name] = self._costs.get(name, 0.0) + part
        self.steps += 1
        last = terminated or truncated
        result = None
        if last:
            result = {'task': info['task'], 'seed': info['seed'], 'index': self.done, 'success': info['success'],
                      'violation': info['violation'], 'steps': self.steps, 'return': self._return,
                      'cost': self._cost, **self._costs}
            if 'min_clearance' in info:
                result['min_clearance'] = round(info['min_clearance'], 4)
            result |= {k: info[k] for k in ('goals', 'path_m') if k in info}
            self.done += 1
            self._reset_due = True
        return Tick(observation, reward, cost, False, last or halt, terminated, result)
