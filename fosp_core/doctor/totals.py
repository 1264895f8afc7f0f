# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Figures of a data set, summed one episode at a time: what `fosp inspect` prints and judges. Numpy alone.

Memory: sums, one histogram, and per episode its length, one colour per camera and 8 bytes of its hash.
"""

import array
import math

import numpy as np

from fosp_core.contract import Contract
from fosp_core.data.episode import Episode
from fosp_core.data.store import episode_digest

# Intervals between records as multiples of the contract's period, in bins one per cent wide around 1.01 ** k.
_EDGES = 1.01 ** (np.arange(-463, 465) - 0.5)
SATURATED = 0.999       # of the normalised action
DARK, BRIGHT = 16, 250  # grey levels


class Spread:
    """Least, greatest, mean and deviation of each dimension; `share` counts records that meet a condition."""

    def __init__(self, size: int):
        self.count = 0
        self.low, self.high = np.full(size, np.inf), np.full(size, -np.inf)
        self._sum, self._squares, self.met = np.zeros(size), np.zeros(size), np.zeros(size)

    def add(self, values: np.ndarray, met: np.ndarray | None = None) -> None:
        """Take (n, size) values; `met`, as large, says which of them meet the condition."""
        if not len(values):
            return
        values = np.asarray(values, np.float64)
        self.count += len(values)
        self.low, self.high = np.minimum(self.low, values.min(0)), np.maximum(self.high, values.max(0))
        self._sum += values.sum(0)
        self._squares += (values ** 2).sum(0)
        if met is not None:
            self.met += met.sum(0)

    @property
    def mean(self) -> np.ndarray:
        """Mean of each dimension."""
        return self._sum / max(self.count, 1)

    @property
    def std(self) -> np.ndarray:
        """Deviation of each dimension."""
        return np.sqrt(np.maximum(self._squares / max(self.count, 1) - self.mean ** 2, 0.0))


class CameraTotals:
    """Figures of one camera."""

    def __init__(self):
        self.frames = self.pairs = self.doubled = self.dark = self.bright = self.flat = 0
        self._colour, self._coloured = np.zeros(3), 0
        self.warmth = array.array('f')      # per episode: (first - third channel) / sum of all; NaN when grey

    @property
    def colour(self) -> np.ndarray:
        """Mean of each channel over all frames that are neither dark nor bright, grey levels."""
        return self._colour / max(self._coloured, 1)

    def add(self, frames: np.ndarray, dark: np.ndarray, bright: np.ndarray, flat: np.ndarray,
            same: np.ndarray) -> None:
        """Take (T, H, W, C) uint8 and what `Seen` says of them."""
        self.frames += len(frames)
        self.dark, self.bright, self.flat = self.dark + int(dark.sum()), self.bright + int(bright.sum()), \
            self.flat + int(flat.sum())
        self.pairs += len(same)
        self.doubled += int(same.sum())
        good = frames[~(dark | bright)]
        if frames.shape[-1] == 3 and len(good):
            mean = good.reshape(len(good), -1, 3).mean(1, dtype=np.float32).sum(0, dtype=np.float64)
            self._colour += mean
            self._coloured += len(good)
            self.warmth.append((mean[0] - mean[2]) / max(mean.sum(), 1e-9))
        else:
            self.warmth.append(math.nan)


class Totals:
    """Everything that is summed over the episodes of one or more sources."""

    def __init__(self, contract: Contract):
        self.contract = contract
        self.lengths = array.array('q')
        self.successes = self.violations = self.cost_records = self.reward_records = 0
        self.returns = self.costs = 0.0
        self.fragments = self.unended = 0
        self.vectors = {v.name: Spread(v.size) for v in contract.vectors}
        self.action = Spread(contract.action.size)
        self.idle = 0               # actions that are all but zero
        self.cameras = {c.name: CameraTotals() for c in contract.cameras}
        self.intervals = np.zeros(len(_EDGES) + 1, np.int64)
        self.duplicates: list[tuple[int, int]] = []     # (episode, the earlier one that it equals), at most 20
        self.duplicated = 0
        self._seen: dict[int, int] = {}

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return len(self.lengths)

    @property
    def steps(self) -> int:
        """Number of records."""
        return sum(self.lengths)

    def add(self, episode: Episode, seen: 'Seen') -> None:
        """Take one episode whose keys, shapes and types are those of the contract."""
        number = self.episodes
        self.lengths.append(len(episode))
        self.successes += episode.success
        self.violations += episode.violation
        self.cost_records += int((episode.cost[1:] > 0).sum())
        self.reward_records += int((episode.reward[1:] > 0).sum())
        self.returns += _sum(episode.reward)
        self.costs += _sum(episode.cost)
        gap = bool(episode.meta.get('gap'))
        self.fragments += gap
        self.unended += not gap and not episode.is_last[-1]
        for name, spread in self.vectors.items():
            values = episode.vectors[name]
            spread.add(values[np.isfinite(values).all(1)])
        action = episode.action[:-1]        # the last one is never executed
        action = action[np.isfinite(action).all(1)]
        self.action.add(action, np.abs(action) >= SATURATED)
        self.idle += int((np.abs(action) < 1e-3).all(1).sum())
        for name, camera in self.cameras.items():
            camera.add(episode.images[name], *seen.exposure(name), seen.unchanged(name))
        period = self.contract.period * 1e9
        self.intervals += np.bincount(np.searchsorted(_EDGES, np.diff(episode.stamp) / period),
                                      minlength=len(self.intervals))
        key = int(episode_digest(episode)[:16], 16)
        if key in self._seen:
            self.duplicated += 1
            if len(self.duplicates) < 20:
                self.duplicates.append((number, self._seen[key]))
        else:
            self._seen[key] = number

    @property
    def median_interval(self) -> float:
        """Median interval between two records as a multiple of the contract's period; to one per cent."""
        total = int(self.intervals.sum())
        if not total:
            return math.nan
        index = int(np.searchsorted(np.cumsum(self.intervals), (total + 1) // 2))
        index = min(max(index, 1), len(_EDGES) - 1)
        return float(math.sqrt(_EDGES[index - 1] * _EDGES[index]))

    def share_slower(self, factor: float) -> float:
        """Share of intervals longer than `factor` periods."""
        return float(self.intervals[np.searchsorted(_EDGES, factor) + 1:].sum() / max(self.intervals.sum(), 1))

    def to_dict(self) -> dict:
        """Figures for the JSON and the table; rates are fractions, lengths are records."""
        n, c = self.episodes, self.contract
        lengths = np.array(self.lengths)
        return {
            'episodes': n, 'steps': self.steps,
            'length': {'min': int(lengths.min()), 'median': float(np.median(lengths)), 'max': int(lengths.max())}
            if n else None,
            'rate_hz': c.rate_hz / self.median_interval if n else None, 'late': self.share_slower(1.5),
            'sr': self.successes / n if n else None, 'cv': self.violations / n if n else None,
            'mean_return': self.returns / n if n else None, 'mean_cost': self.costs / n if n else None,
            'fragments': self.fragments, 'unended': self.unended, 'duplicate_episodes': self.duplicated,
            'cameras': {name: {'frames': t.frames, 'doubled': t.doubled, 'dark': t.dark, 'bright': t.bright,
                               'flat': t.flat, 'colour': [round(float(v), 2) for v in t.colour]}
                        for name, t in self.cameras.items()},
            'vectors': {v.name: _table(v.fields, self.vectors[v.name]) for v in c.vectors},
            'action': _table(c.action.fields, self.action, 'saturated')}


def _sum(values: np.ndarray) -> float:
    """Sum of the finite ones; in double precision, in which no sum of float32 leaves the range."""
    return float(values[np.isfinite(values)].sum(dtype=np.float64))


def _table(fields: tuple[str, ...], spread: Spread, met: str | None = None) -> list[dict]:
    if not spread.count:
        return []
    rows = [{'field': name, 'min': float(lo), 'max': float(hi), 'mean': float(mean), 'std': float(std)}
            for name, lo, hi, mean, std in zip(fields, spread.low, spread.high, spread.mean, spread.std)]
    if met:
        for row, count in zip(rows, spread.met):
            row[met] = float(count / spread.count)
    return rows


class Seen:
    """What several checks want to know of the pictures of an episode, looked at once."""

    def __init__(self, episode: Episode):
        self._images, self._exposure, self._unchanged = episode.images, {}, {}

    def exposure(self, camera: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `exposure`."""
        if camera not in self._exposure:
            self._exposure[camera] = exposure(self._images[camera])
        return self._exposure[camera]

    def unchanged(self, camera: str) -> np.ndarray:
        """See `unchanged`."""
        if camera not in self._unchanged:
            self._unchanged[camera] = unchanged(self._images[camera])
        return self._unchanged[camera]


def unchanged(frames: np.ndarray) -> np.ndarray:
    """Return bool (T - 1,): is frame t + 1 the same as frame t, bit for bit."""
    flat = frames.reshape(len(frames), -1)
    return np.fromiter((np.array_equal(a, b) for a, b in zip(flat[1:], flat[:-1])), bool, len(flat) - 1)


def exposure(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return bool (T,) each: dark (99 % of the values below DARK), bright (60 % at BRIGHT or above), flat (neither, but
    all values within 8 grey levels of each other, channel by channel).
    """
    rows = frames.reshape(len(frames), -1)
    count = rows.shape[1]
    dark, bright, flat = (np.zeros(len(rows), bool) for _ in range(3))
    for t, row in enumerate(rows):      # one at a time: they stay in the cache of the processor
        dark[t] = np.count_nonzero(row < DARK) >= 0.99 * count
        bright[t] = np.count_nonzero(row >= BRIGHT) >= 0.6 * count
        channels = row.reshape(-1, frames.shape[-1])
        # Most pictures are told from their first values.
        if not (dark[t] or bright[t]) and np.ptp(channels[:64], axis=0).max() <= 8:
            flat[t] = np.ptp(channels, axis=0).max() <= 8
    return dark, bright, flat
