# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Conformal levels: exact on small cases, and keeping their promise in simulation."""

import math

import numpy as np
import pytest

from fosp_core.errors import BundleError
from fosp_core.safety.calibration import (
    calibrate_reachability,
    calibrate_surprise,
    check_calibration,
    conformal_floor,
    conformal_level,
    doubts,
    persistent_surprise,
    tolerance_rank,
)


def test_level_is_the_corrected_rank():
    scores = np.arange(1.0, 10.0)                       # n = 9: rank ceil(0.9 * 10) = 9
    assert conformal_level(scores[::-1], 0.1) == 9.0
    assert conformal_level(scores, 0.2) == 8.0
    assert conformal_level(scores, 0.5) == 5.0
    assert conformal_level(scores[:8], 0.1) == math.inf  # rank 9 of 8
    assert conformal_level(np.arange(1.0, 20.0), 0.1) == 18.0


def test_floor_is_just_below_the_corrected_rank():
    scores = np.arange(1.0, 10.0)                       # k = floor(0.1 * 10) = 1
    assert 0.999999 < conformal_floor(scores, 0.1) < 1.0
    assert 1.999999 < conformal_floor(scores, 0.2) < 2.0
    assert conformal_floor(scores[:8], 0.1) == -math.inf
    assert 4.999999 < conformal_floor(np.arange(1.0, 50.0), 0.1) < 5.0  # 0.1 * 50 is exactly rank 5


def test_rank_of_a_confident_level_is_that_of_wilks():
    """Tolerance limits of the textbooks: 95 % / 95 % takes 59, 93 and 124 samples for its first three ranks."""
    ranks = [tolerance_rank(n, 0.05, 0.95) for n in (58, 59, 92, 93, 123, 124)]
    assert ranks == [0, 1, 1, 2, 2, 3]
    assert [tolerance_rank(n, 0.1, 0.95) for n in (28, 29)] == [0, 1]
    assert tolerance_rank(3, 0.5, 1e-9) == 3        # never beyond the last score
    assert tolerance_rank(1, 0.5, 0.5) == 1         # exactly the confidence is enough
    scores = np.arange(1.0, 60.0)
    assert conformal_floor(scores, 0.05, 0.95) == np.nextafter(np.float32(1), np.float32(0))
    assert conformal_floor(scores[:58], 0.05, 0.95) == -math.inf and conformal_floor(scores, 0.05) > 2.99
    for confidence in (0.0, 1.0, float('nan')):
        with pytest.raises(ValueError, match=f'^confidence is {confidence}, expected between 0 and 1$'):
            conformal_floor(scores, 0.1, confidence)


@pytest.mark.parametrize(('confidence', 'least', 'most'), [(None, 0.45, 0.75), (0.95, 0.93, 0.995)])
def test_that_many_calibrations_keep_alpha(confidence, least, most):
    """For uniform scores the rate of misses is the level itself. On the average of calibrations is not for sure."""
    rng = np.random.default_rng(4)
    kept = [conformal_floor(rng.random(100), 0.1, confidence) <= 0.1 for _ in range(1000)]
    assert least <= np.mean(kept) <= most


def test_the_confidence_is_part_of_the_calibration():
    episodes = [episode([0.01 * k, 0.5], 1) for k in range(1, 61)]
    mean, sure = (calibrate_reachability(episodes, 0.1, confidence=c) for c in (None, 0.95))
    assert 'confidence' not in mean and sure['confidence'] == 0.95 and sure['guaranteed']
    assert 0.059 < mean['level'] < 0.06 and 0.019 < sure['level'] < 0.02      # ranks 6 and 2
    assert not calibrate_reachability(episodes[:28], 0.1, confidence=0.95)['guaranteed']


@pytest.mark.parametrize('alpha', [0.0, 1.0, -0.1, float('nan')])
def test_alpha_outside_is_refused(alpha):
    with pytest.raises(ValueError, match='alpha'):
        conformal_level([1.0], alpha)


@pytest.mark.parametrize('scores', [[], [1.0, float('nan')], [float('inf')]])
def test_bad_scores_are_refused(scores):
    with pytest.raises(ValueError, match='finite'):
        conformal_floor(scores, 0.1)


def episode(risks, violated_at=None):
    cost = np.zeros(len(risks), np.float32)
    if violated_at is not None:
        cost[violated_at:] = 1.0
    return np.asarray(risks, np.float32), cost


