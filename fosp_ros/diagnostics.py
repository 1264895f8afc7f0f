# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Figures about a node's own health: latency windows, rates, and the 1 Hz `/diagnostics` message.

Nodes import it. The figures are kept by the node itself, since an average measured elsewhere hides the tail.
"""

import collections
import time
from collections.abc import Callable, Mapping

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from fosp_ros import qos

OK, WARN, ERROR, STALE = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR, DiagnosticStatus.STALE


class LatencyWindow:
    """The last `size` durations in ms; percentiles over them, worst over all."""

    def __init__(self, size: int = 600):
        self._window: collections.deque[float] = collections.deque(maxlen=size)
        self.count = 0
        self.worst = 0.0

    def add(self, milliseconds: float) -> None:
        """Take one more duration."""
        self._window.append(milliseconds)
        self.count += 1
        self.worst = max(self.worst, milliseconds)

    def percentile(self, q: float) -> float:
        """Return the q-th percentile in ms, NaN when nothing was measured yet."""
        return float(np.percentile(self._window, q)) if self._window else float('nan')

    def values(self) -> dict[str, str]:
        """Return p50, p99, worst and count as texts for a diagnostic message."""
        return {'latency_p50_ms': f'{self.percentile(50):.2f}', 'latency_p99_ms': f'{self.percentile(99):.2f}',
                'latency_worst_ms': f'{self.worst:.2f}', 'latency_count': str(self.count)}


class RateCounter:
    """Events per second over the last `window` seconds of the monotonic clock, and the age of the newest."""

    def __init__(self, window: float = 5.0, clock: Callable[[], float] = time.monotonic):
        self._window, self._clock = window, clock
        self._times: collections.deque[float] = collections.deque(maxlen=4096)
        self._first: float | None = None
        self.count = 0

    def tick(self) -> None:
        """Count one event now."""
        now = self._clock()
        self._first = now if self._first is None else self._first
        self._times.append(now)
        self.count += 1

    @property
    def rate(self) -> float:
        """Events per second; 0 when none came."""
        now = self._clock()
        while self._times and now - self._times[0] > self._window:
            self._times.popleft()
        if not self._times:
            return 0.0
        return len(self._times) / max(min(self._window, now - self._first), 1e-9) if now > self._first else 0.0

    @property
    def age(self) -> float:
        """Seconds since the newest event; infinite when none came."""
        return self._clock() - self._times[-1] if self._times else float('inf')


def status(name: str, level: bytes, message: str, values: Mapping[str, object], hardware_id: str = ''
           ) -> DiagnosticStatus:
    """Build one DiagnosticStatus; every value becomes text."""
    return DiagnosticStatus(level=level, name=name, message=message, hardware_id=hardware_id,
                            values=[KeyValue(key=k, value=str(v)) for k, v in values.items()])


def values_of(message: DiagnosticStatus) -> dict[str, str]:
    """Return the values of a DiagnosticStatus as a dict."""
    return {entry.key: entry.value for entry in message.values}


class Reporter:
    """Publishes `/diagnostics` at 1 Hz from `report() -> (level, message, values)`.

    A node that is not active reports STALE: an old OK would read as health.
    """

    def __init__(self, node, report: Callable[[], tuple[bytes, str, Mapping[str, object]]], hardware_id: str = ''):
        self._node, self._report = node, report
        self._hardware_id = hardware_id or node.get_namespace().strip('/') or 'fosp'
        self._publisher = node.publish_on(DiagnosticArray, '/diagnostics', qos.DIAGNOSTICS)
        node.every(1.0, self.publish)

    def publish(self) -> None:
        """Publish one report now."""
        level, message, values = self._report()
        if not self._node.active:
            level, message = STALE, f'not active; {message}'
        array = DiagnosticArray()
        array.header.stamp = self._node.get_clock().now().to_msg()
        array.status = [status(self._node.get_fully_qualified_name(), level, message, values, self._hardware_id)]
        self._publisher.publish(array)
