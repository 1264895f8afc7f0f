# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a record of a foreign bag earned: reward and cost of all that was said in its time. For the importer alone."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from fosp_core.data.import_spec import ImportSpec
from fosp_core.data.joiner import LABEL
from fosp_core.data.ranges import Ranges
from fosp_core.data.resample import Said

EPISODE = 'episode'     # name of the topic that says whether an episode runs
_MERGE = {'max': max, 'sum': lambda a, b: a + b, 'last': lambda a, b: b, 'hold': max}


def merge_of(spec: ImportSpec, name: str) -> Callable[[Any, Any], Any]:
    """What makes one value of two that a label or signal (`reward[0]`, `cost[1]`) gave."""
    return _joined if name == LABEL else _MERGE['last' if name == EPISODE else _source(spec, name).combine]


def _source(spec: ImportSpec, name: str):
    kind, _, index = name.rstrip(']').partition('[')
    return getattr(spec, kind)[int(index)]


def _joined(a: tuple, b: tuple) -> tuple:
    return (max(a[0], b[0]), max(a[1], b[1]), *(x or y for x, y in zip(a[2:], b[2:])))


@dataclasses.dataclass
class Earned:
    """Reward and cost of the time after `since` up to a record (receipt, ns), and the value of each signal in it."""

    since: int
    reward: float
    cost: float
    values: dict[str, Any]


class Earnings:
    """Adds up what labels, signals and ranges say of one record's time; remembers the signals that stand (`hold`)."""

    def __init__(self, spec: ImportSpec, ranges: Ranges | None):
        self._ranges = ranges
        names = [f'{kind}[{i}]' for kind in ('reward', 'cost') for i in range(len(getattr(spec, kind)))]
        self._stands: dict[str, Any] = {n: None for n in names if _source(spec, n).combine == 'hold'}
        self._merge = {name: merge_of(spec, name) for name in [*names, *([LABEL] if spec.label else [])]}

    def of(self, said: dict[str, list[Said]], since: int, until: int) -> Earned:
        """What a record earned that was received at `until`."""
        return self._total(since, until, {name: self._merged(name, self._stands.get(name), said.get(name, ()))
                                          for name in self._merge})

    def longer(self, earned: Earned, said: dict[str, list[Said]], until: int) -> Earned:
        """The same with its time made longer, up to `until`: no record came. What more is said takes no cost away."""
        more = self._total(earned.since, until, {name: self._merged(name, earned.values[name], said.get(name, ()))
                                                 for name in self._merge})
        return dataclasses.replace(more, cost=max(more.cost, earned.cost))

    def hear(self, said: dict[str, list[Said]]) -> None:
        """Take note of what belongs to no record."""
        for name in self._stands:
            self._merged(name, None, said.get(name, ()))

    def _merged(self, name: str, value, said: Iterable[Said]):
        for entry in said:
            value = entry.value if value is None else self._merge[name](value, entry.value)
            if name in self._stands:
                self._stands[name] = entry.value
        return value

    def _total(self, since: int, until: int, values: dict[str, Any]) -> Earned:
        reward, cost = (values.get(LABEL) or (0.0, 0.0))[:2]
        reward += sum(v or 0.0 for name, v in values.items() if name.startswith('reward'))
        cost += sum(v or 0.0 for name, v in values.items() if name.startswith('cost'))
        if self._ranges is not None:
            reward += self._ranges.value(self._ranges.reward, since, until)
            cost = max(cost, self._ranges.value(self._ranges.cost, since, until))
        return Earned(since, reward, cost, values)
