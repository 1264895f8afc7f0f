# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Runs a graph of node processes on this machine: start, watch, stop. Used by `fosp up`, `fosp demo` and the tests.

No rclpy here: the runner must be able to report and clean up whatever happens in the nodes.
"""

import collections
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from fosp_core.errors import FospError
from fosp_ros import graph, shared_memory

KEPT_LINES = 200      # newest lines of each node, for the error message and for tests
SAMPLE_PERIOD_S = 0.5  # how often the shared-memory files of the nodes are noted: about 1 ms per node


class GraphRunner:
    """Starts each node of `specs` as its own process and watches them.

    Parameters
    ----------
    specs : list of NodeSpec
        From `graph.build`.
    domain_id : int, optional
        ROS_DOMAIN_ID of the nodes; None inherits it.
    log : callable, optional
        Called with each output line, prefixed `[node] `, from reader threads; None keeps the lines only.
    local : bool
        All nodes on this machine: loopback discovery and the local Fast DDS profile.
    extra_env : dict, optional
        More environment for the nodes.

    """

    def __init__(self, specs: Sequence[graph.NodeSpec], domain_id: int | None = None,
                 log: Callable[[str], None] | None = None, local: bool = True,
                 extra_env: dict[str, str] | None = None):
        self.specs = list(specs)
        self.lines = {spec.name: collections.deque(maxlen=KEPT_LINES) for spec in self.specs}
        self.codes: dict[str, int] = {}     # exit codes of the nodes that ended
        self.forced: list[str] = []         # nodes that had to be killed in `stop`
        self._log = log
        self._processes: dict[str, subprocess.Popen] = {}
        self._readers: list[threading.Thread] = []
        self._files: set[str] = set()
        self._sampled = 0.0
        self._env = {**os.environ, **graph.environment(local), 'PYTHONUNBUFFERED': '1',
                     'RCUTILS_COLORIZED_OUTPUT': '0', 'FOSP_PARENT_PID': str(os.getpid()), **(extra_env or {})}
        if domain_id is not None:
            self._env['ROS_DOMAIN_ID'] = str(domain_id)

    def __enter__(self) -> 'GraphRunner':
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the nodes that are running."""
        return {name: p.pid for name, p in self._processes.items() if p.poll() is None}

    @property
    def env(self) -> dict[str, str]:
        """The environment of the node processes; a client that wants to talk to them needs the same."""
        return dict(self._env)

    def start(self) -> None:
        """Start every node; when one cannot be started, stop the others and raise FospError."""
        for spec in self.specs:
            try:
                # A session of its own: Ctrl-C in the terminal must reach the runner alone, which stops in order.
                process = subprocess.Popen(spec.command(sys.executable), env=self._env, stdin=subprocess.DEVNULL,
                                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
                                           text=True, errors='replace', bufsize=1)
            except OSError as error:
                self.stop()
                raise FospError(f'node {spec.name}: {error.strerror}') from None
            self._processes[spec.name] = process
            reader = threading.Thread(target=self._read, args=(spec.name, process), daemon=True)
            reader.start()
            self._readers.append(reader)

    def poll(self) -> dict[str, int]:
        """Return name -> exit code of the nodes that ended so far; call it a few times a second."""
        for name, process in self._processes.items():
            code = process.poll()
            if code is not None and name not in self.codes:
                self.codes[name] = code
        if time.monotonic() - self._sampled > SAMPLE_PERIOD_S:
            self._sample()
        return dict(self.codes)

    def check(self) -> None:
        """Raise FospError naming the first node that ended, its exit code and its last line."""
        for name, code in self.poll().items():
            for reader in self._readers:
                reader.join(0.2)
            last = next((line for line in reversed(self.lines[name]) if line.strip()), 'no output')
            how = f'signal {signal.Signals(-code).name}' if code < 0 else f'exit code {code}'
            raise FospError(f'node {name} ended ({how}): {last.removeprefix("error: ")}')

    def stop(self, timeout: float = 8.0) -> dict[str, int]:
        """End all nodes: SIGINT, a bounded wait, SIGKILL last; the critical ones after the others.

        Returns name -> exit code; `forced` names those that had to be killed. Leaves nothing in /dev/shm.
        """
        self._sample()
        for critical in (False, True):
            group = [self._processes[s.name] for s in self.specs
                     if s.critical == critical and s.name in self._processes]
            for process in group:
                self._signal(process, signal.SIGINT)
            end = time.monotonic() + timeout
            for process in group:
                try:
                    process.wait(max(0.0, end - time.monotonic()))
                except subprocess.TimeoutExpired:
                    continue
        for name, process in self._processes.items():
            if process.poll() is None:
                self.forced.append(name)
                self._signal(process, signal.SIGKILL)
                process.wait()
            self.codes[name] = process.returncode
        for reader in self._readers:
            reader.join(1.0)
        shared_memory.remove(self._files)
        return dict(self.codes)

    @staticmethod
    def _signal(process: subprocess.Popen, number: int) -> None:
        if process.poll() is None:
            try:
                process.send_signal(number)
            except ProcessLookupError:
                pass

    def _sample(self) -> None:
        self._sampled = time.monotonic()
        for pid in self.pids.values():
            self._files |= shared_memory.opened_by(pid)

    def _read(self, name: str, process: subprocess.Popen) -> None:
        with process.stdout:
            for line in process.stdout:
                line = line.rstrip('\n')
                self.lines[name].append(line)
                if self._log is not None:
                    self._log(f'[{name}] {line}')
