# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Removes what Fast DDS leaves in /dev/shm when a process is killed. Used by the graph runner; Linux only.

A clean exit removes its own files; `kill -9` leaves the segment (35 MB with the local profile). Of the files that our
processes had open, a segment is removed when its owner is dead, that is, when nobody holds the lock that the owner
keeps on `<segment>_el` (readers that still have it mapped keep their mapping); anything else when no living process has
it open.
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path('/dev/shm')
# Jazzy calls its files fastrtps_*, Kilted fastdds_*; locks are <segment>_el and sem.<port>_mutex.
NAME = re.compile(r'^(?:sem\.)?(?:fastrtps|fastdds)_[A-Za-z0-9_]+$')


def opened_by(pid: int) -> set[str]:
    """Return the names of the Fast DDS files that process `pid` has mapped or open; empty when it cannot be read."""
    names = set()
    try:
        with open(f'/proc/{pid}/maps') as lines:
            for line in lines:
                path = line.rstrip('\n').split(maxsplit=5)[-1]
                if path.startswith(f'{FOLDER}/'):
                    names.add(path.removeprefix(f'{FOLDER}/'))
    except (OSError, UnicodeDecodeError):
        pass
    try:
        for entry in os.listdir(f'/proc/{pid}/fd'):
            target = os.readlink(f'/proc/{pid}/fd/{entry}')
            if target.startswith(f'{FOLDER}/'):
                names.add(target.removeprefix(f'{FOLDER}/'))
    except OSError:
        pass
    return {name for name in names if NAME.match(name)}


def _base(name: str) -> str:
    return name.removeprefix('sem.').removesuffix('_mutex').removesuffix('_el')


def _owner_is_dead(segment: str) -> bool:
    """Return whether nobody holds the owner's lock of a segment; False for what is no segment."""
    if '_port' in segment:
        return False
    try:
        with open(FOLDER / f'{segment}_el') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove(ours: Iterable[str], ending: int | None = None) -> list[str]:
    """Remove those of `ours` (and their locks) that nothing has open any more; return what was removed.

    Process `ending` does not count: one that is about to end by force cleans up after itself, also what others read.
    """
    wanted = {_base(name) for name in ours}
    left = {name for name in (os.listdir(FOLDER) if FOLDER.is_dir() else ())
            if NAME.match(name) and _base(name) in wanted}
    if not left:
        return []
    used = set()
    for entry in os.listdir('/proc'):
        if entry.isdigit() and int(entry) != ending:
            used |= {_base(name) for name in opened_by(int(entry))}
    own = {_base(name) for name in opened_by(ending) if name.endswith('_el')} if ending else set()   # it holds the lock
    doomed = {base for base in {_base(name) for name in left}
              if base not in used or '_port' not in base and base in own or _owner_is_dead(base)}
    removed = []
    for name in sorted(left):
        with contextlib.suppress(OSError):
            if _base(name) in doomed and (FOLDER / name).stat().st_uid == os.getuid():
                (FOLDER / name).unlink()
                removed.append(name)
    return removed
