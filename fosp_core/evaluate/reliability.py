# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Does a predicted risk mean what it says? Bins against what happened, misses and false alarms of a level. Pure NumPy.

Episodes come as (risk (T,), cost (T,)) in the arrival convention: cost[t] came with observation t, risk[t] belongs to
the action chosen there.
"""

from collections.abc import Sequence

import numpy as np

from fosp_core.evaluate.statistics import upper_limit, wilson
from fosp_core.safety.calibration import calibrate_reachability, warning_window

Replayed = Sequence[tuple[np.ndarray, np.ndarray]]


def first_violation(cost: np.ndarray) -> int | None:
    """Return the record of the first cost, None without one."""
    return int(np.argmax(cost > 0)) if (np.asarray(cost) > 0).any() else None


def outcomes(episodes: Replayed, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the risk of every decision before the first violation, and whether one followed within `horizon` records.

    Decisions after it are left out: what follows a collision is no prediction. An episode that ends within the horizon
    without a violation counts as none.
    """
    risks, happened = [], []
    for risk, cost in episodes:
        first = first_violation(cost)
        t = np.arange(len(risk) - 1 if first is None else first)
        risks.append(np.asarray(risk, np.float64)[t])
        happened.append(np.zeros(len(t), bool) if first is None else first - t <= horizon)
    return np.concatenate(risks), np.concatenate(happened)


def reliability(episodes: Replayed, horizon: int = 10, bins: int = 10) -> list[dict]:
    """Return a row per bin of equal width that is not empty: low, high, n, predicted (mean), observed, ci (Wilson)."""
    risk, happened = outcomes(episodes, horizon)
    index = np.clip((risk * bins).astype(int), 0, bins - 1)
    rows = []
    for k in range(bins):
        inside = index == k
        n, hits = int(inside.sum()), int(happened[inside].sum())
        if n:
            rows.append({'low': k / bins, 'high': (k + 1) / bins, 'n': n, 'predicted': float(risk[inside].mean()),
                         'observed': hits / n, 'ci': list(wilson(hits, n))})
    return rows


def calibration_error(rows: Sequence[dict]) -> float:
    """Return the mean gap of predicted and observed over the decisions (expected calibration error)."""
    return sum(row['n'] * abs(row['predicted'] - row['observed']) for row in rows) / sum(row['n'] for row in rows)


def missed(episodes: Replayed, level: float, horizon: int = 10, lead: int = 1) -> tuple[int, int]:
    """Return (missed, n): violating episodes without a risk above `level` `horizon` to `lead` records before."""
    count = n = 0
    for risk, cost in episodes:
        first = first_violation(cost)
        if first is not None and first >= lead:     # before that there was no decision that could have warned
            n += 1
            count += not (np.asarray(risk)[warning_window(first, horizon, lead)] > level).any()
    return count, n


def alarms(episodes: Replayed, level: float) -> tuple[int, int]:
    """Return (alarms, n): decisions above `level` among those of the episodes that never violate."""
    quiet = [np.asarray(risk)[:-1] for risk, cost in episodes if first_violation(cost) is None]
    return sum(int((risk > level).sum()) for risk in quiet), sum(map(len, quiet))


def rates(misses: tuple[int, int], false: tuple[int, int]) -> dict:
    """Return misses and false alarms as counts, rates (None without a case) and 95 % Wilson intervals.

    `upper` is the exact one-sided 95 % limit: below alpha, the rate is below alpha with that confidence.
    """
    def rate(k: int, n: int) -> dict:
        return {'count': k, 'n': n, 'rate': k / n if n else None, 'ci': list(wilson(k, n)),
                'upper': upper_limit(k, n)}
    return {'missed': rate(*misses), 'false_alarms': rate(*false)}


def judge(episodes: Replayed, level: float, horizon: int = 10, lead: int = 1) -> dict:
    """Return `rates` of a level that these episodes did not set."""
    return rates(missed(episodes, level, horizon, lead), alarms(episodes, level))


def crossfit(episodes: Replayed, alpha: float, horizon: int = 10, lead: int = 1, folds: int = 5,
             confidence: float | None = None) -> dict | None:
    """Return `rates` of the calibration itself: each fold is judged by the level that the other folds set.

    Violating and other episodes are dealt out in turn. None with fewer than two violating episodes.
    """
    violating = [e for e in episodes if (first_violation(e[1]) or 0) >= lead]
    others = [e for e in episodes if not (first_violation(e[1]) or 0) >= lead]
    folds = min(folds, len(violating))
    if folds < 2:
        return None
    totals = np.zeros(4, int)
    for k in range(folds):
        rest = [e for i, e in enumerate(violating) if i % folds != k]
        level = calibrate_reachability(rest, alpha, horizon, lead, confidence)['level']
        held = violating[k::folds] + others[k::folds]
        totals += [*missed(held, level, horizon, lead), *alarms(held, level)]
    return {'folds': folds, **rates(tuple(map(int, totals[:2])), tuple(map(int, totals[2:])))}
