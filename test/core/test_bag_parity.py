# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One code path, live and from the bag: the same steps, bit for bit, through rclpy, the middleware and rosbags.

Two implementations of one mapping drift apart (lessons.md, fourth pattern).
"""

import importlib
import os
import subprocess
import sys

import numpy as np
import pytest
from rosbags.rosbag2 import Reader

from fosp_core.data import bag, messages
from fosp_core.data.bag import read_episodes
from fosp_core.data.joiner import EpisodeAssembler, Label, StepJoiner


def ros_type(msgtype):
    pytest.importorskip('rclpy.serialization', reason='rclpy is not installed: no real messages to compare with')
    package, _, name = msgtype.split('/')
    return getattr(importlib.import_module(f'{package}.msg'), name)


def equal(a, b):
    if isinstance(a, Label):
        return np.array(a).tobytes() == np.array(b).tobytes()
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_rclpy_reads_our_bag_to_the_same_steps(tmp_path, tiny, make_episode, write_bag):
    deserialize = pytest.importorskip('rclpy.serialization', reason='rclpy is not installed').deserialize_message
    types = {k: ros_type(t) for k, t in messages.types(tiny).items()}
    path = write_bag(tmp_path / 'bag', tiny, [make_episode(4, contract=tiny)])
    offline = list(bag.read_messages(path, tiny))
    with Reader(path) as reader:
        raws = [(c.topic.rsplit('/', 1)[1], raw) for c, _, raw in reader.messages()]
    assert len(raws) == len(offline) == 4 * 6
    for (kind, raw), (same_kind, stamp, payload) in zip(raws, offline):
        live = deserialize(raw, types[kind])
        assert kind == same_kind
        live_stamp, live_payload = messages.payload(tiny, kind, live)
        assert live_stamp == stamp and equal(live_payload, payload)


def test_what_the_learner_publishes_is_what_the_writer_writes(tiny, make_episode, records):
    serialize = pytest.importorskip('rclpy.serialization', reason='rclpy is not installed').serialize_message
    episode = make_episode(5, contract=tiny)
    for topic, msgtype, stamp, written in records(tiny, episode):
        kind = topic.rsplit('/', 1)[1]
        _, payload = messages.payload(tiny, kind, written)
        live = messages.fill(tiny, kind, ros_type(msgtype)(), stamp, payload)
        back = bag.deserialise(serialize(live), msgtype)
        assert messages.stamp_ns(back) == stamp and equal(messages.payload(tiny, kind, back)[1], payload)
        assert back.header.frame_id == written.header.frame_id
        if kind == 'ee_pose':
            assert back.pose.orientation == written.pose.orientation and back.pose.orientation.w == 1.0


def test_live_and_imported_episodes_are_the_same(tmp_path, contract, make_episodes, same, write_bag, records):
    """The promise of the design: the same steps, bit for bit, through the trainer's joiner and through the bag."""
    episodes = make_episodes([6, 9])
    joiner, assembler, live = StepJoiner(contract), EpisodeAssembler(contract), []
    for episode in episodes:
        for topic, msgtype, stamp, written in records(contract, episode):
            kind = topic.rsplit('/', 1)[1]
            value = messages.payload(contract, kind, written)[1]
            message = messages.fill(contract, kind, ros_type(msgtype)(), stamp, value)
            for step in joiner.push(kind, *messages.payload(contract, kind, message)):
                if (done := assembler.add(step)) is not None:
                    live.append(done)
    imported = list(read_episodes(write_bag(tmp_path / 'bag', contract, episodes), contract))
    for a, b, c in zip(episodes, live, imported, strict=True):
        same(a, b, meta=False)
        same(a, c)


