# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The sequential test behind the automatic rollback: its error rates by simulation, and what it counts."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fosp_core.deploy.rollback import KEPT, REJECTED, UNKNOWN, WATCHING, Sprt, Trial, TrialOptions, alternative
from fosp_core.paths import share_dir

ALPHA, BETA, RUNS = 0.05, 0.1, 2000


def outcome_of(rate, base, raised, rng, most=20000):
    test = Sprt(base, raised, ALPHA, BETA)
    for n, hit in enumerate(rng.random(most) < rate, 1):
        if test.add(bool(hit)) != WATCHING:
            return test.state, n
    raise AssertionError('no decision')


@pytest.mark.parametrize(('base', 'raised'), [(0.02, 0.1), (0.1, 0.2), (0.3, 0.6), (0.7, 0.85)])
def test_error_rates_are_as_stated(base, raised):
    """Wald's bounds, with three standard errors of the simulation; and the test is of use: it does err."""
    rng = np.random.default_rng(0)
    false, ends = zip(*[(s == REJECTED, n) for s, n in (outcome_of(base, base, raised, rng) for _ in range(RUNS))])
    missed = [outcome_of(raised, base, raised, rng)[0] == KEPT for _ in range(RUNS)]
    for errors, bound in ((false, ALPHA / (1 - BETA)), (missed, BETA / (1 - ALPHA))):
        assert bound / 5 < np.mean(errors) < bound + 3 * math.sqrt(bound / RUNS)
    # Wald's expected length under the base rate, from below: overshoot makes it a little longer.
    low, high = math.log(BETA / (1 - ALPHA)), math.log((1 - BETA) / ALPHA)
    step = base * math.log(raised / base) + (1 - base) * math.log((1 - raised) / (1 - base))
    expected = ((1 - ALPHA) * low + ALPHA * high) / step
    assert 0.9 * expected < np.mean(ends) < 1.6 * expected + 2


def test_a_lower_rate_is_hardly_ever_rejected_and_a_higher_one_hardly_ever_kept():
    rng = np.random.default_rng(1)
    assert np.mean([outcome_of(0.05, 0.1, 0.2, rng)[0] == REJECTED for _ in range(500)]) < 0.01
    assert np.mean([outcome_of(0.4, 0.1, 0.2, rng)[0] == KEPT for _ in range(500)]) < 0.01


@given(st.floats(0.01, 0.995), st.floats(1.1, 100.0), st.floats(0.01, 0.5))
@settings(deadline=None)
def test_the_alternative_lies_between_the_base_and_one(base, ratio, floor):
    raised = alternative(base, ratio, floor)
    assert base < raised < 1.0
    if raised < min(ratio * base, (1 + base) / 2) * (1 - 1e-12):
        pytest.fail('a smaller rise than asked for')
    Sprt(base, raised, ALPHA, BETA)


@given(st.lists(st.booleans(), min_size=1, max_size=300))
@settings(deadline=None)
def test_the_verdict_is_the_likelihood_ratio_s(outcomes):
    test, ratio = Sprt(0.2, 0.4, ALPHA, BETA), 0.0
    for hit in outcomes:
        before, state = test.state, test.add(hit)
        if before != WATCHING:
            assert state == before
            continue
        ratio += math.log(0.4 / 0.2) if hit else math.log(0.6 / 0.8)
        assert test.ratio == pytest.approx(ratio)
        assert (state == REJECTED) == (ratio >= math.log(0.9 / 0.05))
        assert (state == KEPT) == (ratio <= math.log(0.1 / 0.95))


@pytest.mark.parametrize('arguments', [(0.2, 0.2, 0.1, 0.1), (0.0, 0.2, 0.1, 0.1), (0.2, 1.0, 0.1, 0.1),
                                       (0.2, 0.4, 0.0, 0.1), (0.2, 0.4, 0.5, 0.5)])
def test_impossible_questions_are_refused(arguments):
    with pytest.raises(ValueError, match='expected'):
        Sprt(*arguments)


OPTIONS = TrialOptions(block=4, min_blocks=10, max_blocks=50)


def feed(trial, version, blocks, every=0, word='risk_hold'):
    """Give whole blocks; each `every`-th has one intervention. Returns the verdicts that were given."""
    verdicts = []
    for k in range(blocks):
        for tick in range(4):
            verdicts.append(trial.tick(version, word if every and k % every == 0 and tick == 1 else 'ok'))
    return [v for v in verdicts if v]


def started(every=10, blocks=20, **options):
    trial = Trial(TrialOptions(**{**OPTIONS.__dict__, **options}))
    feed(trial, 'v1', blocks, every)
    return trial


def test_a_rise_is_rejected_once_and_a_rate_that_stays_is_kept():
    trial = started()
    assert trial.begin('v2', 'v1') == WATCHING
    assert trial.base == pytest.approx(2.5 / 21) and trial.raised == pytest.approx(5 / 21)
    assert feed(trial, 'v2', 20, 1) == [REJECTED] and trial.state == REJECTED
    assert trial.hits == trial.blocks == 5      # 5 log 2 >= log 18 > 4 log 2
    assert (trial.parent, trial.values()['trial']) == ('v1', 'rejected')
    trial = started()
    trial.begin('v2', 'v1')
    assert feed(trial, 'v2', 49) == [] and trial.state == KEPT


