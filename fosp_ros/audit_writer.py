# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The thread that writes the audit. The control path only ever appends to a bounded queue. No rclpy; the filter node
imports it.
"""

import collections
import threading
import time
from collections.abc import Callable

from fosp_core.safety.audit import DROPPED, AuditFiles

CAPACITY = 1024     # entries that wait at most: 100 s of ticks
PERIOD_S = 0.25     # how often the queue is written: what a crash of the process costs
SYNC_S = 0.5        # how often the disk is told: with the period above, what a power cut costs


class AuditWriter:
    """Takes callables that make an entry, and makes and writes them in a thread of its own.

    Parameters
    ----------
    files : AuditFiles
        Where to.
    warn : callable
        Gets one line when writing begins to fail.

    """

    def __init__(self, files: AuditFiles, warn: Callable[[str], None], capacity: int = CAPACITY,
                 period: float = PERIOD_S):
        self._files, self._warn, self._capacity, self._period = files, warn, capacity, period
        self._queue: collections.deque[Callable[[], dict]] = collections.deque()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._synced = self._told = 0.0
        self.written = 0
        self.dropped = 0    # did not fit in the queue, or could not be written
        self.error = ''     # why the last write failed; empty when it went well

    def put(self, make: Callable[[], dict]) -> None:
        """Hand in an entry: two comparisons and an append, no lock, no copy; a full queue drops it and counts."""
        if len(self._queue) >= self._capacity:
            self.dropped += 1
        else:
            self._queue.append(make)

    def start(self) -> None:
        """Begin to write."""
        self._end.clear()
        self._thread = threading.Thread(target=self._run, name='audit', daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what waits and close the file; returns after two seconds at most."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(2.0)
            self._thread = None

    @property
    def path(self) -> str:
        """The file in use; empty before the first write."""
        return str(self._files.path or '')

    def _run(self) -> None:
        while not self._end.wait(self._period):
            self._drain()
        self._drain()
        self._files.close()

    def _drain(self) -> None:
        makers = [self._queue.popleft() for _ in range(len(self._queue))]
        if not makers:
            return
        try:
            entries = [make() for make in makers]
            lost = self.dropped - self._told
            if lost:
                entries.append({'k': DROPPED, 't': time.time(), 'mono': time.monotonic(), 'n': int(lost)})
            self._files.append(entries)
            self._told += lost
            if time.monotonic() - self._synced >= SYNC_S:
                self._files.sync()
                self._synced = time.monotonic()
            self.written += len(makers)
            self.error = ''
        except Exception as error:  # noqa: BLE001 - a full disk or a fault of ours: the filter goes on without it
            self.dropped += len(makers)
            if not self.error:
                self._warn(f'audit: {type(error).__name__}: {error}; the filter goes on without it')
            self.error = f'{type(error).__name__}: {error}'
