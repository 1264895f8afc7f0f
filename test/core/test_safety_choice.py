# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Among the candidates: which one is sent, what raises the alert, and how the candidates are made."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safety_tick import COMMANDS, FRESH, HERE, LIMITS, MOVING, PATH, WANTED, answer, good, run

from fosp_core.safety import filter as module
from fosp_core.safety.candidates import MOST, candidates
from fosp_core.safety.filter import FilterState, ModelOutput, choose, decide, reset
from fosp_core.safety.limits import Situation, violations
from fosp_core.safety.reasons import STAGES, Reason

BACKED = dataclasses.replace(MOVING, path=PATH)


def risks(**by_label):
    """Risk per candidate of the good situation, 0.9 unless its label is named."""
    made = candidates(WANTED, LIMITS, HERE, MOVING.last, PATH)
    return np.array([by_label.get(label.word.removeprefix('risk_'), 0.9) for label in made.labels])


@pytest.mark.parametrize(('low', 'expected', 'command'), [
    ({'ok': 0.1, 'scaled': 0.1, 'hold': 0.1}, Reason.PASS, WANTED),
    ({'scaled': 0.1, 'hold': 0.1}, Reason.RISK_SCALED, 0.75 * WANTED),
    ({'hold': 0.1, 'retreat': 0.1}, Reason.RISK_HOLD, 0 * WANTED),
    ({'retreat': 0.1}, Reason.RISK_RETREAT, np.array([-0.1, 0, 0])),
    ({'retreat': 0.6}, Reason.RISK_LEAST, np.array([-0.1, 0, 0])),
])
def test_the_nearest_candidate_within_the_level_is_sent(low, expected, command):
    output = dataclasses.replace(answer(good(), BACKED), risk=risks(**low))
    sent, reason, state = decide(good(), output, LIMITS, BACKED, 3.0)
    assert reason is expected
    np.testing.assert_allclose(sent, command, atol=1e-12)
    assert state.interventions == (expected is not Reason.PASS)
    assert state.record.risk_nominal == low.get('ok', 0.9)
    assert state.record.level == pytest.approx(0.5 if 'ok' in low else 0.5 * LIMITS.alert_factor)


def risky(state, now, nominal, others=0.05, limits=LIMITS, **changes):
    """One tick whose proposal has the risk `nominal`, the other candidates `others`; level 0.5, alert level 0.1."""
    inputs = good(**changes)
    output = answer(inputs, state)
    risk = np.full(len(output.risk), others)
    risk[0] = nominal
    return decide(inputs, dataclasses.replace(output, risk=risk), limits, state, now)


def test_once_too_risky_a_proposal_must_be_clearly_safe_until_the_alert_is_over():
    assert risky(MOVING, 3.0, 0.49)[1] is Reason.PASS
    _, reason, state = risky(MOVING, 3.0, 0.51)
    assert reason is Reason.RISK_SCALED and state.alert_until == pytest.approx(4.0)
    _, reason, state = risky(state, 3.1, 0.11)      # within the level, yet not clearly
    assert reason is Reason.RISK_SCALED and state.alert_until == pytest.approx(4.0)
    assert state.record.level == pytest.approx(0.1) and state.interventions == MOVING.interventions + 2
    assert risky(state, 3.2, 0.09)[1] is Reason.PASS
    assert risky(state, 3.99, 0.11)[1] is Reason.RISK_SCALED
    assert risky(state, 4.0, 0.11)[1] is Reason.PASS
    assert risky(state, 3.9, 0.51)[2].alert_until == pytest.approx(4.9)


def test_while_alert_the_others_must_be_clearly_safe_too():
    # Nobody is: the least risky one goes out, and is named so, though it is within the calibrated level.
    _, reason, state = risky(MOVING, 3.0, 0.6, others=0.2)
    assert reason is Reason.RISK_LEAST and state.record.risk == 0.2
    _, reason, state = risky(state, 3.1, 0.15, others=0.2)
    assert reason is Reason.RISK_LEAST and state.record.risk == 0.15
    assert risky(MOVING, 3.0, 0.6, others=0.55)[1] is Reason.RISK_LEAST
    made = candidates(WANTED, LIMITS, HERE, MOVING.last, MOVING.path)
    risk = np.linspace(0.4, 0.05, len(made.commands))
    risk[0] = 0.6
    output = ModelOutput(made, risk, 1.0, 0.5, 5.0, 9.0)
    _, _, state = decide(good(), output, LIMITS, MOVING, 3.0)
    assert state.record.risk <= 0.1


