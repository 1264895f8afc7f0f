# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which session folder a trainer works in, which old ones go, and that no two trainers use one. No rclpy.

Who works in a session holds a lock on its file `lock`; the kernel takes it back when the process ends, however it ends.
"""

import contextlib
import fcntl
import os
import shutil
import time
from pathlib import Path

from fosp_core.errors import FospError

LOCK = 'lock'


class Claim:
    """A session folder below `root` that this process holds until `release`.

    `resume` takes the newest one that is there instead of a new one. With a new one the oldest beyond `keep` are
    removed, those in use never. Raises FospError when the newest is in use or the place cannot be used.
    """

    def __init__(self, root: Path, resume: bool, keep: int):
        self._handle: int | None = None
        try:
            root.mkdir(parents=True, exist_ok=True)
            with _start(root.parent):
                there = sorted(path for path in root.iterdir() if path.is_dir())
                self.resumed = resume and bool(there)
                self.path = there[-1] if self.resumed else _new(root)
                self._handle = _hold(self.path)
                if self._handle is None:
                    raise FospError(f'{self.path}: another trainer works in this session; give another work_dir, or '
                                    'parameter resume = false for a session of its own')
                self.removed = [] if self.resumed else _remove(there[:max(0, len(there) + 1 - keep)])
        except OSError as error:
            self.release()
            raise FospError(f'{root}: the work folder cannot be used: {error.strerror}') from None

    def release(self) -> None:
        """Let others have the folder."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


def sweep(session: Path) -> None:
    """Remove what a killed trainer left half-done: data snapshots, results not taken, hidden files of any writer."""
    jobs = session / 'jobs'
    doomed = [job / name for job in jobs.glob('*') for name in ('episodes', 'bundle')]
    doomed += [path for folder in (*jobs.glob('*'), session / 'episodes', session / 'models')
               for path in folder.glob('.*')]
    for path in doomed:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _new(root: Path) -> Path:
    now = time.time_ns()
    second = time.strftime('%Y%m%dT%H%M%S', time.localtime(now // 10**9))
    path = root / f'{second}.{now // 1000 % 10**6:06d}-{os.getpid()}'
    path.mkdir()
    return path


@contextlib.contextmanager
def _start(work_dir: Path):
    """One start at a time: between the making of a session and its lock nobody may take it for an old one."""
    handle = _hold(work_dir, wait=True)
    try:
        yield
    finally:
        os.close(handle)


def _hold(folder: Path, wait: bool = False) -> int | None:
    """Lock a folder; return the handle that holds the lock, or None when another one does."""
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return handle


def _remove(sessions: list[Path]) -> list[str]:
    gone = []
    for path in sessions:
        with contextlib.suppress(OSError):      # not ours to remove
            handle = _hold(path)
            if handle is None:
                continue
            shutil.rmtree(path, ignore_errors=True)
            os.close(handle)
            gone += [path.name] * (not path.exists())
    return gone
