# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all, and the JSON that commands write. Anyone may import it.

A reader of a bag, a bundle or a checkpoint must never meet a half-written one: all is written beside its final place,
synced, and renamed.
"""

import contextlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from fosp_core.errors import FospError

_UNNAMED = ('', '.', '..')


def sync_dir(path: Path) -> None:
    """Make the names inside a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(root: Path) -> None:
    """Make all files below `root`, and their names, durable."""
    for folder, _, names in os.walk(root):
        for name in names:
            file = Path(folder) / name
            if file.is_symlink():
                continue
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_dir(Path(folder))


def _sibling(path: Path) -> Path:
    """Return an unused hidden name beside `path`: a rename is atomic only within one file system."""
    return path.parent / f'.{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}'


def _parent(path: Path) -> None:
    if path.name in _UNNAMED:
        raise FospError(f'{path}: not a name that can be written')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FospError(f'{path.parent}: cannot be created: {error.strerror}') from None


def atomic_write_bytes(path: Path | str, data: bytes) -> None:
    """Write `data` to `path`, replacing what is there; after a failure the old content still stands.

    Raises
    ------
    FospError
        When the place cannot be written (permission, full disk, a folder of that name).

    """
    path = Path(path)
    _parent(path)
    temporary = _sibling(path)
    try:
        with open(temporary, 'xb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_dir(path.parent)
    except OSError as error:
        raise FospError(f'{path}: cannot be written: {error.strerror}') from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def atomic_dir(path: Path | str) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `path` when the block ends well; else nothing remains.

    Raises
    ------
    FospError
        When `path` exists already, or cannot be written.

    """
    path = Path(path)
    _parent(path)
    if path.exists() or path.is_symlink():
        raise FospError(f'{path}: exists already; choose another name or remove it')
    temporary = _sibling(path)
    try:
        temporary.mkdir()
    except OSError as error:
        raise FospError(f'{path}: cannot be written: {error.strerror}') from None
    try:
        yield temporary
        try:
            _sync_tree(temporary)
            # rename() would take the place of an empty folder: one that came up meanwhile is not ours to replace.
            if path.exists():
                raise FospError(f'{path}: was made by someone else meanwhile; nothing written')
            os.rename(temporary, path)
            sync_dir(path.parent)
        except OSError as error:
            raise FospError(f'{path}: cannot be written: {error.strerror}') from None
    finally:
        # After the rename there is nothing here to remove.
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(target: Path | str, obj) -> None:
    """Write `obj` as JSON to a file (whole or not at all), or to standard output when `target` is `-`.

    NaN and Inf are refused (ValueError): JSON has neither, and a report must not hide them.
    """
    text = json.dumps(obj, indent=2, allow_nan=False, default=_plain) + '\n'
    if str(target) == '-':
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        atomic_write_bytes(target, text.encode())


def _plain(value):
    """Turn numpy scalars and arrays and paths into what JSON knows."""
    if hasattr(value, 'tolist'):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f'{type(value).__name__} cannot be written as JSON')
