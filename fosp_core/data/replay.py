# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Replay: uniform windows over a stream of episodes. Numpy only.

The stream is the concatenation of all episodes. A window may run from one episode into the next: `is_first` is set
there, the recurrent state is reset by it, and no pair (s_t, a_t) -> s_{t+1} is formed across it (see
`fosp_core.agent.returns.pair_mask`). So short episodes are used whole, and nothing leaks between episodes.
"""

import numpy as np

from fosp_core.contract import Contract
from fosp_core.data.episode import Episode
from fosp_core.errors import DataError

_SCALARS = ('reward', 'cost', 'is_first', 'is_terminal')


class Replay:
    """Episodes held once, as raw uint8 and float32; `capacity` in steps, oldest episodes leave first."""

    def __init__(self, contract: Contract, capacity: int = 1_000_000):
        self.contract = contract
        self.capacity = capacity
        self._episodes: list[Episode] = []
        self._steps = 0
        self._flat: dict[str, np.ndarray] | None = None

    def __len__(self) -> int:
        """Number of stored steps."""
        return self._steps

    @property
    def episodes(self) -> list[Episode]:
        """The stored episodes, oldest first."""
        return self._episodes

    def add(self, episode: Episode, where: str = 'episode') -> None:
        """Validate and append; raise DataError naming key and step."""
        episode.validate(self.contract, where)
        self._episodes.append(episode)
        self._steps += len(episode)
        while self._steps > self.capacity and len(self._episodes) > 1:
            self._steps -= len(self._episodes.pop(0))
        self._flat = None

    def extend(self, episodes) -> 'Replay':
        """Append many; return self."""
        for i, episode in enumerate(episodes):
            self.add(episode, f'episode {i}')
        return self

    def _consolidate(self) -> dict[str, np.ndarray]:
        if not self._episodes:
            raise DataError('replay is empty, expected at least one episode')
        if self._flat is None:
            episodes = self._episodes
            flat = {c.name: np.concatenate([e.images[c.name] for e in episodes]) for c in self.contract.cameras}
            flat |= {v.name: np.concatenate([e.vectors[v.name] for e in episodes]) for v in self.contract.vectors}
            flat |= {k: np.concatenate([getattr(e, k) for e in episodes]) for k in ('action', *_SCALARS)}
            # The episodes become views into the stream, so each step is held once.
            start = 0
            for e in episodes:
                part = slice(start, start + len(e))
                e.images = {k: flat[k][part] for k in e.images}
                e.vectors = {k: flat[k][part] for k in e.vectors}
                start += len(e)
            self._flat = flat
        return self._flat

    def sample(self, batch: int, length: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return `batch` windows of `length` steps, uniform over all start steps.

        Keys: each camera uint8 (B, L, H, W, C), each vector float32 (B, L, n), action float32 (B, L, A), reward and
        cost float32 (B, L), is_first and is_terminal bool (B, L). The first step of each window is forced is_first.
        """
        flat = self._consolidate()
        start = rng.integers(0, self._steps, size=batch)
        index = (start[:, None] + np.arange(length)) % self._steps
        out = {k: v[index] for k, v in flat.items()}
        out['is_first'][:, 0] = True
        return out


class MixedReplay:
    """Draws a fixed fraction of each batch from the online replay, the rest from the offline one."""

    def __init__(self, offline: Replay, online: Replay, online_fraction: float = 0.5):
        self.offline, self.online, self.online_fraction = offline, online, online_fraction

    def __len__(self) -> int:
        return len(self.offline) + len(self.online)

    def sample(self, batch: int, length: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """As `Replay.sample`; a replay that is empty leaves its share to the other."""
        n_online = round(batch * self.online_fraction)
        if not len(self.offline):
            n_online = batch
        if not len(self.online):
            n_online = 0
        parts = []
        if n_online:
            parts.append(self.online.sample(n_online, length, rng))
        if batch - n_online:
            parts.append(self.offline.sample(batch - n_online, length, rng))
        return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
