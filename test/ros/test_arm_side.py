# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The arm's side of command_out: a consumer with MoveIt Servo's rules obeys the real filter and halts when that is
killed; `fosp check-arm` finds the driver that does not halt, and the one that does not follow.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from filter_cell import Cell
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.node import Node
from ros_rig import wait_for, within
from std_msgs.msg import Float64MultiArray

from fosp_core import cli
from fosp_core.errors import FospError
from fosp_ros import check_arm, diagnostics, graph, qos
from fosp_ros.messages import time_of

ARM = Path(__file__).parent.parent / 'servo_arm.py'
CHECK = ('--arm', 'servo', '--topic', 'ee_pose=/arm/pose')


class Watcher(Node):
    def __init__(self):
        super().__init__('watcher')
        self.report, self.poses = {}, []
        self.create_subscription(DiagnosticStatus, '/servo_node/report', self.take, 10)
        self.create_subscription(PoseStamped, '/arm/pose', lambda m: self.poses.append(
            (time.monotonic(), m.pose.position.x, m.pose.position.z)), qos.ANY)

    def take(self, message):
        self.report = {k: float(v) for k, v in diagnostics.values_of(message).items()}


@pytest.fixture
def arm(rig):
    """Return a function that starts the arm: arm(incoming_command_timeout=0.2) -> watcher."""
    processes = []

    def start(**parameters):
        arguments = [x for k, v in parameters.items() for x in ('-p', f'{k}:={v}')]
        processes.append(subprocess.Popen([sys.executable, ARM, '--ros-args', *arguments]))
        watcher = rig.add(Watcher())
        rig.wait_for(lambda: len(watcher.poses) > 10, 60.0, 'poses of the arm')
        return watcher
    yield start
    for process in processes:
        process.send_signal(signal.SIGINT)
        process.wait(10)


def check(*options, out=None):
    words = [sys.executable, '-m', 'fosp_core.cli', 'check-arm', *CHECK, *map(str, options)]
    words += ['--json', str(out)] if out else []
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


def test_servo_obeys_the_filter_and_halts_when_it_is_killed(rig, arm, toy, tmp_path):
    watcher = arm(incoming_command_timeout=0.2)
    cell = rig.add(Cell(namespace='cell'))
    cell.off = {'pose'}
    cell.command = [0.02, 0.0, 0.0]
    options = graph.GraphOptions(namespace='cell', sim=False, arm='servo', model=str(toy), topics=(
        ('joint_states', '/cell/joint_states'), ('ee_pose', '/arm/pose')), overrides=(
        ('safety_filter', 'latch_file', str(tmp_path / 'latch.json')), ('safety_filter', 'audit', False),
        ('safety_filter', 'incidents', False)))
    spec = next(s for s in graph.build(options) if s.name == 'safety_filter')
    log = (tmp_path / 'log').open('wb')
    process = subprocess.Popen(spec.command(sys.executable), stdout=log, stderr=log,
                               env={**os.environ, **graph.environment()})
    try:
        cell.start()
        rig.wait_for(lambda: watcher.report.get('speed', 0.0) > 0.015, 60.0, lambda: (tmp_path / 'log').read_text())
        before = dict(watcher.report)
        rig.wait_for(lambda: watcher.report['moved'] - before['moved'] > 0.02, 40.0, 'motion')
        after = dict(watcher.report)
        # Ten commands a second, each obeyed for up to 0.2 s: most loops find a fresh one, also beside a busy neighbour.
        assert after['stale'] - before['stale'] < after['obeyed'] - before['obeyed'] and after['foreign'] == 0
        process.kill()
        died = time.monotonic()
        rig.wait_for(lambda: watcher.report['speed'] == 0.0, 5.0, 'a standstill')
        stood = len(watcher.poses)
        assert time.monotonic() - died < 1.5
        rig.wait_for(lambda: len(watcher.poses) > stood + 20, 10.0, 'poses after the standstill')
        places = [x for _, x, _ in watcher.poses[stood + 2:]]
        assert max(places) == min(places)
    finally:
        process.kill()
        process.wait()
        log.close()


