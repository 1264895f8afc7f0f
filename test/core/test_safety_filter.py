# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The decision: stop is the initial state, nothing moves while anything is missing, the most restrictive wins."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fosp_core.safety import filter as module
from fosp_core.safety.candidates import MOST, candidates
from fosp_core.safety.filter import FilterInputs, FilterState, ModelOutput, choose, decide, reset
from fosp_core.safety.limits import FilterLimits, Situation, violations
from fosp_core.safety.reasons import Effect, Reason, most_restrictive

LIMITS = FilterLimits(low=(-0.25,) * 3, high=(0.25,) * 3, period=0.1, staleness=0.25, max_speed=0.3,
                      box_low=(0.3, -0.4, 0.03), box_high=(0.7, 0.4, 0.5))
FRESH = {'camera': 0.01, 'pose': 0.01, 'command': 0.01}
HERE = Situation(np.array([0.5, 0.0, 0.2]))
WANTED = np.array([0.1, 0.05, 0.0])
COMMANDS = arrays(np.float64, 3, elements=st.floats(-5, 5))


def good(**changes):
    return FilterInputs(**{'proposal': WANTED, 'ages': FRESH, 'situation': HERE, 'model_ready': True, **changes})


def answer(inputs, state, risk=0.1, level=0.5, surprise=1.0, **changes):
    made = candidates(inputs.proposal, LIMITS, inputs.situation, state.last, state.path)
    risk = np.broadcast_to(np.asarray(risk, np.float64), len(made.commands))
    return ModelOutput(**{'candidates': made, 'risk': risk, 'surprise': surprise, 'level': level, 'level_slow': 5.0,
                          'level_stop': 9.0, **changes})


def run(ticks, inputs=None, state=None, start=0.0, **output):
    """Decide `ticks` times, 0.1 s apart; return the last command and reason, and the state."""
    inputs, state = inputs or good(), state or FilterState.initial(3)
    for k in range(ticks):
        command, reason, state = decide(inputs, answer(inputs, state, **output), LIMITS, state, start + 0.1 * k)
    return command, reason, state


MOVING = run(30)[2]     # a filter in the middle of good motion, at t = 2.9


def test_stop_is_the_initial_state_then_release_then_ramp():
    state, seen, speeds = FilterState.initial(3), [], []
    assert state.record.reason is Reason.STARTING
    for k in range(12):
        command, reason, state = decide(good(), answer(good(), state), LIMITS, state, 0.1 * k)
        seen.append(reason)
        speeds.append(np.linalg.norm(command))
    assert seen[:3] == [Reason.RELEASING] * 3 and not any(speeds[:3])
    assert seen[3:8] == [Reason.RAMP] * 5 and seen[8:] == [Reason.PASS] * 4
    assert all(a < b for a, b in zip(speeds[2:8], speeds[3:9]))
    np.testing.assert_array_equal(command, WANTED)      # bit for bit: what the learner believes was executed


CAUSES = {
    'estop': ({'estop': True}, Reason.ESTOP), 'no model': ({'model_ready': False}, Reason.NO_MODEL),
    'camera old': ({'ages': {**FRESH, 'camera': 0.26}}, Reason.CAMERA_STALE),
    'camera never': ({'ages': {**FRESH, 'camera': math.inf}}, Reason.CAMERA_STALE),
    'age is NaN': ({'ages': {**FRESH, 'camera': math.nan}}, Reason.CAMERA_STALE),
    'pose old': ({'ages': {**FRESH, 'pose': 0.3}}, Reason.POSE_STALE),
    'command old': ({'ages': {**FRESH, 'command': 0.3}}, Reason.COMMAND_STALE),
    'all silent': ({'ages': {'camera': 9.0, 'pose': 9.0, 'command': 9.0}}, Reason.IDLE),
    'camera unmentioned': ({'ages': {'pose': 0.0, 'command': 0.0}}, Reason.CAMERA_STALE),
    'pose unmentioned': ({'ages': {'camera': 0.0, 'command': 0.0}}, Reason.POSE_STALE),
    'nothing mentioned': ({'ages': {}}, Reason.CAMERA_STALE),
    'NaN command': ({'proposal': (0.1, math.nan, 0)}, Reason.COMMAND_INVALID),
    'Inf command': ({'proposal': (math.inf, 0, 0)}, Reason.COMMAND_INVALID),
    'short command': ({'proposal': (0.1, 0.1)}, Reason.COMMAND_INVALID),
    'long command': ({'proposal': (0.1,) * 6}, Reason.COMMAND_INVALID),
    'frozen': ({'faults': (Reason.CAMERA_FROZEN,)}, Reason.CAMERA_FROZEN),
    'NaN pose': ({'situation': Situation(np.array([0.5, math.nan, 0.2]))}, Reason.POSE_INVALID),
    'outside': ({'situation': Situation(np.array([0.9, 0.0, 0.2]))}, Reason.WORKSPACE_MEASURED),
    'joints of wrong length': ({'situation': Situation(HERE.position, np.zeros(2), np.zeros(2))},
                               Reason.JOINTS_INVALID),
    'late': ({'late': True}, Reason.LATE_HOLD), 'no proposal': ({'proposal': None}, Reason.LATE_HOLD),
}


