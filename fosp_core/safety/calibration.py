# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Split-conformal levels for the learned risk and for surprise. Pure numpy; anyone may import it."""

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from fosp_core.errors import BundleError

SCHEMA = 1
HORIZON, LEAD = 10, 3       # records, 1 s to 0.3 s before a contact: 0.3 s is what the arm needs to go another way
MOST = 10**9                # episodes of a calibration: what no float holds is no number of them
SURPRISE_SKIP = 2   # records after a reset whose surprise says nothing: the model has no history yet
SURPRISE_TICKS = 2  # records in a row that must be surprising; the filter's gate counts the same way
STOP_FACTOR = 2.0   # how far above the slow level the stop level lies at least
FEW, MANY = 100, 0.1        # violating episodes below which, share of alarms beyond which a level is doubtful
_ROUNDING = 1e-9    # keeps an exact product such as 0.1 * 50 on its own rank


def check_calibration(calibration: dict[str, Any], where: str) -> None:
    """Raise BundleError, naming the key, unless both gates of `calibration.json` can be used to guard a robot."""
    if calibration.get('schema') != SCHEMA:
        raise BundleError(f'{where}: not calibrated: key schema is {calibration.get("schema")!r}, expected {SCHEMA}')
    for gate, levels in (('reachability', ('level',)), ('surprise', ('level_slow', 'level_stop'))):
        values = calibration.get(gate)
        if not isinstance(values, dict):
            raise BundleError(f'{where}: not calibrated: key {gate} is missing')
        for key in (*levels, 'alpha'):
            if not _finite(values.get(key)):
                raise BundleError(f'{where}: not calibrated: key {gate}.{key} is {values.get(key)!r}, '
                                  'expected a finite number')
        if not 0.0 < values['alpha'] < 1.0:
            raise BundleError(f'{where}: key {gate}.alpha is {values["alpha"]}, expected between 0 and 1')
        if type(values.get('n')) is not int or not 1 <= values['n'] <= MOST:
            raise BundleError(f'{where}: not calibrated: key {gate}.n is {values.get("n")!r}, expected 1 to {MOST}')
    if not 0.0 <= calibration['reachability']['level'] <= 1.0:
        raise BundleError(f'{where}: key reachability.level is {calibration["reachability"]["level"]}, '
                          'expected 0 to 1')
    if calibration['surprise']['level_slow'] > calibration['surprise']['level_stop']:
        raise BundleError(f'{where}: key surprise.level_slow is above surprise.level_stop')
    if not isinstance(calibration.get('data_hash'), str) or not calibration['data_hash']:
        raise BundleError(f'{where}: not calibrated: key data_hash is missing')


def doubts(reachability: dict[str, Any], alarms: float) -> list[str]:
    """Say what speaks against a risk level that keeps its promise; empty when nothing does.

    Parameters
    ----------
    reachability : dict
        That part of `calibration.json`.
    alarms : float
        Share of the harmless held-out steps whose risk is beyond the level.

    """
    found = []
    if reachability['n'] < FEW:
        found.append(f'the risk level rests on {reachability["n"]} violating episodes: another {reachability["n"]} may '
                     f'set quite another one; `fosp calibrate` with {FEW} or more')
    if alarms > MANY:
        found.append(f'the risk is beyond the level in {alarms:.0%} of the harmless steps: behind the filter the arm '
                     'will often not arrive; `fosp refit` the estimate, or allow more misses by a larger alpha')
    return found


def _finite(value: Any) -> bool:
    # By comparison: an integer may be too long for a float, and JSON has such.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def conformal_level(scores: Sequence[float] | np.ndarray, alpha: float) -> float:
    """Return the level that a further exchangeable score exceeds with probability at most `alpha`.

    It is the ceil((1 - alpha)(n + 1))-th smallest of the n scores. With too few scores for that rank no finite level
    can promise it, and infinity is returned.

    Parameters
    ----------
    scores : array of shape (n,)
        Held-out scores, exchangeable with the future one. Ties are allowed.
    alpha : float
        Allowed probability, between 0 and 1.

    """
    scores = _checked(scores, alpha)
    rank = math.ceil((1.0 - alpha) * (len(scores) + 1) - _ROUNDING)
    return float(scores[rank - 1]) if rank <= len(scores) else math.inf


def conformal_floor(scores: Sequence[float] | np.ndarray, alpha: float, confidence: float | None = None) -> float:
    """Return the highest level that a further exchangeable score fails to exceed with probability at most `alpha`.

    With k = floor(alpha (n + 1)), the k-th smallest score stays above the level: P(score <= level) <= alpha on average
    over calibrations; about half of them are worse. With `confidence` at least that share of the calibrations keeps
    alpha (the tolerance limit of Wilks): k is the largest with P(Binomial(n, alpha) < k) <= 1 - confidence. With
    k = 0 no level can promise it but minus infinity.
    """
    scores = _checked(scores, alpha)
    rank = math.floor(alpha * (len(scores) + 1) + _ROUNDING)
    if confidence is not None:
        if not 0.0 < confidence < 1.0:
            raise ValueError(f'confidence is {confidence}, expected between 0 and 1')
        rank = tolerance_rank(len(scores), alpha, confidence)
    if rank < 1:
        return -math.inf
    # Next below in float32: the graphs give float32, and numpy would round a finer level up to the score itself.
    return float(np.nextafter(np.float32(scores[rank - 1]), np.float32(-math.inf)))


