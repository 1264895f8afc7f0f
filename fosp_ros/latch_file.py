# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Keeps the latch over the death of the filter's process: a small file, there while something is latched. No rclpy.

The control path hands a value over and returns; a thread writes it. Until a reset is on the disk the old latch is, so
whatever goes wrong ends on the safe side.
"""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fosp_core.errors import FospError
from fosp_core.io import atomic_write_bytes
from fosp_core.safety.reasons import BY_WORD, Reason

SCHEMA = 1
RETRY_S = 1.0   # after a disk refused


class LatchFile:
    """The latched reasons and the e-stop of the service, on the disk.

    Parameters
    ----------
    path : Path or None
        None keeps nothing.
    warn : callable
        Gets one line when writing begins to fail.

    """

    def __init__(self, path: Path | None, warn: Callable[[str], None]):
        self.path, self._warn = path, warn
        self._wanted: tuple[tuple[Reason, ...], bool] = ((), False)
        self._wake = threading.Condition()
        self._todo = self._closed = False
        self._thread: threading.Thread | None = None
        self.error = ''     # why it could not be written; empty when it was

    def read(self) -> tuple[tuple[Reason, ...], bool]:
        """Return what was latched, and whether the service's e-stop was pressed.

        A file that cannot be understood is a latched internal fault: nobody knows what it was meant to keep.
        """
        if self.path is None:
            return (), False
        try:
            entry = json.loads(self.path.read_bytes())
            if entry['schema'] != SCHEMA:
                raise ValueError(f'schema {entry["schema"]}, expected {SCHEMA}')
            self._wanted = tuple(BY_WORD[word] for word in entry['latched']), bool(entry['estop_service'])
        except FileNotFoundError:
            return (), False
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._warn(f'{self.path}: not a latch file ({type(error).__name__}: {error}); latched until reset')
            self._wanted = (Reason.INTERNAL_FAULT,), False
        return self._wanted

    def put(self, latched: tuple[Reason, ...], estop_service: bool) -> None:
        """Hand in what holds from now on; returns at once, and does nothing when it is what is kept."""
        wanted = latched, estop_service
        if self.path is None or wanted == self._wanted:
            return
        with self._wake:
            self._wanted, self._todo = wanted, True
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name='latch', daemon=True)
                self._thread.start()
            self._wake.notify_all()

    def close(self) -> None:
        """Write what waits; returns after two seconds at most."""
        with self._wake:
            self._closed, thread = True, self._thread
            self._wake.notify_all()
        if thread is not None:
            thread.join(2.0)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._todo:
                    if self._closed:
                        return
                    self._wake.wait()
                self._todo, (latched, service) = False, self._wanted
            try:
                self._write(latched, service)
                self.error = ''
            except (FospError, OSError) as error:
                if not self.error:
                    self._warn(f'the latch cannot be kept: {error}')
                self.error = str(error)
                with self._wake:
                    if self._closed:
                        return
                    self._todo = True
                    self._wake.wait(RETRY_S)

    def _write(self, latched: tuple[Reason, ...], service: bool) -> None:
        if not latched and not service:
            self.path.unlink(missing_ok=True)
            return
        entry = {'schema': SCHEMA, 'latched': [reason.word for reason in latched], 'estop_service': service,
                 't': time.time()}
        atomic_write_bytes(self.path, json.dumps(entry).encode() + b'\n')
