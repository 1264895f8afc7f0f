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
from safety_tick import COMMANDS, FRESH, HERE, LIMITS, MOVING, WANTED, answer, good, run

from fosp_core.safety import filter as module
from fosp_core.safety.filter import FilterInputs, FilterState, decide, reset
from fosp_core.safety.limits import Situation, violations
from fosp_core.safety.reasons import Effect, Reason, most_restrictive


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


def test_is_first_forgets_the_path_and_not_what_the_arm_goes_on_with():
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
        assert not violations(command, LIMITS, inputs.situation, before.last)
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


@pytest.mark.parametrize(('change', 'reason'), [
    ({}, Reason.VERSIONS_DIFFER), ({'enabled': False}, Reason.LIMITS_ONLY), ({'estop': True}, Reason.ESTOP),
    ({'late': True}, Reason.LATE_HOLD), ({'enabled': False, 'proposal': (0.25,) * 3}, Reason.LIMIT_SPEED)])
def test_a_learner_of_another_version_is_told_and_changes_nothing(change, reason):
    """It stands beside the cause of a stop, too, and is the reason only where the proposal passes unchanged."""
    inputs = good(**change)
    agreed = decide(inputs, answer(inputs, MOVING), LIMITS, MOVING, 3.0)
    command, told, state = decide(dataclasses.replace(inputs, versions_differ=True), answer(inputs, MOVING), LIMITS,
                                  MOVING, 3.0)
    assert (command == agreed[0]).all() and told is reason
    assert state.record.rules == (*agreed[2].record.rules, Reason.VERSIONS_DIFFER)
    assert Reason.VERSIONS_DIFFER not in agreed[2].record.rules
    assert state.released == agreed[2].released and state.latched == agreed[2].latched


def test_a_fault_of_our_own_latches(monkeypatch):
    monkeypatch.setattr(module, 'apply_limits', lambda command, *rest: (command, ()))
    inputs = good(proposal=(0.25, 0.25, 0.25))
    output = dataclasses.replace(answer(inputs, MOVING))
    output.candidates.commands[0] = (0.25, 0.25, 0.25)
    command, reason, state = decide(inputs, output, LIMITS, MOVING, 3.0)
    assert reason is Reason.INTERNAL_FAULT and not command.any() and state.latched == (Reason.INTERNAL_FAULT,)
