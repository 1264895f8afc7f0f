# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The base of every node: transitions that report their failures, and processes that end as they should.

Guards against: an exception in a transition that nobody sees (rclpy swallows it); `ros2 launch` on SIGTERM leaving its
nodes as orphans; a node that outlives the one who started it; a finished node whose services stay discoverable.
"""

import contextlib
import mmap
import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
from lifecycle_msgs.srv import GetState
from rclpy.lifecycle import TransitionCallbackReturn

from fosp_core.errors import FospError
from fosp_ros import diagnostics, shared_memory
from fosp_ros.lifecycle import ManagedNode

PROGRAM = '''
    import os, sys, time
    from std_srvs.srv import Trigger
    from fosp_core.errors import FospError
    from fosp_ros.lifecycle import ManagedNode, spin_node
    from fosp_ros.parameters import P

    class Small(ManagedNode):
        NAME = 'small'
        PARAMETERS = (P('mode', 'string', 'good', 'Mode.'),)
        def set_up(self):
            if self.p.mode == 'bad_model':
                raise FospError('model.bin: expected abc, found def')
            self.serve(Trigger, 'ping', lambda request, response: response)
            if self.p.mode == 'fault':  # else nothing wakes the executor: a signal must do it
                self.every(0.05, self.tick)
        def tick(self):
            raise RuntimeError('boom')
        def destroy_node(self):
            super().destroy_node()
            print('destroyed', flush=True)
        def start(self):
            print('started', flush=True)
        def stop(self):
            print('stopped', flush=True)
            if self.p.mode == 'hangs':
                time.sleep(60)
    import rclpy
    shut = rclpy.try_shutdown
    rclpy.try_shutdown = lambda: (shut(), print('shut down', flush=True))
    sys.exit(spin_node(Small, threads=int(os.environ.get('THREADS', '1'))))
'''


def start(tmp_path, *arguments, wait=True, **env):
    (tmp_path / 'small.py').write_text(textwrap.dedent(PROGRAM))
    process = subprocess.Popen([sys.executable, str(tmp_path / 'small.py'), '--ros-args', *arguments],
                               env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if wait:
        assert process.stdout.readline() == 'started\n'
    return process


@pytest.mark.parametrize(('number', 'threads'), [(signal.SIGINT, '1'), (signal.SIGTERM, '1'), (signal.SIGINT, '3'),
                                                 (signal.SIGTERM, '3')])
def test_a_signal_stops_the_node_and_the_exit_code_is_zero(tmp_path, number, threads):
    process = start(tmp_path, THREADS=threads)
    began = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 0, err
    assert out == 'stopped\ndestroyed\nshut down\n' and 'Traceback' not in err
    assert time.monotonic() - began < 3.0


def test_a_signal_before_the_node_is_up_also_ends_it(tmp_path):
    process = start(tmp_path, wait=False)
    time.sleep(0.35)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode in (0, -signal.SIGTERM)  # the latter: before our handler was there


def test_a_refused_configuration_is_one_line_and_exit_code_two(tmp_path):
    process = start(tmp_path, '-p', 'mode:=bad_model', wait=False)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 2
    assert 'error: node small: configure: model.bin: expected abc, found def\n' in err and 'Traceback' not in err


def test_an_unknown_parameter_is_one_line_and_exit_code_two(tmp_path):
    process = start(tmp_path, '-p', 'mood:=x', wait=False)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 2 and "error: node small: no parameter 'mood'; did you mean 'mode'?" in err


@pytest.mark.parametrize(('text', 'said'), [(None, 'No such file'), ('a: [', 'not YAML'),
                                          ('small:\n  ros__parameters:\n    x: [1, a]\n', 'ROS arguments')])
def test_a_bad_parameter_file_is_named_and_exit_code_two(tmp_path, text, said):
    file = tmp_path / 'mine.yaml'
    if text is not None:
        file.write_text(text)
    process = start(tmp_path, '--params-file', str(file), wait=False)
    _, err = process.communicate(timeout=10)
    (line,) = [line for line in err.splitlines() if line.startswith('error: ')]
    assert process.returncode == 2 and str(file) in line and said in line and 'Traceback' not in err


@pytest.mark.parametrize('threads', ['1', '3'])
def test_a_fault_of_ours_is_a_traceback_and_exit_code_one(tmp_path, threads):
    process = start(tmp_path, '-p', 'mode:=fault', THREADS=threads)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 1 and 'RuntimeError: boom' in err
    assert out.startswith('stopped\n'), 'what must be said last was not said'


def test_a_node_ends_when_the_process_that_started_it_is_killed(tmp_path):
    (tmp_path / 'small.py').write_text(textwrap.dedent(PROGRAM))
    parent = subprocess.Popen([sys.executable, '-c', textwrap.dedent(f'''
        import os, subprocess, sys, time
        env = dict(os.environ, FOSP_PARENT_PID=str(os.getpid()))
        child = subprocess.Popen([sys.executable, {str(tmp_path / "small.py")!r}], env=env)
        print(child.pid, flush=True)
        time.sleep(60)
    ''')], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    assert parent.stdout.readline() == 'started\n'
    parent.kill()
    parent.wait()
    gone, alive = psutil.wait_procs([child], timeout=5)
    for process in alive:
        process.kill()
    assert gone and not alive, 'the node is an orphan'
    parent.stdout.close()


def test_a_node_that_hangs_in_its_stop_is_ended_by_force(tmp_path):
    process = start(tmp_path, '-p', 'mode:=hangs')
    files = shared_memory.opened_by(process.pid)
    # Ports are shared by all processes of a domain; the segment is this process's own, also while another reads it.
    # What it only reads (a segment whose lock it does not hold) is another's.
    own = {name for name in files if '_port' not in name and (name.endswith('_el') or f'{name}_el' in files)}
    with contextlib.ExitStack() as readers:
        for name in own:
            if not name.endswith('_el'):
                file = readers.enter_context(open(shared_memory.FOLDER / name, 'rb'))
                readers.enter_context(mmap.mmap(file.fileno(), 4096, access=mmap.ACCESS_READ))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1 and 'ended by force' in err
    assert own and not own & set(os.listdir('/dev/shm')), 'shared memory was left behind'


class Hooked(ManagedNode):
    """Records its hooks and fails where it is told to."""

    NAME = 'hooked'

    def __init__(self, fail=None, **options):
        self.fail, self.calls = fail, []
        super().__init__(**options)

    def _do(self, name):
        self.calls.append(name)
        if self.fail == name:
            raise FospError(f'{name} went wrong')
        if self.fail == f'{name}!':
            raise KeyError(name)

    def set_up(self):
        self.serve(__import__('std_srvs.srv', fromlist=['Trigger']).Trigger, 'ping', lambda request, response: response)
        self._do('set_up')

    def start(self):
        self._do('start')

    def stop(self):
        self._do('stop')

    def tear_down(self):
        self._do('tear_down')


def state_of(node):
    return node._state_machine.current_state[1]


@pytest.mark.parametrize('fail', ['set_up', 'set_up!'])
def test_a_failed_configure_releases_the_half_made_state_and_says_why(rig, fail):
    node = Hooked(fail)
    before = len(list(node.services))
    assert not node.bring_up()
    assert node.calls == ['set_up', 'tear_down'] and state_of(node) == 'unconfigured' and 'set_up' in node.failure
    assert len(list(node.services)) == before
    node.fail = None
    assert node.bring_up() and state_of(node) == 'active' and node.active
    node.bring_down()
    assert node.calls[-2:] == ['stop', 'tear_down']
    node.destroy_node()


def test_a_failed_activate_stops_and_stays_inactive(rig):
    node = Hooked('start!')
    assert not node.bring_up() and state_of(node) == 'inactive' and not node.active
    assert node.calls == ['set_up', 'start', 'stop']
    node.bring_down()
    node.destroy_node()


def test_a_fault_in_stop_still_tears_down(rig):
    node = Hooked('stop!')
    assert node.bring_up()
    assert node.trigger_deactivate() == TransitionCallbackReturn.ERROR
    assert state_of(node) == 'unconfigured' and node.calls[-1] == 'tear_down'
    node.destroy_node()


def test_a_lifecycle_manager_can_drive_the_node(rig):
    import rclpy
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState
    node = rig.add(Hooked())
    client = rig.add(rclpy.create_node('manager'))
    change = client.create_client(ChangeState, '/hooked/change_state')
    get = client.create_client(GetState, '/hooked/get_state')
    assert change.wait_for_service(10.0) and get.wait_for_service(10.0)

    def call(service, request):
        future = service.call_async(request)
        rig.wait_for(future.done, what='answer')
        return future.result()
    for transition, state in ((Transition.TRANSITION_CONFIGURE, 'inactive'), (Transition.TRANSITION_ACTIVATE, 'active'),
                              (Transition.TRANSITION_DEACTIVATE, 'inactive'),
                              (Transition.TRANSITION_CLEANUP, 'unconfigured')):
        request = ChangeState.Request()
        request.transition.id = transition
        assert call(change, request).success
        assert call(get, GetState.Request()).current_state.label == state
    assert node.calls == ['set_up', 'start', 'stop', 'tear_down']


def test_a_node_that_is_not_active_reports_stale(rig):
    from diagnostic_msgs.msg import DiagnosticArray

    class Reporting(ManagedNode):
        NAME = 'reporting'

        def set_up(self):
            self.reporter = diagnostics.Reporter(self, lambda: (diagnostics.OK, 'fine', {'a': 1}))
    seen = []
    node = rig.add(Reporting())
    node.create_subscription(DiagnosticArray, '/diagnostics', seen.append, 10)
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    rig.wait_for(lambda: seen, what='a report')
    assert seen[-1].status[0].level == diagnostics.STALE
    node.trigger_activate()
    rig.wait_for(lambda: seen[-1].status[0].level == diagnostics.OK, what='OK')
    assert diagnostics.values_of(seen[-1].status[0]) == {'a': '1'}


def test_percentiles_and_rates_are_of_the_newest_events():
    window = diagnostics.LatencyWindow(4)
    for value in (100.0, 1.0, 2.0, 3.0, 4.0):
        window.add(value)
    assert window.percentile(50) == 2.5 and window.worst == 100.0 and window.count == 5
    now = [0.0]
    rate = diagnostics.RateCounter(2.0, clock=lambda: now[0])
    assert rate.rate == 0.0 and rate.age == float('inf')
    for _ in range(40):
        now[0] += 0.1
        rate.tick()
    assert rate.rate == pytest.approx(10.0, rel=0.1) and rate.age == 0.0
    now[0] += 10.0
    assert rate.rate == 0.0