def test_ticks_of_other_versions_do_not_count():
    """The filter swaps after the trainer: until then it is the old model that is heard."""
    trial = started()
    trial.begin('v2', 'v1')
    assert feed(trial, 'v1', 30, 1) == feed(trial, '', 30, 1) == [] and trial.state == WATCHING and trial.blocks == 0
    assert feed(trial, 'v2', 5, 1) == [REJECTED]


@pytest.mark.parametrize(('word', 'counts', 'hits'), [
    ('ok', True, False), ('limit_speed', True, False), ('ramp', True, False), ('risk_scaled', True, True),
    ('risk_least', True, True), ('surprise_slow', True, True), ('surprise_stop', True, True), ('idle', False, False),
    ('estop', False, False), ('late_hold', False, False), ('out_of_distribution', False, False),
    ('releasing', False, False), ('no such word', False, False)])
def test_what_counts(word, counts, hits):
    trial = started()
    trial.begin('v2', 'v1')
    for _ in range(4):
        trial.tick('v2', word)
    assert (trial.blocks, trial.hits) == (int(counts), int(hits))


def test_too_little_before_the_swap_is_not_tested_and_says_so():
    trial = started(blocks=9)
    assert trial.begin('v2', 'v1') == UNKNOWN
    assert trial.values()['trial'] == 'not watched: 9 blocks before the swap, expected at least 10'
    assert feed(trial, 'v2', 100, 1) == []
    assert Trial(OPTIONS).begin('v2', 'v1') == UNKNOWN and Trial(OPTIONS).values() == {}


def test_an_undecided_parent_is_no_yardstick():
    """A raised rate must not become the one that the next model is measured by."""
    trial = started()
    trial.begin('v2', 'v1')
    base = trial.base
    feed(trial, 'v2', 12, 6)
    assert trial.state == WATCHING
    assert trial.begin('v3', 'v2') == WATCHING and trial.base == base and trial.blocks == 0
    feed(trial, 'v3', 49)
    assert trial.state == KEPT
    assert trial.begin('v4', 'v3') == WATCHING and trial.base < base


def test_back_from_a_rejected_child_the_trial_of_the_undecided_parent_goes_on():
    """It once was never watched again: a bad model got away as soon as a worse one had been tried."""
    trial = started()
    trial.begin('v2', 'v1')
    feed(trial, 'v2', 3, 1)
    before = trial.values()
    assert (before['trial'], trial.blocks, trial.hits) == ('watching', 3, 3)
    trial.begin('v3', 'v2')
    feed(trial, 'v3', 1)
    assert trial.begin('v4', 'v3') == WATCHING
    assert feed(trial, 'v4', 5, 1) == [REJECTED]
    assert trial.back('v3', 'rolled back to v3') == WATCHING and (trial.version, trial.blocks) == ('v3', 1)
    feed(trial, 'v4', 30, 1)        # live until the filter has swapped
    assert feed(trial, 'v3', 6, 1) == [REJECTED]
    assert trial.back('v2', 'rolled back to v2') == WATCHING and trial.values() == before
    assert feed(trial, 'v2', 2, 1) == [REJECTED] and (trial.parent, trial.blocks) == ('v1', 5)
    assert trial.back('v1', 'rolled back to v1') == REJECTED, 'v1 was never on trial'


def test_back_from_a_version_that_was_decided_nothing_is_watched():
    trial = started()
    trial.begin('v2', 'v1')
    feed(trial, 'v2', 49)
    assert trial.state == KEPT and trial.begin('v3', 'v2') == WATCHING
    assert trial.back('v2', 'rolled back to v2') == UNKNOWN
    assert trial.values()['trial'] == 'not watched: rolled back to v2'


def test_what_stays_undecided_is_kept_at_the_limit_and_a_foreign_change_ends_the_trial():
    trial = started(max_blocks=10)
    trial.begin('v2', 'v1')
    assert feed(trial, 'v2', 9, 5) == [] and trial.state == WATCHING
    feed(trial, 'v2', 1)
    assert (trial.state, trial.why) == (KEPT, 'undecided after 10 blocks')
    trial = started()
    trial.begin('v2', 'v1')
    trial.end('rolled back to v1')
    assert trial.values()['trial'] == 'not watched: rolled back to v1' and feed(trial, 'v2', 20, 1) == []


def share_rolled_back(before, blocks, after, rng, runs=400):
    """Simulate swaps: `blocks` blocks of rate `before` with the old model, then rate `after` with the new one."""
    count = 0
    for _ in range(runs):
        trial = Trial(TrialOptions(block=1, min_blocks=5, max_blocks=300))
        for version, rate, number in (('v1', before, blocks), ('v2', after, 300)):
            if version == 'v2':
                trial.begin('v2', 'v1')
            for hit in rng.random(number) < rate:
                trial.tick(version, 'risk_hold' if hit else 'ok')
        count += trial.state == REJECTED
    return count / runs


def test_what_an_estimated_rate_makes_of_the_error_rates_is_what_the_page_says():
    rng = np.random.default_rng(2)
    page = (share_dir() / 'docs' / 'explanation' / 'gates.md').read_text()
    shares = {}
    for blocks in (30, 60, 200):
        shares[blocks] = share_rolled_back(0.1, blocks, 0.1, rng), share_rolled_back(0.1, blocks, 0.2, rng)
        assert f'| {blocks} | {shares[blocks][0]:.1%} | {shares[blocks][1]:.1%} |' in page
    assert shares[200][0] < 0.1 < shares[30][0] and shares[30][1] < shares[200][1]
