# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The whole graph as a user runs it: `fosp up`, episodes, a fine-tune by service, a new model everywhere, a clean end.

Four processes over real rclpy and Fast DDS, with a random model of debug size. The longest test of the ROS ring.
"""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node
from std_srvs.srv import Trigger

from fosp_ros import diagnostics, graph, qos, shared_memory

pytest.importorskip('mujoco', reason='MuJoCo is not installed')


class Operator(Node):
    """Watches the graph from outside and calls its services."""

    def __init__(self):
        super().__init__('operator', namespace='fosp')
        self.episodes, self.progress, self.reports, self.state = [], [], {}, {}
        self.create_subscription(DiagnosticStatus, 'sim_bridge/episode', lambda m: self.episodes.append(
            diagnostics.values_of(m)), qos.EVENT)
        self.create_subscription(DiagnosticStatus, 'trainer/progress', lambda m: self.progress.append(
            (m.message, diagnostics.values_of(m))), qos.LATCHED)
        self.create_subscription(DiagnosticStatus, 'safety_filter/state', self._on_state, qos.STATUS)
        self.create_subscription(DiagnosticArray, '/diagnostics', self._on_report, qos.DIAGNOSTICS)
        self.clients_by = {name: self.create_client(Trigger, name) for name in (
            'sim_bridge/start', 'trainer/fine_tune', 'trainer/rollback')}

    def _on_state(self, message):
        self.state = diagnostics.values_of(message)

    def _on_report(self, message):
        for status in message.status:
            self.reports[status.name.rsplit('/', 1)[-1]] = diagnostics.values_of(status)

    def call(self, name):
        future = self.clients_by[name].call_async(Trigger.Request())
        end = time.monotonic() + 10
        while not future.done() and time.monotonic() < end:
            time.sleep(0.01)
        assert future.done(), f'{name} did not answer'
        return future.result()


class Up:
    """`fosp up` as a child process with its output."""

    def __init__(self, *arguments):
        self.lines = []
        self.process = subprocess.Popen([sys.executable, '-m', 'fosp_core.cli', 'up', *arguments], text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True)
        self._reader.start()

    def nodes(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number=signal.SIGINT):
        family = self.nodes() if self.process.poll() is None else []
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(30)
        finally:
            for process in family:
                if process.is_running() and self.process.poll() is None:
                    process.kill()
        self._reader.join(2.0)
        self.process.stdout.close()
        return code, [p for p in family if p.is_running()]


@pytest.fixture
def up(rig, toy, tmp_path):
    operator = rig.add(Operator())
    started = []

    def _up(*settings):
        arguments = ['--model', str(toy)]
        for setting in (f'trainer.work_dir={tmp_path / "work"}', *settings):
            arguments += ['--set', setting]
        started.append(Up(*arguments))
        return started[-1]
    yield rig, operator, _up
    for one in started:
        if one.process.poll() is None:
            one.end(signal.SIGTERM)


def own_files(processes):
    files = set()
    for process in processes:
        files |= {f for f in shared_memory.opened_by(process.pid) if '_port' not in f}
    return {f for f in files if f.endswith('_el') or f'{f}_el' in files}     # what is only read is another's


def test_episodes_fine_tune_swap_and_a_clean_end(up):
    rig, operator, start = up
    graph_process = start('sim_bridge.episodes=3', 'sim_bridge.realtime_factor=2.0', 'sim_bridge.seed=7',
                          'trainer.min_steps=20', 'trainer.steps=8')

    def alive():
        assert graph_process.process.poll() is None, ''.join(graph_process.lines[-30:])
        return True
    rig.wait_for(lambda: alive() and len(operator.episodes) == 3, 60.0, 'three episodes')
    nodes = graph_process.nodes()
    assert len(nodes) == len(graph.build()), [p.cmdline() for p in nodes]
    files = own_files(nodes) - own_files([psutil.Process()])
    assert files, 'no shared memory seen: the test would prove nothing'
    assert [e['seed'] for e in operator.episodes] == ['7', '8', '9']
    steps = sum(int(e['steps']) + 1 for e in operator.episodes)  # the first observation is a record too
    rig.wait_for(lambda: operator.reports.get('trainer', {}).get('episodes') == '3', 5.0, 'three kept episodes')
    trainer = operator.reports['trainer']
    assert int(trainer['joined']) == int(trainer['steps_kept']) == steps
    assert trainer['lost'] == trainer['doubled'] == trainer['reordered'] == trainer['mismatched'] == '0'
    assert operator.episodes[-1]['bypassed_run'] == '0'

    answer = operator.call('trainer/fine_tune')
    assert answer.success and answer.message == 'ft-0001'
    operator.call('sim_bridge/start')  # control goes on while the worker trains
    ends = ('published', 'failed', 'refused')
    rig.wait_for(lambda: alive() and operator.progress and operator.progress[-1][0] in ends, 150.0, 'the job to end')
    phase, values = operator.progress[-1]
    assert phase == 'published', values
    version = values['version']
    if len(operator.episodes) >= 6:
        operator.call('sim_bridge/start')
    rig.wait_for(lambda: alive() and operator.state.get('version') == version, 15.0, 'the new version in the filter')
    rig.wait_for(lambda: alive() and operator.reports['learner']['version'] == version, 15.0,
                 'the new version in the learner')
    rig.wait_for(lambda: alive() and operator.reports['trainer']['current'] == version, 5.0, 'the trainer to say so')
    back = operator.call('trainer/rollback')
    assert back.success and back.message == 'toy'

    code, left = graph_process.end(signal.SIGINT)
    assert code == 0, ''.join(graph_process.lines[-30:])
    assert not left and not any(p.is_running() for p in nodes), 'orphans'
    assert not files & set(os.listdir('/dev/shm')), 'shared memory was left behind'
    assert not [line for line in graph_process.lines if 'Traceback' in line]


def test_a_killed_filter_ends_the_graph_and_is_named(up):
    rig, operator, start = up
    graph_process = start('sim_bridge.episodes=100')
    rig.wait_for(lambda: operator.state.get('version') == 'toy' and 'sim_bridge' in operator.reports, 30.0, 'the graph')
    nodes = graph_process.nodes()
    time.sleep(1.0)
    files = own_files(nodes) - own_files([psutil.Process()])
    assert files
    victim = next(p for p in nodes if 'fosp_ros.safety_filter_node' in p.cmdline())
    victim.kill()
    code, left = graph_process.end(0)  # signal 0: only wait
    assert code == 2 and not left
    assert 'error: node safety_filter ended (signal SIGKILL)' in graph_process.lines[-1]
    assert not files & set(os.listdir('/dev/shm')), 'shared memory was left behind'


def test_a_killed_starter_leaves_no_orphan(up):
    """`ros2 launch` and `fosp up` alike: whoever started the nodes is gone, so they end themselves, worker included."""
    rig, operator, start = up
    graph_process = start('sim_bridge.episodes=100')
    rig.wait_for(lambda: operator.state.get('version') == 'toy' and 'sim_bridge' in operator.reports, 30.0, 'the graph')
    nodes = graph_process.nodes()
    graph_process.process.kill()
    _, alive = psutil.wait_procs(nodes, timeout=10)
    for process in alive:
        process.kill()
    assert not alive, [p.cmdline() for p in alive]
