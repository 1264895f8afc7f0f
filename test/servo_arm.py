# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""An arm behind rules like MoveIt Servo's, as a process: what Servo does with a TwistStamped, written from its manual.

Subscription with the system's default QoS; commands in the planning frame, in speed units or unitless; a command whose
stamp is older than `timeout` is not obeyed, and the arm halts; a loop at 100 Hz. Publishes the pose at 50 Hz, and what
it did as diagnostics. With `forward:=true` it holds the last command for ever, as a forward_command_controller does.
`array:=/x/commands` makes it one: it takes Float64MultiArray there in place of twists.
`poses_end:=0.3`: so long after its first motion it sends no more poses, or, with `freeze:=true`, the last over again,
or, with `broken:=true`, new ones that are no numbers.
"""

import math
import sys
import time

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.node import Node
from rclpy.qos import qos_profile_system_default
from std_msgs.msg import Float64MultiArray

FRAME, LOOP_S, DECELERATION = 'panda_link0', 0.01, 2.0


class ServoArm(Node):
    def __init__(self):
        super().__init__('servo_node')
        self.timeout = self.declare_parameter('incoming_command_timeout', 0.2).value
        self.scale = self.declare_parameter('scale', 1.0).value         # not 1: command_in_type is unitless
        self.forward = self.declare_parameter('forward', False).value
        self.array = self.declare_parameter('array', '').value
        self.held = np.zeros(3)
        self.poses_end = self.declare_parameter('poses_end', math.inf).value
        self.freeze = self.declare_parameter('freeze', False).value
        self.broken = self.declare_parameter('broken', False).value
        self.began, self.last_pose = math.inf, None
        self.place, self.velocity = np.array([0.5, 0.0, 0.2]), np.zeros(3)
        self.command, self.obeyed, self.stale, self.foreign, self.moved = None, 0, 0, 0, 0.0
        if self.array:
            self.create_subscription(Float64MultiArray, self.array, self.hold, qos_profile_system_default)
        else:
            self.create_subscription(TwistStamped, '~/delta_twist_cmds', self.take, qos_profile_system_default)
        self.pose = self.create_publisher(PoseStamped, '/arm/pose', qos_profile_system_default)
        self.status = self.create_publisher(DiagnosticStatus, '~/report', 10)
        self.ticks, self.before = 0, time.monotonic()
        self.create_timer(LOOP_S, self.loop)

    def take(self, message):
        if message.header.frame_id != FRAME:
            self.foreign += 1
            return
        self.command = message

    def hold(self, message):
        assert len(message.data) == 6 and not any(message.data[3:])
        self.held, self.obeyed = np.array(message.data[:3]), self.obeyed + 1

    def loop(self):
        now, wanted = self.get_clock().now(), self.held
        if self.command is not None:
            age = 1e-9 * now.nanoseconds - self.command.header.stamp.sec - 1e-9 * self.command.header.stamp.nanosec
            if self.forward or age < self.timeout:
                linear = self.command.twist.linear
                wanted = self.scale * np.array([linear.x, linear.y, linear.z])
                self.obeyed += 1
            else:
                self.stale += 1
        mono = time.monotonic()
        step, self.before = min(mono - self.before, 0.1), mono
        change = wanted - self.velocity
        size = float(np.linalg.norm(change))
        self.velocity = wanted if size <= DECELERATION * step else self.velocity + change / size * DECELERATION * step
        self.place = self.place + step * self.velocity
        self.moved += step * float(np.linalg.norm(self.velocity))
        self.ticks += 1
        if self.velocity.any():
            self.began = min(self.began, mono)
        if mono - self.began > self.poses_end:
            if self.freeze:
                self.pose.publish(self.last_pose)
        if self.ticks % 2 == 0 and (self.broken or mono - self.began <= self.poses_end):
            message = PoseStamped()
            message.header.stamp, message.header.frame_id = now.to_msg(), FRAME
            message.pose.position.x, message.pose.position.y, message.pose.position.z = map(float, self.place)
            if mono - self.began > self.poses_end:
                message.pose.position.x = message.pose.position.y = message.pose.position.z = math.nan
            message.pose.orientation.w = 1.0
            self.pose.publish(message)
            self.last_pose = message
        if self.ticks % 5 == 0:
            values = {'obeyed': self.obeyed, 'stale': self.stale, 'foreign': self.foreign, 'moved': self.moved,
                      'speed': float(np.linalg.norm(self.velocity))}
            self.status.publish(DiagnosticStatus(name='servo_arm', values=[
                KeyValue(key=k, value=repr(v)) for k, v in values.items()]))


if __name__ == '__main__':
    assert math.isclose(LOOP_S, 0.01)
    rclpy.init()
    try:
        rclpy.spin(ServoArm())
    except (KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
        pass
    sys.exit(0)
