# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Where episodes of a foreign bag begin and end, and what each record earned. The importer of foreign bags uses it."""

from collections.abc import Iterator

from fosp_core.contract import Contract
from fosp_core.data.import_report import ImportReport
from fosp_core.data.import_spec import ImportSpec
from fosp_core.data.joiner import LABEL, Label, Step
from fosp_core.data.ranges import Ranges
from fosp_core.data.resample import Record

EPISODE = 'episode'     # name of the topic that says whether an episode runs


class EpisodeMarker:
    """Turns records into steps with reward, cost, flags and a counter; what lies in no episode is dropped.

    One step is held back, because its successor tells whether it was the last of its episode. A gap raises the counter
    by two, so that the assembler cuts there.
    """

    def __init__(self, contract: Contract, ranges: Ranges | None, report: ImportReport):
        self._spec: ImportSpec = contract.imports
        self._period = round(contract.period * 1e9)
        self._ranges, self._report = ranges, report
        self._held: Step | None = None
        self._held_at = 0
        self._counter = -1
        self._running = None            # what names the episode that runs (True, or its number), or None
        self._gap = False
        self._received: int | None = None
        self._metas: list[tuple[int, dict]] = []

    def meta_of(self, counter: int) -> dict:
        """What is known of the episode that holds the step with this counter."""
        found = [meta for first, meta in self._metas if first <= counter]
        self._metas = self._metas[len(found) - 1:] if found else self._metas
        return dict(found[-1]) if found else {}

    def add(self, record: Record) -> Iterator[Step]:
        """Take the next record; yield the steps that are settled by it."""
        self._gap |= record.gap
        reward, cost, flags = self._earned(record)
        since, self._received = self._received, record.received
        running = self._which(record, flags)
        began = running is not None and (running != self._running or (flags[0] and self._spec.episodes == 'label'))
        if began or running is None:
            yield from self._end(self._end_seen())
        if running is None:
            self._running, self._gap = None, False
            self._report.outside += 1
            return
        if self._ranges is not None:
            since = record.received - self._period if since is None else since
            reward += self._ranges.value(self._ranges.reward, since, record.received)
            cost = max(cost, self._ranges.value(self._ranges.cost, since, record.received))
        yield from self._release()
        # A gap between two episodes cuts nothing.
        self._counter += 2 if self._gap and not began else 1
        self._gap = False
        if began:
            meta = self._ranges.episodes[running].meta if isinstance(running, int) and running is not True else {}
            self._metas.append((self._counter, meta))
        continued, self._running = self._running is not None, running
        # Both at once, in the midst of an episode: it ended before this record, and this one begins the next.
        ends = self._spec.episodes == 'label' and flags[1] and not (flags[0] and continued)
        label = Label(reward, cost, began, ends, ends and flags[2], self._counter)
        self._held, self._held_at = Step(record.stamp, record.images, record.vectors, record.action,
                                         label), record.received
        if ends:
            self._running = None
            yield from self._release()

    def flush(self) -> Iterator[Step]:
        """End of the bag."""
        # Where the bag is the episode its end is the episode's; a label or a topic would still have to come.
        yield from self._end(self._spec.episodes == 'bag' or (self._spec.episodes == 'ranges' and self._end_seen()))

    def _end_seen(self) -> bool:
        """True when the step held back was the last of its episode, and not merely the last before a gap."""
        if self._held is None or self._running is None or self._spec.episodes == 'label':
            return False
        if self._spec.episodes == 'ranges':
            return self._ranges.episodes[self._running].end - self._held_at <= 2 * self._period
        return not self._gap

    def _end(self, real: bool) -> Iterator[Step]:
        if self._held is not None and real:
            step, label = self._held, self._held.label
            reward = label.reward
            if isinstance(self._running, int) and self._running is not True \
                    and self._ranges.episodes[self._running].success and reward <= 0:
                reward = 1.0
            label = label._replace(reward=reward, is_last=True, is_terminal=reward > 0)
            self._held = Step(step.stamp, step.images, step.vectors, step.action, label)
        yield from self._release()

    def _release(self) -> Iterator[Step]:
        step, self._held = self._held, None
        if step is not None:
            yield step

    def _earned(self, record: Record) -> tuple[float, float, tuple[bool, bool, bool]]:
        """Reward, cost and the label's flags since the record before."""
        label = record.events.get(LABEL) or (0.0, 0.0, False, False, False)
        reward, cost = label[0], label[1]
        for i in range(len(self._spec.reward)):
            reward += record.events[f'reward[{i}]'] or 0.0
        costs = [record.events[f'cost[{i}]'] or 0.0 for i in range(len(self._spec.cost))]
        return reward, cost + sum(costs), label[2:]

    def _which(self, record: Record, flags: tuple[bool, bool, bool]):
        """What names the episode of this record, or None."""
        episodes = self._spec.episodes
        if episodes == 'bag':
            return True
        if episodes == 'ranges':
            return self._ranges.episode(record.received)
        if episodes == 'label':
            return True if flags[0] or self._running is not None else None
        return True if record.events[EPISODE] else None
