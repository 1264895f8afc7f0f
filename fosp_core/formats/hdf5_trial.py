# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Reads of an HDF5 file what may make the library hang or crash. A program for `hdf5.opened`, which starts it by path.

It prints the name of what it is about to read. A read that does not return ends it by SIGALRM. What merely raises is
left to the reader, who knows the key; a file that cannot be listed is not: exit code 1.
"""

import contextlib
import os
import signal
import sys

RATIO = 1100        # the most that gzip can gain
_ROWS = 256


def beyond(shape: tuple[int, ...], itemsize: int, stored: int) -> bool:
    """Tell whether a data set claims more than a file of `stored` bytes can hold; what is not stored counts as zero."""
    size = itemsize
    for length in shape:
        size *= length
    return size > RATIO * stored + 2 ** 20


def main(path: str, limit_s: int) -> int:
    """Return 0 when everything came back, each read within `limit_s`."""
    import h5py
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    stored = os.path.getsize(path)

    def about(name: str) -> None:
        signal.alarm(limit_s)
        print(name, flush=True)

    def look(name: str, item) -> None:
        with contextlib.suppress(Exception):
            for key in item.attrs:
                about(f'attribute {key} of {name or "the file"}')
                with contextlib.suppress(Exception):
                    item.attrs[key]
        with contextlib.suppress(Exception):
            if not isinstance(item, h5py.Dataset) or not item.dtype.hasobject \
                    or beyond(item.shape, item.dtype.itemsize, stored):
                return
            for start in range(0, len(item), _ROWS) if item.ndim else (None,):
                about(f'key {name}')
                item[()] if start is None else item[start:start + _ROWS]

    about('the list of its keys')
    try:
        with h5py.File(path, 'r') as file:
            look('', file)
            file.visititems(look)
    except Exception as error:  # noqa: BLE001 - a damaged file can make the library raise anything
        print(' '.join(str(error).split()), file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
