# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Episodes from whatever holds them: bags, packed folders, folders of .npz, and the data sets of other projects."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from fosp_core.contract import Contract
from fosp_core.data.episode import Episode
from fosp_core.data.pack import is_pack, open_pack
from fosp_core.data.store import iter_episodes
from fosp_core.formats.detect import format_of, read


def read_dataset(paths: Iterable[str | Path], contract: Contract) -> Iterator[Episode]:
    """Yield every episode, one at a time, validated.

    Raises
    ------
    DataError
        Naming file (or bag), episode, step or stamp, and key.
    ContractError
        When a source was made for another contract.

    """
    for path in paths:
        yield from read_source(path, contract)


def read_source(path: str | Path, contract: Contract, check: bool = True, namespace: str | None = None,
                report: dict | None = None) -> Iterator[Episode]:
    """Yield the episodes of one source.

    Parameters
    ----------
    path, contract
        What to read, and what it must be.
    check
        Validate each episode. Without, the caller looks for himself (`fosp inspect`); bags are always validated.
    namespace
        Where the replay topics lie; needed only when a bag holds them more than once.
    report
        Is given the counts of a bag's import at the end (`lost`, `doubled`, `reordered`, `mismatched`).

    """
    path = Path(path)
    if is_pack(path):
        yield from open_pack(path, contract, check)
    elif path.is_dir() and any(path.glob('*.npz')):
        yield from iter_episodes(path, contract if check else None)
    elif format_of(path):
        yield from read(path, contract, check=check)
    else:
        # Late: rosbags takes a third of a second.
        from fosp_core.data.bag import ImportReport, read_episodes
        counted = ImportReport()
        yield from read_episodes([path], contract, namespace, counted)
        if report is not None:
            report.update(vars(counted.counts))
