# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Where episodes of a foreign bag begin and end, and what is of which. The importer of foreign bags uses it."""

from collections.abc import Callable, Iterator

from fosp_core.contract import Contract
from fosp_core.data.earnings import EPISODE, Earned, Earnings
from fosp_core.data.import_report import ImportReport
from fosp_core.data.import_spec import ImportSpec
from fosp_core.data.joiner import LABEL, Label, Step
from fosp_core.data.ranges import Range, Ranges
from fosp_core.data.resample import Record, Said

_NEVER = 2 ** 63 - 1    # ns; after every time of receipt


class EpisodeMarker:
    """Turns records into steps with reward, cost, flags and a counter; what lies in no episode is dropped.

    One step is held back, because its successor tells whether it was the last of its episode. A gap raises the counter
    by two, so that the assembler cuts there. What was said in a gap, or after an episode's last record, goes to the
    step held back: a collision after which nothing more was recorded is that episode's, and not the next one's.
    """

    def __init__(self, contract: Contract, ranges: Ranges | None, report: ImportReport):
        self._spec: ImportSpec = contract.imports
        self._period = round(contract.period * 1e9)
        self._ranges, self._report = ranges, report
        self._earnings = Earnings(self._spec, ranges)
        self._held: Step | None = None
        self._held_at = 0
        self._earned: Earned | None = None      # by the step held back
        self._counter = -1
        self._running = None            # what names the episode that runs (True, or its number), or None
        self._switch = False            # what the topic of episodes said last
        self._seen: set[int] = set()    # ranges whose end was seen
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
        since, self._received = self._received, record.received
        since = record.received - self._period if since is None else since
        flags = _flags(record.events)
        running = self._which(record, flags)
        began = running is not None and (running != self._running or (flags[0] and self._spec.episodes == 'label'))
        said = record.events
        if began or running is None:
            rest, until = self._credit(said)
            said, since = self._of_new(rest, running, record), max(since, until)
            yield from self._end(self._end_seen())
        elif self._gap:
            since, before = record.received - self._period, record.stamp - self._period
            said, _ = self._credit(said, lambda entry: entry.stamp <= before, since)
        earned = self._earnings.of(said, since, record.received)
        if running is None:
            self._running, self._gap = None, False
            self._report.outside += 1
            return
        yield from self._release()
        # A gap between two episodes cuts nothing.
        self._counter += 2 if self._gap and not began else 1
        self._gap = False
        continued, self._running = self._running is not None, running
        if began:
            self._metas.append((self._counter, self._range.meta if self._range else {}))
        # Both at once, in the midst of an episode: it ended before this record, and this one begins the next.
        ends = self._spec.episodes == 'label' and flags[1] and not (flags[0] and continued)
        label = Label(earned.reward, earned.cost, began, ends, ends and flags[2], self._counter)
        self._held = Step(record.stamp, record.images, record.vectors, record.action, label)
        self._held_at, self._earned = record.received, earned
        if ends:
            self._running = None
            yield from self._release()

    def flush(self, said: dict[str, list[Said]]) -> Iterator[Step]:
        """End of the bag; `said` is what came after its last record."""
        self._credit(said)
        # Where the bag is the episode its end is the episode's; a label or a topic would still have to come.
        yield from self._end(self._spec.episodes == 'bag' or (self._spec.episodes == 'ranges' and self._end_seen()))
        if self._spec.episodes == 'ranges':
            self._report.unseen += sum(r.success for i, r in enumerate(self._ranges.episodes) if i not in self._seen)

    @property
    def _range(self) -> Range | None:
        """The range that runs, where episodes are ranges."""
        return self._ranges.episodes[self._running] if self._spec.episodes == 'ranges' and self._running is not None \
            else None

    def _credit(self, said: dict[str, list[Said]], mine: Callable[[Said], bool] | None = None,
                until: int = 0) -> tuple[dict[str, list[Said]], int]:
        """Give the step held back what is of its episode: by `mine`, or up to the episode's end; return the rest, and
        the time of receipt up to which it was given (0: nothing is held).
        """
        if self._held is None:
            return said, 0
        if mine is None:
            mine, until = self._ending(said)
        left, rest = _parted(said, mine)
        self._earned = self._earnings.longer(self._earned, left, until)
        step = self._held
        label = step.label._replace(reward=self._earned.reward, cost=self._earned.cost)
        self._held = Step(step.stamp, step.images, step.vectors, step.action, label)
        return rest, until

    def _ending(self, said: dict[str, list[Said]]) -> tuple[Callable[[Said], bool], int]:
        """Return what tells whether something was said before the end of the episode that runs, and when that was."""
        if (span := self._range) is not None:
            return lambda entry: entry.received <= span.end, span.end
        if self._spec.episodes == 'label':
            end = next((entry for entry in said[LABEL] if entry.value[2]), None)
            return (lambda entry: end is None or entry.stamp < end.stamp), end.received if end else _NEVER
        end = next((entry for entry in said.get(EPISODE, ()) if not entry.value), None)
        return (lambda entry: end is None or entry.stamp <= end.stamp), end.received if end else _NEVER

    def _of_new(self, said: dict[str, list[Said]], running, record: Record) -> dict[str, list[Said]]:
        """What is of an episode that begins with `record`; before a gap anything may have happened."""
        if self._spec.episodes == 'bag':
            return said
        ranged = self._spec.episodes == 'ranges'
        if ranged:
            begin = _NEVER if running is None else self._ranges.episodes[running].start
        else:
            begin = record.stamp - self._period + 1 if self._gap else 0
        old, new = _parted(said, lambda entry: (entry.received if ranged else entry.stamp) < begin)
        self._earnings.hear(old)
        return new

    def _end_seen(self) -> bool:
        """True when the step held back was the last of its episode, and not merely the last before a gap."""
        if self._held is None or self._running is None or self._spec.episodes == 'label':
            return False
        if self._range is not None:
            return self._range.end - self._held_at <= 2 * self._period
        return not self._gap

    def _end(self, real: bool) -> Iterator[Step]:
        if self._held is not None and real:
            step, label = self._held, self._held.label
            reward = label.reward
            if self._range is not None:
                self._seen.add(self._running)
                if self._range.success and reward <= 0:
                    reward = 1.0
            label = label._replace(reward=reward, is_last=True, is_terminal=reward > 0)
            self._held = Step(step.stamp, step.images, step.vectors, step.action, label)
        yield from self._release()

    def _release(self) -> Iterator[Step]:
        step, self._held = self._held, None
        if step is not None:
            yield step

    def _which(self, record: Record, flags: tuple[bool, bool, bool]):
        """What names the episode of this record, or None."""
        episodes = self._spec.episodes
        if episodes == 'bag':
            return True
        if episodes == 'ranges':
            return self._ranges.episode(record.received)
        if episodes == 'label':
            return True if flags[0] or self._running is not None else None
        for entry in record.events[EPISODE]:
            self._switch = entry.value
        return True if self._switch else None


def _parted(said: dict[str, list[Said]], first: Callable[[Said], bool]) -> tuple[dict, dict]:
    """Part what was said into that for which `first` is true and the rest."""
    return tuple({name: [entry for entry in entries if first(entry) == side] for name, entries in said.items()}
                 for side in (True, False))


def _flags(said: dict[str, list[Said]]) -> tuple[bool, bool, bool]:
    """Whether a label said is_first, is_last and is_terminal."""
    return tuple(any(entry.value[2 + i] for entry in said.get(LABEL, ())) for i in range(3))
