# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Keeps the latch over the death of the filter's process: small files, there while something is latched. No rclpy.

A disk may take seconds, and the control path must not wait for it; but a process may die right after it latched. So
there are two files of one content, and the next process takes the union of what they say:

1. One in memory (tmpfs), written before `put` returns: no disk is asked. It outlives the process, not the computer.
2. One on the disk, which a thread writes and syncs. It outlives both.

A reset removes them in the same order, so whatever goes wrong in between leaves the latch, never its absence.
"""

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fosp_core.errors import FospError
from fosp_core.io import atomic_write_bytes
from fosp_core.safety.reasons import BY_WORD, Reason

SCHEMA = 1
RETRY_S = 1.0   # after a disk refused
MEMORY = Path('/dev/shm')
Latch = tuple[tuple[Reason, ...], bool]     # what is latched; whether the service's e-stop is pressed


def memory_path(path: Path) -> Path:
    """Return where the latch of the file `path` lies in memory: of this user and this file alone."""
    return MEMORY / f'fosp-latch-{os.getuid()}-{hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:16]}.json'


class LatchFile:
    """The latched reasons and the e-stop of the service, in memory and on the disk.

    Parameters
    ----------
    path : Path or None
        None keeps nothing.
    warn : callable
        Gets one line when writing begins to fail, for each of the two.

    """

    def __init__(self, path: Path | None, warn: Callable[[str], None]):
        self.path, self._warn = path, warn
        self._memory = memory_path(path) if path is not None else None
        self._wanted: Latch = ((), False)
        self._wake = threading.Condition()
        self._todo = self._closed = False
        self._thread: threading.Thread | None = None
        self._errors = {'memory': '', 'disk': ''}

    @property
    def error(self) -> str:
        """Why the latch could not be written; empty when it was."""
        return '; '.join(filter(None, self._errors.values()))

    def read(self) -> Latch:
        """Return what was latched, and whether the service's e-stop was pressed.

        A file that cannot be understood is a latched internal fault: nobody knows what it was meant to keep.
        """
        if self.path is None:
            return (), False
        (first, pressed), disk = self._read(self._memory), self._read(self.path)
        latched = tuple(sorted({*first, *disk[0]}, key=lambda reason: reason.rank))
        self._wanted = latched, pressed or disk[1]
        if self._wanted != disk:        # the process before died before its disk was done
            self._hand_over()
        return self._wanted

    def _read(self, path: Path) -> Latch:
        try:
            entry = json.loads(path.read_bytes())
            if entry['schema'] != SCHEMA:
                raise ValueError(f'schema {entry["schema"]}, expected {SCHEMA}')
            return tuple(BY_WORD[word] for word in entry['latched']), bool(entry['estop_service'])
        except FileNotFoundError:
            return (), False
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._warn(f'{path}: not a latch file ({type(error).__name__}: {error}); latched until reset')
            return (Reason.INTERNAL_FAULT,), False

    def put(self, latched: tuple[Reason, ...], estop_service: bool) -> None:
        """Keep what holds from now on: in memory when this returns, on the disk soon. Nothing new costs nothing."""
        wanted = latched, estop_service
        if self.path is None or wanted == self._wanted:
            return
        self._wanted = wanted
        self._try('memory', lambda: _remember(self._memory, *wanted))
        self._hand_over()

    def _hand_over(self) -> None:
        with self._wake:
            self._todo = True
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name='latch', daemon=True)
                self._thread.start()
            self._wake.notify_all()

    def _try(self, where: str, write: Callable[[], None]) -> bool:
        try:
            write()
        except (FospError, OSError) as error:
            if not self._errors[where]:
                self._warn(f'the latch cannot be kept: {error}')
            self._errors[where] = str(error)
            return False
        self._errors[where] = ''
        return True

    def close(self) -> None:
        """Write what waits; returns after two seconds at most. What the disk has is not needed in memory any more."""
        with self._wake:
            self._closed, thread = True, self._thread
            self._wake.notify_all()
        if thread is not None:
            thread.join(2.0)
        if self._memory is not None and not self._todo and not self.error and not (thread and thread.is_alive()):
            with contextlib.suppress(OSError):
                self._memory.unlink(missing_ok=True)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._todo:
                    if self._closed:
                        return
                    self._wake.wait()
                self._todo, wanted = False, self._wanted
            if not self._try('disk', lambda wanted=wanted: _write(self.path, *wanted)):
                with self._wake:
                    self._todo = True
                    if self._closed:
                        return
                    self._wake.wait(RETRY_S)


def _entry(latched: tuple[Reason, ...], service: bool) -> bytes:
    return json.dumps({'schema': SCHEMA, 'latched': [reason.word for reason in latched], 'estop_service': service,
                       't': time.time()}).encode() + b'\n'


def _write(path: Path, latched: tuple[Reason, ...], service: bool) -> None:
    """Let the disk say it; returns when it is synced."""
    if latched or service:
        atomic_write_bytes(path, _entry(latched, service))
    else:
        path.unlink(missing_ok=True)


def _remember(path: Path, latched: tuple[Reason, ...], service: bool) -> None:
    """Let the memory say it, whole or not at all; no sync, as nothing of it is on a disk."""
    if not latched and not service:
        path.unlink(missing_ok=True)
        return
    new = path.with_suffix('.new')
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(handle, _entry(latched, service))
    finally:
        os.close(handle)
    os.replace(new, path)
