# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bags as other people's recorders write them, for the tests of the importer: every storage, any topic, any rate."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import mcap.writer
import numpy as np
import yaml
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from fosp_core.contract import Contract
from fosp_core.data import images
from fosp_core.data.cdr import blank, typestore

START = 1_700_000_000_000_000_000
TYPES = {'image': 'sensor_msgs/msg/Image', 'compressed': 'sensor_msgs/msg/CompressedImage',
         'pose': 'geometry_msgs/msg/PoseStamped', 'twist': 'geometry_msgs/msg/TwistStamped',
         'joints': 'sensor_msgs/msg/JointState', 'trajectory': 'trajectory_msgs/msg/JointTrajectory',
         'array': 'std_msgs/msg/Float64MultiArray', 'bool': 'std_msgs/msg/Bool', 'float': 'std_msgs/msg/Float32',
         'joy': 'sensor_msgs/msg/Joy', 'tf': 'tf2_msgs/msg/TFMessage', 'plain_twist': 'geometry_msgs/msg/Twist'}
BASE = {'schema': 1, 'name': 'foreign', 'rate_hz': 10.0, 'staleness_s': 0.25,
        'cameras': [{'name': 'image', 'topic': 'image', 'height': 8, 'width': 8, 'encoding': 'rgb8'}],
        'vectors': [{'name': 'ee_pose', 'topic': 'ee_pose', 'type': TYPES['pose'], 'unit': 'm', 'frame': 'base',
                     'fields': ['pose.position.x', 'pose.position.y', 'pose.position.z']}],
        'action': {'type': TYPES['twist'], 'fields': ['twist.linear.x', 'twist.linear.y'], 'low': [-0.5, -0.5],
                   'high': [0.5, 0.5], 'unit': 'm/s', 'frame': 'base'},
        'label': {'topic': 'label'}}
IMPORT = {'cameras': {'image': {'topic': '/cam/image_raw'}}, 'vectors': {'ee_pose': {'topic': '/arm/pose'}},
          'action': {'topic': '/cmd'}}


def contract(imports=IMPORT, **changes) -> Contract:
    """The small contract with an import section."""
    return Contract.from_dict({**BASE, **changes, 'import': imports}, 'c.yaml')


def stamped(message, ns: int, frame: str = ''):
    """Set the header."""
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(int(ns), 1_000_000_000)
    message.header.frame_id = frame
    return message


def picture(pixels: np.ndarray, ns: int, encoding: str = 'rgb8'):
    """Image of pixels (H, W, C)."""
    message = stamped(blank(TYPES['image']), ns, 'camera')
    for name, value in images.from_array(pixels, encoding).items():
        setattr(message, name, np.frombuffer(value, np.uint8) if name == 'data' else value)
    return message


def pose(xyz, ns: int, frame: str = 'base'):
    """PoseStamped."""
    message = stamped(blank(TYPES['pose']), ns, frame)
    p = message.pose.position
    p.x, p.y, p.z = map(float, xyz)
    return message


def twist(xy, ns: int, frame: str = 'base'):
    """TwistStamped."""
    message = stamped(blank(TYPES['twist']), ns, frame)
    message.twist.linear.x, message.twist.linear.y = map(float, xy)
    return message


def joy(ns: int, axes=(), buttons=()):
    """Joy."""
    message = stamped(blank(TYPES['joy']), ns)
    message.axes, message.buttons = np.array(axes, np.float32), np.array(buttons, np.int32)
    return message


def data(kind: str, value):
    """std_msgs of one field."""
    message = blank(TYPES[kind])
    message.data = np.array(value, np.float64) if kind == 'array' else value
    return message


def grey(value: int) -> np.ndarray:
    """A picture of 12 x 16 pixels of one level, so that a test can tell which one was picked."""
    return np.full((12, 16, 3), value, np.uint8)


def scene(seconds: float = 2.0, camera_hz: float = 30.0, pose_hz: float = 50.0, command_hz: float = 10.0,
          delay: int = 3_000_000) -> list:
    """Rows [topic, kind, received, message] of camera, pose and command, in the order of receipt.

    Picture i is grey of level i, pose i is at x = i / 1000, command i is i / 1000; all are received `delay` ns late.
    """
    rows = []
    for topic, kind, hz, make in (('/cam/image_raw', 'image', camera_hz, lambda i, t: picture(grey(i % 256), t)),
                                  ('/arm/pose', 'pose', pose_hz, lambda i, t: pose((i / 1000, 0.2, 0.3), t)),
                                  ('/cmd', 'twist', command_hz, lambda i, t: twist((i / 1000, -0.1), t + 5_000_000))):
        for i in range(int(seconds * hz)):
            t = START + round(i * 1e9 / hz)
            rows.append([topic, kind, t + delay + (5_000_000 if kind == 'twist' else 0), make(i, t)])
    return sorted(rows, key=lambda row: row[2])


