# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A commander is killed: the stop goes on, the incident is a bag, the audit answers why, and SIGINT ends with 0."""

import collections
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from filter_cell import CONTRACT, Cell, recalibrated

from fosp_core import cli
from fosp_core.data.bag import read_episodes
from fosp_core.data.bag_info import describe

LEARNER = '''
import sys, rclpy
from geometry_msgs.msg import TwistStamped
from rclpy.node import Node
from sensor_msgs.msg import Image
from fosp_ros import qos
rclpy.init()
node = Node('commander', namespace='fosp')
out = node.create_publisher(TwistStamped, 'command_in', qos.COMMAND)
def answer(image):
    message = TwistStamped()
    message.header.stamp = image.header.stamp
    message.twist.linear.x = 0.05
    out.publish(message)
node.create_subscription(Image, 'image', answer, qos.IMAGE)
rclpy.spin(node)
'''


@pytest.fixture
def started(rig, toy, tmp_path):
    """A cell here; the filter and the commander as processes of their own."""
    level = {'level': 1.0, 'alpha': 0.1, 'n': 50}
    calibration = {'schema': 1, 'reachability': level, 'data_hash': 'test',
                   'surprise': {'level_slow': 1e9, 'level_stop': 1e9, 'alpha': 0.1, 'n': 50}}
    model = recalibrated(toy, tmp_path / 'b', calibration).path
    cell = rig.add(Cell())
    cell.off.add('command')
    processes = [
        subprocess.Popen([sys.executable, '-m', 'fosp_ros.safety_filter_node', '--ros-args', '-r', '__ns:=/fosp',
                          '-p', f'model:={model}', '-p', 'release_s:=0.0', '-p', 'ramp_s:=0.0',
                          '-p', f'audit_dir:={tmp_path / "audit"}', '-p', f'incident_dir:={tmp_path / "incidents"}',
                          '-p', f'latch_file:={tmp_path / "latch.json"}'],
                         stderr=subprocess.PIPE, text=True),
        subprocess.Popen([sys.executable, '-c', LEARNER])]
    cell.start()
    yield rig, cell, *processes
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait(5)


def moving(rig, cell):
    try:
        rig.wait_for(lambda: any(v.any() for _, _, v in cell.sent[-3:]), 20.0, 'motion')
    except pytest.fail.Exception as error:
        pytest.fail(f'{error}; reasons {collections.Counter(m.message for _, m in cell.states)}')


def test_a_killed_commander_leaves_the_stops_and_sigint_ends_with_zero(started, tmp_path, capsys):
    rig, cell, guard, commander = started
    moving(rig, cell)
    # Enough moves for the incident to show: after a fixed time a busy machine had seen one or two.
    rig.wait_for(lambda: sum(v.any() for _, _, v in cell.sent) >= 12, 10.0, 'twelve moves')
    os.kill(commander.pid, signal.SIGKILL)
    killed, wall = time.monotonic(), time.time()
    rig.wait_for(lambda: cell.reason == 'command_stale', 3.0, 'command_stale')
    first = next(t for t, _, v in cell.sent if t > killed and not v.any())
    assert first - killed <= 0.2
    time.sleep(1.0)
    after = [v for t, _, v in cell.sent if t > first]
    assert len(after) >= 10 and not any(v.any() for v in after)
    incident_bag(rig, tmp_path / 'incidents', wall)
    assert cli.main(['audit', str(tmp_path / 'audit'), '--at', str(wall + 0.8)]) == 0     # while the filter runs
    answer = capsys.readouterr().out
    assert 'command_stale' in answer and 'limit 0.250 s' in answer and 'Start the learner' in answer
    count = len(cell.sent)
    guard.send_signal(signal.SIGINT)
    assert guard.wait(8.0) == 0, guard.stderr.read()
    rig.wait_for(lambda: cell.reason == 'not_active', 2.0, 'the last word')
    assert len(cell.sent) > count and not cell.sent[-1][2].any()
    assert cli.main(['audit', str(tmp_path / 'audit'), '--json', '-']) == 0
    told = json.loads(capsys.readouterr().out)
    assert told['segments'][-1]['reason'] == 'not_active' and told['dropped'] == 0
    ticks = sum(row['ticks'] for row in told['segments'] if row['reason'] != 'idle')    # idle: before the discovery
    states = sum(m.message != 'idle' for _, m in cell.states)
    assert states <= ticks <= states + 5    # a line for every state that was published


def incident_bag(rig, folder, wall):
    """The last seconds before the stop come back as training data, with what the filter saw beside them."""
    bags = rig.wait_for(lambda: list(folder.glob('incident-*-command_stale')), 30.0, 'the incident bag')
    info = describe(bags[0], CONTRACT)
    assert set(info['policies']) == {'incident'} and info['mismatched'] == info['doubled'] == 0
    episodes = list(read_episodes(bags[0], CONTRACT))       # several, where a loaded machine lost a picture
    stamp, action = (np.concatenate([getattr(e, name) for e in episodes]) for name in ('stamp', 'action'))
    assert stamp[0] * 1e-9 < wall < stamp[-1] * 1e-9
    moved = np.flatnonzero(action.any(1))
    going = moved[np.isin(moved - 1, moved)]    # the first after a rest may still be on its way up
    assert len(going) >= 3 and np.allclose(action[going], [0.2, 0.0, 0.0], atol=1e-6)       # 0.05 of 0.25 m/s
    assert (action[moved, 0] > 0.0).all() and (action[moved, 0] < 0.2 + 1e-6).all() and not action[moved, 1:].any()
    assert not action[stamp * 1e-9 > wall + 0.2].any() and (stamp * 1e-9 > wall + 0.2).any()
    count = {topic['topic']: topic['messages'] for topic in info['topics']}
    for name in ('image', 'ee_pose', 'joint_states', 'label', 'command_in', 'command_out', 'safety_filter/state'):
        assert count[f'/fosp/{name}'] >= 3, name
    assert not list(folder.glob('.*'))
