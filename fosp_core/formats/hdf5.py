# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""HDF5 files for the readers and writers of DSRL and Minari: written with sums, opened and read with one-line errors.

On a damaged heap of strings of variable length the HDF5 library may not return, or crash. So we write texts of fixed
length, and a file that has such a heap is tried by a process that may be lost (`hdf5_trial`) before we read it.
"""

import contextlib
import mmap
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from fosp_core.errors import DataError
from fosp_core.formats import hdf5_trial
from fosp_core.formats.common import damage

START_S = 60        # for a process to start, on a machine that is busy
TRIAL_S = 20        # for one read of a few strings: thousands of times what it takes
_HEAP = b'GCOL'     # every heap that holds values of variable length begins with it
_BLOCK = 65536      # bytes of a chunk, about


@contextlib.contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open for reading; raise DataError when it is missing, no HDF5 or truncated."""
    if not path.is_file():
        raise DataError(f'{path}: no such file')
    with damage(str(path)):
        if _has_heap(path):
            _try(path)
        file = h5py.File(path, 'r')
    with file:
        yield file


def _has_heap(path: Path) -> bool:
    with path.open('rb') as file:
        if not path.stat().st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(_HEAP) >= 0


def _try(path: Path) -> None:
    """Read attributes and values of variable length in a process of its own; raise DataError when it is lost."""
    # By its file: it needs h5py alone, and starts the faster for it.
    words = [sys.executable, '-P', hdf5_trial.__file__, str(path), str(TRIAL_S)]
    # Each read has its limit; this one is for more reads than the file has bytes for.
    fence = START_S + 3 * TRIAL_S + path.stat().st_size / 1e6
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                              timeout=fence)
    except subprocess.TimeoutExpired:
        raise DataError(f'{path}: damaged: its strings of variable length are not read within {fence:.0f} s') from None
    place = f'{path}: {done.stdout.splitlines()[-1]}' if done.stdout else str(path)
    if done.returncode == -signal.SIGALRM:
        raise DataError(f'{place}: damaged: the HDF5 library does not return from reading it')
    if done.returncode < 0:
        raise DataError(f'{place}: damaged: the HDF5 library ends by {signal.Signals(-done.returncode).name} when '
                        'reading it')
    if done.returncode:
        raise ValueError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'cannot be listed')


@contextlib.contextmanager
def created(path: Path, **options) -> Iterator[h5py.File]:
    """Create a file whose own structures carry sums (HDF5 1.10 and newer read it)."""
    with h5py.File(path, 'w', libver=('v110', 'v110'), **options) as file:
        yield file


def dataset(group: h5py.Group, key: str, where: str) -> h5py.Dataset:
    """Return a data set of a group; raise DataError when it is not there, a group, or larger than the file can hold."""
    with damage(f'{where}: key {key}'):
        found = group.get(key)
    if not isinstance(found, h5py.Dataset):
        there = ', '.join(sorted(group)) or 'nothing'
        raise DataError(f'{where}: key {key} is {"a group" if found is not None else "missing"}; there is {there}')
    with damage(f'{where}: key {key}'):
        # A damaged length would be read for hours.
        if hdf5_trial.beyond(found.shape, found.dtype.itemsize, found.file.id.get_filesize()):
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
    row = int(np.prod(values.shape[1:])) * values.dtype.itemsize
    # Chunks of some 64 kB: windows of a few records are cheap to read, and compression has something to work on.
    chunks = (max(1, min(1024, _BLOCK // max(row, 1))), *(max(1, n) for n in values.shape[1:]))
    # An axis of length 0 (no vectors) must be free to grow, or HDF5 takes no chunks.
    limit = (None, *(n or None for n in values.shape[1:]))
    file.create_dataset(key, data=values, maxshape=limit, chunks=chunks, fletcher32=True,
                        **({'compression': 'gzip', 'compression_opts': 1} if compress else {}))


def sparse_text(file: h5py.Group, key: str, texts: dict[int, str], count: int) -> None:
    """Write a data set of `count` texts, of the length of the longest, those of `texts` by row, the others empty."""
    encoded = {row: text.encode() for row, text in texts.items()}
    width = max(map(len, encoded.values()), default=1) or 1
    found = file.create_dataset(key, (count,), f'S{width}', chunks=(max(1, min(count, _BLOCK // width)),),
                                compression='gzip', compression_opts=1, fletcher32=True)
    for row, text in encoded.items():
        found[row] = text
