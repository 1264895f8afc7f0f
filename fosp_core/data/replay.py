# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Replay: uniform windows over a stream of episodes. Numpy only.

The stream is the concatenation of all episodes. A window may run from one episode into the next: `is_first` is set
there, the recurrent state is reset by it, and no pair (s_t, a_t) -> s_{t+1} is formed across it (see
`fosp_core.agent.returns.pair_mask`). So short episodes are used whole, and nothing leaks between episodes.

Each step is held once, in the arrays of its episode: nothing is copied when the replay grows, and episodes of a packed
folder (`fosp_core.data.pack`) stay on disk until a window needs them.
"""

from collections.abc import Iterator

import numpy as np

from fosp_core.contract import Contract
from fosp_core.data.episode import Episode
from fosp_core.data.mirror import mirror_rows
from fosp_core.errors import DataError

_SCALARS = ('reward', 'cost', 'is_first', 'is_terminal')


class Replay:
    """Episodes held once, as raw uint8 and float32.

    Parameters
    ----------
    contract
        What the episodes are checked against.
    capacity
        In steps: the oldest episodes leave first. None (the default) keeps all.
    mirror
        Half of the windows are drawn as a mirror shows them, where the contract says what that is.

    """

    def __init__(self, contract: Contract, capacity: int | None = None, mirror: bool = False):
        self.contract = contract
        self.mirror = mirror and bool(contract.mirror)
        self.capacity = capacity
        self._episodes: list[Episode] = []
        self._steps = 0
        self._ends: np.ndarray | None = None    # steps up to and with each episode

    def __len__(self) -> int:
        """Number of stored steps."""
        return self._steps

    @property
    def episodes(self) -> list[Episode]:
        """The stored episodes, oldest first."""
        return self._episodes

    def add(self, episode: Episode, where: str = 'episode', check: bool = True) -> None:
        """Append one episode; raise DataError naming key and step when it is unfit.

        Without `check` it is taken as it is: for episodes that their reader has validated already.
        """
        if check:
            episode.validate(self.contract, where)
        self._episodes.append(episode)
        self._steps += len(episode)
        while self.capacity is not None and self._steps > self.capacity and len(self._episodes) > 1:
            self._steps -= len(self._episodes.pop(0))
        self._ends = None

    def extend(self, episodes, check: bool = True) -> 'Replay':
        """Append many; return self."""
        for i, episode in enumerate(episodes):
            self.add(episode, f'episode {i}', check)
        return self

    def sample(self, batch: int, length: int, rng: np.random.Generator,
               rows: slice = slice(None)) -> dict[str, np.ndarray]:
        """Return `batch` windows of `length` steps, uniform over all start steps.

        Keys: each camera uint8 (B, L, H, W, C), each vector float32 (B, L, n), action float32 (B, L, A), reward and
        cost float32 (B, L), is_first and is_terminal bool (B, L). The first step of each window is forced is_first.
        After the last episode the stream begins anew. With `rows` only that part of the batch is read, of the same
        draw: processes that share a batch each read their own.
        """
        if not self._episodes:
            raise DataError('replay is empty, expected at least one episode')
        if self._ends is None:
            self._ends = np.cumsum([len(e) for e in self._episodes])
        start = rng.integers(0, self._steps, size=batch)[rows]
        cameras, vectors = self.contract.cameras, self.contract.vectors
        shapes = {c.name: (c.shape, np.uint8) for c in cameras} | {v.name: ((v.size,), np.float32) for v in vectors}
        shapes |= {'action': ((self.contract.action.size,), np.float32), 'reward': ((), np.float32),
                   'cost': ((), np.float32), 'is_first': ((), np.bool_), 'is_terminal': ((), np.bool_)}
        out = {key: np.empty((len(start), length, *shape), dtype) for key, (shape, dtype) in shapes.items()}
        for episode, here, row, there in list(self._pieces(start, length)):
            for camera in cameras:
                out[camera.name][row, there] = episode.images[camera.name][here]
            for vector in vectors:
                out[vector.name][row, there] = episode.vectors[vector.name][here]
            for key in ('action', *_SCALARS):
                out[key][row, there] = getattr(episode, key)[here]
        out['is_first'][:, 0] = True
        if self.mirror:
            mirror_rows(out, rng.random(batch)[rows] < 0.5, self.contract)
        return out

    def _pieces(self, start: np.ndarray, length: int) -> Iterator[tuple[Episode, slice, int, slice]]:
        """Yield what the windows are made of: episode, records of it, row of the batch, steps of the row."""
        found = np.searchsorted(self._ends, start, side='right')
        for row, (index, step) in enumerate(zip(found.tolist(), start.tolist())):
            at, done = step - int(self._ends[index]) + len(self._episodes[index]), 0
            while done < length:
                episode = self._episodes[index]
                stop = min(length, done + len(episode) - at)
                if episode.will_need is not None:
                    # Told before the first copy waits: the disk then works on the whole batch at once.
                    episode.will_need(at, at + stop - done)
                yield episode, slice(at, at + stop - done), row, slice(done, stop)
                at, done, index = 0, stop, (index + 1) % len(self._episodes)


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
