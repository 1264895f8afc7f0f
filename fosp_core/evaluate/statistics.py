# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Intervals, paired comparisons and sample sizes for success and violation rates. Pure NumPy; anyone may import it.

Rates are fractions. An episode either succeeds or not, so a rate's interval is Wilson's: it stays within [0, 1] and
keeps its coverage near 0 and 1, where a safe policy lives and where the normal interval has width zero.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

# Means of a row of `fosp evaluate` that tables show; the time is that of the episodes which arrived.
MEANS = {'return': 'return', 'cost': 'cost', 'steps': 'steps', 'path_m': 'path, m', 'time_to_goal_s': 'time to goal, s'}


def _quantile(confidence: float) -> float:
    """Two-sided standard normal quantile: 1.96 for 0.95."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f'confidence is {confidence}, expected a fraction between 0 and 1')
    return NormalDist().inv_cdf(0.5 + confidence / 2.0)


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval (low, high) of a rate seen as `successes` of `n`; (0, 1) for n = 0."""
    if not 0 <= successes <= n:
        raise ValueError(f'{successes} successes of {n} is impossible')
    if n == 0:
        return 0.0, 1.0
    z = _quantile(confidence)
    p, z2n = successes / n, z * z / n
    centre = (p + z2n / 2.0) / (1.0 + z2n)
    half = z / (1.0 + z2n) * math.sqrt(p * (1.0 - p) / n + z2n / (4.0 * n))
    # At the ends the exact bounds are 0 and 1; rounding must not leave 1e-17 there.
    return (0.0 if successes == 0 else max(0.0, centre - half)), (1.0 if successes == n else min(1.0, centre + half))


def rate_text(rate: float, interval: Sequence[float]) -> str:
    """Return a rate with its interval as every table and page writes it, in per cent."""
    return f'{100 * rate:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]'


def mean_text(row: dict, name: str) -> str:
    """Return the mean `name` of a row of `fosp evaluate` with its interval, as every table writes it; - for none."""
    mean, interval = row.get(name), row.get(f'{name}_ci')
    if mean is None:
        return '-'
    return f'{mean:.2f}' + (f' [{interval[0]:.2f}, {interval[1]:.2f}]' if interval else '')


def upper_limit(successes: int, n: int, confidence: float = 0.95) -> float:
    """Return the exact one-sided upper limit of a rate seen as `successes` of `n` (Clopper and Pearson); 1 for n = 0.

    Of all rates it is the one at which so few successes still have the probability 1 - confidence.
    """
    if not 0 <= successes <= n:
        raise ValueError(f'{successes} successes of {n} is impossible')
    _quantile(confidence)
    if successes == n:
        return 1.0
    low, high = successes / n, 1.0
    for _ in range(60):
        rate = (low + high) / 2.0
        tail = sum(math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(rate)
                            + (n - k) * math.log1p(-rate)) for k in range(successes + 1))
        low, high = (rate, high) if tail > 1.0 - confidence else (low, rate)
    return high


