# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Values given on a training command's line, checked before anything is read or computed."""

import os
from pathlib import Path

from fosp_core.errors import FospError


def at_least(option: str, value: float | None, low: float) -> None:
    """Raise FospError when a value is given and is below `low`."""
    if value is not None and not value >= low:
        raise FospError(f'{option} {value:g}: expected at least {low:g}')


def between(option: str, value: float, low: float, high: float) -> None:
    """Raise FospError unless low < value < high."""
    if not low < value < high:
        raise FospError(f'{option} {value:g}: expected more than {low:g} and less than {high:g}')


def wait_asleep() -> None:
    """Let computing threads that wait for each other sleep; call it before torch is loaded, later it does nothing.

    By default they spin, and beside a busy process two of them may take longer than one.
    """
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')


def hush_transport() -> None:
    """Let torch's transport log errors alone; call it before torch is loaded, later it does nothing.

    A process whose peer has gone says so itself, in one line; the transport would add a warning with its call stack.
    """
    os.environ.setdefault('TORCH_CPP_LOG_LEVEL', 'ERROR')


def use_threads(count: int | None) -> None:
    """Let torch compute with `count` threads; None leaves its own number (one per core)."""
    import torch
    at_least('--threads', count, 1)
    if count is not None:
        torch.set_num_threads(count)


def check_folder(option: str, path: Path) -> None:
    """Raise FospError when `path` cannot be a folder because it, or what is above it, is a file."""
    found = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not found.is_dir():
        raise FospError(f'{option} {path}: {found} is a file, expected a folder')
