# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What an importer met: counts per bag and, for foreign bags, per topic. Anyone may import it."""

import dataclasses
import statistics

from fosp_core.data.joiner import JoinCounts

_SAMPLE = 64        # intervals after which a topic's own period is known


@dataclasses.dataclass
class TopicCounts:
    """One topic of a foreign bag.

    messages: read. used: messages that went into a record (signals: all). doubled: same stamp as the one before.
    reordered: older than the one before. restarts: times at which its clock was set back. lost: messages that are
    missing by the topic's own period (an estimate; 0 for topics without one). missing: records that were dropped for
    want of this topic. log_time: messages taken at their time of receipt. clipped: actions cut at the limits.
    """

    messages: int = 0
    used: int = 0
    doubled: int = 0
    reordered: int = 0
    restarts: int = 0
    lost: int = 0
    missing: int = 0
    log_time: int = 0
    clipped: int = 0
    longest_gap_s: float = 0.0
    rate_hz: float = 0.0
    nearest_s: float | None = None      # of the records without: how far the nearest message was, signed

    def __post_init__(self):
        self._intervals: list[int] = []
        self._period = 0.0

    def interval(self, ns: int) -> None:
        """Note the time between two messages that follow each other."""
        self.longest_gap_s = max(self.longest_gap_s, ns * 1e-9)
        if self._period:
            self._count(ns)
            return
        self._intervals.append(ns)
        if len(self._intervals) >= _SAMPLE:
            self.settle()

    def settle(self) -> None:
        """Find the period from what has been seen; call it once more at the end of a bag."""
        if self._intervals and not self._period:
            self._period = statistics.median(self._intervals)
            self.rate_hz = 1e9 / self._period
            for ns in self._intervals:
                self._count(ns)
            self._intervals = []

    def _count(self, ns: int) -> None:
        if ns > 1.5 * self._period:
            self.lost += round(ns / self._period) - 1

    def text(self) -> str:
        """One line for people."""
        parts = [f'{self.messages} messages at {self.rate_hz:.1f} Hz, {self.used} used']
        names = {'lost': 'lost', 'doubled': 'doubled', 'reordered': 'out of order', 'restarts': 'clock restarts',
                 'missing': 'records dropped for want of it', 'log_time': 'without a stamp, taken at receipt',
                 'clipped': 'cut at the limits'}
        parts += [f'{getattr(self, key)} {text}' for key, text in names.items() if getattr(self, key)]
        if self.missing and self.nearest_s is not None:
            parts.append(f'the nearest was {self.nearest_s:+.3f} s away')
        if self.longest_gap_s > 0:
            parts.append(f'longest gap {self.longest_gap_s:.3f} s')
        return ', '.join(parts)

    def to_dict(self) -> dict:
        """Plain numbers for JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass
class ImportReport:
    """What the importer met, summed over the bags; filled by `read_episodes`."""

    counts: JoinCounts = dataclasses.field(default_factory=JoinCounts)
    episodes: int = 0
    gaps: int = 0       # times at which an episode was cut by missing steps
    short: int = 0      # single steps that make no episode
    outside: int = 0    # records of foreign bags that lie in no episode
    unseen: int = 0     # ranges with success whose end no record shows: they give no success
    topics: dict[str, TopicCounts] = dataclasses.field(default_factory=dict)    # of foreign bags, `BAG: TOPIC`

    def text(self) -> str:
        """One line for people."""
        c = self.counts
        return (f'{c.steps} steps in {self.episodes} episodes; {c.lost} steps lost, {c.doubled} messages doubled, '
                f'{c.reordered} reordered, {c.mismatched} stamps incomplete, {self.gaps} gaps, {c.restarts} restarts'
                + (f', {self.outside} records outside of episodes' if self.outside else '')
                + (f', {self.unseen} ranges with success whose end was not seen' if self.unseen else ''))

    def lines(self) -> list[str]:
        """One line per topic."""
        return [f'{name}: {counts.text()}' for name, counts in self.topics.items()]

    def add(self, other: 'ImportReport') -> None:
        """Add what was met in another bag."""
        self.counts += other.counts
        for name in ('episodes', 'gaps', 'short', 'outside', 'unseen'):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.topics.update(other.topics)