def test_reachability_takes_the_highest_warning_before_the_first_violation():
    episodes = [episode([0.9, 0.1, 0.3, 0.2, 0.99], 4),  # 0.9 lies beyond the horizon, 0.99 is the violation itself
                episode([0.99] * 5),                     # never violates: does not count
                episode([0.99, 0.99], 0)]                # violated before anything was decided: does not count
    result = calibrate_reachability(episodes, alpha=0.5, horizon=3)
    assert result['n'] == 1 and result['guaranteed']
    assert 0.2999 < result['level'] < np.float32(0.3)
    assert not np.float32(0.3) <= result['level']        # the score itself is still a warning


def test_a_warning_must_come_in_time_for_the_arm_to_do_something_else():
    episodes = [episode([0.1, 0.2, 0.4, 0.8, 0.9], 4),
                episode([0.7, 0.7], 1)]                  # two records ahead there was nothing: does not count
    late = calibrate_reachability(episodes[:1], alpha=0.5, lead=1)
    early = calibrate_reachability(episodes, alpha=0.5, lead=3)
    assert 0.79 < late['level'] < 0.8 and 0.19 < early['level'] < 0.2 and early['n'] == 1
    with pytest.raises(ValueError, match='lead 4'):
        calibrate_reachability(episodes, horizon=3, lead=4)


def test_too_few_violations_make_everything_a_warning():
    result = calibrate_reachability([episode([0.5, 0.5, 0.5], 2)] * 8, alpha=0.1)
    assert result == {'level': 0.0, 'alpha': 0.1, 'n': 8, 'horizon': 10, 'lead': 1, 'guaranteed': False}
    with pytest.raises(ValueError, match='at least one'):
        calibrate_reachability([episode([0.5, 0.5])], alpha=0.1)


@pytest.mark.parametrize(('n', 'alpha'), [(19, 0.1), (60, 0.1), (60, 0.05), (199, 0.02)])
def test_missed_violations_stay_within_alpha(n, alpha):
    """Over many calibrations the mean rate of misses is at most alpha, and not far below it."""
    rng = np.random.default_rng(3)
    missed = []
    for _ in range(400):
        calibration = [episode(np.append(rng.beta(4, 2, 6), 1.0), 6) for _ in range(n)]
        level = calibrate_reachability(calibration, alpha)['level']
        future = rng.beta(4, 2, (200, 6)).astype(np.float32).max(1)
        missed.append(np.mean(future <= level))
    slack = 3 * np.std(missed) / np.sqrt(len(missed))
    assert np.mean(missed) <= alpha + slack
    assert np.mean(missed) >= alpha - 1.0 / (n + 1) - slack


def test_surprise_counts_what_persists():
    assert persistent_surprise([99.0, 99.0, 1.0, 50.0, 2.0, 3.0, 4.0]) == 3.0  # one spike alone is not persistent
    assert persistent_surprise([0.0, 0.0, 7.0]) == 7.0
    result = calibrate_surprise([np.array([9.0, 9.0, k, k, k]) for k in range(1, 20)], alpha=0.1)
    assert result == {'level_slow': 18.0, 'level_stop': 36.0, 'alpha': 0.1, 'n': 19, 'guaranteed': True}
    assert calibrate_surprise([np.array([9.0, 9.0, 5.0])], 0.1)['level_slow'] == 5.0
    check_calibration({'schema': 1, 'reachability': {'level': 0.3, 'alpha': 0.1, 'n': 20}, 'surprise': result,
                       'data_hash': 'x'}, 'here')
    with pytest.raises(BundleError, match='level_stop'):
        check_calibration({'schema': 1, 'reachability': {'level': 0.3, 'alpha': 0.1, 'n': 20},
                           'surprise': {**result, 'level_stop': math.inf}, 'data_hash': 'x'}, 'here')


def test_what_speaks_against_a_level_that_keeps_its_promise():
    few = ('the risk level rests on 99 violating episodes: another 99 may set quite another one; `fosp calibrate` '
           'with 100 or more')
    many = ('the risk is beyond the level in 11% of the harmless steps: behind the filter the arm will often not '
            'arrive; `fosp refit` the estimate, or allow more misses by a larger alpha')
    assert doubts({'n': 100}, 0.1) == []
    assert doubts({'n': 99}, 0.1) == [few]
    assert doubts({'n': 100}, 0.11) == [many]
    assert doubts({'n': 99}, 0.11) == [few, many]
