# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The e-stop buttons on the topic `estop`: pressed while any of them is. The filter node imports it.

The middleware does not tell which publisher a message came from. So a press counts at once, whoever sent it, and a
release alone proves nothing when there are several buttons: then all are asked again. A latched publisher repeats its
last word to a new subscription; of the others one can be told apart, two cannot and stay pressed.
"""

import collections
import threading
from collections.abc import Callable

from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from std_msgs.msg import Bool

from fosp_ros import qos

LOOK_S = 0.1        # how often it is seen whether all have answered
SETTLE_S = 0.5      # after all latched publishers are connected: for their last words to arrive
KEPT = 1000         # messages that are remembered as those of a latched publisher


class Buttons:
    """Listens on `estop` with every profile.

    Parameters
    ----------
    node
        Its executor serves the subscriptions.
    changed : callable
        Gets True at every press, False when no button is pressed any more.

    """

    def __init__(self, node, changed: Callable[[bool], None]):
        self._node, self._changed = node, changed
        self._topic = node.resolve_topic_name('estop')      # counting knows no remapping
        self.pressed = False
        self.doubt = ''     # why a release did not count; empty when it did
        self._lock = threading.RLock()
        self._latched: collections.OrderedDict[tuple, bool] = collections.OrderedDict()
        # What the subscription for latched publishers did not hear: the words of the others.
        self._unsure: collections.OrderedDict[tuple, bool] = collections.OrderedDict()
        self._ask, self._answers, self._settled = None, [], 0.0
        for profile in qos.ESTOP_EARS:
            node.create_subscription(Bool, 'estop', self._ear(
                profile.durability == DurabilityPolicy.TRANSIENT_LOCAL), profile)
        self._timer = node.create_timer(LOOK_S, self._look, clock=node.steady)
        self._timer.cancel()

    def _ear(self, latched: bool):
        return lambda message, info: self.heard(bool(message.data), info, latched)

    def heard(self, pressed: bool, info: dict, latched: bool) -> None:
        """Take a message; `latched`: it came by the subscription that hears latched publishers alone."""
        key = info.get('source_timestamp') or 0, info.get('publication_sequence_number')    # 0: not told
        with self._lock:
            known = key in self._latched or key in self._unsure
            if latched:
                self._unsure.pop(key, None)
                self._latched[key] = pressed
            elif key not in self._latched:
                self._unsure[key] = pressed
            for kept in (self._latched, self._unsure):
                while len(kept) > KEPT:
                    kept.popitem(last=False)
            if pressed:
                # A press that was heard before says nothing new, unless nothing is known of when it was sent.
                if not known or not key[0]:
                    self.pressed = True
                    self._end()
                    self._changed(True)
            elif self.pressed and not known:
                if self._node.count_publishers(self._topic) <= 1:
                    self._release()
                else:
                    self.ask()

    def ask(self) -> None:
        """Ask all latched publishers for their last word; the answer comes by `changed`."""
        with self._lock:
            if self.pressed and self._ask is None:
                self._answers, self._settled = [], 0.0
                self._ask = self._node.create_subscription(Bool, 'estop', self._answer, qos.ESTOP_EARS[0])
                self._timer.reset()

    def _answer(self, message: Bool) -> None:
        with self._lock:
            self._answers.append(bool(message.data))

    def _look(self) -> None:
        with self._lock:
            if self._ask is None:
                self._timer.cancel()
                return
            publishers = self._node.get_publishers_info_by_topic(self._topic)
            latched = sum(i.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
                          and i.qos_profile.reliability == ReliabilityPolicy.RELIABLE for i in publishers)
            if self._ask.get_publisher_count() < latched:
                self._settled, self.doubt = 0.0, 'a button does not answer'
                return
            self._settled += LOOK_S
            if self._settled < SETTLE_S:
                return
            self.doubt = self._doubt(len(publishers) - latched)
            self._end()
            if not self.doubt:
                self._release()

    def _doubt(self, others: int) -> str:
        """Return why it cannot be known that none of the volatile publishers is pressed."""
        if True in self._answers:
            return 'a button says that it is pressed'
        if others > 1:
            return f'{others} buttons that are not latched cannot be told apart: leave one, or make them latched'
        if others == 1 and self._unsure and self._unsure[max(self._unsure, key=lambda key: key[0])]:
            return 'the button that is not latched is pressed'
        return ''

    def _release(self) -> None:
        self.pressed, self.doubt = False, ''
        self._unsure.clear()
        self._end()
        self._changed(False)

    def _end(self) -> None:
        ask, self._ask = self._ask, None
        self._timer.cancel()
        if ask is not None:
            self._node.destroy_subscription(ask)
