# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From single replay messages to steps, and from steps to episodes. No ROS, no clock; anyone may import it.

The same code runs behind the trainer's subscriptions and behind the bag importer. One step is the set of replay
messages with equal stamps; its step counter, carried by the label, tells what was lost, so that no episode and
therefore no training window ever crosses a gap.
"""

import collections
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from fosp_core.contract import Contract
from fosp_core.data.episode import Episode
from fosp_core.errors import ContractError

ACTION, LABEL = 'action', 'label'
POLICIES = ('offline', 'online')    # by index of policy expansion's candidates
JUMP_S = 1.0                        # between two records of one episode; more, and something is missing


class Label(NamedTuple):
    """What was received on arrival at an observation, the episode flags, the step counter, and which policy proposed.

    `policy` is offline or online, or empty where no expansion chose; the action recorded is what was executed.
    """

    reward: float
    cost: float
    is_first: bool
    is_last: bool
    is_terminal: bool
    step: int
    policy: str = ''


@dataclasses.dataclass(frozen=True)
class Step:
    """One complete record: all messages of one stamp (ns)."""

    stamp: int
    images: dict[str, np.ndarray]
    vectors: dict[str, np.ndarray]
    action: np.ndarray
    label: Label


@dataclasses.dataclass
class JoinCounts:
    """What happened to the messages so far; published in diagnostics and printed by `fosp bag-info`.

    steps: complete steps handed out. lost: step numbers that never became complete. doubled: messages that came twice
    (same topic, same stamp). reordered: messages with an older stamp than one before them on the same topic, messages
    of a stamp that had been given up, and complete steps that came after their successors were out. mismatched:
    stamps given up because not every topic had a message of that very stamp. restarts: times at which the counter
    began anew. unseen: step numbers before the first one handed out, also before that of a counter that began anew.
    They were lost or were never sent to this listener, which may have come late: nobody can tell here.
    """

    steps: int = 0
    lost: int = 0
    doubled: int = 0
    reordered: int = 0
    mismatched: int = 0
    restarts: int = 0
    unseen: int = 0

    @property
    def clean(self) -> bool:
        """True when nothing was lost, doubled, reordered or mismatched."""
        return not (self.lost or self.doubled or self.reordered or self.mismatched)

    def __iadd__(self, other: 'JoinCounts') -> 'JoinCounts':
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        return self


def kinds(contract: Contract) -> tuple[str, ...]:
    """Names of the messages that make a step: cameras, vectors, `action`, `label`."""
    names = contract.observation_names
    for reserved in (ACTION, LABEL):
        if reserved in names:
            raise ContractError(f'contract {contract.name!r}: observation name {reserved!r} is reserved for the '
                                f'replay topic replay/{reserved}')
    return (*names, ACTION, LABEL)


class StepJoiner:
    """Joins messages by equal stamps and hands the steps out in the order of their counter.

    A step whose predecessor is missing is held back until `window` later steps are complete, or `flush`. At most
    `max_pending` incomplete stamps are held.
    """

    def __init__(self, contract: Contract, window: int = 8, max_pending: int = 256):
        self.kinds = frozenset(kinds(contract))
        self.counts = JoinCounts()
        self._cameras = tuple(c.name for c in contract.cameras)
        self._vectors = tuple(v.name for v in contract.vectors)
        self._window, self._max_pending = window, max_pending
        self._pending: dict[int, dict[str, Any]] = {}          # stamp -> what has come so far
        self._ready: dict[tuple[int, int], Step] = {}          # (session, counter) -> complete, not handed out yet
        self._done: collections.OrderedDict[int, bool] = collections.OrderedDict()  # stamp -> was it complete
        self._newest: dict[str, int] = {}                      # kind -> newest stamp seen
        self._top: tuple[tuple[int, int], int] | None = None   # key and stamp of the furthest complete step
        self._last: tuple[tuple[int, int], int] | None = None  # key and stamp of the step handed out last
        self._late = 0                                         # complete steps in a row that came too late

    @property
    def pending(self) -> int:
        """Stamps that wait for more messages, and complete steps that wait for a predecessor."""
        return len(self._pending) + len(self._ready)

    @property
    def held(self) -> int:
        """Complete steps that wait for a predecessor."""
        return len(self._ready)

    def push(self, kind: str, stamp: int, payload) -> list[Step]:
        """Take one message; return the steps that it makes available, mostly none or one."""
        if kind not in self.kinds:
            raise ValueError(f'{kind!r} is no replay message of this contract, expected one of {sorted(self.kinds)}')
        slot = self._pending.get(stamp)
        if stamp in self._done:
            # Another message of a step that was handed out, or a straggler of one that was given up.
            self.counts.doubled += self._done[stamp]
            self.counts.reordered += not self._done[stamp]
            return []
        if slot is not None and kind in slot:
            self.counts.doubled += 1
            return []
        newest = self._newest.get(kind)
        if newest is None or stamp > newest:
            self._newest[kind] = stamp
        else:
            self.counts.reordered += 1
        if slot is None:
            slot = self._pending[stamp] = {}
            if len(self._pending) > self._max_pending:
                self._give_up(next(iter(self._pending)))
        slot[kind] = payload
        if len(slot) < len(self.kinds):
            return []
        del self._pending[stamp]
        self._remember(stamp, True)
        self._complete(Step(stamp, {k: slot[k] for k in self._cameras}, {k: slot[k] for k in self._vectors},
                            slot[ACTION], slot[LABEL]))
        return self._drain(force=False)

    def flush(self) -> list[Step]:
        """End of the bag, or of a session: hand out what is complete, give up the rest."""
        steps = self._drain(force=True)
        # Lost at the very end: no later counter tells, so the messages left over must.
        left = collections.Counter()
        for stamp, slot in self._pending.items():
            if self._last is None or stamp > self._last[1]:
                left.update(slot.keys())
        self.counts.lost += max(left.values(), default=0)
        for stamp in list(self._pending):
            self._give_up(stamp)
        return steps

    def _complete(self, step: Step) -> None:
        counter = step.label.step
        if self._top is None:
            key = (0, counter)
        else:
            (session, top), stamp = self._top
            # A counter that did not rise under a newer stamp: the learner was started anew.
            key = (session + 1 if counter <= top and step.stamp > stamp else session, counter)
        if self._last is not None and key <= self._last[0]:
            self.counts.reordered += 1
            self._late += 1
            if self._late < self._window:
                return
            # So many in a row are no stragglers: the clock was set back, or another bag is being played.
            key = (self._top[0][0] + 1, counter)
        if key in self._ready:
            self.counts.doubled += 1
            return
        self._late = 0
        self._ready[key] = step
        if self._top is None or key > self._top[0]:
            self._top = (key, step.stamp)

    def _drain(self, force: bool) -> list[Step]:
        steps = []
        while self._ready:
            key = min(self._ready)
            if not (force or len(self._ready) > self._window or self._follows(key, self._ready[key])):
                break
            step = self._ready.pop(key)
            if self._last is not None and self._last[0][0] == key[0]:
                self.counts.lost += key[1] - self._last[0][1] - 1
            else:
                self.counts.restarts += self._last is not None
                self.counts.unseen += key[1]
            if self._last is not None and step.stamp < self._last[1]:
                # The clock was set back: what comes now is older than what came, and in order all the same.
                self._newest = dict.fromkeys(self._newest, step.stamp)
            self._last = (key, step.stamp)
            self.counts.steps += 1
            steps.append(step)
            for stamp in [s for s in self._pending if s < step.stamp]:
                self._give_up(stamp)
        return steps

    def _follows(self, key: tuple[int, int], step: Step) -> bool:
        """True when nothing can come any more that belongs before `step`."""
        if self._last is not None and key == (self._last[0][0], self._last[0][1] + 1):
            return True
        begins = step.label.is_first and (self._last is None or key[0] > self._last[0][0])
        return begins and not any(stamp < step.stamp for stamp in self._pending)

    def _give_up(self, stamp: int) -> None:
        del self._pending[stamp]
        self.counts.mismatched += 1
        self._remember(stamp, False)

    def _remember(self, stamp: int, complete: bool) -> None:
        """Note for a while that this stamp is done with, so that a message of it that still comes is seen."""
        self._done[stamp] = complete
        if len(self._done) > 4 * self._max_pending:
            self._done.popitem(last=False)


class EpisodeAssembler:
    """Collects steps into episodes; a gap in the counter or a jump of the stamps ends one fragment and begins another.

    The stamps are looked at because a learner that was started anew may go on with the very counter at which the old
    one ended, when the first steps of the new one are lost.

    A fragment has `meta['gap']` set and `is_first` forced on its first record, and no `is_last` unless its real end
    was seen. One step alone makes no episode: it is dropped and counted in `short`. After `max_steps` without an end
    the episode is cut in the same way, so that a forgotten label cannot fill the memory.
    """

    def __init__(self, contract: Contract, max_steps: int = 4096):
        self.contract = contract
        self.gaps = 0
        self.short = 0
        self._max_steps = max_steps
        self._jump = max(JUMP_S, 3 * contract.period) * 1e9
        self._steps: list[Step] = []
        self._gap = False

    @property
    def open_steps(self) -> int:
        """Steps of the episode that has not ended yet."""
        return len(self._steps)

    def add(self, step: Step) -> Episode | None:
        """Take the next step; return the episode or fragment that it ends, if any."""
        done = None
        if self._steps:
            before = self._steps[-1]
            gap = step.label.step != before.label.step + 1 or step.stamp <= before.stamp or (
                step.stamp - before.stamp > self._jump and not step.label.is_first)
            self.gaps += gap
            if gap or step.label.is_first or len(self._steps) >= self._max_steps:
                self._gap |= gap
                done = self.flush()
        if not self._steps:
            self._gap = not step.label.is_first
        self._steps.append(step)
        if step.label.is_last:
            # A single step that both begins and ends makes no episode, so `done` is never overwritten by one.
            ended = self.flush()
            done = done or ended
        return done

    def flush(self) -> Episode | None:
        """Return what has been collected, as the last episode, if it has two steps or more."""
        steps, self._steps = self._steps, []
        if not steps:
            return None
        if len(steps) < 2:
            self.short += 1
            return None
        contract = self.contract
        first = np.zeros(len(steps), bool)
        first[0] = True
        return Episode(
            images={c.name: np.stack([s.images[c.name] for s in steps]) for c in contract.cameras},
            vectors={v.name: np.stack([s.vectors[v.name] for s in steps]) for v in contract.vectors},
            action=np.stack([s.action for s in steps]),
            reward=np.array([s.label.reward for s in steps], np.float32),
            cost=np.array([s.label.cost for s in steps], np.float32),
            is_first=first,
            is_last=np.array([s.label.is_last for s in steps], bool),
            is_terminal=np.array([s.label.is_terminal for s in steps], bool),
            stamp=np.array([s.stamp for s in steps], np.int64),
            step=np.array([s.label.step for s in steps], np.int64),
            meta=({'gap': True} if self._gap else {}) | _who_acted(steps))


def _who_acted(steps: list[Step]) -> dict:
    # The last record's action is never executed.
    known = [s.label.policy == POLICIES[1] for s in steps[:-1] if s.label.policy in POLICIES]
    return {'online_share': round(sum(known) / len(known), 4)} if known else {}
