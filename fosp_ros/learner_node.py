# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The learner: observation in, proposed command out, replay records for the trainer. Runs on ONNX Runtime, no torch.

It only ever proposes (`command_in`); what the arm is sent is the safety filter's `command_out`, which this node reads
back as the action that was really executed.
"""

import collections
import functools
import math
import sys
import time

import numpy as np
from geometry_msgs.msg import TwistStamped
from sensor_msgs.msg import Image, Joy
from std_msgs.msg import UInt8MultiArray

from fosp_core import paths
from fosp_core.contract import Contract
from fosp_core.data import messages as replay_messages
from fosp_core.data.joiner import ACTION, POLICIES
from fosp_core.errors import DataError
from fosp_ros import diagnostics, observing, pictures, qos
from fosp_ros.lifecycle import ManagedNode, spin_node
from fosp_ros.messages import message_class, replay_set, stamped_class
from fosp_ros.model_slot import IDLE_PERIODS, IDLE_S, SHADOW_TICKS, ModelSlot
from fosp_ros.observing import Observation, Observer
from fosp_ros.parameters import P
from fosp_ros.recording import Record, Recorder

PARAMETERS = (
    P('model', 'string', '', 'Folder of the model bundle. Empty: the model that the package ships.', read_only=True),
    P('contract', 'string', '', 'Contract file. Empty: config/contract_safereach.yaml.', read_only=True),
    P('explore', 'bool', False, 'Sample the policies instead of taking their modes; for collecting experience.'),
    P('seed', 'int', 0, 'Seed of the draws of exploration and policy choice.', low=0, high=2**31 - 1, read_only=True),
    P('replay', 'bool', True, 'Publish the replay/* records that trainer and bags use.', read_only=True),
    observing.LABELS,
    P('pairing_tolerance_s', 'double', 0.05, 'Largest difference of stamps between picture and pose.', unit='s',
      low=0.0, high=1.0, read_only=True),
    P('pairing_wait_s', 'double', 0.01, 'How long a picture waits for messages of its very stamp.', unit='s',
      low=0.0, high=0.1, read_only=True),
    P('stale_after_s', 'double', 1.0, 'A pause in the pictures after which the recurrent state begins anew.', unit='s',
      low=0.1, high=60.0, read_only=True),
    SHADOW_TICKS,
)


def make_policy(bundle, seed: int):
    """Build the policy runtime; late, so that a missing ONNX Runtime is a reason and not a traceback at import."""
    from fosp_core.deploy.runtime import PolicyRuntime
    return PolicyRuntime(bundle, seed)


def advance(runtime, record):
    """Give another runtime one remembered (arrays, previous action, is_first); return its output."""
    arrays, previous, is_first = record
    return runtime.step(arrays, previous, is_first)


class LearnerNode(ManagedNode):
    """Wires topics to Observer, PolicyRuntime and Recorder; see the module docstring."""

    NAME = 'learner'
    PARAMETERS = PARAMETERS

    def set_up(self) -> None:
        """Load contract and model, then create the topics."""
        p = self.p
        self.contract = Contract.load(p.contract or paths.config_file('contract_safereach.yaml'))
        contract = self.contract
        self.slot = ModelSlot(functools.partial(make_policy, seed=p.seed), advance, contract,
                              shadow_ticks=p.shadow_ticks)
        self.slot.open(p.model or paths.share_dir() / 'models' / 'safereach')
        self.observer = Observer(contract, p.pairing_tolerance_s, p.pairing_wait_s, p.labels)
        self.recorder = Recorder(2 * contract.period, continuous=p.labels == observing.STAMPED)
        self.latency, self.rate = diagnostics.LatencyWindow(), diagnostics.RateCounter()
        self.faults: collections.Counter[str] = collections.Counter()
        self.online_share = collections.deque(maxlen=200)
        self._acted: dict[int, str] = {}     # which policy proposed, by stamp, until its record is published
        self.surprise = float('nan')
        self._stamp: int | None = None
        self._ended = False     # the episode has ended and no other has begun
        self._refused_seen = 0

        # The label before the poses before the pictures: an executor serves them in the order of their creation.
        self.listen(Joy, contract.label_topic, self._on_label, qos.LABEL)
        self.listen(stamped_class(contract.action.type, f'contract {contract.name}: action'), 'command_out',
                    self._on_command_out, qos.PROPOSALS)
        for vector in contract.vectors:
            kind = stamped_class(vector.type, f'contract {contract.name}: vector {vector.name}')
            self.listen(kind, vector.topic, functools.partial(self._on_vector, vector), qos.STATE)
        for camera in contract.cameras:
            self.listen(Image, camera.topic, functools.partial(self._on_image, camera), qos.IMAGE)
        self.listen(UInt8MultiArray, 'model', self._on_model, qos.LATCHED)
        self.command_in = self.publish_on(message_class(contract.action.type), 'command_in',
                                          qos.with_deadline(qos.COMMAND, 2 * contract.period))
        self.replay = {}
        if p.replay:
            self.replay = {kind: self.publish_on(message_class(name), replay_messages.topic(kind), qos.REPLAY)
                           for kind, name in replay_messages.types(contract).items()}
        self.waiter = self.every(0.005, self._tick)
        self.waiter.cancel()
        self.every(0.25, self._swap_when_idle)
        diagnostics.Reporter(self, self._report)
        if pictures.bridge().refusal:
            self.get_logger().warning(pictures.bridge().refusal)
        self.get_logger().info(f'model {self.slot.bundle.name} {self.slot.version} '
                               f'({self.slot.bundle.sha256[:12]}), contract {contract.name} {contract.hash[:12]}')

    def start(self) -> None:
        """Begin with an empty history."""
        self.observer.clear()
        self.recorder.interrupt()
        self.slot.runtime.reset()
        self._stamp, self._ended = None, False

    def stop(self) -> None:
        """Propose nothing more; the filter notices the silence."""
        self.waiter.cancel()

    def tear_down(self) -> None:
        """End the loader thread."""
        slot = getattr(self, 'slot', None)
        if slot is not None:
            slot.close()

    # -- what arrives -------------------------------------------------------------------------------------------------
    def _on_label(self, message: Joy) -> None:
        self.observer.put_label(replay_messages.stamp_ns(message), message.axes, message.buttons)
        self._tick()

    def _on_vector(self, spec, message) -> None:
        try:
            values = [replay_messages.get_field(message, field) for field in spec.fields]
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            self._fault(f'{spec.topic}: {error}')
            return
        self.observer.put(spec.name, replay_messages.stamp_ns(message), np.array(values, np.float32), message,
                          time.monotonic())
        self._tick()

    def _on_image(self, spec, message: Image) -> None:
        now = time.monotonic()
        try:
            pixels = pictures.to_camera(message, spec)
        except DataError as error:
            self._fault(str(error))
            return
        self.observer.put(spec.name, replay_messages.stamp_ns(message), pixels, message, now)
        self._tick()

    def _on_command_out(self, message: TwistStamped) -> None:
        try:
            command = [replay_messages.get_field(message, field) for field in self.contract.action.fields]
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            self._fault(f'command_out: {error}')
            return
        if np.isfinite(command).all():
            self.recorder.command(message, self.contract.action.normalise(command), time.monotonic(),
                                  replay_messages.stamp_ns(message))

    def _on_model(self, message: UInt8MultiArray) -> None:
        self.slot.offer(bytes(message.data))

    # -- one tick -----------------------------------------------------------------------------------------------------
    def _tick(self) -> None:
        if not self.active:
            return
        observation = self.observer.take(time.monotonic())
        if observation is not None:
            self._act(observation)
            self._swap()  # after the command is out: the rest of the period is free
        if self.observer.pending:
            if self.waiter.is_canceled():
                self.waiter.reset()
        elif not self.waiter.is_canceled():
            self.waiter.cancel()

    def _act(self, observation: Observation) -> None:
        self.recorder.settle(observation)   # the answer to this very picture may be here: it led to nothing yet
        executed = self.recorder.executed(observation.arrived)
        previous = executed[1] if executed else self.contract.action.normalise(np.zeros(self.contract.action.size))
        paused = self._stamp is None or not 0 < observation.stamp - self._stamp < self.p.stale_after_s * 1e9
        label = observation.label
        is_first = label.is_first or paused
        self._stamp = observation.stamp
        # An operator who ends an episode expects the arm to stand until the next one begins; of a simulation it is the
        # very next tick, whose first command the limits would otherwise mix with the last one of the episode before.
        self._ended = label.is_last or self._ended and self.p.labels != observing.STAMPED and not label.is_first
        if is_first:
            previous = self.contract.action.normalise(np.zeros(self.contract.action.size))
        try:
            output = self.slot.runtime.step(observation.arrays, previous, is_first, explore=self.p.explore)
        except ValueError as error:
            if is_first:    # the next one begins anew: the state is still that of the episode before
                self._stamp = None
            self._fault(f'model: {error}')
        else:
            self._propose(observation, output)
            self.slot.remember((observation.arrays, previous, is_first), is_first)
        for record in self.recorder.observe(observation, time.monotonic()):
            self._publish_record(record)

    def _propose(self, observation: Observation, output) -> None:
        action = self.contract.action
        wanted = action.normalise(np.zeros(action.size)) if self._ended else output.action
        message = replay_messages.fill(self.contract, ACTION, message_class(action.type)(), observation.stamp, wanted)
        self.command_in.publish(message)
        self.latency.add(1e3 * (time.monotonic() - observation.arrived))
        self.rate.tick()
        self.online_share.append(output.index)
        self._acted[observation.stamp] = POLICIES[output.index]
        if len(self._acted) > 64:   # proposals that were never recorded
            self._acted.pop(next(iter(self._acted)))
        self.surprise = output.surprise

    def _publish_record(self, record: Record) -> None:
        if not self.replay:
            return
        policy = self._acted.pop(record.observation.stamp, '')
        for kind, message in replay_set(self.contract, record, policy).items():
            self.replay[kind].publish(message)

    # -- the model and the report -------------------------------------------------------------------------------------
    def _swap(self, idle: bool = False) -> None:
        if self.slot.refused != self._refused_seen:
            self._refused_seen = self.slot.refused
            if self.slot.refusal:
                self.get_logger().error(f'offered model refused: {self.slot.refusal}')
        if self.slot.swap(idle):
            self.get_logger().info(f'model {self.slot.version} ({self.slot.bundle.sha256[:12]}) is live')

    def _swap_when_idle(self) -> None:
        # Without pictures there are no ticks to swap between; before the first one no output has been judged.
        if self.active and max(IDLE_S, IDLE_PERIODS * self.contract.period) < self.rate.age < math.inf:
            self._swap(idle=True)

    def _fault(self, text: str) -> None:
        self.faults[text.split(':')[0]] += 1
        self.get_logger().warning(text, throttle_duration_sec=5.0)

    def _report(self):
        observer, slot = self.observer, self.slot
        values = {
            'version': slot.version, 'sha256': slot.bundle.sha256 if slot.bundle else '', 'swaps': slot.swaps,
            'refused_models': slot.refused, 'last_refusal': slot.refusal, 'rate_hz': f'{self.rate.rate:.2f}',
            **self.latency.values(), 'explore': self.p.explore, 'surprise': f'{self.surprise:.3f}',
            'policy': POLICIES[self.online_share[-1]] if self.online_share else '',
            'online_share': f'{np.mean(self.online_share):.3f}' if self.online_share else 'nan',
            'steps_recorded': self.recorder.step, 'overtaken': observer.overtaken,
            'unpaired': dict(observer.unpaired), 'faults': dict(self.faults),
            # Listeners that hear all of a step: what is published without one is in no episode and in no count.
            'replay_listeners': min((p.get_subscription_count() for p in self.replay.values()), default=0)}
        if self.rate.age > 1.0:
            return diagnostics.WARN, 'no observations', values
        if slot.refusal:
            return diagnostics.WARN, f'model refused: {slot.refusal}', values
        return diagnostics.OK, 'running', values


def main(args: list[str] | None = None) -> int:
    """Run the learner process."""
    return spin_node(LearnerNode, args)


if __name__ == '__main__':
    sys.exit(main())
