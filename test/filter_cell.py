# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A robot cell for the tests of the safety filter: camera, arm and learner in one node, each with its faults."""

import collections
import json
import threading
import time

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
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


Sent = collections.namedtuple('Sent', 'at stamp command sequence')     # at: ns, when the filter published it


class Cell(Node):
    """Camera, arm and learner in one, 10 times a second, each with its faults; remembers what it was sent.

    Times named `at` and those of `published` are nanoseconds of the system clock: what the middleware notes when a
    message is published. So a measured delay holds no delay of this process.
    """

    COMMAND = TwistStamped

    def __init__(self, namespace='fosp', name='cell', **options):
        super().__init__(name, namespace=namespace, **options)
        self.out = {kind: self.create_publisher(*of) for kind, of in {
            'label': (Joy, 'label', qos.LABEL), 'pose': (PoseStamped, 'ee_pose', qos.STATE),
            'joints': (JointState, 'joint_states', qos.STATE), 'image': (Image, 'image', qos.IMAGE),
            'command': (self.COMMAND, 'command_in', qos.COMMAND)}.items()}
        self.estop = self.create_publisher(Bool, 'estop', qos.LATCHED)
        self.model = self.create_publisher(UInt8MultiArray, 'model', qos.LATCHED)
        self.sent, self.states, self.reports = [], [], []
        self.log, self.shown, self.where = [], [], {}
        self.published = {kind: [] for kind in self.out}
        deep = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)    # each command is judged
        self.create_subscription(self.COMMAND, 'command_out', self._on_command, deep)
        self.create_subscription(DiagnosticStatus, 'safety_filter/state',
                                 lambda m: self.states.append((time.monotonic(), m)), deep)
        self.create_subscription(DiagnosticArray, '/diagnostics', self.reports.append, qos.DIAGNOSTICS)
        self.clients_of = {'reset': self.create_client(Trigger, 'safety_filter/reset'),
                           'estop': self.create_client(SetBool, 'safety_filter/estop')}
        self._end = threading.Event()
        self._rng = np.random.default_rng(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._pictures = collections.deque(maxlen=20)
        self._todo, self.ticks, self._newest = [], 0, 0
        self.heal()

    def heal(self):
        """End every fault; the next tick begins an episode."""
        self.off, self.command, self.position = set(), [0.1, 0.0, 0.0], np.array([0.5, 0.0, 0.2])
        self.frozen, self.encoding, self.joint_names, self.first, self.lag = False, 'rgb8', list(JOINTS), True, 0.0
        self.size, self.short = (64, 64), False         # of the picture; fewer bytes than it says
        self.unstamped = False                          # commands carry no stamp
        self.behind = 0                                 # ticks that a picture comes late
        self.also = None                                # a second publisher of commands, right behind the first
        self.stuck = False                              # the driver sends one message again and again
        self.said = None                                # what the pose says of a position, in place of the truth
        self.joint_position = list(READY)
        self.offset = 0                                 # ns: all clocks of camera, arm and learner are off by this
        self.frames = {}                                # kind -> frame of its messages, in place of the right one
        self.borders = False                            # each record says that it is the first of an episode
        self.patrol = False                             # go back and forth, so as never to reach a wall

    def start(self):
        self._thread.start()

    def inject(self, change):
        """Call `change(cell)` between two ticks; return how much of each kind had been published until then."""
        done, before = threading.Event(), {}

        def act():
            before.update({kind: len(times) for kind, times in self.published.items()}, states=len(self.states))
            change(self)
            done.set()
        self._todo.append(act)
        assert done.wait(3.0), 'the cell does not run'
        return before

    def bring_down(self):
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _on_command(self, message, info):
        command = self.read(message)
        stamp = messages.stamp_ns(message)
        self.log.append(Sent(info['source_timestamp'], stamp, command, info.get('publication_sequence_number')))
        self.sent.append((time.monotonic(), stamp, command))

    def _run(self):
        due = time.monotonic()
        while not self._end.wait(max(0.0, due - time.monotonic())):
            due += PERIOD
            self.tick()

    def _publish(self, kind, message, publisher=None):
        message.header.frame_id = self.frames.get(kind, message.header.frame_id)
        self.published[kind].append(time.time_ns())
        (publisher or self.out[kind]).publish(message)

    def tick(self):
        while self._todo:
            self._todo.pop(0)()
        self.ticks += 1
        stamp = time.time_ns() + self.offset
        self.shown.append(stamp)
        # The arm does what it was last told, and stops by itself when it is told nothing for two periods.
        if self.sent and 'arm' not in self.off and time.monotonic() - self.sent[-1][0] < 2.5 * PERIOD:
            self.position = self.position + PERIOD * self.sent[-1][2]
        if self.patrol and abs(self.position[0] - 0.5) > 0.05:
            self.command = [-np.sign(self.position[0] - 0.5) * 0.1, 0.0, 0.0]
        self.where[stamp] = self.position.copy()
        if 'label' not in self.off:
            label = Label(0.0, 0.0, self.first or self.borders, False, False, 0)
            self._publish('label', messages.fill(CONTRACT, 'label', Joy(), stamp, label))
        self.first = False
        if 'pose' not in self.off:
            said = self.position if self.said is None else np.array(self.said(self.position))
            self._publish('pose', messages.fill(CONTRACT, 'ee_pose', PoseStamped(), stamp, said))
        if 'joints' not in self.off:
            noise = self._rng.normal(0.0, 1e-6, len(self.joint_position))      # no encoder repeats its last digit
            joints = JointState(name=self.joint_names, position=list(np.add(self.joint_position, noise)),
                                velocity=[0.0] * 7)
            joints.header.stamp.sec, joints.header.stamp.nanosec = divmod(stamp, 10**9)
            self._publish('joints', joints)
        pixels = np.full((*self.size, 3), 7, np.uint8) if self.frozen else \
            self._rng.integers(0, 255, (*self.size, 3), np.uint8)
        image = messages.fill(CONTRACT, 'image', Image(), stamp, pixels)
        image.encoding = self.encoding
        if self.short:
            image.data = image.data[:-64]
        self._pictures.append(image)
        if self.stuck:
            self._pictures[-1] = self._pictures[-2]
        late = self._pictures[max(-1 - self.behind, -len(self._pictures))]
        if self.behind:
            if messages.stamp_ns(late) <= self._newest:
                return                              # it is still under way, and so there is nothing to answer
            stamp = messages.stamp_ns(late)
        if 'image' not in self.off:
            self._publish('image', late)
            self._newest = messages.stamp_ns(late)
        if 'command' not in self.off:
            if self.lag:
                time.sleep(self.lag)
            self._publish('command', self.proposal(stamp))
            if self.also is not None:
                self._publish('command', self.proposal(stamp), self.also)

    def proposal(self, stamp):
        """What the learner of this cell says to the picture of a stamp."""
        message = self.COMMAND()
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(0 if self.unstamped else stamp, 10**9)
        self.write(message)
        return message

    def read(self, message):
        linear = message.twist.linear
        return np.array([linear.x, linear.y, linear.z])

    def write(self, message):
        message.twist.linear.x, message.twist.linear.y, message.twist.linear.z = self.command

    @property
    def reason(self):
        return self.states[-1][1].message if self.states else None

    def values(self):
        return diagnostics.values_of(self.states[-1][1])

    def report(self, node='/fosp/safety_filter'):
        """Newest /diagnostics entry of a node, and its values."""
        for array in reversed(self.reports):
            for status in array.status:
                if status.name == node:
                    return status, diagnostics.values_of(status)
        return None, {}
