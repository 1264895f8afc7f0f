# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the tests stand on: who destroys an entity, and when a node may go."""

import subprocess
import sys
import threading
import time

import pytest
import ros_rig
from rclpy.node import Node
from std_msgs.msg import Bool


def test_what_destroys_runs_in_the_thread_that_spins(rig):
    node = rig.add(Node('one'))
    publisher = node.create_publisher(Bool, 'topic', 1)
    assert ros_rig.within(node, threading.current_thread) is rig._thread
    assert ros_rig.within(node, lambda: node.destroy_publisher(publisher))
    with pytest.raises(ZeroDivisionError):
        ros_rig.within(node, lambda: 1 / 0)
    assert ros_rig.within(node, threading.current_thread) is rig._thread, 'a fault in it ends no spinning'


@pytest.mark.parametrize('end', ['kill', 'terminate'])
def test_a_node_waits_with_its_end_after_a_peer_was_killed(isolated, monkeypatch, end):
    monkeypatch.setattr(ros_rig, '_killed', [-ros_rig.SETTLE_S])
    process = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
    getattr(process, end)()
    process.wait(10)
    waited = []
    monkeypatch.setattr(time, 'sleep', waited.append)
    ros_rig.settle()
    assert (waited[0] > 2.0) is (end == 'kill')
