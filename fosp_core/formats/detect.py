# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which data set of another project a path holds, by its names alone; and their readers and writers, imported late."""

import dataclasses
import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from fosp_core.contract import Contract
from fosp_core.data.episode import Episode
from fosp_core.errors import FospError

FORMATS = {'hdf5': 'fosp_core.formats.dsrl', 'minari': 'fosp_core.formats.minari',
           'lerobot': 'fosp_core.formats.lerobot'}


@dataclasses.dataclass(frozen=True)
class Options:
    """How a foreign data set is to be understood.

    keys: observation of the contract -> key of the data set, `KEY[a:b]` for a part of a vector. actions: `normalised`
    (-1 to 1), `unit` (the contract's), or None: what the format or the data set says. zero: of `reward` and `cost`,
    what is to be zero when the data set has none; else it is refused.
    """

    keys: dict[str, str] = dataclasses.field(default_factory=dict)
    actions: str | None = None
    zero: tuple[str, ...] = ()


PLAIN = Options()


def format_of(path: Path | str) -> str | None:
    """Return the name of the format, of FORMATS; None when the path is none of them."""
    path = Path(path)
    if (path / 'meta' / 'info.json').is_file():
        return 'lerobot'
    if path.name == 'main_data.hdf5' or any((path / name).is_file() for name in ('main_data.hdf5',
                                                                                'data/main_data.hdf5')):
        return 'minari'
    if (path.is_file() and path.suffix in ('.hdf5', '.h5')) or (path / 'data.hdf5').is_file():
        return 'hdf5'
    return None


def read(path: Path | str, contract: Contract, options: Options = PLAIN, name: str | None = None,
         check: bool = True) -> Iterator[Episode]:
    """Yield the episodes of a data set, of the format `name` or as found; raise DataError naming file and key."""
    from fosp_core.formats.common import damage
    episodes, number = _module(name or format_of(path)).read(Path(path), contract, options), 0
    while True:
        # HDF5 finds damage wherever it looks: in attributes, in the list of a group, on closing.
        with damage(str(path)):
            episode = next(episodes, None)
        if episode is None:
            return
        if check:
            episode.validate(contract, f'{path}: episode {number}')
        number += 1
        yield episode


def write(path: Path | str, contract: Contract, episodes: Iterable[Episode], name: str) -> dict:
    """Write a folder that appears whole or not at all; return `episodes`, `steps` (records) of it."""
    return _module(name).write(Path(path), contract, episodes)


def _module(name: str | None):
    if name not in FORMATS:
        raise FospError(f'format {name!r}, expected one of {", ".join(FORMATS)}')
    try:
        return importlib.import_module(FORMATS[name])
    except ModuleNotFoundError as error:
        raise FospError(f'{name}: Python module {error.name} is not installed here (extra `formats`)') from None
