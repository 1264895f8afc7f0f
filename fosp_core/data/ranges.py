# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Episodes, success, rewards and costs of a bag from a YAML file of time ranges beside it. Anyone may import it.

    clock: bag                  # seconds since the bag's first message; or unix
    episodes:
      - {start: 2.0, end: 14.5, success: true, policy: teleop}
    cost:
      - {start: 9.1, end: 9.6, value: 1.0}
    reward:
      - {start: 14.2, end: 14.5, value: 1.0}

Times are those of receipt, as `ros2 bag info` and `ros2 bag play` count them. Each range must lie within the bag.
"""

import bisect
import dataclasses
from pathlib import Path

import yaml

from fosp_core.data.messages import LARGEST
from fosp_core.errors import DataError

_SLACK = 1_000_000      # ns; people round to milliseconds
_MAX_BYTES = 8 << 20
_PLAIN = (str, int, float, bool)


@dataclasses.dataclass(frozen=True)
class Range:
    """From `start` to `end`, both included, ns since 1970."""

    start: int
    end: int
    value: float = 1.0
    success: bool = False
    meta: dict = dataclasses.field(default_factory=dict)


class Ranges:
    """The ranges of one bag.

    Parameters
    ----------
    file
        The YAML file.
    first, last
        Times of receipt of the bag's first and last message, ns.

    Raises
    ------
    DataError
        Naming file, entry and key: not YAML, unknown keys, an end before its start, ranges outside of the bag,
        episodes that overlap, a cost or reward outside of all episodes.

    """

    def __init__(self, file: Path, first: int, last: int):
        self.file = file
        try:
            if file.stat().st_size > _MAX_BYTES:
                raise DataError(f'{file}: {file.stat().st_size} bytes, expected at most {_MAX_BYTES}')
            data = yaml.safe_load(file.read_text())
        except FileNotFoundError:
            raise DataError(f"{file}: no such file (key ranges of the contract's import section)") from None
        except OSError as error:
            raise DataError(f'{file}: {error.strerror}') from None
        except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError) as error:
            raise DataError(f'{file}: not YAML: {" ".join(str(error).split())[:300]}') from None
        if not isinstance(data, dict):
            raise DataError(f'{file}: expected a mapping with episodes, cost or reward')
        if unknown := [str(k) for k in data if k not in ('clock', 'episodes', 'cost', 'reward')]:
            raise DataError(f'{file}: unknown key {", ".join(unknown)[:200]}, expected clock, episodes, cost, reward')
        clock = data.get('clock', 'bag')
        if clock not in ('bag', 'unix'):
            raise DataError(f'{file}: key clock is {str(clock)[:80]!r}, expected bag or unix')
        self._span = (first if clock == 'bag' else 0), first, last
        self.episodes = self._read(data, 'episodes')
        self.cost, self.reward = self._read(data, 'cost'), self._read(data, 'reward')
        for before, after in zip(self.episodes, self.episodes[1:]):
            if after.start <= before.end:
                raise DataError(f'{file}: episodes overlap: one ends at {self._say(before.end)}, the next starts at '
                                f'{self._say(after.start)}')
        self._starts = [r.start for r in self.episodes]
        for name, found in (('cost', self.cost), ('reward', self.reward)):
            for r in found if self.episodes else ():
                if not any(e.start <= r.end and r.start <= e.end for e in self.episodes):
                    raise DataError(f'{file}: {name} from {self._say(r.start)} to {self._say(r.end)} lies in no '
                                    'episode')

    def episode(self, received: int) -> int | None:
        """Index of the episode at this time."""
        i = bisect.bisect_right(self._starts, received) - 1
        return i if i >= 0 and received <= self.episodes[i].end else None

    @staticmethod
    def value(ranges: list[Range], since: int, until: int) -> float:
        """Largest value (by size) of the ranges that touch the time after `since` up to `until`."""
        return max((r.value for r in ranges if r.start <= until and r.end > since), key=abs, default=0.0)

    def _say(self, ns: int) -> str:
        return f'{(ns - self._span[0]) * 1e-9:.3f} s'

    def _read(self, data: dict, key: str) -> list[Range]:
        entries = data.get(key)
        entries = [] if entries is None else entries
        if not isinstance(entries, list):
            raise DataError(f'{self.file}: key {key} is no list')
        return sorted((self._range(entry, f'{self.file}: {key}[{i}]', key) for i, entry in enumerate(entries)),
                      key=lambda r: r.start)

    def _range(self, entry, where: str, key: str) -> Range:
        if not isinstance(entry, dict):
            raise DataError(f'{where}: expected a mapping with start and end')
        rest = {str(k): v for k, v in entry.items()}
        origin, first, last = self._span
        times = []
        for name in ('start', 'end'):
            value = rest.pop(name, None)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < 1e11:
                raise DataError(f'{where}: key {name} is {str(value)[:80]}, expected seconds')
            times.append(origin + round(value * 1e9))
            if not first - _SLACK <= times[-1] <= last + _SLACK:
                raise DataError(f'{where}: key {name} is {value:g} s, but the bag goes from '
                                f'{(first - origin) * 1e-9:.3f} to {(last - origin) * 1e-9:.3f} s')
        if times[1] <= times[0]:
            raise DataError(f'{where}: it ends at {self._say(times[1])}, not after its start, {self._say(times[0])}')
        if key == 'episodes':
            success = rest.pop('success', False)
            if not isinstance(success, bool):
                raise DataError(f'{where}: key success is {str(success)[:80]}, expected true or false')
            if wrong := [k for k, v in rest.items() if not isinstance(v, _PLAIN)]:
                raise DataError(f'{where}: key {wrong[0]} is neither text nor a number')
            return Range(*times, success=success, meta=rest)
        value = rest.pop('value', 1.0)
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST
        if not good or (key == 'cost' and value < 0):
            raise DataError(f'{where}: key value is {str(value)[:80]}, expected a number'
                            f'{" of 0 or more" if key == "cost" else ""}')
        if rest:
            raise DataError(f'{where}: unknown key {", ".join(rest)[:200]}, expected start, end, value')
        return Range(*times, value=float(value))