def bootstrap_mean(values: Sequence[float], confidence: float = 0.95, draws: int = 2000,
                   seed: int = 0) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of `values` (n,), e.g. of returns; seeded.

    (nan, nan) for no value; for one value its interval is unknown, so it is (-inf, inf).
    """
    sample = np.asarray(values, np.float64)
    if sample.size == 0:
        return math.nan, math.nan
    if sample.size == 1:
        return -math.inf, math.inf
    _quantile(confidence)
    rng = np.random.default_rng(seed)
    means = sample[rng.integers(0, sample.size, (draws, sample.size))].mean(1)   # (draws,)
    low, high = np.quantile(means, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return float(low), float(high)


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> dict[str, float]:
    """Compare two policies on the same seeds by McNemar's exact test.

    Parameters
    ----------
    before, after
        Outcome per seed, (n,), in the same order.

    Returns
    -------
    dict
        `gained` (false to true), `lost` (true to false), `difference` of the rates and the two-sided `p_value`.

    """
    a, b = np.asarray(before, bool), np.asarray(after, bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f'paired outcomes need equal lengths, got shapes {a.shape} and {b.shape}')
    gained, lost = int((~a & b).sum()), int((a & ~b).sum())
    discordant = gained + lost
    tail = sum(math.comb(discordant, i) for i in range(min(gained, lost) + 1)) / 2 ** discordant
    return {'gained': gained, 'lost': lost, 'difference': (gained - lost) / len(a) if len(a) else 0.0,
            'p_value': min(1.0, 2.0 * tail)}


def _discordant(gained: int, lost: int, n: int) -> None:
    if gained < 0 or lost < 0 or gained + lost > n:
        raise ValueError(f'{gained} gained and {lost} lost of {n} is impossible')


def paired_interval(gained: int, lost: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of the difference of two rates on the same `n` seeds, (gained - lost) / n; (-1, 1) for n = 0.

    The score interval of Tango (Statistics in Medicine 17, 1998): all differences that the score test does not reject.
    For pairs it is what Wilson's is for one rate; Wald's has width zero where no seed differs.
    """
    _discordant(gained, lost, n)
    if n == 0:
        return -1.0, 1.0
    z = _quantile(confidence)

    def rejected(gap: float) -> bool:
        # The share lost that is likeliest when the true difference is `gap`; the share gained is then that + gap.
        b, c = (2 * n - gained + lost) * gap - gained - lost, -lost * gap * (1.0 - gap)
        share = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        variance = n * (2.0 * share + gap * (1.0 - gap))
        return (gained - lost - n * gap) ** 2 > z * z * max(variance, 0.0)

    def border(gap: float, end: float) -> float:
        for _ in range(60):
            middle = (gap + end) / 2.0
            gap, end = (gap, middle) if rejected(middle) else (middle, end)
        return end
    seen = (gained - lost) / n
    return border(seen, -1.0), border(seen, 1.0)


def pairs_needed(gained: int, lost: int, n: int, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Return the seeds on which both policies must run to tell apart a difference like the one seen on `n`.

    For McNemar's two-sided test, from the shares of seeds that were gained and lost (Connor, Biometrics 43, 1987). None
    when as many were gained as lost: no number tells equal rates apart. Never so few that no outcome of the exact test
    could tell.
    """
    _discordant(gained, lost, n)
    if gained == lost:
        return None
    share, gap = (gained + lost) / n, (gained - lost) / n
    z_alpha, z_power = _powers(alpha, power)
    enough = ((z_alpha * math.sqrt(share) + z_power * math.sqrt(share - gap * gap)) / gap) ** 2
    return math.ceil(max(enough, math.ceil(math.log2(2.0 / alpha)) / share))


def _powers(alpha: float, power: float) -> tuple[float, float]:
    return _quantile(1.0 - alpha), NormalDist().inv_cdf(power)


def layouts_needed(gaps: Sequence[float], alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Return how many layouts tell a mean difference like that of `gaps` (n,) from none, by the z test; None for none.

    `gaps` are the differences of two policies' scores, layout by layout.
    """
    values = np.asarray(gaps, np.float64)
    if values.size < 2 or abs(values.mean()) < 1e-9:     # nothing, but for rounding
        return None
    return max(2, math.ceil((sum(_powers(alpha, power)) * values.std(ddof=1) / values.mean()) ** 2))


def summary_row(task: str, phase: str, successes: Sequence[bool], violations: Sequence[bool],
                interventions: int = 0) -> dict:
    """Return one row of a report: n, SR, CV and their 95 % Wilson intervals.

    Parameters
    ----------
    task, phase
        What was run, and which policy or stage of the experiment ran it.
    successes, violations
        Per episode, (n,): reached the goal; had any cost.
    interventions
        Commands that the learned risk changed, summed over the episodes; not those of limits, surprise or a stop.

    """
    if len(successes) != len(violations):
        raise ValueError(f'{len(successes)} successes but {len(violations)} violations')
    n, reached, violated = len(successes), int(np.sum(successes)), int(np.sum(violations))
    return {'task': task, 'phase': phase, 'n': n, 'sr': reached / n if n else 0.0, 'cv': violated / n if n else 0.0,
            'sr_ci': list(wilson(reached, n)), 'cv_ci': list(wilson(violated, n)), 'interventions': int(interventions)}
