# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Load bags, packed and episode folders for training, and split them into training and held-out episodes."""

from pathlib import Path

from fosp_core.contract import Contract
from fosp_core.data.episode import Episode
from fosp_core.errors import DataError


def load_dataset(paths: list[str | Path], contract: Contract) -> list[Episode]:
    """Read and validate every episode of bags, packed and .npz folders; raise DataError naming the path."""
    from fosp_core.data.sources import read_dataset
    episodes = list(read_dataset(paths, contract))
    if not episodes:
        raise DataError(f'{", ".join(map(str, paths))}: no complete episode')
    return episodes


def split(episodes: list[Episode], fraction: float) -> tuple[list[Episode], list[Episode]]:
    """Hold out every k-th episode of those with and of those without a violation; deterministic.

    Both parts see the same mix, whatever order the bag has. Returns (training, held-out).
    """
    if fraction <= 0:
        return list(episodes), []
    stride = max(2, round(1 / fraction))
    held: set[int] = set()
    for kind in (True, False):
        indices = [i for i, e in enumerate(episodes) if e.violation == kind]
        held |= set(indices[stride - 1::stride])
    return ([e for i, e in enumerate(episodes) if i not in held], [e for i, e in enumerate(episodes) if i in held])


def summary(episodes: list[Episode]) -> dict[str, float]:
    """Count, steps, success rate and violation rate of a dataset, as fractions."""
    n = len(episodes)
    return {'episodes': n, 'steps': sum(map(len, episodes)), 'sr': sum(e.success for e in episodes) / max(n, 1),
            'cv': sum(e.violation for e in episodes) / max(n, 1)}
