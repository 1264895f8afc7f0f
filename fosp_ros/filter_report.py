# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the safety filter says of itself: `safety_filter/state` every cycle, `/diagnostics` once a second.

The filter node imports it.
"""

import math
import time

from diagnostic_msgs.msg import DiagnosticStatus

from fosp_core.safety.filter import FilterState
from fosp_core.safety.reasons import Effect, Reason
from fosp_ros import diagnostics

VERSIONS_S = 10.0       # how long learner and filter may run different models before it is WARN
HEARD_S = 3.0           # a report older than that says nothing any more


class VersionWatch:
    """Compares the model that the learner reports in `/diagnostics` with the filter's own. No part in a decision."""

    def __init__(self, name: str):
        self._name = name
        self.version, self._heard, self._since = '', -math.inf, None

    def on_report(self, message) -> None:
        """Take a DiagnosticArray; only the learner's status counts."""
        for status in message.status:
            if status.name == self._name:
                self.version = diagnostics.values_of(status).get('version', '')
                self._heard = time.monotonic()

    def note(self, own: str) -> str:
        """Return what to warn of, or an empty string; call it about once a second."""
        now = time.monotonic()
        if not self.version or self.version == own or now - self._heard > HEARD_S:
            self._since = None
            return ''
        self._since = now if self._since is None else self._since
        lasted = now - self._since
        return f'the learner runs model {self.version}, the filter {own}, for {lasted:.0f} s' \
            if lasted > VERSIONS_S else ''


def state_message(reason: Reason, state: FilterState, ages: dict[str, float], latency_ms: float = math.nan,
                  stamp: int | None = None, **more) -> DiagnosticStatus:
    """Build the message of one cycle: its `message` is the reason's code word. `stamp` in ns; `more` as it is."""
    record = state.record
    return diagnostics.status('safety_filter', bytes([reason.level]), reason.word, {
        'effect': reason.effect.value, 'text': reason.text, 'advice': reason.advice,
        'rules': ' '.join(r.word for r in record.rules), 'latched': ' '.join(r.word for r in state.latched),
        'risk': f'{record.risk:.4f}', 'risk_nominal': f'{record.risk_nominal:.4f}', 'level': f'{record.level:.4f}',
        'surprise': f'{record.surprise:.3f}', 'nominal': _numbers(record.nominal), 'sent': _numbers(record.sent),
        'interventions': state.interventions, 'stamp': '' if stamp is None else stamp,
        'latency_ms': f'{latency_ms:.2f}', **more, **{f'age_{kind}': f'{age:.3f}' for kind, age in ages.items()}})


def log_line(reason: Reason, before: Reason | None) -> tuple[bool, str] | None:
    """Return (is it a warning, the line) when the change from one reason to the next is worth a line, else None."""
    if reason is before or (before is not None and Effect.STOP not in (reason.effect, before.effect)):
        return None
    return reason.effect is Effect.STOP, f'{reason.word}: {reason.text} {reason.advice}'


def health(reason: Reason, weak: list[str], foreign: int, refusal: str, trouble: str = '',
           commanders: int = 1, versions: str = '') -> tuple[bytes, str]:
    """Return level and message for /diagnostics: the gravest first."""
    level = bytes([reason.level])
    if foreign > 0:
        return diagnostics.ERROR, f'{foreign} other publisher(s) on command_out: commands bypass the filter'
    notes = []      # all of them: a weakened filter may refuse a model, too
    if commanders > 1:
        notes.append(f'{commanders} publishers on command_in, expected one')
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