def test_messages_pass_the_field_checks_of_rclpy(tmp_path):
    """ROS_PYTHON_CHECK_FIELDS=1 refuses numpy floats and lists of the wrong kind; users do switch it on."""
    pytest.importorskip('rclpy', reason='rclpy is not installed')
    code = ('import numpy as np\n'
            'from fosp_core.contract import Contract\n'
            'from fosp_core.paths import config_file\n'
            'from fosp_core.data import messages\n'
            'from fosp_core.data.joiner import Label\n'
            'from geometry_msgs.msg import PoseStamped, TwistStamped\n'
            'from sensor_msgs.msg import Image, Joy\n'
            'c = Contract.load(config_file("contract_safereach.yaml"))\n'
            'f = np.float32\n'
            'for kind, message, value in (\n'
            '        ("image", Image(), np.zeros((64, 64, 3), np.uint8)), ("ee_pose", PoseStamped(), f([1, 2, 3])),\n'
            '        ("action", TwistStamped(), f([1, 0, -1])),\n'
            '        ("label", Joy(), Label(f(1), f(0), np.bool_(1), np.bool_(0), np.bool_(0), np.int64(3)))):\n'
            '    messages.payload(c, kind, messages.fill(c, kind, message, 1_700_000_000_000_000_001, value))\n'
            'assert message._check_fields\n')
    env = {**os.environ, 'ROS_PYTHON_CHECK_FIELDS': '1', 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


RECORDER = """
import sys, time
import rclpy
from rclpy.qos import QoSProfile
from rosbags.rosbag2 import StoragePlugin, Writer
from fosp_core.contract import Contract
from fosp_core.data import bag, messages
from fosp_core.data.joiner import EpisodeAssembler, Label, StepJoiner
from fosp_core.data.store import load_episode, save_episode
from fosp_core.paths import config_file
import geometry_msgs.msg, sensor_msgs.msg

folder = sys.argv[1]
contract = Contract.load(config_file('contract_safereach.yaml'))
episode = load_episode(f'{folder}/sent.npz')
joiner, assembler, live = StepJoiner(contract), EpisodeAssembler(contract), []

def hear(kind):
    def callback(message):
        for step in joiner.push(kind, *messages.payload(contract, kind, message)):
            if (done := assembler.add(step)) is not None:
                live.append(done)
    return callback

rclpy.init()
node = rclpy.create_node('recorder', namespace='arm')
raw, publishers, classes = [], {}, {}
for kind, msgtype in messages.types(contract).items():
    package, _, name = msgtype.split('/')
    classes[kind] = getattr(sys.modules[package + '.msg'], name)
    topic, qos = messages.topic(kind), QoSProfile(depth=500)
    publishers[kind] = node.create_publisher(classes[kind], topic, qos)
    node.create_subscription(classes[kind], topic, hear(kind), qos)
    keep = lambda data, kind=kind: raw.append((kind, bytes(data)))
    node.create_subscription(classes[kind], topic, keep, qos, raw=True)
while any(p.get_subscription_count() < 2 for p in publishers.values()):
    rclpy.spin_once(node, timeout_sec=0.02)
for t in range(len(episode)):
    label = Label(episode.reward[t], episode.cost[t], episode.is_first[t], episode.is_last[t], episode.is_terminal[t],
                  episode.step[t])
    values = {'image': episode.images['image'][t], 'ee_pose': episode.vectors['ee_pose'][t],
              'action': episode.action[t], 'label': label}
    for kind, publisher in publishers.items():
        publisher.publish(messages.fill(contract, kind, classes[kind](), int(episode.stamp[t]), values[kind]))
until = time.monotonic() + 20
while (len(raw) < 4 * len(episode) or not live) and time.monotonic() < until:
    rclpy.spin_once(node, timeout_sec=0.02)
with Writer(f'{folder}/bag', version=9, storage_plugin=StoragePlugin.MCAP) as writer:
    connections = {kind: writer.add_connection(f'/arm/{messages.topic(kind)}', msgtype, typestore=bag.typestore())
                   for kind, msgtype in messages.types(contract).items()}
    for kind, data in raw:
        writer.write(connections[kind], time.time_ns(), data)   # the time of receipt, as `ros2 bag record` does
save_episode(f'{folder}/live.npz', live[0])
node.destroy_node()
rclpy.try_shutdown()
"""


def test_through_the_real_middleware(tmp_path, contract, make_episode, same):
    """Sent, received by a trainer's joiner and recorded raw at once: all three are the same bits."""
    pytest.importorskip('rclpy', reason='rclpy is not installed')
    from fosp_core.data.store import load_episode, save_episode
    episode = make_episode(25)
    save_episode(tmp_path / 'sent.npz', episode)
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p), 'ROS_LOG_DIR': str(tmp_path / 'log'),
           'ROS_AUTOMATIC_DISCOVERY_RANGE': 'OFF'}
    done = subprocess.run([sys.executable, '-c', RECORDER, str(tmp_path)], env=env, capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 0, done.stderr
    same(episode, load_episode(tmp_path / 'live.npz'), meta=False)
    same(episode, next(iter(read_episodes(tmp_path / 'bag', contract))), meta=False)
