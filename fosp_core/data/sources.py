# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Episodes from whatever holds them: rosbag2 folders, packed folders, folders of .npz. Numpy alone."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from fosp_core.contract import Contract
from fosp_core.data.episode import Episode
from fosp_core.data.pack import is_pack, open_pack
from fosp_core.data.store import iter_episodes


def read_dataset(paths: Iterable[str | Path], contract: Contract) -> Iterator[Episode]:
    """Yield every episode, one at a time, validated.

    Raises
    ------
    DataError
        Naming file (or bag), episode, step or stamp, and key.
    ContractError
        When a source was made for another contract.

    """
    for path in map(Path, paths):
        if is_pack(path):
            yield from open_pack(path, contract)
        elif path.is_dir() and any(path.glob('*.npz')):
            yield from iter_episodes(path, contract)
        else:
            from fosp_core.data.bag import read_episodes  # late: rosbags takes a third of a second
            yield from read_episodes([path], contract)
