# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Does the filter step in more often since a new model is live? A sequential test that can ask for a rollback.

Pure: no ROS, no clock. Wald's sequential probability ratio test on blocks of ticks, since neighbouring ticks are
far from independent: a block counts as one when the model stepped in at any of its ticks. The rate before the swap is
estimated with the version that was live then, so the error rates hold for a rate that is known well; what few blocks
make of them stands in docs/explanation/gates.md.
"""

import dataclasses
import math
from collections import deque

from fosp_core.safety.reasons import BY_WORD, Effect, Reason

WATCHING, KEPT, REJECTED, UNKNOWN = 'watching', 'kept', 'rejected', 'not watched'
LEAST_RATE = 0.01       # a rate of zero cannot be multiplied
SURPRISED = (Reason.SURPRISE_SLOW, Reason.SURPRISE_STOP)


@dataclasses.dataclass(frozen=True)
class TrialOptions:
    """`ratio`: the rise to be found; `floor`: the smallest rate of blocks that counts as one.

    `alpha`: probability of rejecting a model whose rate is the old one; `beta`: of keeping one whose rate rose by
    `ratio`. `block` in ticks; `min_blocks` before the swap, without which nothing is tested; `max_blocks` after it,
    when a model that is still undecided is kept.
    """

    ratio: float = 2.0
    floor: float = 0.1
    alpha: float = 0.05
    beta: float = 0.1
    block: int = 20
    min_blocks: int = 30
    max_blocks: int = 600


def alternative(base: float, ratio: float, floor: float) -> float:
    """Return the rate to be told from `base`: `ratio` (> 1) times it, at least `floor`, at most half way to 1."""
    return min(max(ratio * base, floor), (1.0 + base) / 2.0)


class Sprt:
    """Wald's test of a rate: H0 `base` against H1 `raised`, 0 < base < raised < 1, on independent outcomes.

    P(rejected | base) <= alpha / (1 - beta) and P(kept | raised) <= beta / (1 - alpha), Wald (1945); a little below
    alpha and beta in practice, since the last step goes beyond the bound.
    """

    def __init__(self, base: float, raised: float, alpha: float, beta: float):
        if not 0.0 < base < raised < 1.0:
            raise ValueError(f'rates {base} and {raised}: expected 0 < base < raised < 1')
        if not (0.0 < alpha < 1.0 and 0.0 < beta < 1.0 and alpha + beta < 1.0):
            raise ValueError(f'alpha {alpha} and beta {beta}: expected more than 0, together less than 1')
        self._steps = math.log((1.0 - raised) / (1.0 - base)), math.log(raised / base)
        self.low, self.high = math.log(beta / (1.0 - alpha)), math.log((1.0 - beta) / alpha)
        self.ratio = 0.0        # log of the likelihood ratio
        self.state = WATCHING

    def add(self, outcome: bool) -> str:
        """Take one outcome and return WATCHING, KEPT or REJECTED; what was decided stays."""
        if self.state == WATCHING:
            self.ratio += self._steps[bool(outcome)]
            self.state = REJECTED if self.ratio >= self.high else KEPT if self.ratio <= self.low else WATCHING
        return self.state


class _Blocks:
    """Outcomes of the newest `most` blocks of one version."""

    def __init__(self, size: int, most: int):
        self._size, self._ticks, self._hit = size, 0, False
        self.outcomes: deque[bool] = deque(maxlen=most)

    def add(self, hit: bool) -> bool | None:
        """Take one tick; return the outcome of the block that it ends, else None."""
        self._ticks, self._hit = self._ticks + 1, self._hit or hit
        if self._ticks < self._size:
            return None
        outcome = self._hit
        self.outcomes.append(outcome)
        self._ticks, self._hit = 0, False
        return outcome


_CASE = ('version', 'parent', 'base', 'raised', 'blocks', 'hits', '_test')     # what makes up a trial under way


class Trial:
    """Watches the filter's ticks; `begin` puts a version on trial against the one that was live before."""

    def __init__(self, options: TrialOptions):
        self.options = options
        self.state, self.version, self.parent, self.why = KEPT, '', '', ''
        self.base = self.raised = 0.0
        self.blocks = self.hits = 0
        self._test: Sprt | None = None
        self._seen: dict[str, _Blocks] = {}
        self._undecided: dict[str, dict] = {}       # trials that a later version broke off

    def begin(self, version: str, parent: str) -> str:
        """Put `version` on trial; return WATCHING, or UNKNOWN with `why` set when there is too little to compare with.

        A parent that is itself undecided is no yardstick: the rate before it stays in force, or small rises add up.
        """
        o = self.options
        undecided = self.state == WATCHING and parent == self.version
        before = self._seen.get(parent)
        if undecided:
            self._undecided[parent] = {name: getattr(self, name) for name in _CASE}
        self.version, self.parent, self.blocks, self.hits, self.why = version, parent, 0, 0, ''
        self._seen = {v: b for v, b in self._seen.items() if v == parent}
        self._seen.pop(version, None)
        if not undecided:
            count = len(before.outcomes) if before else 0
            if count < o.min_blocks:
                self.state, self._test = UNKNOWN, None
                self.why = f'{count} blocks before the swap, expected at least {o.min_blocks}'
                return self.state
            self.base = max((sum(before.outcomes) + 0.5) / (count + 1.0), LEAST_RATE)
            self.raised = alternative(self.base, o.ratio, o.floor)
        self._test = Sprt(self.base, self.raised, o.alpha, o.beta)
        self.state = WATCHING
        return self.state

    def end(self, why: str = '') -> None:
        """Stop watching without a verdict: the model was changed by someone else."""
        self._test = None
        if self.state == WATCHING:
            self.state, self.why = UNKNOWN, why

    def back(self, version: str, why: str) -> str:
        """Note that an earlier version is in force again; a trial of it that a later one broke off goes on."""
        case = self._undecided.pop(version, None)
        if case is None:
            self.end(why)
            return self.state
        for name, value in case.items():
            setattr(self, name, value)
        self.state, self.why = WATCHING, ''
        return self.state

    def unknown(self, version: str, parent: str, why: str) -> None:
        """Note that `version` is in force and is not watched."""
        self.version, self.parent, self.blocks, self.hits = version, parent, 0, 0
        self.state, self.why, self._test = UNKNOWN, why, None

    def tick(self, version: str, word: str) -> str:
        """Take one tick of the filter, its live version and reason word; return REJECTED once, on the tick that does.

        Ticks on which no proposal was judged (stops, late holds, unknown words) do not count. Else returns ''.
        """
        reason = BY_WORD.get(word)
        if reason is None or not version or (reason.effect in (Effect.STOP, Effect.HOLD) and reason not in SURPRISED):
            return ''
        blocks = self._seen.setdefault(version, _Blocks(self.options.block, self.options.max_blocks))
        if len(self._seen) > 8:     # versions that others made live
            self._seen.pop(next(iter(self._seen)))
        outcome = blocks.add(reason.learned or reason in SURPRISED)
        if outcome is None or self._test is None or version != self.version or self.state != WATCHING:
            return ''
        self.blocks, self.hits = self.blocks + 1, self.hits + outcome
        self.state = self._test.add(outcome)
        if self.state == WATCHING and self.blocks >= self.options.max_blocks:
            self.state, self.why = KEPT, f'undecided after {self.blocks} blocks'
        return REJECTED if self.state == REJECTED else ''

    def values(self) -> dict[str, object]:
        """Return the figures for a status message."""
        if not self.version:
            return {}
        return {'trial': self.state + (f': {self.why}' if self.why else ''), 'trial_version': self.version,
                'trial_blocks': self.blocks, 'trial_rate': f'{self.hits / self.blocks:.3f}' if self.blocks else '',
                'trial_rate_before': f'{self.base:.3f}', 'trial_rate_raised': f'{self.raised:.3f}',
                'trial_log_ratio': f'{self._test.ratio:.2f}' if self._test else ''}
