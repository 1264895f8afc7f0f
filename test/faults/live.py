# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The real graph for the fault suite: sim bridge, learner, filter and trainer, each a process to be killed."""

import sys
import time

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_rig import wait_for
from sensor_msgs.msg import Joy
from stand import Child, Participant
from std_srvs.srv import Trigger

from fosp_core.data.messages import stamp_ns
from fosp_ros import diagnostics, graph, qos

MOVED_M = 0.002     # in a period: less is the arm coming to rest, the slowest command of these tests is 20 mm


class Witness(Node):
    """Hears the arm, the filter and the trainer; has no part in the control path."""

    def __init__(self, context):
        super().__init__('witness', namespace='fosp', context=context)
        deep = QoSProfile(depth=200, reliability=ReliabilityPolicy.RELIABLE)
        self.commands, self.states, self.poses, self.firsts = [], [], [], set()
        self.reports, self.results, self.progress = {}, [], []
        # Before the poses: the first pose of an episode is no motion.
        self.create_subscription(Joy, 'label', lambda m: m.buttons[0] and self.firsts.add(stamp_ns(m)), qos.LABEL)
        self.create_subscription(TwistStamped, 'command_out', self._on_command, deep)
        self.create_subscription(DiagnosticStatus, 'safety_filter/state', lambda m: self.states.append(m.message), deep)
        self.create_subscription(PoseStamped, 'ee_pose', self._on_pose, qos.STATE)
        self.create_subscription(DiagnosticArray, '/diagnostics', self._on_report, qos.DIAGNOSTICS)
        self.create_subscription(DiagnosticStatus, 'sim_bridge/episode', lambda m: self.results.append(
            diagnostics.values_of(m)), qos.EVENT)
        self.create_subscription(DiagnosticStatus, 'trainer/progress', lambda m: self.progress.append(m.message),
                                 qos.LATCHED)
        self.clients_of = {name: self.create_client(Trigger, name) for name in
                           ('trainer/fine_tune', 'trainer/cancel', 'safety_filter/reset')}

    def _on_command(self, message, info):
        linear = message.twist.linear
        self.commands.append((info['source_timestamp'], np.array([linear.x, linear.y, linear.z])))

    def _on_pose(self, message):
        at = message.pose.position
        self.poses.append((stamp_ns(message), np.array([at.x, at.y, at.z])))

    def _on_report(self, message):
        for status in message.status:
            self.reports[status.name.rsplit('/', 1)[-1]] = {**diagnostics.values_of(status), 'at': stamp_ns(message)}

    def call(self, name):
        client = self.clients_of[name]
        wait_for(client.service_is_ready, 15.0, name)
        future = client.call_async(Trigger.Request())
        wait_for(future.done, 10.0, name)
        return future.result()

    def moves(self, since):
        """Stamps, ns, of the poses after `since` at which the arm had moved within its episode."""
        poses, firsts = list(self.poses), set(self.firsts)
        return [at for (then, a), (at, b) in zip(poses, poses[1:]) if at > since and np.linalg.norm(b - a) > MOVED_M
                and not any(then < first <= at for first in firsts)]      # a pose may be lost, the first one too

    def bridge(self, after):
        """Return the bridge's first report after `after`, ns."""
        wait_for(lambda: self.reports.get('sim_bridge', {}).get('at', 0) > after, 3.0, 'a report of the bridge')
        return dict(self.reports['sim_bridge'])

    def driven(self, since, before):
        """Stamps, ns, of the ticks after `since` on which a command moved the arm, by the bridge's own count.

        `before`: its report from before `since`. A pose says when the arm rests, but an arm is a mechanism and comes to
        rest after its last command.
        """
        after = self.bridge(since + 300_000_000)     # by now every command is too old
        time.sleep(0.1)
        ticks = sorted({at for at, _ in self.poses if since < at <= after['at']})
        stood = int(after['standing_ticks']) - int(before['standing_ticks'])
        return ticks[:max(0, len(ticks) - stood - sum(at in self.firsts for at in ticks))]

    def moving(self):
        """True while the arm has moved within the last two periods on commands of the filter."""
        last, recent = self.commands[-3:], time.time_ns() - 350_000_000
        return (len(last) == 3 and all(v.any() and at > recent for at, v in last)
                and len(self.moves(recent)) >= 2)


class Graph:
    """The four nodes of `graph.build`, started one by one, with a witness."""

    def __init__(self, folder, model='', **settings):
        overrides = [('sim_bridge', 'episodes', 10_000), ('trainer', 'work_dir', str(folder / 'work')),
                     ('safety_filter', 'audit_dir', str(folder / 'audit')),
                     ('safety_filter', 'incident_dir', str(folder / 'incidents')),
                     ('safety_filter', 'latch_file', str(folder / 'latch.json'))]
        overrides += [(*name.split('.'), value) for name, value in settings.items()]
        self.folder = folder
        self.specs = {spec.name: spec for spec in graph.build(graph.GraphOptions(
            model=str(model), overrides=tuple(overrides)))}
        self.children = {}
        self.participant = Participant(Witness)
        self.start(*self.specs)

    @property
    def witness(self):
        return self.participant.node

    def start(self, *names):
        """Start these nodes."""
        for name in names:
            self.children[name] = Child(self.specs[name].command(sys.executable), self.folder / f'{name}.log',
                                        **graph.environment(True))

    def ready(self, timeout=60.0):
        """Restart what has died and wait until the arm moves; return the witness."""
        self.start(*(name for name, child in self.children.items() if not child.alive))
        end, asked = time.monotonic() + timeout, 0.0
        while time.monotonic() < end:
            if self.witness.moving():
                return self.witness
            latched = self.witness.reports.get('safety_filter', {}).get('latched')
            if latched and time.monotonic() > asked + 1.0:
                asked = time.monotonic()
                self.witness.call('safety_filter/reset')
            time.sleep(0.02)
        raise AssertionError(f'no motion; the filter said {self.witness.states[-5:]}, ' + '; '.join(
            f'{name}: {child.text[-300:]}' for name, child in self.children.items() if not child.alive))

    def close(self):
        for name in ('sim_bridge', 'learner', 'trainer', 'safety_filter'):
            self.children[name].end()
        self.participant.close()
