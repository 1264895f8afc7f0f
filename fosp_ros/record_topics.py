# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One recorded topic: its subscription, what is wrong with it, its rate and its losses. `fosp record` uses it."""

import collections
import statistics
import time
from collections.abc import Callable

from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
    qos_policy_name_from_kind,
)
from rclpy.serialization import deserialize_message

from fosp_core.data.messages import stamp_ns
from fosp_ros.messages import message_class

SILENT_S = 1.5      # a topic that says nothing for so long is named
PAUSE_S = 1.0       # a longer gap between two stamps is a pause, no loss
_WINDOW = 50


class Pace:
    """Rate of arrival, and gaps in the stamps. Pure: no ROS, no clock."""

    def __init__(self):
        self.count = self.gaps = 0
        self.stamp: int | None = None
        self._steps: collections.deque[int] = collections.deque(maxlen=_WINDOW)
        self._arrivals: collections.deque[float] = collections.deque(maxlen=_WINDOW)

    def put(self, stamp: int, now: float) -> None:
        """Take the stamp (ns) of a message that arrived at `now` (s)."""
        self.count += 1
        self._arrivals.append(now)
        if self.stamp is not None and 0 < stamp - self.stamp < PAUSE_S * 1e9:
            step = stamp - self.stamp
            if len(self._steps) >= 8:
                usual = statistics.median(self._steps)
                self.gaps += max(0, round(step / usual) - 1)
            self._steps.append(step)
        self.stamp = stamp

    def rate(self, now: float) -> float:
        """Messages a second, of the newest ones; 0 when nothing came for a while."""
        times = self._arrivals
        if len(times) < 2 or now - times[-1] > SILENT_S or times[-1] <= times[0]:
            return 0.0
        return (len(times) - 1) / (times[-1] - times[0])

    def age(self, now: float) -> float:
        """Seconds since the last message; Inf before the first."""
        return now - self._arrivals[-1] if self._arrivals else float('inf')


class Topic:
    """A subscription that knows why nothing comes.

    Parameters
    ----------
    node : Node
        Owner of the subscription.
    name : str
        What the contract calls it, for the lines; topic : where it is, relative or absolute.
    kind : str
        Type, as `sensor_msgs/msg/Image`.
    profile : QoSProfile
        What is requested.
    take : callable
        Gets (topic, serialised message, deserialised message, time of its reception). The time is the middleware's,
        in wall-clock ns: in it a message keeps its place however late it is served here.
    speaks : bool
        True when silence is a fault: a camera; False when nothing need come, e.g. from a joystick.
    frame : str
        Frame that the header must have; empty: any.

    """

    def __init__(self, node: Node, name: str, topic: str, kind: str, profile: QoSProfile,
                 take: Callable[['Topic', bytes, object, int], None], speaks: bool = True, frame: str = ''):
        self.node, self.name, self.kind, self.profile, self.speaks = node, name, kind, profile, speaks
        self.pace, self.fault, self.lost, self.dropped = Pace(), '', 0, 0
        self._class, self._take, self._frame = message_class(kind), take, frame
        self._began, self._event = time.monotonic(), ''
        events = dict(incompatible_qos=self._on_incompatible, message_lost=self._on_lost)
        while True:
            try:
                self.subscription = node.create_subscription(
                    self._class, topic, self._on_message, profile, raw=True,
                    event_callbacks=SubscriptionEventCallbacks(**events))
                break
            except UnsupportedEventTypeError:   # not every middleware tells what it lost
                events = dict(incompatible_qos=self._on_incompatible) if 'message_lost' in events else {}
        self.topic = self.subscription.topic_name

    def problem(self, now: float) -> str:
        """Return what is wrong, in one line that names the topic, or an empty string."""
        found = self.node.get_publishers_info_by_topic(self.topic)
        where = f'{self.topic} ({self.name})'
        if not found:
            there = sorted(topic for topic, kinds in self.node.get_topic_names_and_types()
                           if self.kind in kinds and topic != self.topic
                           and self.node.count_publishers(topic))
            hint = f'; of that type: {", ".join(there[:4])} (--topic {self.name}=TOPIC)' if there else ''
            return f'{where}: no publisher of {self.kind}{hint}'
        kinds = sorted({info.topic_type for info in found})
        if kinds != [self.kind]:
            return f'{where}: wrong type, published as {", ".join(kinds)}, expected {self.kind}'
        clash = [self._clash(info) for info in found]
        if any(clash):
            return f'{where}: incompatible QoS, {max(clash)}'
        if self._event and not self.pace.count:
            return f'{where}: incompatible QoS, {self._event}'
        if self.fault:
            return f'{where}: {self.fault}'
        if self.speaks and min(self.pace.age(now), now - self._began) > SILENT_S:
            names = ', '.join(sorted({i.node_name for i in found}))
            said = 'nothing for' if self.pace.count else 'has published nothing yet,'
            return f'{where}: publisher {names}: {said} {min(self.pace.age(now), now - self._began):.0f} s'
        return ''

    def _clash(self, info) -> str:
        """Say how what a publisher offers and what is requested here exclude each other, if they do."""
        compatible, reason = qos_check_compatible(info.qos_profile, self.profile)
        if compatible != QoSCompatibility.ERROR:
            return ''
        offered, wanted = info.qos_profile, self.profile
        pairs = []
        if (offered.reliability, wanted.reliability) == (ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE):
            pairs.append('best effort, requested reliable (a lost one would corrupt an episode; --best-effort '
                         f'{self.name} takes it as it is)')
        if (offered.durability, wanted.durability) == (DurabilityPolicy.VOLATILE, DurabilityPolicy.TRANSIENT_LOCAL):
            pairs.append('volatile, requested transient local')
        return f'publisher {info.node_name} offers {" and ".join(pairs) or reason}'

    def _on_incompatible(self, event) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind).replace('_QOS_POLICY', '').lower()
        self._event = f'a publisher offers less {policy} than requested'

    def _on_lost(self, event) -> None:
        self.lost = int(event.total_count)

    def _on_message(self, data: bytes, info: dict) -> None:
        message = deserialize_message(data, self._class)
        self.pace.put(stamp_ns(message), time.monotonic())
        frame = message.header.frame_id
        self.fault = f'frame {frame!r}, expected {self._frame!r}' if self._frame and frame != self._frame else ''
        self._take(self, data, message, int(info.get('received_timestamp') or 0) or time.time_ns())
