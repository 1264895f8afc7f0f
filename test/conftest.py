# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Fixtures that all rings share: the contract and episodes of random but reproducible content."""

import dataclasses
import os
import sys
import tempfile
from pathlib import Path

# Before any library reads them: no traffic beyond this machine, no logs in the home folder, one thread per test.
os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
os.environ.setdefault('ROS_LOG_DIR', os.path.join(tempfile.gettempdir(), f'fosp_ros_test_logs_{os.getuid()}'))
os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np
import pytest

from fosp_core.contract import CameraSpec, Contract, VectorSpec
from fosp_core.data.episode import Episode
from fosp_core.paths import config_file

sys.path.insert(0, str(Path(__file__).parent))      # pytest's importlib mode does not
from ros_rig import (  # noqa: F401 - what ROS folders share
    isolated,
    kept_environment,
    pytest_runtest_protocol,
    pytest_terminal_summary,
    rig,
    toy,
)
from side_by_side import (  # noqa: F401
    pytest_cmdline_main,
    pytest_runtest_setup,
    pytest_xdist_make_scheduler,
)

# A command that is run within this process must not make it, and all that it starts later, yield to everybody.
os.nice = lambda increment: 0

STAMP_0 = 1_700_000_000_123_456_789    # no round number: a stamp that passed through a float would show


@pytest.fixture(scope='session')
def contract() -> Contract:
    """The contract of SafeReach."""
    return Contract.load(config_file('contract_safereach.yaml'))


@pytest.fixture(scope='session')
def make_episode(contract):
    """Return a function that makes an episode: make_episode(length, seed, step=0, stamp=..., contract=..., **meta)."""
    def make(length: int = 12, seed: int = 0, step: int = 0, stamp: int = STAMP_0, success: bool = True,
             violation: bool = False, contract: Contract = contract, **meta) -> Episode:
        rng = np.random.default_rng([seed, length])
        first, last = np.zeros(length, bool), np.zeros(length, bool)
        first[0] = last[-1] = True
        action = rng.uniform(-1, 1, (length, contract.action.size)).astype(np.float32)
        action[-1] = 0.0
        reward, cost = np.zeros(length, np.float32), np.zeros(length, np.float32)
        reward[-1] = success
        cost[length // 2] = violation
        # A late tick now and then, as on a real clock.
        ticks = np.cumsum(rng.integers(95_000_000, 105_000_000, length)).astype(np.int64)
        return Episode(
            images={c.name: rng.integers(0, 256, (length, *c.shape), np.uint8) for c in contract.cameras},
            vectors={v.name: rng.normal(size=(length, v.size)).astype(np.float32) for v in contract.vectors},
            action=action, reward=reward, cost=cost, is_first=first, is_last=last,
            is_terminal=last & success, stamp=stamp + ticks - ticks[0], step=step + np.arange(length),
            meta={'seed': seed, **meta})
    return make


@pytest.fixture(scope='session')
def make_episodes(make_episode):
    """Return a function that makes episodes one after another: make_episodes([12, 5, 9], seed=0)."""
    def make(lengths, seed: int = 0, **kwargs) -> list[Episode]:
        episodes, stamp, step = [], STAMP_0, 0
        for i, length in enumerate(lengths):
            episodes.append(make_episode(length, seed + i, step, stamp, **kwargs))
            stamp, step = int(episodes[-1].stamp[-1]) + 2_000_000_000, step + length
        return episodes
    return make


@pytest.fixture(scope='session')
def same():
    """Return a function that asserts two episodes equal, bit for bit, meta included."""
    def check(a: Episode, b: Episode, meta: bool = True) -> None:
        for name in ('action', 'reward', 'cost', 'is_first', 'is_last', 'is_terminal', 'stamp', 'step'):
            left, right = getattr(a, name), getattr(b, name)
            assert (left.dtype, left.shape) == (right.dtype, right.shape), name
            assert left.tobytes() == right.tobytes(), name
        for left, right in ((a.images, b.images), (a.vectors, b.vectors)):
            assert left.keys() == right.keys()
            for name in left:
                assert left[name].dtype == right[name].dtype and left[name].shape == right[name].shape, name
                assert left[name].tobytes() == right[name].tobytes(), name
        assert not meta or a.meta == b.meta
    return check


@pytest.fixture(scope='session')
def tiny(contract) -> Contract:
    """A contract of two cameras and two vectors whose bags are small enough to be cut and damaged many times."""
    return dataclasses.replace(contract, name='tiny', cameras=(
        CameraSpec('image', 'image', 4, 6), CameraSpec('wrist', 'image_wrist', 3, 5, 'mono8')), vectors=(
        *contract.vectors, VectorSpec('joints', 'joint_states', 'sensor_msgs/msg/JointState',
                                      ('position[0]', 'position[2]', 'velocity.1'), 'rad', 'base')))


@pytest.fixture(scope='session')
def write_bag():
    """Return a function that writes episodes as `fosp collect` does: write_bag(path, contract, episodes) -> path."""
    from fosp_core.data.bag import BagWriter

    def write(path, contract, episodes, **kwargs):
        with BagWriter(path, contract, **kwargs) as writer:
            for episode in episodes:
                writer.add(episode)
        return path
    return write


@pytest.fixture(scope='session')
def records():
    """Return a function that lists an episode as [topic, type, stamp, rosbags message], to be changed by a test."""
    from fosp_core.data import bag, messages
    from fosp_core.data.joiner import Label

    def make(contract, episode, namespace='/fosp'):
        rows = []
        for t in range(len(episode)):
            label = Label(episode.reward[t], episode.cost[t], episode.is_first[t], episode.is_last[t],
                          episode.is_terminal[t], episode.step[t])
            series = {**episode.images, **episode.vectors, 'action': episode.action}
            values = {**{k: v[t] for k, v in series.items()}, 'label': label}
            for kind, msgtype in messages.types(contract).items():
                stamp = int(episode.stamp[t])
                message = messages.fill(contract, kind, bag.blank(msgtype), stamp, values[kind])
                rows.append([f'{namespace}/{messages.topic(kind)}', msgtype, stamp, message])
        return rows
    return make


@pytest.fixture(scope='session')
def write_raw():
    """Return a function that writes rows of `records` as another recorder would: no sidecar, no checks."""
    from rosbags.rosbag2 import StoragePlugin, Writer

    from fosp_core.data import bag

    def write(path, rows):
        with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            connections = {}
            for topic, msgtype, stamp, message in rows:
                if topic not in connections:
                    connections[topic] = writer.add_connection(topic, msgtype, typestore=bag.typestore())
                writer.write(connections[topic], stamp, bag.typestore().serialize_cdr(message, msgtype))
        return path
    return write
