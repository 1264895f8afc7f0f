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


def episodes_needed(rate_a: float, rate_b: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Return the episodes per policy needed to tell two rates apart: unpaired, two-sided z-test of proportions."""
    for name, value in (('rate_a', rate_a), ('rate_b', rate_b)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f'{name} is {value}, expected a fraction')
    if rate_a == rate_b:
        raise ValueError(f'equal rates ({rate_a}) cannot be told apart by any number of episodes')
    z_alpha, z_power = _quantile(1.0 - alpha), NormalDist().inv_cdf(power)
    mean = (rate_a + rate_b) / 2.0
    spread = z_alpha * math.sqrt(2.0 * mean * (1.0 - mean)) \
        + z_power * math.sqrt(rate_a * (1.0 - rate_a) + rate_b * (1.0 - rate_b))
    return math.ceil((spread / (rate_a - rate_b)) ** 2)


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
