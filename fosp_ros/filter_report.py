# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the safety filter says of itself: `safety_filter/state` every cycle, `/diagnostics` once a second.

The filter node imports it, and is made with the mixin Reporting.
"""

import dataclasses
import math
import time
from collections.abc import Mapping

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

from fosp_core.safety.filter import FilterState
from fosp_core.safety.reasons import Effect, Reason
from fosp_ros import diagnostics, filter_parameters, qos

VERSIONS_S = 10.0       # how long learner and filter may run different models before it is WARN
HEARD_S = 3.0           # a report older than that says nothing any more


class VersionWatch:
    """Compares the model that another node runs, the learner by its `/diagnostics`, with one's own. Decides nothing."""

    def __init__(self, name: str = '', text: str = 'the learner runs model {other}, the filter {own}'):
        self._name, self._text = name, text
        self.version, self._heard, self._since = '', -math.inf, None

    def on_report(self, message) -> None:
        """Take a DiagnosticArray; only the learner's status counts."""
        for status in message.status:
            if status.name == self._name:
                self.hear(diagnostics.values_of(status).get('version', ''))

    def hear(self, version: str) -> None:
        """Take the version that the other node reports."""
        self.version, self._heard = version, time.monotonic()

    def differ(self, own: str) -> bool:
        """Tell whether the learner has been running another model for more than VERSIONS_S; call it again and again."""
        return self._lasted(own) > VERSIONS_S

    def note(self, own: str) -> str:
        """Return what to warn of, or an empty string."""
        lasted = self._lasted(own)
        return f'{self._text.format(other=self.version, own=own)}, for {lasted:.0f} s' if lasted > VERSIONS_S else ''

    def _lasted(self, own: str) -> float:
        now = time.monotonic()
        if not self.version or self.version == own or now - self._heard > HEARD_S:
            self._since = None
            return 0.0
        since = self._since = now if self._since is None else self._since
        return now - since


def state_message(reason: Reason, state: FilterState, ages: dict[str, float], latency_ms: float = math.nan,
                  stamp: int | None = None, **more) -> DiagnosticStatus:
    """Build the message of one cycle: its `message` is the reason's code word. `stamp` in ns; `more` as it is."""
    record = state.record
    return diagnostics.status('safety_filter', bytes([reason.level]), reason.word, {
        'effect': reason.effect.value, 'text': reason.text, 'advice': reason.advice,
        'rules': ' '.join(r.word for r in record.rules), 'latched': ' '.join(r.word for r in state.latched),
        'risk': f'{record.risk:.4f}', 'risk_nominal': f'{record.risk_nominal:.4f}', 'level': f'{record.level:.4f}',
        'surprise': f'{record.surprise:.3f}', 'nominal': _numbers(record.nominal), 'sent': _numbers(record.sent),
        'altered': record.altered, 'interventions': state.interventions, 'stamp': '' if stamp is None else stamp,
        'latency_ms': f'{latency_ms:.2f}', **more, **{f'age_{kind}': f'{age:.3f}' for kind, age in ages.items()}})


def log_line(reason: Reason, before: Reason | None) -> tuple[bool, str] | None:
    """Return (is it a warning, the line) when the change from one reason to the next is worth a line, else None."""
    if reason is before or (before is not None and Effect.STOP not in (reason.effect, before.effect)):
        return None
    return reason.effect is Effect.STOP, f'{reason.word}: {reason.text} {reason.advice}'


def health(reason: Reason, weak: list[str], foreign: int, refusal: str, trouble: str = '',
           publishers: Mapping[str, int] | None = None, versions: str = '') -> tuple[bytes, str]:
    """Return level and message for /diagnostics: the gravest first."""
    level = bytes([reason.level])
    if foreign > 0:
        return diagnostics.ERROR, f'{foreign} other publisher(s) on command_out: commands bypass the filter'
    # All of them: a weakened filter may refuse a model, too.
    notes = [f'{n} publishers on {topic}, expected one' for topic, n in (publishers or {}).items() if n > 1]
    if weak:
        notes.append(f'weakened: {", ".join(weak)}')
    if refusal:
        notes.append(f'model refused: {refusal}')
    if versions:
        notes.append(versions)
    if trouble:
        notes.append(trouble)
    if notes:
        return max(diagnostics.WARN, level), '; '.join([*notes, reason.word])
    return level, f'{reason.word}: {reason.text}'


def figures(state: FilterState, ages: dict[str, float], compute: diagnostics.LatencyWindow) -> dict[str, object]:
    """Return the figures of the decision for /diagnostics."""
    return {'reason': state.record.reason.word, 'compute_p50_ms': f'{compute.percentile(50):.2f}',
            'compute_p99_ms': f'{compute.percentile(99):.2f}', 'interventions': state.interventions,
            'ticks': state.ticks, 'latched': ' '.join(r.word for r in state.latched),
            **{f'age_{kind}_s': f'{age:.3f}' for kind, age in ages.items()},
            **{f'count_{r.word}': n for r, n in sorted(state.counts.items(), key=lambda item: item[0].rank)}}


def _numbers(values) -> str:
    return '' if values is None else ' '.join(f'{value:.4f}' for value in values)


