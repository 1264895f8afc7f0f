# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp bench import`: the importer of foreign bags against rosbags alone on the same bag. For the command line alone.

The bag is made here: VGA pictures at 30 Hz, poses and joint states at 100 Hz, commands at 30 Hz, labels at 10 Hz, in
MCAP without compression; with `--compressed` the pictures are JPEG. Each pass runs in a process of its own, in turn;
peak memory is the importing process's.
"""

import argparse
import contextlib
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fosp_core.contract import Contract
from fosp_core.errors import FospError
from fosp_core.io import write_json

CAMERA = '/camera/image_raw'
START = 1_700_000_000_000_000_000
WIDTH, HEIGHT, EPISODE_S = 640, 480, 12
CONTRACT = {
    'schema': 1, 'name': 'bench_import', 'rate_hz': 10.0, 'staleness_s': 0.25,
    'cameras': [{'name': 'image', 'topic': 'image', 'height': 64, 'width': 64, 'encoding': 'rgb8'}],
    'vectors': [{'name': 'ee_pose', 'topic': 'ee_pose', 'type': 'geometry_msgs/msg/PoseStamped', 'unit': 'm',
                 'fields': ['pose.position.x', 'pose.position.y', 'pose.position.z'], 'frame': 'base'}],
    'action': {'type': 'geometry_msgs/msg/TwistStamped', 'fields': ['twist.linear.x'], 'low': [-1.0], 'high': [1.0],
               'unit': 'm/s', 'frame': 'base'},
    'label': {'topic': 'label'},
    'import': {'cameras': {'image': {'topic': CAMERA}}, 'vectors': {'ee_pose': {'topic': '/arm/pose'}},
               'action': {'topic': '/arm/command'}, 'label': {'topic': '/label'}}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `fosp bench import`."""
    parser.add_argument('--gigabytes', type=float, default=2.0, help='size of the bag (default 2)')
    parser.add_argument('--rounds', type=int, default=3, help='passes of each kind, in turn (default 3)')
    parser.add_argument('--every-frame', action='store_true', help='pictures at the control rate: each one is used')
    parser.add_argument('--compressed', action='store_true', help='pictures as CompressedImage (JPEG)')
    parser.add_argument('--out', metavar='DIR', help='keep the bag here (default: a temporary folder)')
    parser.add_argument('--json', metavar='PATH', help='write the figures as JSON; - for standard output alone')


def contract(compressed: bool) -> Contract:
    """Contract whose import section fits the bag."""
    data = copy.deepcopy(CONTRACT)
    if compressed:
        data['import']['cameras']['image'] = {'topic': CAMERA, 'type': 'sensor_msgs/msg/CompressedImage'}
    return Contract.from_dict(data)


def pictures(compressed: bool) -> list[np.ndarray]:
    """Return the data of the pictures, which repeat: noise that is drawn once and shifted; for JPEG it is smoothed."""
    noise = np.random.default_rng(0).integers(0, 256, HEIGHT * WIDTH * 3 + 4096, np.uint8)
    if not compressed:
        return [noise[i:i + HEIGHT * WIDTH * 3] for i in range(4096)]
    import cv2
    smooth = cv2.GaussianBlur(noise[:HEIGHT * WIDTH * 3].reshape(HEIGHT, WIDTH, 3), (9, 9), 3)
    return [cv2.imencode('.jpg', np.roll(smooth, 16 * i, 1))[1].ravel() for i in range(16)]


def rows(seconds: float, camera_hz: float, frames: list[np.ndarray], compressed: bool) -> Iterator[tuple]:
    """Yield (topic, type, received, message) in order."""
    from fosp_core.data.cdr import blank
    kinds = {CAMERA: (f'sensor_msgs/msg/{"CompressedImage" if compressed else "Image"}', camera_hz), '/arm/pose': (
        'geometry_msgs/msg/PoseStamped', 100.0), '/joint_states': ('sensor_msgs/msg/JointState', 100.0),
        '/arm/command': ('geometry_msgs/msg/TwistStamped', 30.0), '/label': ('sensor_msgs/msg/Joy', 10.0)}
    blanks = {topic: blank(msgtype) for topic, (msgtype, _) in kinds.items()}
    image, joints = blanks[CAMERA], blanks['/joint_states']
    if compressed:
        image.format = 'rgb8; jpeg compressed bgr8'
    else:
        image.encoding, image.height, image.width, image.step = 'rgb8', HEIGHT, WIDTH, WIDTH * 3
    joints.name, joints.position = [f'joint{i}' for i in range(7)], np.zeros(7)
    joints.velocity, joints.effort = np.zeros(7), np.zeros(7)
    every = {topic: 1e9 / hz for topic, (_, hz) in kinds.items()}
    next_of = dict.fromkeys(kinds, 0)
    while True:
        topic = min(kinds, key=lambda t: next_of[t] * every[t])
        i = next_of[topic]
        t = round(i * every[topic])
        if t >= seconds * 1e9:
            return
        next_of[topic] += 1
        message = blanks[topic]
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(START + t, 1_000_000_000)
        if topic == CAMERA:
            message.data = frames[i % len(frames)]
        elif topic == '/label':
            k = i % (EPISODE_S * 10)
            message.axes = np.float32([0, k == 50])
            message.buttons = np.int32([k == 0, k == EPISODE_S * 10 - 1, 0])
        yield topic, kinds[topic][0], START + t + 2_000_000, message