def tolerance_rank(n: int, alpha: float, confidence: float) -> int:
    """Return the largest k with P(Binomial(n, alpha) <= k - 1) <= 1 - confidence; 0 when there is none."""
    rank, below = 0, 0.0
    while rank < n:
        below += math.exp(math.lgamma(n + 1) - math.lgamma(rank + 1) - math.lgamma(n - rank + 1)
                          + rank * math.log(alpha) + (n - rank) * math.log1p(-alpha))
        if below > 1.0 - confidence:
            break
        rank += 1
    return rank


def calibrate_reachability(episode_risks: Sequence[tuple[np.ndarray, np.ndarray]], alpha: float = 0.1,
                           horizon: int = 10, lead: int = 1, confidence: float | None = None) -> dict[str, Any]:
    """Find the risk level at which at most `alpha` of the violations come unannounced.

    Parameters
    ----------
    episode_risks : sequence of (risk (T,), cost (T,))
        Held-out episodes in the arrival convention: cost[t] came with observation t, risk[t] belongs to the action
        chosen there. Only episodes that violate at record `lead` or later count.
    alpha : float
        Allowed fraction of missed violations.
    horizon : int
        How many records before the first violation a warning may come.
    lead : int
        How many records before it at the latest; with 1 the very action that touches may still be the one that warns.
        The arm needs a few ticks to do something else: a warning at the moment of contact prevents nothing.
    confidence : float, optional
        As in `conformal_floor`: alpha is kept by this share of calibrations, not on their average.

    Returns
    -------
    dict
        level (a risk above it is a warning), alpha, n (violating episodes), horizon, lead, confidence when given, and
        `guaranteed`: False when n is below 1/alpha - 1 (with a confidence log(1 - confidence) / log(1 - alpha)), in
        which case the level is 0 and everything is a warning.

    """
    if not 1 <= lead <= horizon:
        raise ValueError(f'horizon {horizon} and lead {lead}: expected 1 <= lead <= horizon')
    scores = []
    for risk, cost in episode_risks:
        risk, cost = np.asarray(risk, np.float64), np.asarray(cost)
        if risk.shape != cost.shape or risk.ndim != 1:
            raise ValueError(f'risk {risk.shape} and cost {cost.shape} must be one vector each of equal length')
        first = int(np.argmax(cost > 0))    # 0 without a violation
        if first >= lead:
            scores.append(float(risk[warning_window(first, horizon, lead)].max()))
    level = conformal_floor(scores, alpha, confidence)
    return {'level': min(max(level, 0.0), 1.0), 'alpha': float(alpha), 'n': len(scores), 'horizon': int(horizon),
            'lead': int(lead), 'guaranteed': math.isfinite(level)} \
        | ({} if confidence is None else {'confidence': float(confidence)})


def warning_window(first: int, horizon: int, lead: int) -> slice:
    """Return the records in which a warning of a violation at record `first` counts."""
    return slice(max(0, first - horizon), max(0, first - lead + 1))


def persistent_surprise(surprise: np.ndarray) -> float:
    """Return the score of one episode: the highest level that surprise kept for SURPRISE_TICKS records in a row.

    The first SURPRISE_SKIP records do not count: a model without history is surprised by anything.
    """
    surprise = np.asarray(surprise, np.float64)[SURPRISE_SKIP:]
    if not len(surprise):
        raise ValueError(f'an episode needs more than {SURPRISE_SKIP} records')
    width = min(SURPRISE_TICKS, len(surprise))
    return float(np.lib.stride_tricks.sliding_window_view(surprise, width).min(1).max())


def calibrate_surprise(episode_surprises: Sequence[np.ndarray], alpha: float = 0.1) -> dict[str, Any]:
    """Find the levels of surprise (nats) at which the filter slows and stops.

    At most `alpha` of the episodes like the held-out ones are ever slowed. A stop needs more: STOP_FACTOR times the
    slow level and the worst held-out episode, since a stop that nothing explains teaches people to switch it off.
    """
    scores = [persistent_surprise(s) for s in episode_surprises if len(s) > SURPRISE_SKIP]
    level, worst = conformal_level(scores, alpha), max(scores)
    slow = level if math.isfinite(level) else worst
    return {'level_slow': slow, 'level_stop': max(STOP_FACTOR * slow, worst), 'alpha': float(alpha), 'n': len(scores),
            'guaranteed': math.isfinite(level)}


def _checked(scores: Sequence[float] | np.ndarray, alpha: float) -> np.ndarray:
    scores = np.sort(np.asarray(scores, np.float64).ravel())
    if not len(scores) or not np.isfinite(scores).all():
        raise ValueError('calibration needs at least one score, all finite')
    if not 0.0 < alpha < 1.0:
        raise ValueError(f'alpha is {alpha}, expected between 0 and 1')
    return scores
