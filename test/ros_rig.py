# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the folders that run nodes (`test/ros`, `test/faults`): one isolated ROS domain per test process, a fresh
context per test, a toy bundle made once, and one more try. `test/conftest.py` imports them.

Nodes are always destroyed before the context: a context shut down first leaves its services discoverable, and the next
test's client would be matched with a dead server.
"""

import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

FOLDERS = ('ros', 'faults')
SETTLE_S = 3.0      # 2.0 is the longest that was measured
SECOND = 'second try'

# Calibrated by decree, so that the safety filter takes it: its levels let everything pass. Heads that start at zero get
# random weights: with equal critics the choice between the candidates would hang on the last bit, and the export's
# parity gate would rightly ask which one is meant.
MAKE_TOY = '''
import sys
import torch
from fosp_core.deploy import toy
export = toy.export_bundle
def usable(agent, *args, calibration, **options):
    torch.manual_seed(3)
    for parameter in agent.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter.data, std=0.3)
    for gate in ("reachability", "surprise"):
        calibration[gate]["n"] = max(1, calibration[gate]["n"])
    return export(agent, *args, calibration=calibration, **options)
toy.export_bundle = usable
toy.make_toy(sys.argv[1], *map(toy.Contract.load, sys.argv[2:]))
'''


_killed = [-SETTLE_S]    # when this process last sent a SIGKILL


def _noting(send):
    def noted(target, number):
        if number == signal.SIGKILL:
            _killed[0] = time.monotonic()
        return send(target, number)
    return noted


def settle():
    """Wait until no peer was killed for `SETTLE_S`; before a node of this process is destroyed.

    A peer killed within a write leaves the shared-memory port of its reader locked. Fast DDS (2.14, and the newest
    source, too) replaces that port from a thread of its own within two seconds; a participant that is destroyed just
    then waits for a lock in memory that goes away: SIGSEGV, in 13 of 292 ends of a node beside a killed one.
    """
    time.sleep(max(0.0, _killed[0] + SETTLE_S - time.monotonic()))


@pytest.fixture(scope='session')
def isolated(tmp_path_factory):
    """Reserve a domain of our own, keep to this machine, and keep the log out of the home folder."""
    pytest.importorskip('rclpy', reason='rclpy is not installed: ROS tests need a ROS 2 distribution or its wheels')
    from domain_coordinator import domain_id
    saved = dict(os.environ)
    with domain_id() as number:
        os.environ.update(ROS_DOMAIN_ID=str(number), ROS_AUTOMATIC_DISCOVERY_RANGE='LOCALHOST',
                          ROS_LOG_DIR=str(tmp_path_factory.mktemp('ros_log')), OMP_NUM_THREADS='1')
        os.environ.pop('FOSP_PARENT_PID', None)
        with pytest.MonkeyPatch.context() as patch:     # `subprocess` sends its signals by them, too
            patch.setattr(os, 'kill', _noting(os.kill))
            patch.setattr(os, 'killpg', _noting(os.killpg))
            yield number
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture
def kept_environment(isolated):
    """Undo what a command that is run within this process sets for its nodes."""
    saved = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture(scope='session')
def toy(tmp_path_factory):
    """Path of a random bundle of debug size, made in a child so that torch stays out of this process."""
    folder = tmp_path_factory.mktemp('toy') / 'toy'
    subprocess.run([sys.executable, '-c', MAKE_TOY, str(folder)], check=True, capture_output=True)
    return folder


def wait_for(condition, timeout=10.0, what='condition'):
    """Return the first true value of `condition()`; fail naming it (or what it returns) after `timeout` seconds."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    pytest.fail(f'{what() if callable(what) else what} did not come true in {timeout} s')


def within(node, call):
    """Return call(), run between two waits of the thread that spins `node`.

    What destroys an entity belongs there: rclpy has a publisher's events in the wait of the other thread, and destroyed
    beneath it they ended the spinning (InvalidHandle) in 8 of 1,000 cases.
    """
    executor, results = node.executor, []
    if executor is None:
        return call()

    def run():
        try:
            results.append((call(), None))
        except BaseException as error:  # noqa: BLE001 - raised below, where the test sees it
            results.append((None, error))
    executor.create_task(run)
    result, error = wait_for(lambda: results, 20.0, 'the thread that spins the node')[0]
    if error is not None:
        raise error
    return result


class Rig:
    """Spins nodes of this process in a thread; `wait_for` polls a condition."""

    def __init__(self):
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        rclpy.init()
        self.executor = SingleThreadedExecutor()
        self.nodes = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def add(self, node):
        """Spin this node from now on."""
        self.nodes.append(node)
        self.executor.add_node(node)
        return node

    def _spin(self):
        while not self._stop.is_set():
            self.executor.spin_once(timeout_sec=0.05)

    def wait_for(self, condition, timeout=10.0, what='condition'):
        """Return the first true value of `condition()`; fail naming it after `timeout` seconds."""
        return wait_for(condition, timeout, what)

    def close(self):
        """End the spinning, then every node, then the context."""
        import rclpy
        self._stop.set()
        self._thread.join(5.0)
        settle()
        for node in self.nodes:
            if hasattr(node, 'bring_down'):
                node.bring_down()
            self.executor.remove_node(node)
            node.destroy_node()
        self.executor.shutdown()
        rclpy.try_shutdown()
        # Nodes are parts of reference cycles, and those that were active froze them for the collector. Until they are
        # collected their participant lives on, and beyond the 32nd of a domain no other process is found.
        self.nodes.clear()
        gc.unfreeze()
        gc.collect()


@pytest.fixture
def rig(isolated):
    """A context, an executor thread, and an orderly end."""
    rig = Rig()
    yield rig
    rig.close()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    """Give a failed test of these folders one more try, and say so.

    Real processes meet real discovery and real time: beside a busy neighbour a deadline of seconds can be missed
    once. A fault of ours fails twice.
    """
    if item.path.parent.name not in FOLDERS:     # this hook is called for every folder
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    why = ''
    for last in (False, True):
        reports = item.config.pluginmanager.getplugin('runner').runtestprotocol(item, nextitem=nextitem, log=False)
        failed = [r for r in reports if r.failed]
        if last or not failed:
            break
        why = str(failed[0].longrepr).splitlines()[-1][:200]
        item._initrequest()
    if why:
        reports[0].user_properties.append((SECOND, why))    # it reaches the summary from a worker, too
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_terminal_summary(terminalreporter):
    """Name the tests that had a second try, and what the first one met."""
    for reports in list(terminalreporter.stats.values()):
        for report in reports:
            for name, why in getattr(report, 'user_properties', ()):
                if name == SECOND:
                    terminalreporter.write_line(f'second try of {report.nodeid}: {why}')