def test_a_driver_that_halts_in_time_passes(arm, tmp_path):
    arm(incoming_command_timeout=0.2)
    found = check(out=tmp_path / 'look.json')       # looks only
    assert found.returncode == 0 and 'listening: servo_node' in found.stdout and 'add --move' in found.stdout
    assert json.loads((tmp_path / 'look.json').read_text())['listeners'] == ['servo_node']
    done = check('--move', '--trials', 2, '--limit', 0.4, out=tmp_path / 'a.json')
    figures = json.loads((tmp_path / 'a.json').read_text())
    assert done.returncode == 0, done.stdout + done.stderr
    assert figures['halts'] and figures['follows']
    assert 0.1 < figures['silence_worst_s'] < 0.45      # 0.2 beside no neighbour
    assert figures['zero_s'][0] < figures['silence_worst_s']


@pytest.mark.parametrize(('parameters', 'text'), [
    ({'incoming_command_timeout': 0.8}, 'TOO LATE'), ({'forward': True}, 'TOO LATE'), ({'scale': 0.4}, 'NOT followed')])
def test_a_driver_that_does_not_is_found_out(arm, parameters, text):
    watcher = arm(**parameters)
    done = check('--move', '--trials', 1, '--seconds', 0.6)
    assert done.returncode == 1 and text in done.stdout, done.stdout + done.stderr
    wait_for(lambda: watcher.report['speed'] == 0.0, 5.0, 'a standstill after the check')


def test_a_driver_in_other_units_is_stopped_at_once(arm):
    watcher = arm(scale=-8.0)
    done = check('--move', '--seconds', 3, '--speed', 0.02)
    assert done.returncode == 2 and 'units, frame or sign are wrong; stopped' in done.stderr, done.stdout + done.stderr
    heights = [z for _, _, z in watcher.poses]
    assert max(heights) - min(heights) < 0.12       # at eight times the speed it would have been half a metre


@pytest.mark.parametrize(('parameters', 'options'), [
    ({'poses_end': 0.5, 'freeze': True}, ('--seconds', 4)),
    ({'poses_end': 0.5, 'broken': True}, ('--seconds', 4)),
    ({'poses_end': 1.0}, ('--seconds', 1, '--trials', 1))])     # with the commands: it would look like a standstill
def test_an_arm_is_not_driven_blind(arm, parameters, options):
    watcher = arm(**parameters)
    done = check('--move', '--speed', 0.05, *options)
    assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stdout + done.stderr
    assert '/arm/pose: no new pose for' in done.stderr and 'standstill after' not in done.stdout
    wait_for(lambda: watcher.report['speed'] == 0.0, 5.0, 'a standstill')
    assert watcher.report['moved'] < 0.1        # of 200 mm


@pytest.fixture
def adapter(tmp_path):
    """Return a function that starts the node of `arm:=velocity` -> process."""
    processes = []

    def start():
        spec, = graph.build(graph.GraphOptions(sim=False, arm='velocity', nodes=('velocity_adapter',)))
        processes.append(subprocess.Popen(spec.command(sys.executable), env={**os.environ, **graph.environment()}))
        return processes[-1]
    yield start
    for process in processes:
        process.send_signal(signal.SIGINT)
        process.wait(15)


def test_a_controller_that_holds_its_command_for_ever_halts_behind_the_adapter(arm, adapter, tmp_path):
    watcher = arm(array='/cartesian_velocity_controller/commands')
    process = adapter()
    wait_for(lambda: watcher.report.get('obeyed', 0) > 5, 60.0, 'zeros of the adapter, before any command')
    done = check('--move', '--trials', 2, '--limit', 0.4, '--arm', 'velocity', '--wait', 30, out=tmp_path / 'a.json')
    figures = json.loads((tmp_path / 'a.json').read_text())
    assert done.returncode == 0 and figures['listeners'] == ['velocity_adapter'], done.stdout + done.stderr
    assert 0.1 < figures['silence_worst_s'] < 0.45 and figures['follows']
    process.send_signal(signal.SIGINT)
    assert process.wait(15) == 0


def around_the_adapter(rig):
    """Return a node, its publisher of commands to the adapter, and the list of what the controller gets."""
    taken = []
    robot = rig.add(Node('robot'))
    robot.create_subscription(Float64MultiArray, '/cartesian_velocity_controller/commands',
                              lambda m: taken.append(list(m.data)), qos.COMMAND)
    return robot, robot.create_publisher(TwistStamped, '/fosp/command_out', qos.COMMAND), taken


