# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A robot cell for the tests of the safety filter: camera, arm and learner in one node, each with its faults."""

import json
import threading
import time

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.node import Node
from sensor_msgs.msg import Image, JointState, Joy
from std_msgs.msg import Bool, UInt8MultiArray
from std_srvs.srv import SetBool, Trigger

from fosp_core.contract import Contract
from fosp_core.data import messages
from fosp_core.data.joiner import Label
from fosp_core.deploy.bundle import FILES, Bundle, write_bundle
from fosp_core.paths import config_file
from fosp_ros import diagnostics, qos
from fosp_ros.filter_parameters import JOINTS

CONTRACT = Contract.load(config_file('contract_safereach.yaml'))
PERIOD = 0.1
READY = [0.0, -0.785, 0.0, -2.356, 0.0, 1.571, 0.785]


def recalibrated(source, out, calibration, version='calibrated'):
    """Write a copy of a bundle with another calibration."""
    bundle = Bundle.open(source)
    files = {name: bundle.read(name) for name in FILES} | {'calibration.json': json.dumps(calibration).encode()}
    return write_bundle(out, files, {**bundle.manifest, 'version': version})


class Cell(Node):
    """Camera, arm and learner in one, 10 times a second, each with its faults; remembers what it was sent."""

    def __init__(self):
        super().__init__('cell', namespace='fosp')
        def make(kind, topic, profile):
            return self.create_publisher(kind, topic, profile)
        self.out = {'label': make(Joy, 'label', qos.LABEL), 'pose': make(PoseStamped, 'ee_pose', qos.STATE),
                    'joints': make(JointState, 'joint_states', qos.STATE), 'image': make(Image, 'image', qos.IMAGE),
                    'command': make(TwistStamped, 'command_in', qos.COMMAND)}
        self.estop = make(Bool, 'estop', qos.LATCHED)
        self.model = make(UInt8MultiArray, 'model', qos.LATCHED)
        self.sent, self.states, self.reports = [], [], []
        self.create_subscription(TwistStamped, 'command_out', self._on_command, qos.COMMAND)
        self.create_subscription(DiagnosticStatus, 'safety_filter/state',
                                 lambda m: self.states.append((time.monotonic(), m)), qos.STATUS)
        self.create_subscription(DiagnosticArray, '/diagnostics', self.reports.append, qos.DIAGNOSTICS)
        self.clients_of = {'reset': self.create_client(Trigger, 'safety_filter/reset'),
                           'estop': self.create_client(SetBool, 'safety_filter/estop')}
        self.off, self.command, self.position = set(), [0.1, 0.0, 0.0], np.array([0.5, 0.0, 0.2])
        self.frozen, self.encoding, self.joint_names, self.first, self.lag = False, 'rgb8', list(JOINTS), True, 0.0
        self.shown = []
        self._end = threading.Event()
        self._rng = np.random.default_rng(0)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self):
        self._thread.start()

    def bring_down(self):
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _on_command(self, message):
        linear = message.twist.linear
        self.sent.append((time.monotonic(), messages.stamp_ns(message), np.array([linear.x, linear.y, linear.z])))

    def _run(self):
        due = time.monotonic()
        while not self._end.wait(max(0.0, due - time.monotonic())):
            due += PERIOD
            self.tick()

    def tick(self):
        stamp = time.time_ns()
        self.shown.append(stamp)
        if self.sent and 'arm' not in self.off:     # the arm does what it was last told
            self.position = self.position + PERIOD * self.sent[-1][2]
        if 'label' not in self.off:
            label = Label(0.0, 0.0, self.first, False, False, 0)
            self.out['label'].publish(messages.fill(CONTRACT, 'label', Joy(), stamp, label))
        self.first = False
        if 'pose' not in self.off:
            self.out['pose'].publish(messages.fill(CONTRACT, 'ee_pose', PoseStamped(), stamp, self.position))
        if 'joints' not in self.off:
            joints = JointState(name=self.joint_names, position=READY, velocity=[0.0] * 7)
            joints.header.stamp.sec, joints.header.stamp.nanosec = divmod(stamp, 10**9)
            self.out['joints'].publish(joints)
        if 'image' not in self.off:
            pixels = np.full((64, 64, 3), 7, np.uint8) if self.frozen else \
                self._rng.integers(0, 255, (64, 64, 3), np.uint8)
            image = messages.fill(CONTRACT, 'image', Image(), stamp, pixels)
            image.encoding = self.encoding
            self.out['image'].publish(image)
        if 'command' not in self.off:
            if self.lag:
                time.sleep(self.lag)
            message = TwistStamped()
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 10**9)
            message.twist.linear.x, message.twist.linear.y, message.twist.linear.z = self.command
            self.out['command'].publish(message)

    @property
    def reason(self):
        return self.states[-1][1].message if self.states else None

    def values(self):
        return diagnostics.values_of(self.states[-1][1])
