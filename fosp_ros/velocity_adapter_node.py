# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`command_out` for a ros2_control group controller over Cartesian velocities: TwistStamped to Float64MultiArray.

Such controllers (forward_command_controller, the velocity_controllers) hold the last command for ever. So zeros follow
from here, by a thread of their own, when no good command came for `timeout_s`, and when this node ends. They cannot
follow when its process is killed. No kinematics: the six numbers are those of the twist, in the frame of the contract.
"""

import math
import sys
import time

from geometry_msgs.msg import TwistStamped
from rclpy.duration import Duration
from std_msgs.msg import Float64MultiArray

from fosp_core.contract import Contract
from fosp_core.data.messages import get_field, stamp_ns
from fosp_core.errors import FospError
from fosp_core.paths import config_file
from fosp_core.safety.freshness import Source
from fosp_ros import diagnostics, qos
from fosp_ros.lifecycle import ManagedNode, spin_node
from fosp_ros.parameters import P
from fosp_ros.watchdog import Watchdog

PARAMETERS = (
    P('contract', 'string', '', 'Contract file: frame and limits of the commands. Empty: '
      'config/contract_safereach.yaml.', read_only=True),
    P('controller', 'string', 'cartesian_velocity_controller', 'Name of the controller; its commands go to '
      '/<controller>/commands.', read_only=True),
    P('angular', 'bool', True, 'Send vx, vy, vz, wx, wy, wz; off: the first three alone.', read_only=True),
    P('timeout_s', 'double', 0.2, 'Zeros when no good command came for so long.', unit='s', low=0.05, high=1.0,
      read_only=True),
    P('repeat_hz', 'double', 50.0, 'Rate of the zeros.', unit='Hz', low=5.0, high=500.0, read_only=True),
)
AXES = tuple(f'twist.{kind}.{axis}' for kind in ('linear', 'angular') for axis in 'xyz')
SLACK = 0.01        # of the range of a field: rounding, not another unit
ACKED_S = 0.2       # for the controller to take the last zeros
TOLD_S = 60.0       # for which a refusal is told of


def refusal(contract: Contract, message) -> str:
    """Say why a command is not one of the contract's; empty when it is."""
    action = contract.action
    if message.header.frame_id != action.frame:
        return f'frame {message.header.frame_id!r}, expected {action.frame!r}'
    for path in AXES:
        value, low, high = get_field(message, path), 0.0, 0.0
        if path in action.fields:
            low, high = ((ends[action.fields.index(path)]) for ends in (action.low, action.high))
        slack = SLACK * (high - low)
        if not (math.isfinite(value) and low - slack <= value <= high + slack):
            return f'{path} is {value:g}, expected {low:g} to {high:g}'
    return ''


class VelocityAdapterNode(ManagedNode):
    """Passes commands on, and stands for the command timeout that the controller lacks."""

    NAME = 'velocity_adapter'
    PARAMETERS = PARAMETERS

    def set_up(self) -> None:
        """Read the contract, create the topics."""
        self.contract = Contract.load(self.p.contract or config_file('contract_safereach.yaml'))
        if self.contract.action.type != 'geometry_msgs/msg/TwistStamped' or not set(self.contract.action.fields) <= \
                set(AXES):
            raise FospError(f'contract {self.contract.name!r}: action {self.contract.action.type} with '
                            f'{", ".join(self.contract.action.fields)}, expected a TwistStamped')
        self._zeros = [0.0] * (6 if self.p.angular else 3)
        self._passed = self._refused = 0
        self._why = ''
        self._source, self._sequence, self._refused_at = Source(self.p.timeout_s), 0, -math.inf
        self._out = self.publish_on(Float64MultiArray, f'/{self.p.controller.strip("/")}/commands', qos.COMMAND)
        self._watchdog = Watchdog(1.0 / self.p.repeat_hz, self.p.timeout_s, self._halt,
                                  lambda error: self.get_logger().error(f'zeros not sent: {error}'))
        self.listen(TwistStamped, 'command_out', self._on_command, qos.COMMAND)
        diagnostics.Reporter(self, self._report)

    def start(self) -> None:
        """Zeros from now on, until a command comes, whose way here counts as the quickest."""
        self._source.forget()
        self._watchdog.start()

    def stop(self) -> None:
        """Leave the controller with zeros."""
        self._watchdog.stop()
        self._halt()
        self._out.wait_for_all_acked(Duration(seconds=ACKED_S))     # what is not taken dies with this process

    def _halt(self) -> None:
        self._out.publish(Float64MultiArray(data=self._zeros))

    def _on_command(self, message: TwistStamped, info: dict) -> None:
        if not self.active:
            return
        # Since its arrival: what waited in the queue of a process that was held up is not obeyed for as long again.
        waited = max(0.0, 1e-9 * (time.time_ns() - (int(info.get('received_timestamp') or 0) or time.time_ns())))
        why = refusal(self.contract, message)
        if not why and waited > self.p.timeout_s:
            why = f'taken {waited:.2f} s after its arrival'
        why = why or self._late(message, info.get('publication_sequence_number') or 0, time.monotonic() - waited)
        if why:
            self._refused, self._why, self._refused_at = self._refused + 1, why, time.monotonic()
            self._halt()
            return
        self._passed += 1
        self._watchdog.feed(time.monotonic() - waited)
        self._out.publish(Float64MultiArray(data=[get_field(message, path) for path in AXES[:len(self._zeros)]]))

    def _late(self, message: TwistStamped, sequence: int, arrived: float) -> str:
        """Say why a motion was held up on its way; empty when it was not. A stop is obeyed however old it is.

        Stamps are compared with each other alone: the camera's clock, which made them, need not be ours.
        """
        if sequence <= self._sequence:      # each writer counts its own from 1
            self._source.forget()
        self._sequence, stamp = sequence, 1e-9 * stamp_ns(message)
        if not stamp or not any(get_field(message, path) for path in AXES):
            return ''
        if not self._source.arrived(stamp, arrived):
            return 'stamp not later than the one before, or of another clock'
        held = self._source.age(arrived)
        if held <= self.p.timeout_s:
            return ''
        return (f'{held:.2f} s longer on its way than the quickest one; if a clock was set, deactivate and activate '
                'this node')

    def _report(self):
        values = {'passed': self._passed, 'refused': self._refused, 'last_refusal': self._why,
                  'zeros_by_timeout': self._watchdog.fired, 'listeners': self._out.get_subscription_count()}
        if not self._out.get_subscription_count():
            return diagnostics.ERROR, f'nobody listens on {self._out.topic_name}', values
        if time.monotonic() - self._refused_at < TOLD_S:
            return diagnostics.WARN, f'{self._refused} commands refused: {self._why}', values
        return diagnostics.OK, 'passing on', values


def main(args: list[str] | None = None) -> int:
    """Run the adapter process."""
    return spin_node(VelocityAdapterNode, args)


if __name__ == '__main__':
    sys.exit(main())