@pytest.mark.parametrize('cause', CAUSES)
def test_each_cause_stops_at_once_with_its_reason(cause):
    changes, expected = CAUSES[cause]
    inputs = good(**changes)
    command, reason, state = decide(inputs, answer(inputs, MOVING), LIMITS, MOVING, 3.0)
    assert reason is expected and not command.any() and not state.last.any()
    assert state.record.sent == (0.0, 0.0, 0.0) and state.record.reason is expected
    fresh = FilterState.initial(3)
    for k in range(20):     # nor is it ever released from the beginning
        command, reason, fresh = decide(inputs, answer(inputs, fresh), LIMITS, fresh, 0.1 * k)
        assert not command.any() and reason.effect in (Effect.STOP, Effect.HOLD)


@pytest.mark.parametrize('cause', [c for c, (_, r) in CAUSES.items() if not r.latching and r.effect is Effect.STOP])
def test_a_stop_is_left_only_after_a_clean_interval(cause):
    inputs = good(**CAUSES[cause][0])
    _, _, state = decide(inputs, answer(inputs, MOVING), LIMITS, MOVING, 3.0)
    reasons = []
    for k in range(6):
        _, reason, state = decide(good(), answer(good(), state), LIMITS, state, 3.1 + 0.1 * k)
        reasons.append(reason)
    assert reasons[:3] == [Reason.RELEASING] * 3 and Reason.RAMP in reasons


@pytest.mark.parametrize('cause', [c for c in CAUSES if CAUSES[c][1].latching])
def test_a_latch_holds_until_reset_and_reset_needs_the_cause_gone(cause):
    inputs, reason = good(**CAUSES[cause][0]), CAUSES[cause][1]
    _, _, state = decide(inputs, answer(inputs, MOVING), LIMITS, MOVING, 3.0)
    same, refused = reset(inputs, LIMITS, state, 3.05)
    assert refused == (reason,) and same is state
    command, still, state = run(20, state=state, start=3.1)
    assert still is reason and not command.any()            # the cause has gone, the latch has not
    state, refused = reset(good(), LIMITS, state, 6.0)
    assert refused == () and state.latched == ()
    command, first, state = decide(good(), answer(good(), state), LIMITS, state, 6.0)
    assert first is Reason.RELEASING and not command.any()
    command, _, state = run(4, state=state, start=6.1)
    assert 0 < np.linalg.norm(command) < np.linalg.norm(WANTED)     # along the ramp


def test_missing_or_broken_model_answer_stops():
    for output in (None, answer(good(), MOVING, risk=math.nan), answer(good(), MOVING, surprise=math.nan),
                   answer(good(), MOVING, level=math.nan),
                   dataclasses.replace(answer(good(), MOVING), risk=np.zeros(2)),
                   dataclasses.replace(answer(good(), MOVING), risk=np.float64(0.0))):
        command, reason, _ = decide(good(), output, LIMITS, MOVING, 3.0)
        assert reason is Reason.MODEL_FAULT and not command.any()


def test_one_late_tick_holds_three_in_a_row_stop():
    late = good(late=True)
    command, reason, state = decide(late, None, LIMITS, MOVING, 3.0)
    assert reason is Reason.LATE_HOLD and not command.any() and state.released
    command, reason, state2 = decide(good(), answer(good(), state), LIMITS, state, 3.1)
    assert reason is Reason.PASS and command.any()          # no debounce after a single one
    for k in range(2):
        _, reason, state = decide(late, None, LIMITS, state, 3.1 + 0.1 * k)
    assert reason is Reason.REPEATED_LATE and not state.released


def test_eight_late_ticks_among_32_stop_and_are_then_forgotten():
    state = MOVING
    for k in range(32):
        inputs = good(late=k % 3 == 0)
        _, reason, state = decide(inputs, answer(inputs, state), LIMITS, state, 3.0 + 0.1 * k)
        if reason is Reason.REPEATED_LATE:
            break
    assert k == 21      # the eighth late tick
    # What stopped is not held against the next attempt: recovery takes the release and the ramp, no longer.
    assert run(10, state=state, start=7.0)[1] is Reason.PASS


