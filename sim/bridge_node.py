# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The simulation bridge: SafeReach, or a task of Safety-Gymnasium, behind the topics of a real robot, in real time.

It stands where the arm's driver stands: it obeys `command_out`, whoever publishes it, but says when that was not the
safety filter. Imports the simulator and rclpy; nothing of the learner.
"""

import sys
import time
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from sensor_msgs.msg import Image, JointState, Joy
from std_srvs.srv import Trigger

from fosp_core.data import messages as replay_messages
from fosp_core.errors import FospError
from fosp_ros import diagnostics, qos
from fosp_ros.lifecycle import ManagedNode, spin_node
from fosp_ros.messages import time_of
from fosp_ros.parameters import P
from fosp_sim import tasks
from fosp_sim.bridge_core import CommandSlot, EpisodeLoop, Tick, WriterWatch
from fosp_sim.safereach import SafeReachEnv

PARAMETERS = (
    P('task', 'string', 'standard', 'Scene of the next run; of the same robot as at the start.', choices=tasks.TASKS),
    P('episodes', 'int', 20, 'Episodes of the next run.', low=1, high=100000),
    P('seed', 'int', 0, 'Seed of the first episode of the next run; each later one counts up.', low=0, high=2**31 - 1),
    P('run_on_start', 'bool', True, 'Begin a run on activation, without sim_bridge/start.', read_only=True),
    P('realtime_factor', 'double', 1.0, 'Control ticks per contract period; above 1 for tests only: learner and filter '
      'must keep up.', low=0.1, high=20.0, read_only=True),
    P('command_timeout_periods', 'double', 2.0, 'Periods after which a command acts no more and the arm stands still.',
      low=1.0, high=20.0, read_only=True),
    P('start_timeout_s', 'double', 30.0, 'How long a run waits for a publisher of command_out.', unit='s', low=1.0,
      high=600.0),
    P('filter_name', 'string', 'safety_filter', 'Name of the only node that may publish command_out; commands of '
      'others are counted as bypassed.', read_only=True),
    P('record_frames_dir', 'string', '', 'Folder for a 256x256 picture of each tick (TASK_SEED/STAMP.png), for films. '
      'Empty: none.'),
)
FRAME_PIXELS = 256
IDLE, WAITING, RUNNING = 'idle', 'waiting', 'running'


class SimBridgeNode(ManagedNode):
    """Publishes label, poses, joints and pictures of each tick under one stamp; see the module docstring."""

    NAME = 'sim_bridge'
    PARAMETERS = PARAMETERS

    def set_up(self) -> None:
        """Open the simulator (this is where a machine without OpenGL is refused), then create the topics."""
        self.env = tasks.make_env(self.p.task)
        self.env.reset(seed=self.p.seed)        # the first reset compiles, draws and warms the caches
        self.contract = contract = self.env.contract
        self.period = contract.period / self.p.realtime_factor
        self.slot = CommandSlot(contract.action.size, self.p.command_timeout_periods * self.period)
        self.writers, self.foreign_names = WriterWatch(), []
        self.latency, self.rate = diagnostics.LatencyWindow(), diagnostics.RateCounter()
        self.loop: EpisodeLoop | None = None
        self.state, self._halt = IDLE, False
        self.late_ticks = self.unanswered = self.standing = self._commands = 0
        self._bypassed = self._unjudged = 0
        self._before = (0, 0, 0, 0)
        self._sent: tuple[int, float] | None = None
        self._last_tick = self._deadline = 0.0

        self.label_out = self.publish_on(Joy, contract.label_topic, qos.LABEL)
        self.pose_out = self.joints_out = None
        if isinstance(self.env, SafeReachEnv):      # the robots of Safety-Gymnasium only see
            self.pose_out = self.publish_on(PoseStamped, 'ee_pose', qos.STATE)
            self.joints_out = self.publish_on(JointState, 'joint_states', qos.STATE)
        self.pictures_out = {c.name: self.publish_on(Image, c.topic, qos.IMAGE) for c in contract.cameras}
        self.episode_out = self.publish_on(DiagnosticStatus, 'sim_bridge/episode', qos.EVENT)
        self.progress_out = self.publish_on(DiagnosticStatus, 'sim_bridge/progress', qos.LATCHED)
        self.command_out = self.listen(TwistStamped, 'command_out', self._on_command, qos.COMMAND)
        self.serve(Trigger, 'sim_bridge/start', self._on_start)
        self.serve(Trigger, 'sim_bridge/halt', self._on_halt)
        self.ticker = self.every(self.period, self._tick)
        self.every(0.5, self._look_at_writers)
        diagnostics.Reporter(self, self._report)
        self._progress()

    def start(self) -> None:
        """Begin a run when told so by parameter."""
        if self.p.run_on_start and tasks.same_robot(self.p.task, self.env.task):
            self._begin()

    def stop(self) -> None:
        """Publish nothing more; the filter notices the silence and stops the arm."""
        self.state, self.loop = IDLE, None

    def tear_down(self) -> None:
        """Free the GL contexts."""
        env = getattr(self, 'env', None)
        if env is not None:
            env.close()
            self.env = None

    # -- services -----------------------------------------------------------------------------------------------------
    def _on_start(self, _request, response):
        if not self.active:
            response.success, response.message = False, 'not active'
        elif self.state != IDLE:
            response.success, response.message = False, f'already {self.state}; call sim_bridge/halt first'
        elif not tasks.same_robot(self.p.task, self.env.task):
            response.success = False
            response.message = f'task {self.p.task} is of another robot than {self.env.task}; start the bridge anew'
        else:
            self._begin()
            response.success, response.message = True, self._run_text()
        return response

    def _on_halt(self, _request, response):
        response.success = self.state != IDLE
        response.message = f'halting {self._run_text()}' if response.success else 'no run'
        if self.state == RUNNING and not self.loop.reset_due:
            self._halt = True                   # the next tick closes the episode, so that no record stays open
        elif self.state != IDLE:
            self._end('halted')
        return response

    def _begin(self) -> None:
        self.env.task = self.p.task
        self.loop = EpisodeLoop(self.env, self.p.episodes, self.p.seed)
        self.state, self._halt = WAITING, False
        self._deadline = time.monotonic() + self.p.start_timeout_s
        self._progress()
        self.get_logger().info(f'run: {self._run_text()}')

    def _run_text(self) -> str:
        loop = self.loop
        return f'{self.env.task}, {loop.episodes} episodes from seed {loop.seed}' if loop else 'no run'

    def _end(self, how: str) -> None:
        self.get_logger().info(f'{how} after {self.loop.done} of {self.loop.episodes} episodes')
        self.state = IDLE
        self._progress(how)
        self._sent = None

    def _progress(self, message: str = '') -> None:
        loop = self.loop
        values = {'state': self.state, 'task': self.env.task, 'done': loop.done if loop else 0,
                  'episodes': loop.episodes if loop else 0, 'seed': loop.seed if loop else self.p.seed}
        self.progress_out.publish(diagnostics.status('sim_bridge', diagnostics.OK, message or self.state, values))

    # -- commands -----------------------------------------------------------------------------------------------------
    def _on_command(self, message: TwistStamped, info: dict) -> None:
        now = time.monotonic()
        self._commands += 1
        self._unjudged += 1
        sequence = info.get('publication_sequence_number')
        if sequence is not None:
            self.writers.put(sequence)
        stamp = replay_messages.stamp_ns(message)
        if self._sent is not None and stamp in (self._sent[0], 0):
            self.latency.add(1e3 * (now - self._sent[1]))
            self._sent = None                   # answered
        command = [replay_messages.get_field(message, field) for field in self.contract.action.fields]
        self.slot.put(command, stamp, now, self.get_clock().now().nanoseconds)

    def _look_at_writers(self) -> None:
        """Ask the graph who may write command_out: too slow for the tick, and a name alone proves no writer."""
        found = self.get_publishers_info_by_topic(self.command_out.topic_name)
        own = self.get_namespace()
        names = [f'{i.node_namespace.rstrip("/")}/{i.node_name}' for i in found
                 if 'UNKNOWN' not in i.node_name]        # not discovered yet
        wanted = f'{own.rstrip("/")}/{self.p.filter_name}'
        foreign = sorted(n for n in names if n != wanted)
        if names.count(wanted) > 1:
            foreign += [wanted] * (names.count(wanted) - 1)
        if foreign and foreign != self.foreign_names:
            self.get_logger().error(f'command_out has a publisher besides {wanted}: {", ".join(foreign)}')
        self.foreign_names = foreign
        if foreign and wanted not in names:
            self._bypassed += self._unjudged    # none of them can have come from the filter
        self._unjudged = 0

    @property
    def bypassed(self) -> int:
        """Commands of this run that did not come from the safety filter, as far as can be told."""
        return max(self._bypassed, self.writers.foreign)

    # -- one tick -----------------------------------------------------------------------------------------------------
    def _tick(self) -> None:
        if not self.active or self.state == IDLE:
            return
        now = time.monotonic()
        if self.state == WAITING:
            self._wait(now)
            return
        late, self._last_tick = now - self._last_tick > 1.5 * self.period, now
        self.late_ticks += late
        self.rate.tick()
        stamp = self.get_clock().now().nanoseconds
        if self.loop.reset_due:
            self.slot.clear(stamp)
            self._before = (self.unanswered, self.standing, self.late_ticks, self.bypassed)
        command, fresh = self.slot.take(now)
        if self._halt:
            command = np.zeros_like(command)
        self.standing += not fresh and not self.loop.reset_due
        self.unanswered += self._sent is not None and not self.loop.reset_due
        action = self.contract.action.normalise(command)
        tick = self.loop.tick(action, self._halt)
        self._publish(tick, stamp)
        if tick.result is not None:
            self._publish_result(tick.result)
        if self.p.record_frames_dir:
            self._save_frame(stamp)
        if self._halt:
            self._end('halted')
        elif self.loop.finished:
            self._end('done')

    def _wait(self, now: float) -> None:
        if self.count_publishers(self.command_out.topic_name):
            self.state, self._last_tick = RUNNING, now
            self.writers.clear()
            self._bypassed = self._unjudged = 0
            self._progress()
        elif now > self._deadline:
            self.get_logger().error(f'nothing publishes {self.command_out.topic_name}: is the safety filter running?')
            self._end('no command_out')

    def _publish(self, tick: Tick, stamp: int) -> None:
        # Opposite order on the wire to what it takes to make: label first, the first camera's picture last, so that its
        # arrival finds the rest of its tick already there.
        contract = self.contract
        label = Joy(axes=[tick.reward, tick.cost], buttons=[int(tick.is_first), int(tick.is_last),
                                                            int(tick.is_terminal)])
        label.header.stamp = time_of(stamp)
        self.label_out.publish(label)
        if self.pose_out is not None:
            self._publish_arm(stamp)
        first, *others = contract.cameras
        for camera in (*others, first):
            image = replay_messages.fill(contract, camera.name, Image(), stamp, tick.observation[camera.name])
            if camera is first:
                self._sent = (stamp, time.monotonic())
            self.pictures_out[camera.name].publish(image)

    def _publish_arm(self, stamp: int) -> None:
        position, quaternion = self.env.ee_pose()
        pose = replay_messages.fill(self.contract, 'ee_pose', PoseStamped(), stamp, position)
        orientation = pose.pose.orientation
        orientation.x, orientation.y, orientation.z, orientation.w = map(float, quaternion)
        self.pose_out.publish(pose)
        names, angles, speeds = self.env.joint_state()
        joints = JointState(name=list(names), position=angles.tolist(), velocity=speeds.tolist())
        joints.header.stamp, joints.header.frame_id = time_of(stamp), self.contract.action.frame
        self.joints_out.publish(joints)

    def _publish_result(self, result: dict) -> None:
        unanswered, standing, late, bypassed = self._before
        values = {**result, 'bypassed': self.bypassed - bypassed, 'bypassed_run': self.bypassed,
                  'foreign_publishers': ','.join(self.foreign_names), 'unanswered': self.unanswered - unanswered,
                  'standing': self.standing - standing, 'late_ticks': self.late_ticks - late,
                  'latency_p50_ms': f'{self.latency.percentile(50):.2f}',
                  'latency_p99_ms': f'{self.latency.percentile(99):.2f}'}
        text = f'{"reached" if result["success"] else "not reached"}, {"touched" if result["violation"] else "clean"}'
        self.episode_out.publish(diagnostics.status('sim_bridge/episode', diagnostics.OK, text, values))
        self._progress()
        self.get_logger().info(f'episode {result["index"] + 1} of {self.loop.episodes}, {result["task"]} seed '
                               f'{result["seed"]}: {text}, {result["steps"]} steps')

    def _save_frame(self, stamp: int) -> None:
        import cv2
        folder = Path(self.p.record_frames_dir) / f'{self.env.task}_{self.env.seed:06d}'
        try:
            folder.mkdir(parents=True, exist_ok=True)
            picture = self.env.render_frame(FRAME_PIXELS, FRAME_PIXELS)
            good = cv2.imwrite(str(folder / f'{stamp}.png'), picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
        except (OSError, FospError, cv2.error) as error:
            good, reason = False, str(error)
        else:
            reason = 'not written'
        if not good:        # a full disk must not stop the run
            self.get_logger().warning(f'{folder}: {reason}', throttle_duration_sec=5.0)

    def _report(self):
        values = {'state': self.state, 'task': self.env.task if self.env else '', 'rate_hz': f'{self.rate.rate:.2f}',
                  'episodes_done': self.loop.done if self.loop else 0, **self.latency.values(),
                  'late_ticks': self.late_ticks, 'unanswered_ticks': self.unanswered,
                  'standing_ticks': self.standing,
                  'commands': self._commands, 'commands_refused': self.slot.refused, 'commands_old': self.slot.old,
                  'bypassed': self.bypassed, 'foreign_publishers': ','.join(self.foreign_names)}
        if self.foreign_names or self.bypassed:
            return diagnostics.ERROR, f'{self.bypassed} commands bypassed the safety filter', values
        return diagnostics.OK, self.state, values


def main(args: list[str] | None = None) -> int:
    """Run the bridge process."""
    return spin_node(SimBridgeNode, args)


if __name__ == '__main__':
    sys.exit(main())