def raw(row) -> bytes:
    """Bytes of a row's message, which may be bytes already."""
    return row[3] if isinstance(row[3], bytes) else bytes(typestore().serialize_cdr(row[3], TYPES[row[1]]))


def write(path: Path, rows: list, storage: str = 'mcap', compression: str = 'none', version: int = 9) -> Path:
    """Write rows with rosbags; compression of none, file, message, storage (chunks of MCAP)."""
    writer = Writer(path, version=version,
                    storage_plugin=StoragePlugin.MCAP if storage == 'mcap' else StoragePlugin.SQLITE3)
    if compression != 'none':
        writer.set_compression(CompressionMode[compression.upper()], CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for row in rows:
            if row[0] not in connections:
                connections[row[0]] = writer.add_connection(row[0], TYPES[row[1]], typestore=typestore())
            writer.write(connections[row[0]], row[2], raw(row))
    return path


def write_mcap(path: Path, rows: list, compression: str = 'LZ4', definitions: bool = True,
               chunked: bool = True) -> Path:
    """Write one .mcap file with the mcap library, as its C++ brother in rosbag2 does: chunk CRCs, ros2msg schemas."""
    with open(path, 'wb') as stream:
        writer = mcap.writer.Writer(stream, compression=mcap.writer.CompressionType[compression],
                                    use_chunking=chunked, chunk_size=64 << 10)
        writer.start(profile='ros2', library='test')
        channels = {}
        for row in rows:
            topic, msgtype = row[0], TYPES[row[1]]
            if topic not in channels:
                text = typestore().generate_msgdef(msgtype, ros_version=2)[0].encode() if definitions else b''
                schema = writer.register_schema(msgtype, 'ros2msg' if definitions else '', text)
                channels[topic] = writer.register_channel(topic, 'cdr', schema, {'offered_qos_profiles': ''})
            writer.add_message(channels[topic], row[2], raw(row), row[2])
        writer.finish()
    return path


def split(path: Path, rows: list, storage: str = 'mcap') -> Path:
    """One bag of two storage files, as `ros2 bag record --max-bag-size` leaves it."""
    half = len(rows) // 2
    parts = [write(path.with_name(f'{path.name}_{i}'), part, storage) for i, part in
             enumerate((rows[:half], rows[half:]))]
    metas = [yaml.safe_load((part / 'metadata.yaml').read_text())['rosbag2_bagfile_information'] for part in parts]
    path.mkdir()
    whole = metas[0]
    counts = [{t['topic_metadata']['name']: t['message_count'] for t in m['topics_with_message_count']} for m in metas]
    for topic in whole['topics_with_message_count']:
        topic['message_count'] += counts[1].get(topic['topic_metadata']['name'], 0)
    whole['relative_file_paths'] += metas[1]['relative_file_paths']
    whole['message_count'] += metas[1]['message_count']
    begin = whole['starting_time']['nanoseconds_since_epoch']
    whole['duration']['nanoseconds'] = metas[1]['starting_time']['nanoseconds_since_epoch'] + \
        metas[1]['duration']['nanoseconds'] - begin
    whole.pop('files', None)
    (path / 'metadata.yaml').write_text(yaml.safe_dump({'rosbag2_bagfile_information': whole}))
    for part in parts:
        for file in part.iterdir():
            if file.suffix != '.yaml':
                shutil.move(file, path)
        shutil.rmtree(part)
    return path


def with_qos(path: Path) -> Path:
    """Give the topics of metadata.yaml a QoS that the files do not name, as some bags of rosbag2 have it."""
    zero = {'sec': 0, 'nsec': 0}
    qos = {'history': 3, 'depth': 0, 'reliability': 1, 'durability': 2, 'deadline': zero, 'lifespan': zero,
           'liveliness': 1, 'liveliness_lease_duration': zero, 'avoid_ros_namespace_conventions': False}
    data = yaml.safe_load((path / 'metadata.yaml').read_text())
    for topic in data['rosbag2_bagfile_information']['topics_with_message_count']:
        topic['topic_metadata']['offered_qos_profiles'] = yaml.safe_dump([qos])
    (path / 'metadata.yaml').write_text(yaml.safe_dump(data))
    return path


def strip_definitions(path: Path) -> Path:
    """Take the definitions out of a sqlite3 bag: what Humble and older write."""
    with contextlib.closing(sqlite3.connect(next(path.glob('*.db3')))) as base:
        base.executescript('DROP TABLE schema; DROP TABLE message_definitions')
    return path