def test_a_late_tick_during_the_release_begins_it_anew():
    state, reasons = FilterState.initial(3), []
    for k in range(7):
        inputs = good(late=k == 2)
        _, reason, state = decide(inputs, answer(inputs, state), LIMITS, state, 0.1 * k)
        reasons.append(reason)
    assert reasons == [Reason.RELEASING] * 2 + [Reason.LATE_HOLD] + [Reason.RELEASING] * 3 + [Reason.RAMP]


def test_surprise_slows_stops_and_latches_when_it_lasts():
    assert run(1, state=MOVING, start=3.0, surprise=6.0)[1] is Reason.PASS      # one spike is nothing
    assert run(1, state=MOVING, start=3.0, surprise=99.0)[1] is Reason.PASS
    command, reason, state = run(2, state=MOVING, start=3.0, surprise=6.0)
    assert reason is Reason.SURPRISE_SLOW
    np.testing.assert_allclose(command, 0.5 * WANTED)
    command, reason, state = run(2, state=MOVING, start=3.0, surprise=10.0)
    assert reason is Reason.SURPRISE_STOP and not command.any() and state.latched == ()
    assert run(10, state=state, start=3.2)[1] in (Reason.RAMP, Reason.PASS)     # it passed: no latch
    command, reason, state = run(21, state=state, start=3.2, surprise=10.0)
    assert reason is Reason.OUT_OF_DISTRIBUTION and state.latched == (Reason.OUT_OF_DISTRIBUTION,)
    assert reset(good(), LIMITS, state, 6.0)[1] == (Reason.OUT_OF_DISTRIBUTION,)
    _, reason, state = run(2, state=state, start=6.0)
    assert reason is Reason.OUT_OF_DISTRIBUTION and reset(good(), LIMITS, state, 6.2)[1] == ()


def test_surprise_without_history_says_nothing():
    first = good(is_first=True)
    _, _, state = decide(first, answer(first, MOVING, surprise=99.0), LIMITS, MOVING, 3.0)
    _, reason, state = decide(good(), answer(good(), state, surprise=99.0), LIMITS, state, 3.1)
    assert state.stop_run == 0 and reason is Reason.PASS
    assert run(2, state=state, start=3.2, surprise=99.0)[1] is Reason.SURPRISE_STOP


def test_is_first_forgets_the_path_and_the_last_command():
    first = good(is_first=True, situation=Situation(np.array([0.4, 0.2, 0.2])))
    assert len(MOVING.path) == 1 and MOVING.last.any()
    _, reason, state = decide(first, answer(first, MOVING), LIMITS, MOVING, 3.0)
    assert len(state.path) == 1 and state.path[0][1] == 0.2 and reason is Reason.PASS


def test_the_reach_of_the_acceleration_is_one_of_time():
    limits = dataclasses.replace(LIMITS, max_acceleration=0.5, ramp=0.0)
    wanted = (0.2, 0.0, 0.0)
    for passed, reach in ((0.1, 0.05), (0.033, 0.0165), (0.4, 0.05), (0.0, 0.0)):
        state = dataclasses.replace(MOVING, last=np.zeros(3), sent_at=3.0)
        inputs = good(proposal=wanted)
        command, reason, after = decide(inputs, answer(inputs, state), limits, state, 3.0 + passed)
        assert np.linalg.norm(command) == pytest.approx(reach, abs=1e-6) and after.sent_at == 3.0 + passed
        assert reason is Reason.LIMIT_ACCELERATION


def risks(**by_label):
    """Risk per candidate of the good situation, 0.9 unless its label is named."""
    made = candidates(WANTED, LIMITS, HERE, MOVING.last, PATH)
    return np.array([by_label.get(label.word.removeprefix('risk_'), 0.9) for label in made.labels])


PATH = tuple(np.array([0.5 - 0.03 * k, 0.0, 0.2]) for k in (3, 2, 1, 0))
BACKED = dataclasses.replace(MOVING, path=PATH)


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


ANYTHING = st.one_of(st.none(), COMMANDS, st.lists(st.floats(allow_nan=True), max_size=5),
                     arrays(np.float64, 3, elements=st.sampled_from([0.1, math.nan, math.inf, -0.2])))
AGES = st.one_of(st.floats(0, 0.2), st.floats(0, 2), st.sampled_from([math.inf, math.nan]))
INPUTS = st.builds(
    FilterInputs, ANYTHING, st.fixed_dictionaries({'camera': AGES, 'pose': AGES, 'command': AGES}),
    st.builds(Situation, st.one_of(st.none(), arrays(np.float64, 3, elements=st.floats(0.0, 0.7)))),
    st.lists(st.sampled_from([Reason.CAMERA_FROZEN, Reason.POSE_JUMP]), max_size=1).map(tuple),
    estop=st.sampled_from([False, False, False, True]), model_ready=st.sampled_from([True, True, True, False]),
    late=st.sampled_from([False, False, False, True]), is_first=st.booleans(),
    enabled=st.sampled_from([True, True, False]))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(INPUTS, arrays(np.float64, 20, elements=st.floats(0, 1)), st.floats(0, 12),
                          st.booleans()), min_size=1, max_size=8), st.booleans())
