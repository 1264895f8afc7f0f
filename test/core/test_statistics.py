# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Published or hand-computed numbers of the statistics; prevents tables with intervals nobody can trust (lesson 19)."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fosp_core.evaluate.statistics import (
    bootstrap_mean,
    mcnemar,
    rate_text,
    summary_row,
    upper_limit,
    wilson,
)


@pytest.mark.parametrize(('k', 'n', 'low', 'high'), [
    (81, 263, 0.2553, 0.3662),      # Newcombe 1998, table I, method 3
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
])
def test_wilson_reproduces_newcombes_table(k, n, low, high):
    assert wilson(k, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_a_rate_reads_the_same_everywhere():
    assert rate_text(1.0, wilson(3, 3)) == '100.0 % [43.9, 100.0]'
    assert rate_text(0.035, (0.0, 0.0912)) == '3.5 % [0.0, 9.1]'


def test_wilson_has_exact_ends():
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_refuses_the_impossible():
    with pytest.raises(ValueError, match='5 successes of 4'):
        wilson(5, 4)
    with pytest.raises(ValueError, match='confidence is 95'):
        wilson(1, 4, 95)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_rate_and_mirrors(case):
    k, n = case
    low, high = wilson(k, n)
    assert 0.0 <= low <= k / n <= high <= 1.0
    mirrored = wilson(n - k, n)
    assert (1.0 - high, 1.0 - low) == pytest.approx(mirrored, abs=1e-12)


def test_wilson_covers_as_often_as_it_says():
    """At p = 0.05 and n = 100 the exact coverage of Wilson's interval, summed over the binomial, is about 0.966."""
    n, p = 100, 0.05
    covered = sum(math.comb(n, k) * p ** k * (1 - p) ** (n - k) for k in range(n + 1)
                  if wilson(k, n)[0] <= p <= wilson(k, n)[1])
    assert 0.94 < covered < 0.98


def test_bootstrap_agrees_with_the_standard_error_and_repeats():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = bootstrap_mean(values, seed=5)
    assert (low, high) == bootstrap_mean(values, seed=5)
    error = values.std() / 20.0
    assert (low, high) == (pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error),
                           pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error))


def test_bootstrap_of_too_little():
    assert all(math.isnan(x) for x in bootstrap_mean([]))
    assert bootstrap_mean([2.0]) == (-math.inf, math.inf)


def test_mcnemar_by_hand():
    """8 seeds gained, 1 lost: 2 (C(9,0) + C(9,1)) / 2^9 = 20 / 512."""
    before = [False] * 8 + [True] + [True] * 5
    after = [True] * 8 + [False] + [True] * 5
    assert mcnemar(before, after) == {'gained': 8, 'lost': 1, 'difference': 0.5, 'p_value': 20 / 512}


def test_mcnemar_of_equal_outcomes_proves_nothing():
    assert mcnemar([True, False], [True, False])['p_value'] == 1.0
    assert mcnemar([True, False], [False, True])['p_value'] == 1.0
    with pytest.raises(ValueError, match='equal lengths'):
        mcnemar([True], [True, False])


def test_summary_row_has_the_reports_keys_and_fractions():
    row = summary_row('standard', 'before', [True, True, False, True], [False, True, False, False], interventions=7)
    assert list(row) == ['task', 'phase', 'n', 'sr', 'cv', 'sr_ci', 'cv_ci', 'interventions']
    assert (row['n'], row['sr'], row['cv'], row['interventions']) == (4, 0.75, 0.25, 7)
    assert row['sr_ci'] == list(wilson(3, 4)) and row['cv_ci'] == list(wilson(1, 4))


def test_upper_limit_is_that_of_clopper_and_pearson():
    assert upper_limit(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59), abs=1e-9)
    assert upper_limit(1, 10) == pytest.approx(0.394163, abs=1e-6)
    assert upper_limit(0, 10, 0.5) == pytest.approx(1 - 0.5 ** 0.1, abs=1e-9)
    assert upper_limit(4, 4) == upper_limit(0, 0) == 1.0
    with pytest.raises(ValueError, match='impossible'):
        upper_limit(3, 2)
    with pytest.raises(ValueError, match='confidence'):
        upper_limit(1, 2, 1.0)
