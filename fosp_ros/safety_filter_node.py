# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The safety filter: the only publisher of `command_out`. Gathers, calls `fosp_core.safety.filter.decide`, publishes.

It keeps its own recurrent state from its own copy of the observations and the commands that were really sent, and
trusts nothing that the learner says but its proposal. ONNX Runtime, no torch. Every deadline is on the monotonic clock.
"""

import dataclasses
import functools
import gc
import math
import sys
import threading
import time
import traceback

import numpy as np
from rcl_interfaces.msg import SetParametersResult
from sensor_msgs.msg import Image, JointState, Joy
from std_msgs.msg import UInt8MultiArray

from fosp_core import paths
from fosp_core.contract import Contract
from fosp_core.data.messages import set_field, stamp_ns
from fosp_core.safety import filter as safety
from fosp_core.safety.candidates import candidates
from fosp_core.safety.filter import FilterInputs, FilterState, ModelOutput
from fosp_core.safety.limits import apply_limits
from fosp_core.safety.reasons import Reason
from fosp_ros import filter_parameters, qos
from fosp_ros.filter_latch import Latching
from fosp_ros.filter_report import Reporting
from fosp_ros.filter_senses import Senses
from fosp_ros.filter_witness import Witness
from fosp_ros.lifecycle import ManagedNode, spin_node
from fosp_ros.messages import stamped_class, time_of
from fosp_ros.model_slot import IDLE_PERIODS, IDLE_S, ModelSlot
from fosp_ros.observing import Observation, Observer
from fosp_ros.watchdog import Watchdog

PARAMETERS = filter_parameters.PARAMETERS
POLL_S = 0.005      # how finely deadlines are kept while something waits


def make_filter(bundle):
    """Build the filter runtime; late, so that a missing ONNX Runtime is a reason and not a traceback at import."""
    from fosp_core.deploy.runtime import FilterRuntime
    return FilterRuntime(bundle)


def advance(runtime, record):
    """Give another runtime one remembered (arrays, previous action, is_first, candidates); return its output."""
    return runtime.step(*record)


class SafetyFilterNode(Latching, Reporting, ManagedNode):
    """Wires topics to Observer, FilterRuntime, `decide` and Watchdog; see the module docstring."""

    NAME = 'safety_filter'
    PARAMETERS = PARAMETERS
    make_runtime = staticmethod(make_filter)    # tests put their own here

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._begin_latching()
        self._sending, self._sent = threading.Lock(), 0
        self.add_on_set_parameters_callback(self._guard_parameters)

    def set_up(self) -> None:
        """Load contract, limits and model, then create the topics: nothing is published before all is verified."""
        p = self.p
        self.contract = contract = Contract.load(p.contract or paths.config_file('contract_safereach.yaml'))
        self.limits = filter_parameters.limits_of(p, contract)
        self.witness = Witness(p, contract, self.get_namespace(), self._in_force, self.get_logger().warning)
        self._reset_memory()
        self.slot = ModelSlot(self.make_runtime, advance, contract, calibrated=True, history=20,
                              shadow_ticks=p.shadow_ticks)
        self.slot.open(p.model or paths.share_dir() / 'models' / 'safereach')
        self._command_class = stamped_class(contract.action.type, f'contract {contract.name}: action')
        self._refused_seen = 0

        self.command_out = self.publish_on(self._command_class, 'command_out', qos.COMMAND)
        self._remember_command = self.witness.remembered(self._command_class, self.command_out.topic_name)
        # The label before the pictures: an executor serves them in this order.
        self._hear(Joy, contract.label_topic, self._on_label, qos.LABEL)
        self._hear(JointState, 'joint_states', self._on_joints, qos.STATE)
        for vector in contract.vectors:
            kind = stamped_class(vector.type, f'contract {contract.name}: vector {vector.name}')
            self._hear(kind, vector.topic, functools.partial(self._on_vector, vector), qos.STATE)
        for camera in contract.cameras:
            self._hear(Image, camera.topic, functools.partial(self._on_image, camera), qos.IMAGE)
        self._hear(self._command_class, 'command_in', self._on_command, qos.PROPOSALS)
        self.listen(UInt8MultiArray, 'model', self._on_model, qos.LATCHED)
        self._serve_reset()
        self._poll = self.every(POLL_S, self._look)
        self._poll.cancel()
        self.every(0.25, self._swap_when_idle)
        self._begin_reporting()
        self.watchdog = Watchdog(contract.period, p.watchdog_s, self._watchdog_fired, self._watchdog_failed)
        self._tell_what_is_in_force()

    def start(self) -> None:
        """Forget everything but the latch, which a restart must not clear, and begin with stop."""
        with self._gate:
            self._reset_memory()
        self.slot.runtime.reset()
        self.witness.start()
        self.witness.event('activated', f'model {self.slot.version}')
        gc.collect()
        gc.freeze()     # what was loaded is never garbage: later collections on the control path stay short
        self.watchdog.start()

    def stop(self) -> None:
        """End the decisions first, then the watchdog, and say stop last."""
        self.active = False
        self._poll.cancel()
        self.watchdog.stop()
        with self._gate:
            self._send(np.zeros(self.limits.size), None)
            self._publish_state(Reason.NOT_ACTIVE)
        self.witness.stop()

    def tear_down(self) -> None:
        """End the threads, whatever was made of them."""
        for part in ('watchdog', 'witness'):
            if getattr(self, part, None) is not None:
                getattr(self, part).stop()
        if getattr(self, 'slot', None) is not None:
            self.slot.close()

    def _reset_memory(self) -> None:
        p, contract = self.p, self.contract
        self.observer = Observer(contract, p.pairing_tolerance_s, p.pairing_wait_s, p.labels)
        self.state = dataclasses.replace(FilterState.initial(contract.action.size), latched=self.state.latched)
        self.senses = Senses(contract, self.limits, p.position_vector, self._warn)
        self._proposal: tuple[int, list[float]] | None = None
        self._waiting: Observation | None = None
        self._deciding, self._scored = False, 0     # _scored: candidates of the last tick
        self._anew = False      # the recurrent state begins anew with the next tick

    def _hear(self, kind, topic: str, callback, profile) -> None:
        self.listen(kind, topic, self.witness.overhear(kind, self.resolve_topic_name(topic), callback), profile)

    def _warn(self, text: str) -> None:
        self.witness.noted(text)
        self.get_logger().warning(text, throttle_duration_sec=5.0)

    # -- what arrives -------------------------------------------------------------------------------------------------
    def _on_label(self, message: Joy) -> None:
        self.observer.put_label(stamp_ns(message), message.axes, message.buttons)
        self._look()

    def _on_joints(self, message: JointState) -> None:
        self.senses.joints(message, time.monotonic())

    def _on_vector(self, spec, message) -> None:
        now = time.monotonic()
        values = self.senses.vector(spec, message, now)
        if values is not None:
            self.observer.put(spec.name, stamp_ns(message), values, None, now)
            self._look()

    def _on_image(self, spec, message: Image) -> None:
        now = time.monotonic()
        pixels = self.senses.picture(spec, message, now)
        if pixels is not None:
            self.observer.put(spec.name, stamp_ns(message), pixels, None, now)
            self._look()

    def _on_command(self, message) -> None:
        if not stamp_ns(message):       # `ros2 topic pub`: it answers no picture, and the next one is no second answer
            self.senses.fault(Reason.COMMAND_INVALID, 'command_in: no stamp, expected that of the picture it answers',
                              time.monotonic())
            return
        self._proposal = (stamp_ns(message), self.senses.command(message, time.monotonic()))
        self._look()

    def _on_model(self, message: UInt8MultiArray) -> None:
        self.slot.offer(bytes(message.data))

    # -- one tick -----------------------------------------------------------------------------------------------------
    def _look(self) -> None:
        """Decide when picture and proposal of one stamp are both here, or when the picture has waited long enough."""
        if not self.active or self._deciding:
            return
        now = time.monotonic()
        observation = self.observer.take(now)
        self.senses.unpaired(self.observer, now)
        if observation is not None:
            if self._waiting is not None:       # the next picture is here and the proposal for this one is not
                self._decide(self._waiting, None)
            self._waiting = observation
        waiting = self._waiting
        if waiting is not None:
            if self._proposal is not None and self._proposal[0] == waiting.stamp:
                self._waiting = None
                self._decide(waiting, self._proposal[1])
            elif now - waiting.arrived >= self.p.deadline_s:
                self._waiting = None
                self._decide(waiting, None)
        if self._waiting is not None or self.observer.pending:
            if self._poll.is_canceled():
                self._poll.reset()
        elif not self._poll.is_canceled():
            self._poll.cancel()

    def _decide(self, observation: Observation, proposal: list[float] | None) -> None:
        self._deciding = True
        try:
            self._tick(observation, proposal)
        except Exception as error:  # noqa: BLE001 - the filter's own fault: stop, latch, say so
            self._internal_fault(error)
        finally:
            self._deciding = False
        self._swap()    # after the command is out: the rest of the period is free

    def _tick(self, observation: Observation, proposal: list[float] | None) -> None:
        begun, fires = time.monotonic(), self.watchdog.fired
        is_first = self.senses.begins(observation)
        self.witness.observed(observation)
        zero = np.zeros(self.limits.size)
        with self._gate:
            # The arm goes on with what was sent last, whatever the label says: the limits count from there.
            last, path = self.state.last, () if is_first else self.state.path
        before = zero if is_first else last
        faults = self.senses.watch(observation, before, is_first)
        if not self.watchdog.alive:     # nobody would send the next stop
            self._warn(f'{Reason.INTERNAL_FAULT.word}: the watchdog has ended')
            faults = (*faults, Reason.INTERNAL_FAULT)
        made = candidates(proposal, self.limits, self.senses.situation, last, path)
        previous = self.contract.action.normalise(before)
        anew = is_first or self._anew
        output = None
        try:
            record = observation.arrays, previous, anew, self.contract.action.normalise(made.commands)
            scored = self.slot.runtime.step(*record)
            self._anew = False
            output = self._model_output(made, scored, last)
            self._scored = len(output.risk)
            self.slot.remember(record, anew)
        except ValueError as error:
            self._anew = anew       # the state is still that of the episode before
            self.senses.fault(Reason.MODEL_FAULT, str(error), time.monotonic())
        with self._gate:
            now = time.monotonic()
            # A stop that the watchdog has sent meanwhile stands: a command that comes after it is late.
            late = proposal is None or now - observation.arrived > self.p.deadline_s or self.watchdog.fired != fires
            # A measurement of the arm that is missing holds as a missing picture does, before it counts as stale.
            oldest = self.senses.oldest(now)
            inputs = self._inputs(now, proposal=proposal, late=late or oldest > self.p.watchdog_s, is_first=is_first,
                                  faults=faults)
            command, reason, state = safety.decide(inputs, output, self.limits, self.state, now)
            if command.any() and self.watchdog.fired != fires:      # it fired while this was decided
                late, inputs = True, dataclasses.replace(inputs, late=True)
                command, reason, state = safety.decide(inputs, output, self.limits, self.state, now)
            self.state = state
            self._send(command, observation.stamp)
            self.watchdog.feed(min(observation.arrived, now - oldest) if command.any() else observation.arrived)
            sent = time.monotonic()
            self.deadline_misses += late
            self.latency.add(1e3 * (sent - observation.arrived))
            self.compute.add(1e3 * (sent - begun))
            self.rate.tick()
            self._publish_state(reason, 1e3 * (sent - observation.arrived), observation.stamp)

    def _model_output(self, made, scored, last: np.ndarray) -> ModelOutput:
        offline = self.contract.action.denormalise(scored.offline_action)
        offline = apply_limits(offline, self.limits, self.senses.situation, last)[0]
        risk = np.append(np.asarray(scored.risk, np.float64), float(scored.offline_risk))
        level, slow, stop = self._levels()
        return ModelOutput(made.with_command(offline, Reason.RISK_OFFLINE), risk, float(scored.surprise), level, slow,
                           stop)

    def _levels(self) -> tuple[float, float, float]:
        calibration = self.slot.bundle.calibration
        return (float(calibration['reachability']['level']), float(calibration['surprise']['level_slow']),
                float(calibration['surprise']['level_stop']))

    def _inputs(self, now: float, **values) -> FilterInputs:
        return self.senses.inputs(now, estop=self._estop_topic or self._estop_service,
                                  model_ready=self.slot.bundle is not None, enabled=self.p.filter_enabled,
                                  versions_differ=self.versions.differ(self.slot.version), **values)

    # -- what leaves --------------------------------------------------------------------------------------------------
    def _send(self, command: np.ndarray, stamp: int | None) -> int:
        """Publish a command (A,) and return its number in the order of publication."""
        message = self._command_class()
        message.header.stamp = self.get_clock().now().to_msg() if stamp is None else time_of(stamp)
        message.header.frame_id = self.contract.action.frame
        for field, value in zip(self.contract.action.fields, command):
            set_field(message, field, float(value))
        # The number tells which of two threads had the last word. The stop does not wait for a publication that hangs.
        locked = self._sending.acquire(timeout=0.01)
        try:
            self.command_out.publish(message)
            self._sent += 1
            number = self._sent
        finally:
            if locked:
                self._sending.release()
        self._remember_command(message)
        self.witness.sent(command)
        return number

    def _watchdog_fired(self) -> None:
        """Runs in the watchdog's thread: stop goes out first, whatever else may be stuck."""
        number = self._send(np.zeros(self.limits.size), None)
        if self._gate.acquire(timeout=0.02):
            try:
                if self._sent == number:    # else a command came after this stop, and is what the arm does
                    self._stop_now(send=False)
            finally:
                self._gate.release()

    def _stop_now(self, send: bool = True) -> None:
        """Decide without an observation, which can only be a stop or a hold; the gate is held."""
        now = time.monotonic()
        command, reason, self.state = safety.decide(self._inputs(now, late=True), None, self.limits, self.state, now)
        if send:
            self._send(command, None)
        self._publish_state(reason)

    def _watchdog_failed(self, error: Exception) -> None:
        if self.context.ok():
            self.get_logger().error(f'watchdog: {type(error).__name__}: {error}', throttle_duration_sec=5.0)

    def _internal_fault(self, error: Exception) -> None:
        self._send(np.zeros(self.limits.size), None)
        text = f'{type(error).__name__}: {error}'
        self.get_logger().error(f'{text}\n{traceback.format_exc()}')
        self.witness.noted(f'{Reason.INTERNAL_FAULT.word}: {text}')
        with self._gate:
            # Latched here and not by `decide`, which may be what is broken.
            self.state = dataclasses.replace(self.state, last=np.zeros(self.limits.size))
            self._latch(Reason.INTERNAL_FAULT)
            self._publish_state(Reason.INTERNAL_FAULT)

    # -- the model, the parameters and the report ---------------------------------------------------------------------
    def _swap(self, idle: bool = False) -> None:
        if self.slot.refused != self._refused_seen:
            self._refused_seen = self.slot.refused
            if self.slot.refusal:
                self.get_logger().error(f'offered model refused: {self.slot.refusal}')
        try:
            swapped = self.slot.swap(idle)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime has exceptions of its own: the live model goes on
            self.senses.fault(Reason.MODEL_FAULT, f'swap: {type(error).__name__}: {error}', time.monotonic())
            return
        if swapped:
            self.get_logger().info(f'model {self.slot.version} ({self.slot.bundle.sha256[:12]}) is live')
            self._warn_of_calibration()
            self.witness.model_changed(self.slot.version)

    def _swap_when_idle(self) -> None:
        # Without pictures there are no ticks to swap between; before the first one no output has been judged.
        if self.active and max(IDLE_S, IDLE_PERIODS * self.contract.period) < self.rate.age < math.inf:
            self._swap(idle=True)

    def _guard_parameters(self, parameters) -> SetParametersResult:
        if self.active and any(p.name == 'filter_enabled' for p in parameters):
            return SetParametersResult(successful=False, reason='parameter filter_enabled: weakens the protection, so '
                                                                'it cannot be changed while active; deactivate first')
        return SetParametersResult(successful=True)


def main(args: list[str] | None = None) -> int:
    """Run the safety filter process."""
    return spin_node(SafetyFilterNode, args)


if __name__ == '__main__':
    sys.exit(main())