def test_whatever_comes_nothing_unproved_moves_and_no_limit_is_exceeded(ticks, moving):
    state, now = (MOVING if moving else FilterState.initial(3)), 3.0
    for inputs, risk, surprise, has_model in ticks:
        now += 0.1
        output = None
        if has_model:
            output = answer(inputs, state, surprise=surprise)
            output = dataclasses.replace(output, risk=risk[:len(output.candidates.commands)])
        before = state
        command, reason, state = decide(inputs, output, LIMITS, state, now)
        assert command.shape == (3,) and np.isfinite(command).all()
        last = np.zeros(3) if inputs.is_first else before.last
        assert not violations(command, LIMITS, inputs.situation, last)
        stale = any(not age <= LIMITS.staleness for age in inputs.ages.values())
        unproved = (stale or state.latched or inputs.estop or inputs.late or inputs.faults or before.latched
                    or (inputs.enabled and not inputs.model_ready) or (inputs.enabled and output is None)
                    or not state.released or inputs.proposal is None
                    or np.shape(inputs.proposal) != (3,) or not np.isfinite(inputs.proposal).all())
        if unproved:
            assert not command.any()
        if command.any():
            assert reason.effect in (Effect.ALTER, Effect.PASS)
        assert reason is most_restrictive(state.record.rules)
        assert set(before.latched) <= set(state.latched)
        np.testing.assert_array_equal(state.last, command)


@settings(max_examples=100, deadline=None)
@given(COMMANDS, arrays(np.float64, 20, elements=st.floats(0, 1)), st.floats(0, 1))
def test_filtering_what_was_filtered_changes_nothing(proposal, risk, level):
    """With risk a function of the command alone, the sent command proposed again passes."""
    def model(inputs, state):
        output = answer(inputs, state, level=level)
        fresh = np.abs(output.candidates.commands @ risk[:3]) % 1.0
        return dataclasses.replace(output, risk=fresh)
    inputs = good(proposal=proposal)
    sent, reason, _ = decide(inputs, model(inputs, MOVING), LIMITS, MOVING, 3.0)
    assume(reason is not Reason.RISK_LEAST)
    again = good(proposal=sent)
    twice, _, _ = decide(again, model(again, MOVING), LIMITS, MOVING, 3.0)
    np.testing.assert_allclose(twice, sent, atol=1e-9)


def test_every_stop_cause_together_reports_the_most_restrictive():
    inputs = good(estop=True, model_ready=False, ages={**FRESH, 'camera': 9.0, 'command': 9.0}, late=True,
                  faults=(Reason.POSE_JUMP,), proposal=(math.nan,) * 3)
    _, reason, state = decide(inputs, None, LIMITS, MOVING, 3.0)
    assert reason is Reason.ESTOP
    assert {Reason.NO_MODEL, Reason.CAMERA_STALE, Reason.COMMAND_STALE, Reason.POSE_JUMP,
            Reason.COMMAND_INVALID} <= set(state.record.rules)


def test_switched_off_means_limits_only_and_says_so():
    inputs = good(enabled=False, model_ready=False, proposal=(0.25, 0.25, 0.25))
    command, reason, state = decide(inputs, None, LIMITS, MOVING, 3.0)
    assert reason is Reason.LIMIT_SPEED and Reason.LIMITS_ONLY in state.record.rules
    assert np.linalg.norm(command) == pytest.approx(0.3)
    assert decide(good(enabled=False), None, LIMITS, MOVING, 3.0)[1] is Reason.LIMITS_ONLY
    assert decide(good(enabled=False, estop=True), None, LIMITS, MOVING, 3.0)[1] is Reason.ESTOP


def test_a_fault_of_our_own_latches(monkeypatch):
    monkeypatch.setattr(module, 'apply_limits', lambda command, *rest: (command, ()))
    inputs = good(proposal=(0.25, 0.25, 0.25))
    output = dataclasses.replace(answer(inputs, MOVING))
    output.candidates.commands[0] = (0.25, 0.25, 0.25)
    command, reason, state = decide(inputs, output, LIMITS, MOVING, 3.0)
    assert reason is Reason.INTERNAL_FAULT and not command.any() and state.latched == (Reason.INTERNAL_FAULT,)


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
