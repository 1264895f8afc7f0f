# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The safety filter node in the test's process, with a model that says what the test wants."""

import threading
import time

import numpy as np
import pytest
from filter_cell import Cell, recalibrated
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter

from fosp_core.deploy.runtime import FilterOutput
from fosp_ros.safety_filter_node import SafetyFilterNode

CALIBRATION = {'schema': 1, 'reachability': {'level': 0.5, 'alpha': 0.1, 'n': 50},
               'surprise': {'level_slow': 5.0, 'level_stop': 9.0, 'alpha': 0.1, 'n': 50}, 'data_hash': 'test'}


@pytest.fixture(scope='session')
def filter_model(toy, tmp_path_factory):
    """A toy bundle that says that it is calibrated."""
    return recalibrated(toy, tmp_path_factory.mktemp('calibrated') / 'b', CALIBRATION).path


class Scripted:
    """A runtime that says what the test wants."""

    risk, surprise, delay = 0.1, 1.0, 0.0

    def __init__(self, bundle):
        self.steps, self.version = [], bundle.version

    def warm_up(self):
        pass

    def reset(self):
        pass

    def step(self, observation, previous, is_first, commands, commit=True):
        time.sleep(type(self).delay)
        if not np.isfinite(observation['ee_pose']).all():
            raise ValueError('ee_pose: not finite')
        self.steps.append((previous.copy(), is_first))
        risk = np.full(len(commands), type(self).risk, np.float32)
        risk[np.abs(commands).max(1) == 0] = 0.05       # standing still is safe
        return FilterOutput(risk, np.zeros(3, np.float32), 0.9, type(self).surprise)


class ScriptedFilter(SafetyFilterNode):
    make_runtime = Scripted


@pytest.fixture
def make_filter(rig, filter_model, tmp_path):
    """Start a cell and a filter; returns (rig, cell, node)."""
    Scripted.risk, Scripted.surprise, Scripted.delay = 0.1, 1.0, 0.0

    # An executor of its own: what the cell sees must not depend on what keeps the filter busy.
    executor, end = SingleThreadedExecutor(), threading.Event()

    def spin():
        while not end.is_set():
            executor.spin_once(timeout_sec=0.05)
    thread, cells = threading.Thread(target=spin, daemon=True), []

    def build(kind=ScriptedFilter, start=True, **parameters):
        cell = Cell()
        cells.append(cell)
        executor.add_node(cell)
        thread.start()
        overrides = {'model': str(filter_model), 'release_s': 0.15, 'ramp_s': 0.15,
                     'latch_file': str(tmp_path / 'latch.json'), **parameters}
        node = kind(namespace='fosp', parameter_overrides=[Parameter(k, value=v) for k, v in overrides.items()])
        rig.add(node)
        assert node.bring_up(), node.failure
        rig.wait_for(lambda: all(p.get_subscription_count() for p in cell.out.values())
                     and cell.count_publishers('command_out') and cell.count_publishers('safety_filter/state'),
                     what='discovery')
        if start:
            time.sleep(0.3)
            cell.start()
        return rig, cell, node
    yield build
    for cell in cells:
        cell.bring_down()
    end.set()
    if thread.is_alive():
        thread.join(5.0)
    executor.shutdown()
    for cell in cells:
        cell.destroy_node()


def moving(rig, cell):
    """Wait until the proposal passes."""
    rig.wait_for(lambda: cell.reason == 'ok' and cell.sent and cell.sent[-1][2].any(), 5.0, 'motion')


def call(rig, cell, name, request):
    future = cell.clients_of[name].call_async(request)
    rig.wait_for(future.done, 5.0, name)
    return future.result()
