# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the safety filter hands over to the audit and to incident capture. The filter node imports it.

Every method but `start` and `stop` is called on the control path: it appends references and returns.
"""

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rclpy.logging import get_logging_directory

from fosp_core.contract import Contract
from fosp_core.safety.audit import EVENT, SCHEMA, START, AuditFiles, tick_entry
from fosp_core.safety.filter import FilterState
from fosp_core.safety.limits import Situation
from fosp_core.safety.reasons import Reason
from fosp_ros import observing
from fosp_ros.audit_writer import AuditWriter
from fosp_ros.incidents import IncidentRecorder
from fosp_ros.messages import type_name

MEGA = 1 << 20


class Witness:
    """The audit and the incident recorder of one filter; either may be switched off.

    Parameters
    ----------
    p
        Live parameters of the filter.
    contract : Contract
        The contract in force.
    namespace : str
        Of the node; the bags' replay topics lie in it.
    in_force : callable
        Returns what an audit file begins with: model, levels, limits.
    warn : callable
        Gets one line when something cannot be written.

    """

    def __init__(self, p, contract: Contract, namespace: str, in_force: Callable[[], Mapping],
                 warn: Callable[[str], None]):
        log = Path(get_logging_directory()) / 'fosp'
        self._in_force = in_force
        self._notes: dict[str, str] = {}
        self.audit = AuditWriter(AuditFiles(p.audit_dir or log / 'audit', p.audit_file_mb * MEGA,
                                            p.audit_total_mb * MEGA, in_force), warn) if p.audit else None
        self.incidents = IncidentRecorder(
            contract, p.incident_dir or log / 'incidents', p.incident_seconds, p.incident_every_s, p.incident_keep,
            p.incident_memory_mb * MEGA, namespace, p.labels == observing.STAMPED, warn) if p.incidents else None

    def overhear(self, kind: type, topic: str, callback: Callable) -> Callable:
        """Return a callback that remembers the message before it is handled; `topic` is the full name."""
        if self.incidents is None:
            return callback
        remember = self.incidents.ring(topic, type_name(kind))

        def heard(message):
            remember(message)
            callback(message)
        return heard

    def remembered(self, kind: type, topic: str) -> Callable:
        """Return the function that remembers what this node itself publishes on a topic."""
        return _nothing if self.incidents is None else self.incidents.ring(topic, type_name(kind), thin=False)

    def sent(self, command) -> None:
        """Note a command (A,) that went to the arm."""
        if self.incidents is not None:
            self.incidents.sent(command)

    def observed(self, observation) -> None:
        """Note the observation of a tick, before its command is sent."""
        if self.incidents is not None:
            self.incidents.observed(observation)

    def noted(self, text: str) -> None:
        """Keep a line `<reason>: what exactly` for the next ticks of that reason."""
        self._notes[text.split(':', 1)[0]] = text

    def tick(self, reason: Reason, state: FilterState, ages: Mapping[str, float], situation: Situation, model: str,
             latency_ms: float, stamp: int | None, proposal) -> None:
        """Note one cycle; what is passed must not be changed afterwards."""
        if self.audit is not None:
            joints = None if situation.joint_position is None else (situation.joint_position,
                                                                    situation.joint_velocity)
            self.audit.put(functools.partial(
                tick_entry, time.time(), time.monotonic(), reason, state.record, state.latched, ages, model=model,
                stamp=stamp, latency_ms=latency_ms, position=situation.position, joints=joints,
                note=self._notes.get(reason.word),
                proposal=repr(proposal)[:200] if reason is Reason.COMMAND_INVALID else None))
        if self.incidents is not None:
            self.incidents.reason(reason)

    def event(self, name: str, text: str = '', **more) -> None:
        """Note what happened between two ticks: a reset, the e-stop, another model."""
        if self.audit is not None:
            entry = {'k': EVENT, 't': time.time(), 'mono': time.monotonic(), 'name': name, 'text': text, **more}
            self.audit.put(lambda: entry)

    def model_changed(self, text: str) -> None:
        """Note another model and what is in force from now on."""
        self.event('model', text)
        if self.audit is not None:
            t, mono = time.time(), time.monotonic()
            self.audit.put(lambda: {'k': START, 't': t, 'mono': mono, 'schema': SCHEMA, **self._in_force()})

    def start(self) -> None:
        """Begin to write."""
        for part in filter(None, (self.audit, self.incidents)):
            part.start()

    def stop(self) -> None:
        """Write what waits; returns after some seconds at most."""
        for part in filter(None, (self.audit, self.incidents)):
            part.stop()

    @property
    def trouble(self) -> str:
        """Why the audit cannot be written; empty when it can."""
        return self.audit.error if self.audit is not None else ''

    def values(self) -> dict[str, object]:
        """Return the figures for /diagnostics."""
        audit, incidents = self.audit, self.incidents
        values: dict[str, object] = {'audit': 'off' if audit is None else 'failing' if audit.error else 'on'}
        if audit is not None:
            values |= {'audit_written': audit.written, 'audit_dropped': audit.dropped, 'audit_file': audit.path,
                       'audit_error': audit.error}
        values['incidents'] = 'off' if incidents is None else 'on'
        if incidents is not None:
            values |= {'incidents_written': incidents.written, 'incidents_skipped': incidents.skipped,
                       'incidents_failed': incidents.failed, 'incident_last': incidents.last}
        return values


def _nothing(_message) -> None:
    """Nobody else wants to know."""