def test_a_tick_that_is_late_or_held_raises_the_alert_too():
    for changes in ({'late': True}, {'proposal': None}, {'faults': (Reason.POSE_JUMP,)}):
        inputs = good(**changes)
        state = decide(inputs, answer(good(), MOVING, risk=0.9), LIMITS, MOVING, 3.0)[2]
        assert state.alert_until == pytest.approx(4.0), changes
    state = decide(good(late=True), None, LIMITS, MOVING, 3.0)[2]
    assert state.alert_until == -math.inf


def test_a_new_episode_ends_the_alert_and_so_do_the_parameters():
    _, _, state = risky(MOVING, 3.0, 0.51)
    assert risky(state, 3.1, 0.11, is_first=True)[2].alert_until == -math.inf
    for off in ({'alert_factor': 1.0}, {'alert_hold': 0.0}):
        limits = dataclasses.replace(LIMITS, **off)
        _, reason, state = risky(MOVING, 3.0, 0.51, others=0.4, limits=limits)
        assert reason is Reason.RISK_SCALED and state.record.level == 0.5, off
        assert risky(state, 3.1, 0.49, limits=limits)[1] is Reason.PASS


def test_the_least_risky_proposal_is_no_intervention():
    _, reason, state = decide(good(), answer(good(), MOVING, risk=0.9), LIMITS, MOVING, 3.0)
    assert reason is Reason.RISK_LEAST and state.interventions == 0


def altered(inputs, output, state=MOVING, limits=LIMITS):
    record = decide(inputs, output, limits, state, 3.0)[2].record
    return record.altered, record.reason


def test_each_altered_command_is_counted_under_the_stage_that_altered_it():
    """Counting the risk alone hides what the filter does: of 542 commands of unseen4 it changed none, limits 291."""
    assert altered(good(), answer(good(), MOVING)) == ('', Reason.PASS)
    inputs, far = good(), dataclasses.replace(answer(good(), MOVING), risk=risks(scaled=0.1, hold=0.1))
    assert altered(inputs, dataclasses.replace(far, candidates=answer(inputs, BACKED).candidates), BACKED)[0] == 'risk'
    slowed = dataclasses.replace(MOVING, slow_run=9, ticks_since_first=99)
    assert altered(good(), answer(good(), slowed, surprise=6.0), slowed) == ('surprise', Reason.SURPRISE_SLOW)
    fast = good(proposal=np.array([9.0, 0.0, 0.0]))
    word, reason = altered(fast, answer(fast, MOVING))
    assert word == 'limits' and reason.word.startswith('limit_')
    assert altered(good(estop=True), answer(good(), MOVING)) == ('stopped', Reason.ESTOP)
    assert altered(good(late=True), None) == ('stopped', Reason.LATE_HOLD)
    assert altered(good(proposal=np.array([np.nan, 0.0, 0.0])), None) == ('stopped', Reason.COMMAND_INVALID)
    # Nothing was proposed, or it was zero already: no command was altered.
    assert altered(good(proposal=None), None) == ('', Reason.LATE_HOLD)
    assert altered(good(proposal=np.zeros(3), estop=True), None) == ('', Reason.ESTOP)
    # The least risky one is the proposal itself: the risk altered nothing, but a limit may have.
    assert altered(good(), answer(good(), MOVING, risk=0.9)) == ('', Reason.RISK_LEAST)
    assert altered(fast, answer(fast, MOVING, risk=0.9)) == ('limits', Reason.RISK_LEAST)
    assert {r.stage for r in Reason} == {*STAGES, ''}


def test_the_path_from_before_a_stop_is_forgotten():
    _, _, state = decide(good(estop=True), None, LIMITS, BACKED, 3.0)
    assert len(state.path) == len(PATH)
    state, _ = reset(good(), LIMITS, state, 3.1)
    assert state.path == ()
    stale = good(ages={**FRESH, 'camera': 9.0})
    _, _, state = decide(stale, None, LIMITS, BACKED, 3.0)
    assert len(run(4, state=state, start=3.1)[2].path) == 1


