# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Where exactly each rule of the decision begins: on the border, one tick before, and when something is not there.

Made for the mutants that outlived the other tests (`make mutation`).
"""

import dataclasses
import math

import numpy as np
import pytest

from fosp_core.safety import filter as module
from fosp_core.safety.calibration import SURPRISE_SKIP, SURPRISE_TICKS
from fosp_core.safety.candidates import Candidates, candidates
from fosp_core.safety.filter import LATE_MANY, LATE_RUN, LATE_WINDOW, FilterInputs, FilterState, ModelOutput, decide
from fosp_core.safety.freshness import DIGESTS, FrozenPicture, Source
from fosp_core.safety.limits import FilterLimits, Situation, apply_limits, measured_faults
from fosp_core.safety.reasons import Reason

LIMITS = FilterLimits(low=(-0.25,) * 3, high=(0.25,) * 3, period=0.1, staleness=0.25, max_speed=0.3, release=0.0,
                      ramp=0.0, box_low=(0.3, -0.4, 0.03), box_high=(0.7, 0.4, 0.5), latch_after=2.0)
JOINTED = dataclasses.replace(LIMITS, joint_names=('a', 'b'), joint_low=(-2.0, -1.0), joint_high=(2.0, 1.0),
                              joint_speed=(2.0, 1.5))
FREE = dataclasses.replace(LIMITS, box_low=(), box_high=())
FRESH = {'camera': 0.01, 'pose': 0.01, 'command': 0.01}
HERE, JOINTED_HERE = (Situation(np.array([0.5, 0.0, 0.2]), *joints) for joints in ((), (np.zeros(2), np.zeros(2))))
WANTED = np.array([0.1, 0.05, 0.0])


def good(**changes):
    return FilterInputs(**{'proposal': WANTED, 'ages': FRESH, 'situation': HERE, 'model_ready': True, **changes})


def answer(inputs, state, limits=LIMITS, **changes):
    made = candidates(inputs.proposal, limits, inputs.situation, state.last, state.path)
    return ModelOutput(**{'candidates': made, 'risk': np.full(len(made.commands), 0.1), 'surprise': 1.0, 'level': 0.5,
                          'level_slow': 5.0, 'level_stop': 9.0, **changes})


def tick(inputs, state, now, limits=LIMITS, output=True, **changes):
    """Decide once; return the command, the reason and the state."""
    given = answer(inputs, state, limits, **changes) if output is True else output
    return decide(inputs, given, limits, state, now)


def run(ticks, state=None, start=0.0, **changes):
    state = state or FilterState.initial(3)
    for k in range(ticks):
        command, reason, state = tick(good(), state, start + 0.1 * k, **changes)
    return command, reason, state


MOVING = run(12)[2]     # at t = 1.1


# -- what is there ----------------------------------------------------------------------------------------------------
def test_an_age_is_stale_beyond_the_limit_and_not_at_it():
    for kind in FRESH:
        assert tick(good(ages={**FRESH, kind: 0.25}), MOVING, 1.2)[1] is Reason.PASS
        assert tick(good(ages={**FRESH, kind: 0.2500001}), MOVING, 1.2)[1].word == f'{kind}_stale'


def test_it_is_idle_when_nothing_is_observed_though_somebody_proposes():
    assert tick(good(ages={'camera': 9.0, 'pose': 9.0, 'command': 0.0}), MOVING, 1.2)[1] is Reason.IDLE
    assert tick(good(ages={'camera': 9.0, 'pose': 0.0, 'command': 9.0}), MOVING, 1.2)[2].record.rules == (
        Reason.CAMERA_STALE, Reason.COMMAND_STALE)


def test_what_a_limit_needs_must_be_mentioned_and_what_none_needs_need_not():
    joints = {**FRESH, 'joints': 0.0}
    assert tick(good(situation=JOINTED_HERE, ages=joints), MOVING, 1.2, JOINTED)[1] is Reason.PASS
    assert tick(good(situation=JOINTED_HERE), MOVING, 1.2, JOINTED)[1] is Reason.JOINTS_STALE
    without = good(ages={'camera': 0.0, 'command': 0.0})
    assert tick(without, MOVING, 1.2)[1] is Reason.POSE_STALE and tick(without, MOVING, 1.2, FREE)[1] is Reason.PASS


@pytest.mark.parametrize('joints', [
    (np.array([0.0, math.nan]), np.zeros(2)), (np.zeros(2), np.array([math.inf, 0.0])), (np.zeros(3), np.zeros(2)),
    (np.zeros(2), np.zeros(1))])
def test_joints_must_be_numbers_and_as_many_as_are_guarded(joints):
    inputs = good(situation=Situation(HERE.position, *joints), ages={**FRESH, 'joints': 0.0})
    assert tick(inputs, MOVING, 1.2, JOINTED, answer(good(), MOVING))[1] is Reason.JOINTS_INVALID


def test_measured_faults_begin_beyond_the_margin():
    def faults(position=(0.5, 0.0, 0.2), joints=(0.0, 0.0), speed=(0.0, 0.0)):
        return measured_faults(JOINTED, Situation(np.array(position), np.array(joints), np.array(speed)))
    low, high = -2.0 - JOINTED.joint_margin, 2.0 + JOINTED.joint_margin
    fast = 1.2 * 2.0
    left, right = (np.array(JOINTED.box_low) - JOINTED.box_margin)[0], (np.array(JOINTED.box_high) + 0.05)[0]
    for name, border in (('joints', low), ('joints', high), ('speed', fast), ('speed', -fast)):
        assert faults(**{name: (border, 0.0)}) == ()
        assert faults(**{name: (np.nextafter(border, 9.0 * border), 0.0)}) == (Reason.JOINT_LIMIT_MEASURED,)
    for inside in (-1.99, 1.99):
        assert faults(joints=(inside, 0.0)) == ()
    for border in (left, right):
        assert faults((border, 0.0, 0.2)) == ()
        assert faults((np.nextafter(border, 9.0 * (border - 0.5)), 0.0, 0.2)) == (Reason.WORKSPACE_MEASURED,)
    assert faults((0.31, 0.0, 0.2)) == () == faults((0.69, 0.0, 0.2))
    for half in ((None, np.full(2, 99.0)), (np.full(2, 99.0), None)):
        assert measured_faults(JOINTED, Situation(HERE.position, *half)) == ()


# -- latches and records ----------------------------------------------------------------------------------------------
def test_what_latches_at_once_is_latched_in_the_order_of_rank():
    inputs = good(situation=Situation(np.array([0.9, 0.0, 0.2])), estop=True, faults=(Reason.INTERNAL_FAULT,))
    expected = (Reason.ESTOP, Reason.INTERNAL_FAULT, Reason.WORKSPACE_MEASURED)
    state = dataclasses.replace(MOVING, latched=(Reason.OUT_OF_DISTRIBUTION,))
    state = tick(inputs, state, 1.2)[2]
    assert state.latched == (*expected, Reason.OUT_OF_DISTRIBUTION) == state.record.rules
    assert state.released is False and state.clean_since is None


@pytest.mark.parametrize(('changes', 'reason'), [({'estop': True}, Reason.ESTOP), ({'late': True}, Reason.LATE_HOLD)])
def test_a_stop_keeps_what_the_model_said(changes, reason):
    state = tick(good(**changes), MOVING, 1.2)[2]
    record = state.record
    assert record.reason is reason and math.isnan(record.risk) and record.risk_nominal == 0.1
    assert (record.level, record.surprise, record.nominal) == (0.5, 1.0, tuple(WANTED))


def test_the_wait_for_the_release_keeps_what_the_model_said():
    waiting = dataclasses.replace(LIMITS, release=1.0)
    state = tick(good(), FilterState.initial(3), 0.0, waiting)[2]
    assert state.record.reason is Reason.RELEASING and state.record.risk_nominal == 0.1
    assert state.record.level == 0.5 and state.record.surprise == 1.0


def test_a_record_without_a_model_holds_no_number():
    record = tick(good(model_ready=False, proposal=None), MOVING, 1.2, output=None)[2].record
    assert all(math.isnan(value) for value in (record.risk, record.risk_nominal, record.level, record.surprise))
    assert record.nominal is None


def test_a_broken_limit_is_an_internal_fault_that_forgets_everything(monkeypatch):
    monkeypatch.setattr(module, 'violations', lambda *a: (Reason.LIMIT_SPEED,))
    clean = dataclasses.replace(MOVING, clean_since=0.5)
    command, reason, state = tick(good(), clean, 1.2)
    assert reason is Reason.INTERNAL_FAULT and not command.any() and state.latched == (Reason.INTERNAL_FAULT,)
    assert state.released is False and state.clean_since is None
    assert state.record.rules == (Reason.INTERNAL_FAULT, Reason.LIMIT_SPEED) and state.record.surprise == 1.0


def test_ticks_are_counted_one_by_one():
    assert [run(n)[2].ticks for n in (1, 2, 5)] == [1, 2, 5]


# -- the model's answer -----------------------------------------------------------------------------------------------
def test_one_candidate_is_an_answer_and_none_is_a_fault():
    one = Candidates(WANTED[None], (Reason.PASS,))
    command, reason, state = tick(good(), MOVING, 1.2, candidates=one, risk=np.array([0.2]))
    assert reason is Reason.PASS and state.record.risk == state.record.risk_nominal == 0.2
    np.testing.assert_array_equal(command, WANTED)
    none = Candidates(np.zeros((0, 3)), ())
    command, reason, state = tick(good(), MOVING, 1.2, candidates=none, risk=np.zeros(0))
    assert reason is Reason.MODEL_FAULT and not command.any() and math.isnan(state.record.risk_nominal)


@pytest.mark.parametrize(('level', 'run_of'), [(5.0, 'slow_run'), (9.0, 'stop_run')])
def test_surprise_counts_beyond_its_level_and_not_at_it(level, run_of):
    assert getattr(tick(good(), MOVING, 1.2, surprise=level)[2], run_of) == 0
    assert getattr(tick(good(), MOVING, 1.2, surprise=np.nextafter(level, 99.0))[2], run_of) == 1


def test_surprise_slows_after_so_many_ticks_in_a_row_and_no_fewer():
    state, slowed = MOVING, []
    for k in range(SURPRISE_TICKS + 1):
        _, reason, state = tick(good(), state, 1.2 + 0.1 * k, surprise=6.0)
        slowed.append(reason is Reason.SURPRISE_SLOW)
    assert slowed == [False] * (SURPRISE_TICKS - 1) + [True] * 2
    _, reason, state = tick(good(), state, 2.0)
    assert reason is Reason.PASS and state.slow_run == 0


def test_surprise_latches_when_it_has_lasted_so_long_and_no_sooner():
    strange = dataclasses.replace(MOVING, stop_run=SURPRISE_TICKS, strange_since=1.0)
    assert tick(good(), strange, 2.9999, surprise=10.0)[2].latched == ()
    assert tick(good(), strange, 3.0, surprise=10.0)[2].latched == (Reason.OUT_OF_DISTRIBUTION,)


def test_an_episode_begins_without_surprise_even_if_the_model_says_nothing_then():
    strange = dataclasses.replace(MOVING, stop_run=5, slow_run=5, strange_since=1.0, alert_until=9.0)
    _, _, state = tick(good(is_first=True, late=True), strange, 1.2, output=None)
    assert (state.slow_run, state.stop_run, state.strange_since, state.ticks_since_first) == (0, 0, None, 0)
    assert state.alert_until == -math.inf
    assert len(state.path) == 1


def test_the_first_ticks_of_an_episode_are_guarded_by_risk_and_not_by_surprise():
    state = tick(good(is_first=True), MOVING, 1.2, surprise=99.0)[2]
    counted = [state.stop_run]
    for k in range(SURPRISE_SKIP + 1):
        state = tick(good(), state, 1.3 + 0.1 * k, surprise=99.0)[2]
        counted.append(state.stop_run)
    assert counted == [0] * SURPRISE_SKIP + [1, 2] and state.record.reason is Reason.SURPRISE_STOP
    assert (SURPRISE_SKIP, SURPRISE_TICKS) == (2, 2)        # docs/safety.md says: from the fourth record on
    command, reason, _ = tick(good(is_first=True), MOVING, 1.2, risk=np.array([0.9] + [0.1] * (
        len(answer(good(), MOVING).risk) - 1)))
    assert reason is Reason.RISK_SCALED and np.linalg.norm(command) < np.linalg.norm(WANTED)


def test_the_label_of_an_episode_frees_no_reversal():
    """The arm goes on with what was sent last: turning round is by way of a stop, whoever says that it is the first."""
    tight = dataclasses.replace(LIMITS, max_acceleration=0.5)
    fast = dataclasses.replace(MOVING, last=np.array([0.2, 0.0, 0.0]))
    for first in (False, True):
        # Without the model's candidates, which were limited before: the decision's own limits.
        back = good(proposal=np.array([-0.2, 0.0, 0.0]), is_first=first, enabled=False)
        assert not tick(back, fast, 1.2, tight)[0].any()
        rest = dataclasses.replace(fast, last=np.zeros(3))
        assert tick(back, rest, 1.2, tight)[0][0] == pytest.approx(-0.05)   # 0.5 m/s^2 for a period, from zero


def test_what_is_out_of_reach_because_it_is_too_short_is_not_made_longer():
    tight = dataclasses.replace(FREE, max_acceleration=0.5)
    command, rules = apply_limits(np.array([0.24, 0.01, 0.0]), tight, HERE, np.array([0.3, 0.0, 0.0]))
    assert not command.any() and rules == (Reason.LIMIT_ACCELERATION,)


def test_joints_of_which_half_is_known_stop():
    half = Situation(HERE.position, np.zeros(2), None)
    command, rules = apply_limits(WANTED, JOINTED, half, np.zeros(3))
    assert not command.any() and Reason.LIMIT_JOINT_POSITION in rules


def test_each_reason_is_counted_from_one():
    state = decide(good(), None, LIMITS, FilterState.initial(3), 0.0)[2]
    assert set(state.counts.values()) == {1}


def test_a_clock_that_was_set_is_confirmed_by_a_second_message_though_it_comes_late():
    source = Source()
    assert source.arrived(0.0, 0.0) and not source.arrived(100.0, 1.0)
    assert source.arrived(103.0, 4.0) and source.clock_steps == 1


# -- lateness and memory ----------------------------------------------------------------------------------------------
def test_three_late_ticks_in_a_row_stop_even_if_they_are_the_first_three():
    state, reasons = FilterState.initial(3), []
    for k in range(LATE_RUN):
        _, reason, state = tick(good(late=True), state, 0.1 * k)
        reasons.append(reason)
    assert reasons == [Reason.LATE_HOLD] * (LATE_RUN - 1) + [Reason.REPEATED_LATE]


@pytest.mark.parametrize(('window', 'stops'), [(LATE_WINDOW, True), (LATE_WINDOW + 1, False), (LATE_WINDOW - 1, True)])
def test_eight_late_ticks_count_within_thirty_two(window, stops):
    late = {0, *(4 * k + 2 for k in range(LATE_MANY - 2)), window - 1}      # the first and the last one of the window
    state = MOVING
    for k in range(window):
        _, reason, state = tick(good(late=k in late), state, 1.2 + 0.1 * k)
    assert (reason is Reason.REPEATED_LATE) is stops


def test_a_position_is_remembered_when_the_arm_has_moved_by_a_millimetre():
    start = dataclasses.replace(MOVING, path=(np.zeros(3),))
    for way, count in ((0.001, 1), (0.00101, 2)):
        situation = Situation(np.array([way, 0.0, 0.0]))
        assert len(tick(good(situation=situation), start, 1.2, FREE)[2].path) == count


def test_a_picture_of_long_ago_is_a_new_one():
    frozen = FrozenPicture(0.03)
    for k in range(DIGESTS + 1):
        assert not frozen.update(bytes([k]), None, 1.0)
    assert not frozen.update(bytes([0]), None, 1.0)         # seventeen pictures ago
    assert frozen.update(bytes([3]), None, 1.0)
