# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""HDF5 files for the readers of DSRL and Minari: opened and read with one-line errors."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from fosp_core.errors import DataError
from fosp_core.formats.common import damage

_RATIO = 1100       # the most that gzip can gain


@contextlib.contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open for reading; raise DataError when it is missing, no HDF5 or truncated."""
    if not path.is_file():
        raise DataError(f'{path}: no such file')
    with damage(str(path)):
        file = h5py.File(path, 'r')
    with file:
        yield file


def dataset(group: h5py.Group, key: str, where: str) -> h5py.Dataset:
    """Return a data set of a group; raise DataError when it is not there, a group, or larger than the file can hold."""
    with damage(f'{where}: key {key}'):
        found = group.get(key)
    if not isinstance(found, h5py.Dataset):
        there = ', '.join(sorted(group)) or 'nothing'
        raise DataError(f'{where}: key {key} is {"a group" if found is not None else "missing"}; there is {there}')
    with damage(f'{where}: key {key}'):
        # A damaged length would be read for hours: what is not stored counts as zero.
        if found.size * found.dtype.itemsize > _RATIO * found.file.id.get_filesize() + 2 ** 20:
            raise ValueError(f'shape {found.shape} is more than the file can hold')
    return found


def rows(group: h5py.Group, key: str, where: str, start: int | None = None, stop: int | None = None,
         count: int | None = None) -> np.ndarray:
    """Return records `start` to before `stop` of a data set that has `count` of them; None: any number."""
    found = dataset(group, key, where)
    if count is not None and (length := (*found.shape, 0)[0]) != count:
        raise DataError(f'{where}: key {key} has length {length}, expected {count}')
    with damage(f'{where}: key {key}'):
        return np.asarray(found[start:stop] if found.ndim else found[()])


def append(file: h5py.Group, key: str, values: np.ndarray, compress: bool = False) -> None:
    """Append records to a data set that grows; it is made with the first of them."""
    if key in file:
        found = file[key]
        found.resize(len(found) + len(values), axis=0)
        found[-len(values):] = values
        return
    kind = h5py.string_dtype() if values.dtype == object else values.dtype
    row = int(np.prod(values.shape[1:])) * (values.dtype.itemsize or 8)
    # Chunks of some 64 kB: windows of a few records are cheap to read, and compression has something to work on.
    chunks = (max(1, min(1024, 65536 // max(row, 1))), *(max(1, n) for n in values.shape[1:]))
    # An axis of length 0 (no vectors) must be free to grow, or HDF5 takes no chunks.
    limit = (None, *(n or None for n in values.shape[1:]))
    file.create_dataset(key, data=values, dtype=kind, maxshape=limit, chunks=chunks,
                        **({'compression': 'gzip', 'compression_opts': 1} if compress else {}))
