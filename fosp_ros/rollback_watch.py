# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Lends the trainer ears for `safety_filter/state`: feeds the sequential test that can ask for a rollback.

The same ears tell it which model the filter runs, which after a restart need not be the one that it takes for live.
"""

from collections.abc import Callable

from diagnostic_msgs.msg import DiagnosticStatus

from fosp_core.deploy.bundle import Bundle
from fosp_core.deploy.rollback import REJECTED, UNKNOWN, WATCHING, Trial, TrialOptions
from fosp_ros import diagnostics, qos
from fosp_ros.filter_report import VersionWatch
from fosp_ros.parameters import P

PARAMETERS = (
    P('auto_rollback', 'bool', True, 'After a swap watch how often the filter steps in, and go back to the parent by '
      'itself when that rises.'),
    P('rollback_ratio', 'double', 2.0, 'Rise of the intervention rate that must not go unnoticed.', low=1.1, high=100.0,
      read_only=True),
    P('rollback_floor', 'double', 0.1, 'Smallest rate, as a share of blocks, that counts as raised.', low=0.01,
      high=0.5, read_only=True),
    P('rollback_alpha', 'double', 0.05, 'Probability of going back although the rate is the old one.', low=0.001,
      high=0.45, read_only=True),
    P('rollback_beta', 'double', 0.1, 'Probability of keeping a model although the rate rose by rollback_ratio.',
      low=0.001, high=0.45, read_only=True),
    P('rollback_block', 'int', 20, 'Judged ticks that are one outcome of the test: an intervention among them, or '
      'none. Neighbouring ticks are not independent.', unit='ticks', low=1, high=10000, read_only=True),
    P('rollback_min_blocks', 'int', 30, 'Blocks with the old model without which its rate is not known and nothing is '
      'tested.', unit='blocks', low=5, high=10000, read_only=True),
    P('rollback_max_blocks', 'int', 600, 'Blocks after which a model that is still undecided is kept; also how far '
      'back the old rate is taken.', unit='blocks', low=10, high=100000, read_only=True),
)


class RollbackWatch:
    """Puts each new version on trial and calls `on_worse(parent, reason, figures)` when it is rejected.

    Also compares the version that the filter runs with the trainer's.
    """

    def __init__(self, node, on_worse: Callable[[str, str, dict], None]):
        p = node.p
        self._node, self._on_worse = node, on_worse
        self.trial = Trial(TrialOptions(p.rollback_ratio, p.rollback_floor, p.rollback_alpha, p.rollback_beta,
                                        p.rollback_block, p.rollback_min_blocks, p.rollback_max_blocks))
        self.filter = VersionWatch(text='the filter runs model {other}, the trainer has {own} in force')
        node.listen(DiagnosticStatus, 'safety_filter/state', self._on_state, qos.EVENT)     # deep: no tick is missed

    def begin(self, version: str, parent: str) -> None:
        """Put `version` on trial against `parent`; what is too little to compare with is said in the log."""
        if not self._node.p.auto_rollback:
            self.trial.end('auto_rollback is false')
        elif self.trial.begin(version, parent) == UNKNOWN:
            self._node.get_logger().warning(f'model {version} is not watched for a rollback: {self.trial.why}')

    def back(self, version: str) -> None:
        """Note that an earlier version is in force again; where its own trial was broken off, it goes on."""
        why = f'rolled back to {version}'
        if not self._node.p.auto_rollback:
            self.trial.end(why)
        elif self.trial.back(version, why) == WATCHING:
            self._node.get_logger().info(f'model {version} was still undecided: it is watched again')

    def restarted(self, current: Bundle, stored: list[str]) -> None:
        """Note that the trainer goes on with `current`: what an earlier process has counted of it is lost."""
        parent = current.manifest['parent']
        if parent in stored:
            self.trial.unknown(current.version, parent, 'trainer restarted')
            self._node.get_logger().warning(f'model {current.version} is not watched for a rollback: trainer restarted')

    def note(self, current: str) -> str:
        """Return what to warn of when the filter runs another model than `current` for long, or an empty string."""
        return self.filter.note(current)

    def values(self) -> dict[str, object]:
        """Return the figures for /diagnostics."""
        return {'filter_version': self.filter.version, **self.trial.values()}

    def _on_state(self, message: DiagnosticStatus) -> None:
        if not self._node.active:
            return
        watching = self.trial.state == WATCHING
        version = diagnostics.values_of(message).get('version', '')
        self.filter.hear(version)
        verdict = self.trial.tick(version, message.message)
        if not watching or self.trial.state == WATCHING:
            return
        t = self.trial
        text = (f'the filter stepped in in {t.hits} of {t.blocks} blocks with model {t.version}, before it in '
                f'{t.base:.1%} (raised would be {t.raised:.1%})')
        if verdict != REJECTED:
            self._node.get_logger().info(f'model {t.version} is kept: {text}' + (f'; {t.why}' if t.why else ''))
        elif self._node.p.auto_rollback:
            self._on_worse(t.parent, text, {'rejected': t.version, **t.values()})
        else:
            self._node.get_logger().warning(f'auto_rollback is false, model {t.version} stays: {text}')
