# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Watches a running graph from outside: latency, deadlines, episodes, risk, and who commands besides the filter.

An ordinary node without a part in the control path; `fosp demo` and the graph tests use it. It believes no node about
itself where it can see for itself: latency is taken from the middleware's time stamps of what passes.
"""

import collections
import dataclasses
import math
import threading
import time
from collections.abc import Callable

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import TwistStamped
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import Image, Joy

from fosp_core.safety.reasons import STAGES
from fosp_ros import qos
from fosp_ros.diagnostics import values_of

FILTER = 'safety_filter'
REMEMBERED = 400        # ticks of the running episode
NAMELESS_S = 5.0        # how long discovery may take to name the node of a publisher


@dataclasses.dataclass
class Tick:
    """What was seen under one stamp."""

    stamp: int = 0
    picture: np.ndarray | None = None
    risk: float = math.nan
    level: float = math.nan
    reason: str = ''
    altered: str = ''       # by which stage of the filter, of reasons.STAGES
    cost: bool = False


@dataclasses.dataclass(frozen=True)
class Episode:
    """One finished episode as the simulator reports it, with the ticks that belong to it."""

    task: str
    seed: int
    success: bool
    violation: bool
    steps: int
    bypassed: int = 0
    ticks: tuple = ()
    reward: float = math.nan    # sums
    cost: float = math.nan
    path: float = math.nan      # of the fingertip, m

    @property
    def changed(self) -> int:
        """Commands that the filter changed because of the risk."""
        return self.altered['risk']

    @property
    def altered(self) -> dict[str, int]:
        """Commands that are not the proposed ones, by stage of the filter."""
        return {stage: sum(t.altered == stage for t in self.ticks) for stage in STAGES}

    @property
    def unwarned(self) -> bool:
        """Whether there was a contact with no intervention before it."""
        ticks = sorted(self.ticks, key=lambda t: t.stamp)
        first = next((t.stamp for t in ticks if t.cost), None)
        return self.violation and not any(t.altered == 'risk' for t in ticks if first is None or t.stamp < first)


def _number(text: object) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan


def _true(text: object) -> bool:
    return str(text).strip().lower() in ('true', '1', '1.0')


def _stamp(message) -> int:
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


class Observer:
    """Subscribes to the graph's topics and spins in a thread of its own.

    Parameters
    ----------
    namespace
        Of the graph.
    period
        Wall-clock seconds between two observations: a command later than that has missed its deadline.
    context
        An rclpy context; None takes the default one, which must have been initialised.

    """

    def __init__(self, namespace: str = 'fosp', period: float = 0.1, context=None):
        self.node = Node('fosp_observer', namespace=namespace, context=context)
        self.lock = threading.Lock()
        self.period = period
        self.latencies: list[float] = []        # ms, image published -> command_out received here
        self.missed = 0
        self.episodes: list[Episode] = []
        self.reasons: collections.Counter[str] = collections.Counter()
        self.state: dict[str, str] = {}         # newest values of safety_filter/state
        self.progress: tuple[str, dict] = ('', {})
        self.diagnostics: dict[str, dict] = {}  # node name -> newest values
        self.foreign_publishers: set[str] = set()
        self._nameless: dict[bytes, float] = {}     # publisher -> since when its node has no name
        self._ticks: collections.OrderedDict[int, Tick] = collections.OrderedDict()
        # Stamp -> when its picture (before that, its label) was published, ns, and when its label came here, s.
        self._waiting: collections.OrderedDict[int, list] = collections.OrderedDict()
        node = self.node
        node.create_subscription(Joy, 'label', self._on_label, qos.LABEL)
        node.create_subscription(Image, 'image', self._on_image, qos.IMAGE)
        # Deeper than the arm's: every command is judged, late or not.
        node.create_subscription(TwistStamped, 'command_out', self._on_command, qos.EVENT)
        node.create_subscription(DiagnosticStatus, 'safety_filter/state', self._on_state, qos.EVENT)
        node.create_subscription(DiagnosticStatus, 'sim_bridge/episode', self._on_episode, qos.EVENT)
        node.create_subscription(DiagnosticStatus, 'trainer/progress', self._on_progress, qos.LATCHED)
        node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, qos.DIAGNOSTICS)
        node.create_timer(0.2, self.check_publishers)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(node)
        self._thread = threading.Thread(target=self._spin, name='fosp-observer', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, then the node; the context is the caller's."""
        self._executor.shutdown()
        self._thread.join(5.0)
        self.node.destroy_node()

    def wait(self, condition: Callable[[], object], timeout: float, check: Callable[[], None] | None = None):
        """Return the first true value of `condition()`, None after `timeout` s; `check()` may raise meanwhile."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            value = condition()
            if value:
                return value
            if check is not None:
                check()
            time.sleep(0.05)
        return None

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass

    # -- the control path ---------------------------------------------------------------------------------------------
    def _tick(self, stamp: int) -> Tick:
        tick = self._ticks.get(stamp)
        if tick is None:
            tick = self._ticks[stamp] = Tick(stamp)
            while len(self._ticks) > REMEMBERED:
                self._ticks.popitem(last=False)
        return tick

    def _on_label(self, message: Joy, info: dict) -> None:
        stamp, now = _stamp(message), time.monotonic()
        with self.lock:
            if message.buttons[0]:                      # is_first
                self._ticks.clear()
            self._tick(stamp).cost = message.axes[1] > 0
            if not message.buttons[1]:                  # is_last: nothing is executed after it
                self._waiting[stamp] = [info['source_timestamp'], now]
            # A second label cannot come before the next period: whatever still waits then was missed.
            while self._waiting and now - next(iter(self._waiting.values()))[1] > 2.0 * self.period:
                self._waiting.popitem(last=False)
                self.missed += 1

    def _on_image(self, message: Image, info: dict) -> None:
        stamp = _stamp(message)
        with self.lock:
            if stamp in self._waiting:
                self._waiting[stamp][0] = info['source_timestamp']
            if message.encoding != 'rgb8':
                return
            rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
            picture = rows[:, :3 * message.width].reshape(message.height, message.width, 3)
            self._tick(stamp).picture = picture.copy()

    def _on_command(self, message: TwistStamped, info: dict) -> None:
        with self.lock:
            waiting = self._waiting.pop(_stamp(message), None)
            if waiting is not None:
                latency = (info['received_timestamp'] - waiting[0]) / 1e6
                self.latencies.append(latency)
                self.missed += latency > 1e3 * self.period

    def _on_state(self, message: DiagnosticStatus) -> None:
        values = values_of(message)
        with self.lock:
            self.state = values | {'reason': message.message}
            self.reasons[message.message] += 1
            tick = self._ticks.get(int(values['stamp'])) if values.get('stamp', '').isdecimal() else None
            if tick is None:        # the watchdog's stop belongs to no observation
                return
            tick.risk, tick.level = _number(values.get('risk')), _number(values.get('level'))
            tick.reason, tick.altered = message.message, values.get('altered', '')

    def _on_episode(self, message: DiagnosticStatus) -> None:
        v = values_of(message)
        with self.lock:
            self.episodes.append(Episode(v.get('task', ''), int(_number(v.get('seed', -1))), _true(v.get('success')),
                                         _true(v.get('violation')), int(_number(v.get('steps', 0))),
                                         int(_number(v.get('bypassed', 0))),
                                         tuple(t for t in self._ticks.values() if t.picture is not None),
                                         _number(v.get('return')), _number(v.get('cost')), _number(v.get('path_m'))))

    def _on_progress(self, message: DiagnosticStatus) -> None:
        with self.lock:
            self.progress = (message.message, values_of(message))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        with self.lock:
            for status in message.status:
                self.diagnostics[status.name.rsplit('/', 1)[-1]] = values_of(status)

    # -- who speaks on command_out ------------------------------------------------------------------------------------
    def check_publishers(self) -> None:
        """Note every publisher of `command_out` that is not the filter, and more than one filter."""
        endpoints = self.node.get_publishers_info_by_topic(self.node.resolve_topic_name('command_out'))
        # The graph knows an endpoint before it knows its node: a name is unknown for a moment, then for ever a fault.
        nameless = {bytes(e.endpoint_gid) for e in endpoints if 'UNKNOWN' in e.node_name}
        now = time.monotonic()
        self._nameless = {gid: self._nameless.get(gid, now) for gid in nameless}
        names = [e.node_name for e in endpoints if bytes(e.endpoint_gid) not in nameless]
        foreign = {n for n in names if n != FILTER}
        if any(now - since > NAMELESS_S for since in self._nameless.values()):
            foreign.add('a node without a name')
        if names.count(FILTER) > 1:
            foreign.add(f'a second {FILTER}')
        with self.lock:
            self.foreign_publishers |= foreign
