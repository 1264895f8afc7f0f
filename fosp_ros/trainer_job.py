# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One fine-tuning job as a child process: start, progress, cancel. No rclpy, no torch; the trainer node uses it."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

RUNNING, DONE, REFUSED, FAILED, CANCELLED = 'running', 'done', 'refused', 'failed', 'cancelled'
EXIT_REFUSED = 3  # of the worker: the new model did not pass a gate
GRACE_S = 0.4  # between SIGTERM and SIGKILL: a cancel is honoured within one second


class Job:
    """A worker process that prints JSON lines; `poll` returns its events and keeps `state` up to date.

    Parameters
    ----------
    name : str
        Job id that the user sees.
    arguments : sequence of str
        Command line of `module`.
    module : str
        Python module that is run with `-m`.
    threads : int
        Computing threads of the worker.

    """

    def __init__(self, name: str, arguments: Sequence[str], module: str = 'fosp_ros.trainer_worker', threads: int = 1):
        self.name = name
        self.state = RUNNING
        self.reason = ''          # one line, when it failed or the model was refused
        self.kept_at = ''         # where a refused model lies
        self.step, self.steps = 0, 0
        self.seconds = 0.0        # of training so far, as the worker counts them
        self.losses: dict[str, float] = {}
        self.alignment: dict[str, object] = {}   # rank correlations before and after value pre-alignment
        self.started = time.monotonic()
        self._events: queue.SimpleQueue = queue.SimpleQueue()
        self._errors: list[str] = []
        self._killed_at: float | None = None
        env = {**os.environ, 'OMP_NUM_THREADS': str(threads), 'MKL_NUM_THREADS': str(threads),
               'OMP_WAIT_POLICY': 'PASSIVE', 'PYTHONUNBUFFERED': '1'}
        # A group of its own: whatever the worker starts ends with it.
        self._process = subprocess.Popen([sys.executable, '-m', module, *arguments], env=env,
                                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                         text=True, errors='replace', start_new_session=True)
        self._readers = [threading.Thread(target=self._read_out, daemon=True),
                         threading.Thread(target=self._read_err, daemon=True)]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    @property
    def eta(self) -> float:
        """Seconds of training left; NaN before the first step."""
        return self.seconds / self.step * (self.steps - self.step) if self.step else float('nan')

    def cancel(self) -> None:
        """Ask the worker to end; `poll` forces it after a short grace."""
        if self.state == RUNNING and self._killed_at is None:
            self._killed_at = time.monotonic()
            self._signal(signal.SIGTERM)

    def poll(self) -> list[dict]:
        """Return the events since the last call; sets `state` once the worker has ended."""
        code = self._process.poll()
        if code is None and self._killed_at is not None and time.monotonic() - self._killed_at > GRACE_S:
            self._signal(signal.SIGKILL)
        if code is not None:
            for reader in self._readers:
                reader.join(1.0)
        events = []
        while not self._events.empty():
            event = self._events.get()
            if event.get('event') in ('start', 'step'):
                self.steps = int(event.get('steps', self.steps))
                self.step = int(event.get('step', self.step))
                self.seconds = float(event.get('seconds', self.seconds))
                self.losses = {k: float(v) for k, v in event.get('losses', self.losses).items()}
            elif event.get('event') == 'align':
                self.alignment = {k: v for k, v in event.items() if k.startswith('rho_')}
            elif event.get('event') == 'refused':
                self.reason, self.kept_at = str(event.get('reason', '')), str(event.get('path', ''))
            events.append(event)
        if code is not None and self.state == RUNNING:
            if self._killed_at is not None:
                self.state, self.reason = CANCELLED, 'cancelled'
            elif code == 0:
                self.state = DONE
            elif code == EXIT_REFUSED and self.reason:
                self.state = REFUSED
            else:
                self.state = FAILED
                ended = f'signal {signal.Signals(-code).name}' if code < 0 else f'exit code {code}'
                last = next((line for line in reversed(self._errors) if line.strip()), '')
                self.reason = f'worker ended with {ended}' + (f': {last.removeprefix("error: ")}' if last else '')
        return events

    def end(self) -> None:
        """Kill the worker and its group now and wait for it; for the shutdown of the node."""
        if self._killed_at is None:
            self._killed_at = time.monotonic()
        self._signal(signal.SIGKILL)
        self._process.wait()
        self.poll()

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            pass

    def _read_out(self) -> None:
        with self._process.stdout as lines:
            for line in lines:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # a library that prints must not end the job
                if isinstance(event, dict):
                    self._events.put(event)

    def _read_err(self) -> None:
        with self._process.stderr as lines:
            for line in lines:
                self._errors.append(line.rstrip('\n'))
                del self._errors[:-50]
