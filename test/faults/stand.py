# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The test stand of the fault suite: the filter as a process of its own, a robot cell around it, and a stop-watch.

Margins. A delay is the difference of two publication times that the middleware notes, so that no delay of this process
is in it. A fault by silence begins when the message that does not come was due: before that nothing is wrong. From
then to the first stop at most 200 ms may pass, in every trial. From the last message on the filter promises 200 ms as
well; there it has 20 ms of its own to spare, fewer than a loaded computer may withhold a processor, so that one trial
of three must show it.
"""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import rclpy
from filter_cell import Cell
from rclpy.executors import SingleThreadedExecutor
from ros_rig import settle, wait_for
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger

from fosp_ros import shared_memory
from fosp_ros.filter_parameters import PARAMETERS

PROMISE_S, PERIOD_S = 0.2, 0.1
NODE = (sys.executable, '-m', 'fosp_ros.safety_filter_node')
LIMITS = {'max_speed': 0.2, 'max_acceleration': 2.0}
BOX = np.array([p.default for p in PARAMETERS if p.name in ('workspace_low', 'workspace_high')])
RANGE = 0.25
MEASURED = []       # (fault, reason, ms from the due message or the bad one, ms from the last good one)


class Participant:
    """A node of this process with a context of its own, spun in a thread."""

    def __init__(self, make):
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = make(self.context)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self):
        while not self._end.is_set():
            self._executor.spin_once(timeout_sec=0.05)

    def close(self):
        """End the thread, then the node, then the context."""
        self._end.set()
        self._thread.join(5.0)
        if hasattr(self.node, 'bring_down'):
            self.node.bring_down()
        self._executor.shutdown()
        settle()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self.context)


class Child:
    """A process with its output in a file; what a kill leaves in /dev/shm is removed."""

    OUT = None      # where its output goes, in place of the file

    def __init__(self, command, log, **environment):
        self.log = log
        with log.open('ab') as out:
            self.process = subprocess.Popen([str(word) for word in command], stdout=self.OUT or out,
                                            stderr=subprocess.STDOUT, env={**os.environ, **environment})

    @property
    def text(self):
        return self.log.read_text(errors='replace')

    @property
    def alive(self):
        return self.process.poll() is None

    def kill(self):
        """SIGKILL; return when it was sent, ns of the system clock."""
        files = shared_memory.opened_by(self.process.pid)
        at = time.time_ns()
        self.process.kill()
        self.process.wait(5)
        shared_memory.remove(files)
        return at

    def end(self):
        """SIGINT and, when that does not help, SIGKILL; return the exit code."""
        if self.alive:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(12)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode


class Stand:
    """One filter process and one cell in a namespace.

    Parameters
    ----------
    model, folder
        Bundle; folder for log, audit and incidents.
    command : sequence of str
        What starts the filter.
    cell, child : type
        What is around it; its process.
    parameters
        Of the filter, beside short release and ramp and limits below the contract's.

    """

    def __init__(self, model, folder, namespace='fosp', command=NODE, environment=None, cell=Cell, child=Child,
                 **parameters):
        self.folder, self.namespace, self._command = folder, namespace, command
        self._environment = environment or {}
        self.parameters = {'model': model, 'release_s': 0.15, 'ramp_s': 0.15, **LIMITS,
                           'audit_dir': folder / 'audit', 'incident_dir': folder / 'incidents',
                           'latch_file': folder / 'latch.json', **parameters}
        self.child, self._kind, self._child = None, cell, child
        self.participant = Participant(self._cell)
        self._judged = 0
        self.start()
        self.cell.start()

    def _cell(self, context):
        return self._kind(self.namespace, context=context)

    @property
    def cell(self):
        return self.participant.node

    def start(self):
        """Start the filter process."""
        arguments = [x for name, value in self.parameters.items() for x in ('-p', f'{name}:={value}')]
        self.child = self._child([*self._command, '--ros-args', '-r', f'__ns:=/{self.namespace}', *arguments],
                                 self.folder / 'filter.log', **self._environment)

    def restart_cell(self, pause=0.0):
        """Take camera, arm and learner off the middleware, participant and all, and bring them back."""
        self.participant.close()
        gone = time.time_ns()
        time.sleep(pause)
        self.participant, self._judged = Participant(self._cell), 0
        self.cell.start()
        return gone

    def close(self):
        self.child.end()
        self.participant.close()

    # -- before a fault -----------------------------------------------------------------------------------------------
    def ready(self, timeout=25.0):
        """End all faults, reset the latch and wait for motion in a new episode; return the cell."""
        cell = self.cell
        cell.heal()
        cell.patrol = True
        begin, end, asked = cell.ticks + 2, time.monotonic() + timeout, 0.0
        if not self.child.alive:
            self.start()
        while time.monotonic() < end:
            if cell.ticks > begin and cell.reason == 'ok' and all(s.command.any() for s in cell.log[-3:]) \
                    and time.time_ns() - cell.log[-1].at < 2e8:
                return cell
            if cell.states and cell.values().get('latched') and time.monotonic() > asked + 0.5:
                asked = time.monotonic()
                cell.estop.publish(Bool(data=False))
                self.call('estop', SetBool.Request(data=False))
                self.call('reset', Trigger.Request())
            time.sleep(0.01)
        raise AssertionError(f'no motion: {cell.reason}; filter {self.child.process.poll()}: {self.child.text[-800:]}')

    def call(self, name, request):
        future = self.cell.clients_of[name].call_async(request)
        wait_for(future.done, 5.0, name)
        return future.result()

    # -- after a fault ------------------------------------------------------------------------------------------------
    def reason(self, word, since, timeout=4.0):
        """Wait until the filter says `word` in a state after the first `since` ones."""
        def words():
            return [m.message for _, m in self.cell.states[since:]]
        wait_for(lambda: word in words(), timeout, lambda: f'{word} (it said {sorted(set(words()))})')

    def first_stop(self, since):
        """Time of the first zero after `since`, ns, when nothing but zeros followed it; goes on being sent."""
        count = len(self.cell.log)
        wait_for(lambda: len(self.cell.log) >= count + 5, 2.0, 'five more commands')
        after = [s for s in list(self.cell.log) if s.at > since]
        first = next(s.at for s in after if not s.command.any())
        moved = [s for s in after if s.at > first and s.command.any()]
        assert not moved, f'{len(moved)} commands moved the arm after the first stop'
        assert np.median(np.diff([s.at for s in after if s.at >= first])) < 1.5e9 * PERIOD_S
        return first

    def silence(self, fault, kinds, word, tries=3):
        """Silence sources of the cell and hold the filter to its promise; see the module docstring."""
        best = np.inf
        for _ in range(tries):
            cell = self.ready()
            before = cell.inject(lambda cell: cell.off.update(kinds))
            self.reason(word, before['states'])
            last = cell.published[kinds[0]][-1]
            first = self.first_stop(last)
            strict = (first - last) * 1e-9
            MEASURED.append((fault, word, 1e3 * (strict - PERIOD_S), 1e3 * strict))
            assert strict - PERIOD_S <= PROMISE_S, f'first stop {strict - PERIOD_S:.3f} s after the missing message'
            best = min(best, strict)
            if best <= PROMISE_S:
                return
        raise AssertionError(f'first stop {best:.3f} s after the last message at best, expected {PROMISE_S}')

    def rejected(self, fault, word, change, kind, within=PROMISE_S):
        """Apply `change(cell)`, wait for the reason; the first stop comes `within` s of the first bad message."""
        cell = self.ready()
        before = cell.inject(change)
        self.reason(word, before['states'])
        since = cell.published[kind][before[kind] - 1] + round(1e9 * PERIOD_S)
        if len(cell.published[kind]) > before[kind]:        # else the bad one is still under way: when it was due
            since = min(since, cell.published[kind][before[kind]])
        first = self.first_stop(since)
        MEASURED.append((fault, word, (first - since) * 1e-6, None))
        assert (first - since) * 1e-9 <= within, f'first stop {(first - since) * 1e-9:.3f} s after the bad message'

    def judge(self):
        """Hold every command since the last call to the limits, by rules of this file's own."""
        log, cell = list(self.cell.log), self.cell
        reach = LIMITS['max_acceleration'] * PERIOD_S
        for before, sent in list(zip([None, *log], log))[self._judged:]:
            v = sent.command
            assert np.isfinite(v).all(), sent
            assert np.abs(v).max() <= RANGE + 1e-6 and np.linalg.norm(v) <= LIMITS['max_speed'] + 1e-6, sent
            if not v.any():
                continue
            where = cell.where.get(sent.stamp)
            assert where is not None, f'{sent} moves and answers no picture that was shown'
            ahead = where + v * 2 * PERIOD_S        # for so long the arm follows it when nothing else comes
            assert (ahead >= BOX[0] - 1e-6).all() and (ahead <= BOX[1] + 1e-6).all(), (sent, where)
            if before is not None and before.sequence is not None and sent.sequence == before.sequence + 1:
                u = before.command
                straight = v @ u > 0 and np.linalg.norm(v - u * (v @ u) / (u @ u)) <= 1e-6 and v @ v <= u @ u + 1e-9
                assert straight or np.linalg.norm(v - u) <= reach + 1e-6, (before, sent)    # braking is free
        self._judged = len(log)
        return len(log)
