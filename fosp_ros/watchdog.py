# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The watchdog: a thread that goes on sending stop when decisions fail to appear. The filter node imports it; no rclpy.

It needs neither the executor nor the model nor the ROS clock: only `time.monotonic()` and one callable.
"""

import contextlib
import threading
import time
import traceback
from collections.abc import Callable


class Watchdog:
    """Calls `fire` `budget` seconds after what it was last fed with, and then every `period` seconds until it is fed.

    Parameters
    ----------
    period, budget : float
        Seconds, see above.
    fire : callable
        Sends a stop. What it raises is counted, told to `on_error` and survived.
    on_error : callable, optional
        Gets the exception; what it raises is counted and survived as well.

    """

    def __init__(self, period: float, budget: float, fire: Callable[[], None],
                 on_error: Callable[[Exception], None] | None = None, clock: Callable[[], float] = time.monotonic):
        self._period, self._budget, self._fire, self._on_error = period, budget, fire, on_error
        self._clock = clock
        self._wake = threading.Condition()
        self._due = clock() + budget
        self._running = False
        self._thread: threading.Thread | None = None
        self.fired = 0
        self.errors = 0

    def start(self) -> None:
        """Begin to watch; the first stop is sent at once, since nothing has been decided yet."""
        self._running, self._due = True, self._clock()
        self._thread = threading.Thread(target=self._run, name='watchdog', daemon=True)
        self._thread.start()

    def feed(self, since: float | None = None) -> None:
        """Tell that a decision has gone out; the budget runs from `since`, e.g. the arrival of the picture it answers.

        So a decision that used its whole deadline does not postpone the next stop.
        """
        due = (self._clock() if since is None else since) + self._budget
        sooner, self._due = due < self._due, due
        if sooner:      # else no lock: the thread looks again when its old time has come
            with self._wake:
                self._wake.notify_all()

    def stop(self) -> None:
        """End the thread; returns when it will not fire any more."""
        with self._wake:
            self._running = False
            self._wake.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2.0)
            self._thread = None

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def _tell(self, error: Exception) -> None:
        if self._on_error is None:
            return
        try:
            self._on_error(error)
        except Exception:  # noqa: BLE001 - the log is broken, too: the stops are not
            self.errors += 1
            with contextlib.suppress(Exception):
                traceback.print_exc()

    def _run(self) -> None:
        while True:
            with self._wake:
                wait = self._due - self._clock()
                if wait > 0 and self._running:
                    self._wake.wait(wait)
                if not self._running:
                    return
            due = self._due
            if self._clock() < due:
                continue
            self.fired += 1
            try:
                self._fire()
            except Exception as error:  # noqa: BLE001 - whatever happens, the next stop must be sent
                self.errors += 1
                self._tell(error)
            if self._due == due:
                # The next one keeps the rate; after a stall there is no burst to catch up with.
                after = self._clock()
                self._due = due + self._period if due + self._period > after else after + self._period
