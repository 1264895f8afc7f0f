# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Policies on the same layouts: prevents a winner that is none, and a verdict without the n that would tell."""

import math

import numpy as np
import pytest

from fosp_core.evaluate import comparison
from fosp_core.evaluate.statistics import paired_interval, pairs_needed, summary_row
from fosp_core.report import sections


def row(phase, success, violation, task='standard', first=10):
    return {**summary_row(task, phase, success, violation), 'steps': 9.0, 'outcomes': {
        'seed': list(range(first, first + len(success))), 'success': success, 'violation': violation}}


def score(gained, lost, n, gap):
    """Score statistic of a difference `gap`, the share lost found by trying all of them."""
    share = np.linspace(max(0.0, -gap), (1 - gap) / 2, 2_000_001)[1:-1]
    likelihood = gained * np.log(share + gap) + lost * np.log(share) + (n - gained - lost) * np.log1p(-2 * share - gap)
    best = share[np.argmax(likelihood)]
    return (gained - lost - n * gap) / math.sqrt(n * (2 * best + gap * (1 - gap)))


def test_the_interval_ends_where_the_score_test_rejects():
    low, high = paired_interval(12, 4, 100)
    assert score(12, 4, 100, low) == pytest.approx(1.959964, abs=1e-4)
    assert score(12, 4, 100, high) == pytest.approx(-1.959964, abs=1e-4)
    assert paired_interval(4, 12, 100) == pytest.approx((-high, -low))
    # Nobody differed: that is no proof of equality. n d^2 / (d (1 - d)) = z^2, so d = z^2 / (n + z^2).
    assert paired_interval(0, 0, 50)[1] == pytest.approx(1.959964 ** 2 / (50 + 1.959964 ** 2), abs=1e-6)
    # All of n gained: n (1 - d) / (1 + d) = z^2, so d = (n - z^2) / (n + z^2).
    assert paired_interval(9, 0, 9) == pytest.approx(((9 - 1.959964 ** 2) / (9 + 1.959964 ** 2), 1.0), abs=1e-6)
    assert paired_interval(0, 0, 0) == (-1.0, 1.0)
    with pytest.raises(ValueError, match='3 gained and 2 lost of 4'):
        paired_interval(3, 2, 4)


@pytest.mark.parametrize(('gained', 'lost', 'n'), [(0.05, 0.02, 60), (0.3, 0.2, 40), (0.02, 0.0, 200)])
def test_the_interval_covers_the_truth(gained, lost, n):
    rng = np.random.default_rng(3)
    draws = rng.multinomial(n, (gained, lost, 1 - gained - lost), 2000)
    inside = [low <= gained - lost <= high for low, high in (paired_interval(*map(int, d[:2]), n) for d in draws)]
    assert np.mean(inside) >= 0.935


def test_the_n_that_tells_by_hand_and_by_trial():
    """A fifth differs, 15 % against 5 %: (1.959964 sqrt(0.2) + 0.841621 sqrt(0.19))^2 / 0.01 = 154.06, so 155."""
    assert pairs_needed(15, 5, 100) == pairs_needed(5, 15, 100) == pairs_needed(30, 10, 200) == 155
    assert pairs_needed(4, 4, 100) is None and pairs_needed(0, 0, 9) is None
    assert pairs_needed(1, 0, 100) > 700        # one layout of a hundred
    assert pairs_needed(5, 0, 5) == 6           # 5 of 5 are p = 0.0625: the exact test cannot tell
    draws = np.random.default_rng(4).multinomial(155, (0.15, 0.05, 0.8), 400)
    z = (draws[:, 0] - draws[:, 1]) / np.sqrt(draws[:, 0] + draws[:, 1])
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.8, abs=0.05)


def test_a_winner_needs_the_exact_test():
    same, few, many = [1] * 40, [0] * 5 + [1] * 35, [0] * 15 + [1] * 25
    assert comparison.rate(few, same, True)['verdict'] == comparison.NONE      # p = 0.0625, yet the interval is above 0
    assert comparison.rate(few, same, True)['ci'][0] > 0
    assert comparison.rate(many, same, True)['verdict'] == 'better'
    assert comparison.rate(same, many, True)['verdict'] == 'worse'
    assert comparison.rate(many, same, False)['verdict'] == 'worse'             # more violations


@pytest.mark.parametrize('n', [7, 30, 200])
def test_where_the_interval_holds_0_there_is_no_winner(n):
    for gained in range(min(n, 40) + 1):
        for lost in range(min(gained, n - gained) + 1):
            outcomes = [0] * gained + [1] * lost + [0] * (n - gained - lost), [1] * gained + [0] * (n - gained)
            found = comparison.rate(*outcomes, True)
            assert found['ci'][0] > 0 or found['verdict'] == comparison.NONE, (gained, lost, n)


def test_who_is_compared_and_what_is_said():
    better, none = [1] * 40, [0] * 40
    rows = [row('model', [0] * 12 + [1] * 28, [1] * 4 + [0] * 36), row('model+filter', better, none),
            row('safe', better, none), row('random', none, none), row('safe', better, none),
            row('straight', none, better), row('safe', better, none, first=11), {'task': 'standard', 'phase': 'old'}]
    found = comparison.comparisons(rows)
    assert [(c['phase'], c['against']) for c in found] == [
        ('model+filter', 'model'), ('model+filter', 'safe'), ('model+filter', 'random'), ('model', 'safe'),
        ('model', 'random'), ('straight', 'safe'), ('straight', 'random')]
    assert (found[0]['n'], found[0]['sr']['gained'], found[0]['sr']['verdict']) == (40, 12, 'better')
    assert (found[0]['cv']['lost'], found[0]['cv']['verdict']) == (4, comparison.NONE)
    lines = comparison.text(found).splitlines()
    assert lines[0] == 'standard: model+filter against model on the same 40 layouts'
    assert lines[1].startswith('  SR +30.0 points [') and lines[1].endswith(': better')
    needed = pairs_needed(0, 4, 40)
    assert f'no winner; about {needed} layouts would tell such a difference apart' in lines[2]
    assert 'SR: the same on every layout; no winner' in lines[4] and len(lines) == 21
    swapped = comparison.rate([1, 0], [0, 1], True)
    assert swapped['needed'] is None and 'no n tells' in comparison.words({'sr': swapped}, 'sr')


def test_the_page_compares_rows_of_several_files():
    off = {'through': 'core', 'rows': [row('model', [0] * 12 + [1] * 28, [0] * 40)]}
    on = {'through': 'core', 'rows': [row('model+filter', [1] * 40, [0] * 40)]}
    graph = {'through': 'ros', 'rows': [row('model+filter', [0] * 40, [0] * 40)]}
    page = sections.results([graph, off, on])
    assert page.count('On the same layouts') == 1 and 'SR +30.0 points' in page and 'SR -70' not in page
    assert 'On the same layouts' not in sections.results([on])
