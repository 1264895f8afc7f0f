# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp record` as a process: a live graph becomes a bag that the importer reads, also after SIGKILL; what is missing
is named within two seconds; an operator's buttons and keys make the episodes.
"""

import dataclasses
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
import types

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.node import Node
from ros_rig import wait_for
from rosbags.rosbag2 import Reader
from sensor_msgs.msg import Image, JointState, Joy
from std_msgs.msg import String

from fosp_core.contract import Contract
from fosp_core.data import messages
from fosp_core.data.bag import ImportReport, read_episodes
from fosp_core.paths import config_file
from fosp_ros import qos
from fosp_ros.record_session import Session
from fosp_ros.record_topics import Pace

CONTRACT = Contract.load(config_file('contract_safereach.yaml'))
PERIOD = 0.04


class Recorder:
    """The command as a process; `lines` grows while it runs."""

    def __init__(self, out, *options, **popen):
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, '-u', '-m', 'fosp_core.cli', 'record', '--out', str(out), *map(str, options)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **popen)
        self.lines, self.times = [], []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        for line in self.process.stdout:
            self.times.append(time.monotonic())
            self.lines.append(line.rstrip())

    def says(self, text, timeout=60.0):
        return wait_for(lambda: next((line for line in self.lines if text in line), None), timeout,
                        lambda: f'{text!r} in {self.lines}')

    def ends(self, timeout=60.0):
        code = self.process.wait(timeout)
        self._thread.join(5.0)
        return code


@pytest.fixture
def record():
    started = []

    def start(*args, **kwargs):
        started.append(Recorder(*args, **kwargs))
        return started[-1]
    yield start
    for recorder in started:
        if recorder.process.poll() is None:
            recorder.process.kill()
        recorder.process.wait()


class Source(Node):
    """Camera, arm and joystick of a robot: the n-th tick has the picture n, the pose n mm and the command n mm/s."""

    def __init__(self, namespace, camera=True, label=Joy, command_qos=qos.COMMAND):
        super().__init__('robot', namespace=namespace)
        self.image = self.create_publisher(Image, 'image', qos.IMAGE) if camera else None
        self.pose = self.create_publisher(PoseStamped, 'ee_pose', qos.STATE)
        self.command = self.create_publisher(TwistStamped, 'command_out', command_qos)
        self.joy = self.create_publisher(label, 'label', qos.LABEL)
        self.buttons, self.n, self.speed = [0] * 4, 0, None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._end.wait(PERIOD):
            self.n += 1
            stamp = self.get_clock().now().nanoseconds
            speed = 1e-3 * (self.n % 100) if self.speed is None else self.speed
            self.pose.publish(messages.fill(CONTRACT, 'ee_pose', PoseStamped(), stamp, [1e-3 * self.n, 0.0, 0.5]))
            if self.image:
                self.image.publish(messages.fill(CONTRACT, 'image', Image(), stamp,
                                                 np.full((64, 64, 3), self.n % 256, np.uint8)))
            command = messages.fill(CONTRACT, 'action', TwistStamped(), stamp, np.zeros(3))
            command.twist.linear.x = speed
            self.command.publish(command)

    def press(self, button, hold=0.15):
        for down in (1, 0):
            self.buttons[button] = down
            self.joy.publish(Joy(buttons=self.buttons))
            time.sleep(hold)

    def bring_down(self):
        self._end.set()
        self._thread.join(5.0)


def check_ticks(episode):
    """Picture, pose and command of a record belong together, and none between is missing."""
    n = np.round(episode.vectors['ee_pose'][:, 0] * 1000).astype(int)
    assert (np.diff(n) == 1).all() and (episode.images['image'][:, 0, 0, 0] == n % 256).all()
    sent = np.round(CONTRACT.action.denormalise(episode.action)[:-1, 0] * 1000).astype(int)
    # The newest command before the next picture; beside a busy neighbour it may be that picture's own.
    assert ((sent - n[:-1]) % 100 <= 1).all(), (sent, n)


def test_the_simulation_becomes_a_bag_and_a_killed_recorder_leaves_one(rig, record, tmp_path):
    pytest.importorskip('mujoco', reason='the simulator extra is not installed')

    class Commander(Node):
        def __init__(self):
            super().__init__('safety_filter', namespace='fosp')
            self.sent = {}
            self.out = self.create_publisher(TwistStamped, 'command_out', qos.COMMAND)
            self.create_subscription(Joy, 'label', self.answer, qos.LABEL)

        def answer(self, label):
            stamp = messages.stamp_ns(label)
            action = np.array([0.02, 0.01, 0.0]) * (len(self.sent) % 7)
            self.sent[stamp] = action
            self.out.publish(messages.fill(CONTRACT, 'action', TwistStamped(), stamp, action))

    commander = rig.add(Commander())
    bridge = subprocess.Popen([sys.executable, '-m', 'fosp_sim.bridge_node', '--ros-args', '-r', '__ns:=/fosp', '-p',
                               'realtime_factor:=2.0', '-p', 'episodes:=20'], stderr=subprocess.DEVNULL)
    try:
        killed = record(tmp_path / 'killed', '--wait', 30)
        whole = record(tmp_path / 'whole', '--wait', 30, '--episodes', 2, '--json', tmp_path / 'figures.json')
        killed.says('recording to')
        time.sleep(3.0)
        killed.process.kill()
        died = time.time_ns()
        assert killed.ends() == -signal.SIGKILL
        assert whole.ends(120.0) == 0, whole.lines
    finally:
        bridge.send_signal(signal.SIGINT)
        bridge.wait(15)

    report = ImportReport()
    episodes = list(read_episodes(tmp_path / 'whole', CONTRACT, report=report))
    assert len(episodes) == 2 and report.counts.clean and episodes[1].meta['policy'] == 'recorded'
    assert all(e.is_last[-1] for e in episodes) and 'gap' not in episodes[1].meta
    for episode in episodes:
        due = np.array([commander.sent[stamp] for stamp in episode.stamp[:-1].tolist()])
        # Half a period for two processes and back: late answers happen beside a busy neighbour.
        assert (np.abs(due - episode.action[:-1]).max(1) < 1e-6).mean() > 0.8
    with Reader(tmp_path / 'whole') as reader:
        assert {'/fosp/image', '/fosp/ee_pose', '/fosp/command_out', '/fosp/label'} <= set(reader.topics)
        assert reader.topics['/fosp/image'].msgcount >= sum(map(len, episodes))
    figures = json.loads((tmp_path / 'figures.json').read_text())
    assert figures['episodes'] == 2 and figures['steps'] == sum(map(len, episodes))
    assert any('/fosp/image' in line and 'lost' not in line for line in whole.lines)

    assert not (tmp_path / 'killed').exists()
    saved = list(read_episodes(tmp_path / 'killed.recording', CONTRACT))
    assert died - max(e.stamp[-1] for e in saved) < 2e9
    assert sum(map(len, saved)) > 20


def test_an_operator_with_a_joystick(rig, record, tmp_path):
    source = rig.add(Source('cell'))
    recorder = record(tmp_path / 'bag', '--namespace', 'cell', '--label', 'joy', '--buttons', 'discard=3',
                      '--report-every', 0.5)
    recorder.says('recording to')
    wait_for(source.joy.get_subscription_count, 5.0, 'the recorder to hear the joystick')
    source.press(3)         # nothing to discard
    source.press(0)
    recorder.says('episode begins')
    time.sleep(0.4)
    source.press(2)         # cost, held
    source.press(1)
    recorder.says('goal reached')
    time.sleep(0.2)
    source.press(0)         # thrown away
    time.sleep(0.3)
    source.press(3)
    recorder.says('episode discarded')
    source.press(0)
    time.sleep(0.4)
    recorder.says(', running ')
    recorder.process.send_signal(signal.SIGINT)
    assert recorder.ends() == 0, recorder.lines
    report = ImportReport()
    won, cut = read_episodes(tmp_path / 'bag', CONTRACT, report=report)
    assert report.counts.clean and not report.gaps
    assert won.success and won.is_terminal[-1] and 2 <= won.cost.sum() < len(won) / 2
    assert not cut.success and not cut.violation and cut.is_last[-1] and not cut.is_terminal.any()
    assert won.meta == cut.meta == {'policy': 'operator', 'labels': 'joy'}
    check_ticks(won)
    check_ticks(cut)
    assert not list(tmp_path.glob('*.recording'))


def test_an_operator_at_the_keyboard_and_the_terminal_after_a_kill(rig, record, tmp_path):
    rig.add(Source('cell'))
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    try:
        recorder = record(tmp_path / 'bag', '--namespace', 'cell', '--label', 'keyboard', '--no-raw', stdin=slave)
        recorder.says('recording to')
        for key, answer in ((b' ', 'episode begins'), (b'c', 'cost'), (b'g', 'goal reached'), (b's', '(1 episodes')):
            os.write(master, key)
            recorder.says(answer)
            time.sleep(0.3)
        os.write(master, b'q')
        assert recorder.ends() == 0, recorder.lines
        assert termios.tcgetattr(slave) == before
        won, _ = read_episodes(tmp_path / 'bag', CONTRACT)
        assert won.success and won.cost.sum() == 1
        with Reader(tmp_path / 'bag') as reader:
            assert set(reader.topics) == {f'/cell/replay/{k}' for k in ('image', 'ee_pose', 'action', 'label')}

        recorder = record(tmp_path / 'other', '--namespace', 'cell', '--label', 'keyboard', stdin=slave)
        recorder.says('recording to')
        assert termios.tcgetattr(slave) != before
        recorder.process.kill()
        wait_for(lambda: termios.tcgetattr(slave) == before, 5.0, 'the terminal as it was')
    finally:
        os.close(master)
        os.close(slave)


def test_what_is_missing_is_named_within_two_seconds(rig, record, tmp_path):
    source = rig.add(Source('cell', camera=False, label=String, command_qos=qos.STATE))
    source.create_publisher(Image, '/front/image_raw', qos.IMAGE)
    recorder = record(tmp_path / 'bag', '--namespace', 'cell', '--label', 'joy', '--wait', 2.5)
    assert recorder.ends() == 2
    said = list(zip(recorder.times, recorder.lines, strict=True))
    began = next(at for at, line in said if line.startswith('looking for /cell/label, /cell/command_out'))
    text = '\n'.join(line for at, line in said if at - began < 2.0)    # without the error at the end
    assert 'missing: /cell/label (label): wrong type, published as std_msgs/msg/String, expected sensor_msgs/msg/Joy' \
        in text
    assert 'missing: /cell/command_out (command): incompatible QoS, publisher robot offers best effort, requested ' \
        'reliable' in text
    assert 'missing: /cell/image (image): no publisher of sensor_msgs/msg/Image; of that type: /front/image_raw' in text
    assert 'ee_pose' not in recorder.lines[-1]      # discovery may be late, but then it is there
    assert recorder.lines[-1].startswith('error: nothing recorded: ') and not list(tmp_path.iterdir())


def test_a_camera_that_falls_silent_and_a_command_beyond_the_contract(rig, record, tmp_path):
    source = rig.add(Source('cell'))
    recorder = record(tmp_path / 'bag', '--namespace', 'cell', '--label', 'joy')
    recorder.says('recording to')
    wait_for(source.joy.get_subscription_count, 5.0, 'the recorder to hear the joystick')
    source.press(0)
    recorder.says('episode begins')
    time.sleep(0.3)
    source.speed = 0.3
    recorder.says('warning: /cell/command_out: twist.linear.x is 0.3, expected -0.25 to 0.25 m/s')
    recorder.says('episode discarded')
    source.image = None
    said = time.monotonic()
    recorder.says('warning: /cell/image (image): publisher robot: nothing for')
    assert time.monotonic() - said < 4.0
    recorder.process.send_signal(signal.SIGTERM)
    assert recorder.ends() == 1 and 'no episode was recorded' in recorder.lines[-1]
    assert not list(tmp_path.iterdir())


def test_a_command_without_the_wanted_number_is_a_fault_and_no_end():
    """A JointState with one velocity less ended the recorder by an IndexError, and with it the recording."""
    action = dataclasses.replace(CONTRACT.action, type='sensor_msgs/msg/JointState',
                                 fields=tuple(f'velocity[{i}]' for i in range(3)))
    spoilt, taken = [], []
    session = types.SimpleNamespace(contract=dataclasses.replace(CONTRACT, action=action), _keep=lambda *_: None,
                                    _spoilt=spoilt.append,
                                    recorder=types.SimpleNamespace(command=lambda *command: taken.append(command)))
    topic = types.SimpleNamespace(topic='/cmd', fault='')
    Session._on_command(session, topic, b'', JointState(name=['a', 'b'], velocity=[0.1, 0.1]), 0)
    assert topic.fault.startswith('no velocity[0], velocity[1], velocity[2] in it (') and not taken
    assert spoilt == [f'/cmd: {topic.fault}']
    Session._on_command(session, topic, b'', JointState(velocity=[0.1, 0.1, 0.0]), 0)
    assert len(taken) == 1 and len(spoilt) == 1


def test_pace_counts_gaps_in_the_stamps_and_no_pauses():
    pace, stamp, now = Pace(), 0, 0.0
    for i in range(60):
        step = {30: 3, 45: 50}.get(i, 1)        # two lost; a pause of five seconds
        stamp, now = stamp + step * 100_000_000, now + 0.1 * step
        pace.put(stamp, now)
    assert pace.gaps == 2 and pace.count == 60 and pace.rate(now + 5) == 0.0


@pytest.mark.parametrize(('options', 'text'), [
    (['--topic', 'wrist=/w'], 'NAME=TOPIC'), (['--best-effort', 'image'], '--best-effort'),
    (['--wait', '-1'], '--wait'), (['--label', 'joy', '--buttons', 'go=1'], '--buttons'),
    (['--contract', '/none.yaml'], '/none.yaml')])
def test_bad_usage_is_one_line(options, text, tmp_path, capsys, kept_environment):
    from fosp_core import cli
    assert cli.main(['record', '--out', str(tmp_path / 'bag'), *options]) == 2
    captured = capsys.readouterr()
    assert text in captured.err and captured.err.count('\n') == 1 and not list(tmp_path.iterdir())