def test_least_risky_breaks_ties_towards_the_proposal():
    assert choose(np.full(4, 0.9), np.arange(4.0)[:, None], 0.5) == 0
    assert choose(np.array([0.9, 0.9, 0.8, 0.8]), np.arange(4.0)[:, None], 0.5) == 2
    assert choose(np.array([0.9, 0.5, 0.2]), np.array([[0.0], [1.0], [-1.0]]), 0.5) == 2  # equally near: less risk


def test_a_proposal_within_the_level_passes_even_if_another_candidate_equals_it_at_a_lower_risk():
    assert choose(np.array([0.4, 0.1, 0.2]), np.array([[1.0], [0.5], [1.0]]), 0.5) == 0


def test_a_level_finer_than_float32_is_not_rounded():
    risk = np.array([0.3, 0.1], np.float32)
    below = float(np.nextafter(np.float64(risk[0]), 0))
    assert choose(risk, np.array([[1.0], [0.0]]), below) == 1
    assert choose(risk, np.array([[1.0], [0.0]]), float(risk[0])) == 0


@settings(max_examples=100, deadline=None)
@given(arrays(np.float64, (9, 3), elements=st.floats(-0.25, 0.25)), arrays(np.float64, 9, elements=st.floats(0, 1)),
       arrays(np.float64, 9, elements=st.floats(0, 1)), st.floats(0, 1))
def test_monotone_in_risk(commands, risk, more, level):
    """More risk never brings the command nearer to the proposal, unless nothing is within the level any more."""
    higher = np.minimum(risk + more, 1.0)
    before, after = choose(risk, commands, level), choose(higher, commands, level)
    distance = np.linalg.norm(commands - commands[0], axis=1)
    if (higher <= level).any():
        assert distance[after] >= distance[before]
        assert risk[before] <= level and higher[after] <= level
    else:
        assert higher[after] == higher.min()
    # A lower level likewise.
    lower = choose(risk, commands, level / 2)
    if (risk <= level / 2).any():
        assert distance[lower] >= distance[before]


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.none(), COMMANDS), arrays(np.float64, 3, elements=st.floats(0.3, 0.5)))
def test_candidates_are_few_within_limits_and_begin_with_the_proposal(proposal, position):
    situation = Situation(position)
    made = candidates(proposal, LIMITS, situation, MOVING.last, PATH)
    assert len(made.commands) == len(made.labels) <= MOST - 1       # one place is left for the offline policy
    for command in made.commands:
        assert not violations(command, LIMITS, situation, MOVING.last)
    assert made.labels[0] is Reason.PASS and Reason.RISK_HOLD in made.labels
    assert not made.commands[made.labels.index(Reason.RISK_HOLD)].any()
    assert len(made.with_command(np.zeros(3), Reason.RISK_OFFLINE).commands) <= MOST


def test_retreat_goes_back_along_the_path():
    made = candidates(WANTED, LIMITS, HERE, MOVING.last, PATH)
    np.testing.assert_allclose(made.commands[made.labels.index(Reason.RISK_RETREAT)], (-0.1, 0, 0))
    bent = (np.array([0.5, 0.2, 0.2]), np.array([0.44, 0.0, 0.2]), HERE.position)
    made = candidates(WANTED, LIMITS, HERE, MOVING.last, bent)
    np.testing.assert_allclose(made.commands[made.labels.index(Reason.RISK_RETREAT)], (-0.1, 0, 0))
    near = (np.array([0.501, 0.0, 0.2]),)
    assert Reason.RISK_RETREAT not in candidates(WANTED, LIMITS, HERE, MOVING.last, near).labels
    assert Reason.RISK_RETREAT not in candidates(WANTED, LIMITS, Situation(), MOVING.last, PATH).labels


def test_the_path_is_bounded_and_skips_rest():
    state = FilterState.initial(3)
    for k in range(60):
        inputs = good(situation=Situation(np.array([0.3 + 0.005 * (k // 2), 0.0, 0.2])))
        _, _, state = decide(inputs, answer(inputs, state), LIMITS, state, 0.1 * k)
    assert len(state.path) == module.PATH_LENGTH
    assert all(np.linalg.norm(a - b) > 1e-3 for a, b in zip(state.path, state.path[1:]))
