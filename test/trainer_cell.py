# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A trainer in the process of the test, with a learner's replay side and an operator's service side before it."""

import shutil
import time
import types

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image, Joy
from std_msgs.msg import UInt8MultiArray
from std_srvs.srv import Trigger

from fosp_core.contract import Contract
from fosp_core.data import messages
from fosp_core.data.joiner import Label
from fosp_core.deploy.bundle import Bundle, write_bundle
from fosp_core.paths import config_file
from fosp_ros import diagnostics, qos
from fosp_ros.trainer_node import TrainerNode

PERIOD = 100_000_000
KINDS = {'image': Image, 'ee_pose': PoseStamped, 'action': TwistStamped, 'label': Joy}


class Client(Node):
    """A learner's replay side and an operator's service side."""

    def __init__(self, contract):
        super().__init__('client', namespace='fosp')
        self.contract, self.step = contract, 0
        self.out = {k: self.create_publisher(cls, f'replay/{k}', qos.REPLAY) for k, cls in KINDS.items()}
        self.progress, self.models = [], []
        self.create_subscription(DiagnosticStatus, 'trainer/progress', self._on_progress, qos.LATCHED)
        self.create_subscription(UInt8MultiArray, 'model', lambda m: self.models.append(bytes(m.data)), qos.LATCHED)
        self.states = self.create_publisher(DiagnosticStatus, 'safety_filter/state', qos.EVENT)
        self.calls = {name: self.create_client(Trigger, f'trainer/{name}')
                      for name in ('fine_tune', 'cancel', 'rollback')}

    def _on_progress(self, message):
        self.progress.append((message.message, diagnostics.values_of(message)))

    def send(self, start, length, skip=(), double=(), part=slice(None)):
        rng = np.random.default_rng(self.step)
        for k in range(length)[part]:
            stamp, last = start + k * PERIOD, k == length - 1
            action = np.zeros(3) if last else rng.uniform(-1, 1, 3).astype(np.float32)
            values = {'image': rng.integers(0, 255, (64, 64, 3), np.uint8), 'ee_pose': rng.random(3), 'action': action,
                      'label': Label(float(last), 0.0, k == 0, last, last, self.step)}
            self.step += 1
            for _ in range(2 if k in double else 1):
                for kind, value in values.items():
                    if k not in skip:
                        self.out[kind].publish(messages.fill(self.contract, kind, KINDS[kind](), stamp, value))

    def call(self, name):
        future = self.calls[name].call_async(Trigger.Request())
        end = time.monotonic() + 10
        while not future.done() and time.monotonic() < end:
            time.sleep(0.005)
        assert future.done(), f'{name} did not answer'
        return future.result()

    def filter_says(self, version, word, ticks):
        """Be the safety filter for so many ticks."""
        for _ in range(ticks):
            self.states.publish(diagnostics.status('safety_filter', diagnostics.OK, word, {'version': version}))
            time.sleep(0.002)

    def phase(self):
        return self.progress[-1][0] if self.progress else None


@pytest.fixture
def make_trainer(rig, toy, tmp_path):
    contract = Contract.load(config_file('contract_safereach.yaml'))

    def make(**parameters):
        client = rig.add(Client(contract))
        values = {'model': str(toy), 'work_dir': str(tmp_path / 'work'), 'min_steps': 20, 'steps': 3,
                  'require_calibration': False} | parameters
        trainer = TrainerNode(namespace='fosp', parameter_overrides=[Parameter(k, value=v) for k, v in values.items()])
        rig.add(trainer)
        assert trainer.bring_up(), trainer.failure
        rig.wait_for(lambda: all(c.service_is_ready() for c in client.calls.values())
                     and all(p.get_subscription_count() for p in (*client.out.values(), client.states))
                     and client.progress, what='discovery')
        time.sleep(0.3)
        return rig, client, trainer
    return make


def child_of(toy, folder, version='child', **manifest):
    """Write a copy of the toy as if a worker had made it."""
    toy = Bundle.open(toy)
    manifest = {**toy.manifest, 'version': version, 'parent': 'toy', 'created': '', **manifest}
    return write_bundle(folder, {name: toy.read(name) for name in toy.manifest['files']}, manifest)


def adopt(trainer, toy, **manifest):
    """Let the trainer take a worker's result that is there already."""
    shutil.rmtree(trainer.session.jobs / 'ft-0000', ignore_errors=True)
    child_of(toy, trainer.session.jobs / 'ft-0000' / 'bundle', **manifest)
    trainer.job = types.SimpleNamespace(name='ft-0000', step=1, steps=1, alignment={}, state='running', poll=list)
    trainer._adopt(trainer.job)
