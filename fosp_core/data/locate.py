# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Where a bag that cannot be opened is damaged: found by a slow scan, for the error message alone."""

import contextlib
import sqlite3
from pathlib import Path

import zstandard
from mcap.stream_reader import StreamReader

_RECORD_LIMIT = 1 << 30


def damage(path: Path) -> str:
    """Return ` (FILE: ... byte N)`, ` (FILE: what sqlite says)`, or that it must be what the bag says of itself."""
    look = {'.mcap': _mcap, '.db3': _sqlite, '.zstd': _zstd}
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.suffix in look and (found := look[file.suffix](file)):
            return f' ({file.name}: {found})'
    return f' (no record is damaged in itself: see {"metadata.yaml" if path.is_dir() else "the header at byte 8"})'


def _mcap(file: Path) -> str:
    """Read record after record; the last whole one tells."""
    at = 0
    with open(file, 'rb') as stream:
        try:
            # Records of no interest are not handed out: `at` is then the end of the one before them.
            for _ in StreamReader(stream, emit_chunks=True, record_size_limit=_RECORD_LIMIT).records:
                at = stream.tell()
        except Exception as error:  # noqa: BLE001 - a damaged file can make the parser raise anything
            return f'damaged after byte {at}: {" ".join(str(error).split()) or type(error).__name__}'
    return ''


def _zstd(file: Path) -> str:
    done = 0
    try:
        with zstandard.open(file, 'rb') as stream:
            while block := stream.read(1 << 20):
                done += len(block)
    except Exception as error:  # noqa: BLE001
        return f'damaged after byte {done} of what is packed in it: {" ".join(str(error).split())}'
    return ''


def _sqlite(file: Path) -> str:
    try:
        with contextlib.closing(sqlite3.connect(f'{file.absolute().as_uri()}?mode=ro&immutable=1', uri=True)) as base:
            found = str(base.execute('PRAGMA quick_check(1)').fetchone()[0])
    except Exception as error:  # noqa: BLE001
        found = str(error) or type(error).__name__
    return '' if found == 'ok' else ' '.join(found.split())[:200]