class Reporting:
    """The part of the safety filter's node that tells; all that it tells of is the node's."""

    def _begin_reporting(self) -> None:
        """Make what counts and the topics; called when the node is configured, with the slot open."""
        self.latency, self.compute = diagnostics.LatencyWindow(), diagnostics.LatencyWindow()
        self.rate = diagnostics.RateCounter()
        self.deadline_misses = self.foreign_publishers = 0
        self._shown: Reason | None = None
        self.state_out = self.publish_on(DiagnosticStatus, 'safety_filter/state', qos.STATUS)
        self._remember_state = self.witness.remembered(DiagnosticStatus, self.state_out.topic_name)
        # What arrives on them of a second node is no copy but another truth.
        alone = ['command_in', *(of.topic for of in (*self.contract.vectors, *self.contract.cameras))]
        alone += ['joint_states'] if self.limits.joint_names else []
        self._alone = {topic: self.resolve_topic_name(topic) for topic in alone}
        self.versions = VersionWatch(f'{self.get_namespace().rstrip("/")}/learner')
        self.listen(DiagnosticArray, '/diagnostics', self.versions.on_report, qos.DIAGNOSTICS)
        diagnostics.Reporter(self, self._report)

    def _tell_what_is_in_force(self) -> None:
        """Log the model and whatever guards less than it could."""
        p, contract = self.p, self.contract
        self.get_logger().info(f'model {self.slot.bundle.name} {self.slot.version} ({self.slot.bundle.sha256[:12]}), '
                               f'contract {contract.name} {contract.hash[:12]}, risk level {self._levels()[0]:.3f}')
        self._warn_of_calibration()
        for name in filter_parameters.weakened(p, contract):
            self.get_logger().warning(f'parameter {name} = {getattr(p, name)} weakens the filter')
        for name in filter_parameters.idle(p, contract):
            self.get_logger().warning(f'parameter {name} = {getattr(p, name)} can never act: contract {contract.name} '
                                      'allows no command beyond it')

    def _publish_state(self, reason: Reason, latency_ms: float = float('nan'), stamp: int | None = None) -> None:
        line = log_line(reason, self._shown)
        if line and line[0]:    # two calls: rclpy pins the severity to the line of code that logs
            self.get_logger().warning(line[1])
        elif line:
            self.get_logger().info(line[1])
        self._shown = reason
        self._keep_latch()
        ages = self.senses.ages(time.monotonic())
        message = state_message(
            reason, self.state, ages, latency_ms, stamp, version=self.slot.version,
            candidates=self._scored, deadline_misses=self.deadline_misses, watchdog_fires=self.watchdog.fired,
            filter_enabled=self.p.filter_enabled, refused_models=self.slot.refused)
        self.state_out.publish(message)
        self._remember_state(message)
        self.witness.tick(reason, self.state, ages, self.senses.situation, self.slot.version, latency_ms, stamp,
                          self._proposal)

    def _report(self):
        slot = self.slot
        weak = filter_parameters.weakened(self.p, self.contract)
        weak += [f'{name} never acts' for name in filter_parameters.idle(self.p, self.contract) if name not in weak]
        if slot.bundle is not None:
            weak += [f'calibration {text}' for text in filter_parameters.lax(slot.bundle.calibration)]
        foreign = self.count_publishers(self.command_out.topic_name) - 1
        self.foreign_publishers = max(self.foreign_publishers, foreign)
        publishers = {topic: self.count_publishers(name) for topic, name in self._alone.items()}
        values = {
            'version': slot.version, 'sha256': slot.bundle.sha256 if slot.bundle else '', 'swaps': slot.swaps,
            'refused_models': slot.refused, 'last_refusal': slot.refusal, 'rate_hz': f'{self.rate.rate:.2f}',
            **self.latency.values(), 'deadline_misses': self.deadline_misses, 'watchdog_fires': self.watchdog.fired,
            'watchdog_alive': self.watchdog.alive, 'weakened': ', '.join(weak),
            'foreign_publishers': self.foreign_publishers, 'commanders': publishers['command_in'],
            'latch_file': str(self.latch_file.path or 'off'), 'latch_file_error': self.latch_file.error,
            'unpaired': dict(self.observer.unpaired), 'doubted': self.senses.doubted,
            'learner_version': self.versions.version,
            **figures(self.state, self.senses.ages(time.monotonic()), self.compute),
            **self.witness.values()}
        trouble = [f'audit cannot be written: {self.witness.trouble}'] * bool(self.witness.trouble)
        trouble += [f'latch cannot be kept: {self.latch_file.error}'] * bool(self.latch_file.error)
        return *health(self.state.record.reason, weak, foreign, slot.refusal, '; '.join(trouble),
                       publishers, self.versions.note(slot.version)), values

    def _warn_of_calibration(self) -> None:
        for text in filter_parameters.lax(self.slot.bundle.calibration):
            self.get_logger().warning(f'model {self.slot.version}: calibration weakens the filter: {text}')

    def _in_force(self) -> dict:
        bundle, (level, slow, stop) = self.slot.bundle, self._levels()
        return {'node': self.get_fully_qualified_name(), 'contract': self.contract.hash, 'model': bundle.version,
                'sha256': bundle.sha256, 'level': level, 'surprise_slow': slow, 'surprise_stop': stop,
                'deadline_s': self.p.deadline_s, 'limits': dataclasses.asdict(self.limits)}