def make_bag(path: Path, gigabytes: float, camera_hz: float, compressed: bool = False) -> None:
    """Write the bag."""
    from rosbags.rosbag2 import StoragePlugin, Writer

    from fosp_core.data.cdr import typestore
    frames = pictures(compressed)
    seconds = gigabytes * 1e9 / (camera_hz * (np.mean([f.size for f in frames]) + 100) + 1e5)
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {}
        for topic, msgtype, received, message in rows(seconds, camera_hz, frames, compressed):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, msgtype, typestore=typestore())
            writer.write(connections[topic], received, typestore().serialize_cdr(message, msgtype))


def one_pass(kind: str, path: Path, compressed: bool) -> dict:
    """Read the bag once in this process; return seconds, episodes or messages, and the process's peak memory."""
    if kind == 'rosbags':
        from rosbags.rosbag2 import Reader

        from fosp_core.data.cdr import typestore
        store, n = typestore(), 0
        began, cpu = time.perf_counter(), time.process_time()
        with Reader(path) as reader:
            for connection, _, raw in reader.messages():
                store.deserialize_cdr(raw, connection.msgtype)
                n += 1
    else:
        import cv2  # noqa: F401 - its loading is not what is measured

        from fosp_core.data.bag import read_episodes
        began, cpu = time.perf_counter(), time.process_time()
        n = sum(len(e) for e in read_episodes(path, contract(compressed)))
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    lines = Path('/proc/self/status').read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM'))
    return {'seconds': wall, 'cpu_s': cpu, 'n': n, 'peak': peak}


def _spawn(kind: str, path: Path, compressed: bool) -> dict:
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, '-m', 'fosp_core.data.bench_import', kind, str(path),
                           str(int(compressed))], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FospError(f'the pass {kind} failed: {" ".join(done.stderr.split())[-500:]}')
    return json.loads(done.stdout)


def run(args: argparse.Namespace) -> int:
    """Make the bag, read it in turn, print."""
    if not 0.001 <= args.gigabytes <= 1000 or args.rounds < 1:
        raise FospError('--gigabytes must be 0.001 to 1000 and --rounds 1 or more')
    with contextlib.ExitStack() as stack:
        folder = Path(args.out) if args.out else Path(stack.enter_context(
            tempfile.TemporaryDirectory(prefix='fosp-bench-import-')))
        path = folder / 'bag'
        if path.exists():
            raise FospError(f'{path}: exists already; choose another folder or remove it')
        folder.mkdir(parents=True, exist_ok=True)
        make_bag(path, args.gigabytes, 10.0 if args.every_frame else 30.0, args.compressed)
        size = sum(f.stat().st_size for f in path.iterdir())
        _spawn('rosbags', path, args.compressed)     # the first pass reads the disk
        passes = {kind: [] for kind in ('rosbags', 'import')}
        for _ in range(args.rounds):
            for kind, found in passes.items():
                found.append(_spawn(kind, path, args.compressed))
    speed = {kind: statistics.median(size / 1e6 / p['seconds'] for p in found) for kind, found in passes.items()}
    cpu = {kind: statistics.median(p['cpu_s'] for p in found) for kind, found in passes.items()}
    result = {'mb_per_s': speed['import'], 'rosbags_mb_per_s': speed['rosbags'],
              'ratio': speed['import'] / speed['rosbags'], 'cpu_ratio': cpu['rosbags'] / cpu['import'],
              'peak_memory_bytes': max(p['peak'] for p in passes['import']), 'bag_bytes': size,
              'messages': passes['rosbags'][0]['n'], 'steps': passes['import'][0]['n'], 'rounds': args.rounds,
              'camera_hz': 10.0 if args.every_frame else 30.0, 'compressed': args.compressed}
    if args.json:
        write_json(args.json, result)
    if args.json != '-':
        print(f'{size / 1e9:.2f} GB, {result["messages"]} messages to {result["steps"]} steps; import '
              f'{result["mb_per_s"]:.0f} MB/s, rosbags alone {result["rosbags_mb_per_s"]:.0f} MB/s, ratio '
              f'{result["ratio"]:.2f} (CPU {result["cpu_ratio"]:.2f}); peak memory '
              f'{result["peak_memory_bytes"] / 1e6:.0f} MB')
    return 0


if __name__ == '__main__':
    print(json.dumps(one_pass(sys.argv[1], Path(sys.argv[2]), sys.argv[3] == '1')))