def test_the_adapter_leaves_zeros_behind_and_passes_on_nothing_that_the_contract_does_not_hold(rig, adapter):
    _, out, taken = around_the_adapter(rig)
    process = adapter()

    def send(frame='panda_link0', x=0.02, wz=0.0):
        message = TwistStamped()
        message.header.frame_id, message.twist.linear.x, message.twist.angular.z = frame, x, wz
        out.publish(message)
    rig.wait_for(lambda: len(taken) > 5 and out.get_subscription_count(), 60.0, 'zeros before any command')
    assert not any(map(any, taken))

    def moving():
        send()
        return any(taken[-1])
    rig.wait_for(moving, 10.0, 'the command')
    assert taken[-1] == [0.02, 0.0, 0.0, 0.0, 0.0, 0.0]
    rig.wait_for(lambda: not any(taken[-1]), 5.0, 'zeros when no more commands come')
    del taken[:]
    for wrong in ({'frame': 'base'}, {'frame': ''}, {'x': 0.3}, {'x': float('nan')}, {'x': float('inf')}, {'wz': 0.1}):
        send(**wrong)
        time.sleep(0.05)
    rig.wait_for(lambda: len(taken) > 5, 10.0, 'zeros')
    assert not any(map(any, taken))
    rig.wait_for(moving, 10.0, 'the command')
    process.send_signal(signal.SIGTERM)
    while process.poll() is None:       # commanded to its end
        send()
        time.sleep(0.01)
    rig.wait_for(lambda: not any(taken[-1]), 5.0, 'zeros at its end')


def test_the_adapter_refuses_a_motion_that_was_held_up_on_its_way(rig, adapter):
    robot, out, taken = around_the_adapter(rig)
    adapter()
    rig.wait_for(lambda: len(taken) > 5 and out.get_subscription_count(), 60.0, 'zeros before any command')

    def message_of(age, x=0.02):      # of a camera whose clock is an hour slow
        message = TwistStamped()
        message.header.stamp = time_of(time.time_ns() - round(1e9 * (3600 + age)))
        message.header.frame_id, message.twist.linear.x = 'panda_link0', x
        return message

    def send(*values, **named):
        out.publish(message_of(*values, **named))
        return any(taken[-1])
    rig.wait_for(lambda: send(0.05), 10.0, 'the command')
    rig.wait_for(lambda: not send(0.8), 10.0, 'zeros in place of old commands')
    del taken[:]
    for _ in range(30):     # at first out of order; then newer than all before, and late
        out.publish(message_of(0.8))
        time.sleep(0.05)
    rig.wait_for(lambda: len(taken) > 20, 10.0, 'zeros')
    assert not any(map(any, taken))
    rig.wait_for(lambda: send(0.05), 10.0, 'the command')
    rig.wait_for(lambda: not send(5.0, x=0.0), 5.0, 'a stop, however old')
    within(robot, lambda: robot.destroy_publisher(out))     # another sender has another clock
    out = robot.create_publisher(TwistStamped, '/fosp/command_out', qos.COMMAND)
    rig.wait_for(out.get_subscription_count, 10.0, 'the adapter')
    rig.wait_for(lambda: send(0.6), 10.0, 'the command of another sender')


def test_what_is_missing_is_named(rig, kept_environment):
    done = check('--wait', 1.5)
    assert done.returncode == 2
    assert '/servo_node/delta_twist_cmds: nobody listens' in done.stderr and '/arm/pose: 0 poses' in done.stderr
    assert cli.main(['check-arm', '--speed', '1']) == 2


def test_the_standstill_of_a_recorded_motion():
    times = np.arange(0.0, 4.0, 0.02)
    for halt in (0.0, 0.15, 1.0):
        places = 0.02 * np.minimum(times, 1.0 + halt)
        stop = check_arm.stop_of(list(zip(times, places, strict=True)), 1.0, 0.0)
        assert abs(stop.seconds - halt) <= 0.021 and abs(stop.speed - 0.02) < 1e-6
        assert abs(stop.metres - 0.02 * halt) < 1e-6
    with pytest.raises(FospError, match='control rate at least'):
        check_arm.stop_of([(0.0, 0.0), (3.0, 0.1)], 1.0, 0.0)
