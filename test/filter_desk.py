# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The senses of the safety filter on a desk: messages are handed to them one by one, each with its time."""

import numpy as np
from filter_cell import CONTRACT
from geometry_msgs.msg import PoseStamped, TwistStamped
from sensor_msgs.msg import Image, JointState

from fosp_core.data import messages
from fosp_core.safety.limits import FilterLimits
from fosp_ros.filter_senses import Senses
from fosp_ros.observing import Observation, TickLabel

CAMERA, POSE = CONTRACT.cameras[0], CONTRACT.vectors[0]
LIMITS = FilterLimits(low=CONTRACT.action.low, high=CONTRACT.action.high, period=0.1, staleness=0.25,
                      box_low=(0.3, -0.4, 0.0), box_high=(0.7, 0.4, 0.5), joint_names=('a', 'b'),
                      joint_low=(-2.0, -2.0), joint_high=(2.0, 2.0), joint_speed=(1.0, 1.0))
MOVING, ZERO = np.array([0.1, 0.0, 0.0]), np.zeros(3)
FASTER = np.array([0.12, 0.0, 0.0])     # eight periods of it are beyond 3 x 0.03 m, seven are not


class Desk:
    """A Senses with a clock; each method hands it one message, made and arrived at `t` seconds."""

    def __init__(self, limits=LIMITS, contract=CONTRACT):
        self.lines = []
        self.senses = Senses(contract, limits, 'ee_pose', self.lines.append)
        self.rng = np.random.default_rng(0)

    def faults(self, t):
        return set(self.senses.inputs(t).faults)

    def picture(self, t, size=(64, 64), encoding='rgb8', made=None, **fields):
        pixels = self.rng.integers(0, 255, (*size, 3), np.uint8)
        image = messages.fill(CONTRACT, 'image', Image(), ns(t if made is None else made), pixels)
        image.encoding = encoding
        for name, value in fields.items():
            setattr(image, name, value)
        return self.senses.picture(CAMERA, image, t)

    def pose(self, t, at=(0.5, 0.0, 0.2), frame='panda_link0', made=None):
        message = messages.fill(CONTRACT, 'ee_pose', PoseStamped(), ns(t if made is None else made), np.array(at))
        message.header.frame_id = frame
        return self.senses.vector(POSE, message, t)

    def joints(self, t, names=('b', 'a'), position=(0.2, 0.1), velocity=(0.4, 0.3), made=None):
        message = JointState(name=list(names), position=list(position), velocity=list(velocity))
        stamp(message, t if made is None else made)
        self.senses.joints(message, t)
        return self.senses.situation

    def command(self, t, value=(0.4, 0.0, 0.0), frame='panda_link0', made=None):
        message = messages.fill(CONTRACT, 'action', TwistStamped(), ns(t if made is None else made), np.array(value))
        message.header.frame_id = frame
        return self.senses.command(message, t)

    def tick(self, t, at=(0.5, 0.0, 0.2), first=False, last=MOVING, picture=None, begins=False, joints=None):
        """One observation; returns the faults that it shows."""
        self.pose(t, at)
        self.joints(t, position=joints or tuple(self.rng.normal(0, 1e-6, 2)))
        return self.watch(t, at, first, last, picture, begins)

    def watch(self, t, at=(0.5, 0.0, 0.2), first=False, last=MOVING, picture=None, begins=False):
        """The same of messages that are here already."""
        pixels = self.rng.integers(0, 255, (64, 64, 3), np.uint8) if picture is None else picture
        return self.senses.watch(self.observation(t, at, first, pixels), np.asarray(last), begins)

    def observation(self, t, at=(0.5, 0.0, 0.2), first=False, pixels=None):
        return Observation(ns(t), {'image': pixels, 'ee_pose': np.array(at, np.float32)}, {}, TickLabel(is_first=first),
                           t, 0)


def ns(t):
    return round(1e9 * t) + 1_000_000_000


def stamp(message, t):
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(ns(t), 10 ** 9)
