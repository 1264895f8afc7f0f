# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Limits: each rule alone on exact cases, and all of them together on anything (hypothesis)."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fosp_core.errors import FospError
from fosp_core.safety.limits import (
    FilterLimits,
    Situation,
    apply_limits,
    checked_command,
    measured_faults,
    violations,
)
from fosp_core.safety.reasons import Reason

LOW, HIGH = (-0.25,) * 3, (0.25,) * 3
LIMITS = FilterLimits(low=LOW, high=HIGH, period=0.1, staleness=0.25, max_speed=0.3, max_acceleration=2.0,
                      box_low=(0.3, -0.4, 0.03), box_high=(0.7, 0.4, 0.5), joint_names=('a', 'b'),
                      joint_low=(-2.0, -1.0), joint_high=(2.0, 1.0), joint_speed=(2.0, 1.5))
AT_REST = Situation(np.array([0.5, 0.0, 0.2]), np.zeros(2), np.zeros(2))
ZERO = np.zeros(3)


def vectors(bound, size=3):
    return arrays(np.float64, size, elements=st.floats(-bound, bound, allow_nan=False))


situations = st.builds(Situation, arrays(np.float64, 3, elements=st.floats(-0.5, 1.0)), vectors(2.5, 2), vectors(3, 2))
# Turned round, or aside by a little: what anything at random seldom is.
lasts = st.one_of(vectors(0.25), st.sampled_from([(0.25, 0, 0), (-0.2, 0, 0), (0.15, 0.15, 0), (0.17, -0.17, 0.1)]).map(
    np.array))


def braking(sent, last):
    """Straight on, and slower."""
    angle = np.linalg.norm(np.cross(sent, last)) / (np.linalg.norm(sent) * np.linalg.norm(last))
    return sent @ last > 0 and angle <= 1e-6 and sent @ sent <= last @ last + 1e-12


def limited(command, situation=AT_REST, last=ZERO, limits=LIMITS):
    return apply_limits(np.asarray(command, np.float64), limits, situation, np.asarray(last, np.float64))


@settings(max_examples=150, deadline=None)
@given(vectors(10.0), situations, lasts, st.sampled_from([0.0, 0.04, 0.07, 0.3]), st.sampled_from([0.1, 0.03]))
def test_no_limit_is_ever_exceeded(command, situation, last, age, step):
    situation, limits = dataclasses.replace(situation, age=age), dataclasses.replace(LIMITS, max_step=step)
    sent, _ = limited(command, situation, last, limits)
    assert (np.abs(sent) <= 0.25 + 1e-9).all()
    assert np.linalg.norm(sent) <= 0.3 + 1e-9
    here = situation.position + last * min(age, 0.2)
    ahead = here + 0.2 * sent
    for axis, low, high in zip(range(3), LIMITS.box_low, LIMITS.box_high):
        assert ahead[axis] <= max(high, here[axis]) + 1e-9
        assert ahead[axis] >= min(low, here[axis]) - 1e-9
    if sent.any():  # 2 m/s^2 for 0.1 s; a stop is always allowed
        assert np.linalg.norm(sent - last) <= 0.2 + 1e-8 or braking(sent, last), (sent, last)
        assert np.linalg.norm(ahead - situation.position) <= step + 1e-8
    if (np.abs(situation.joint_velocity) > (2.0, 1.5)).any():
        assert np.linalg.norm(sent) <= np.linalg.norm(last) + 1e-9
    assert not violations(sent, limits, situation, last)


@settings(max_examples=150, deadline=None)
@given(vectors(10.0), situations, lasts)
def test_limits_only_take_away_and_are_idempotent(command, situation, last):
    once, acted = limited(command, situation, last)
    assert (np.abs(once) <= np.abs(command) + 1e-12).all() and (once * command >= 0).all()
    twice, again = limited(once, situation, last)
    np.testing.assert_allclose(twice, once, atol=1e-9)
    assert again == ()
    if not acted:
        np.testing.assert_allclose(once, command, atol=6e-9)
    assert not limited(ZERO, situation, last)[0].any()  # a stop is always allowed


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2 ** 32 - 1))
def test_no_command_takes_the_arm_out_of_the_box_however_long_it_acts(seed):
    """An arm that follows each command until the next one, or for two periods when none comes (the filter was killed).

    The measurement is up to a deadline old when the command begins to act.
    """
    rng = np.random.default_rng(seed)
    low, high = np.array(LIMITS.box_low), np.array(LIMITS.box_high)
    position, last = rng.uniform(low, high), ZERO
    for _ in range(60):
        age = rng.uniform(0.0, 0.07)
        situation = Situation(position, np.zeros(2), np.zeros(2), age)
        command, _ = limited(rng.uniform(-1, 1, 3) * rng.choice([0.25, 2.0]), situation, last)
        position = position + age * last                # until the command begins to act
        assert (position >= low - 1e-9).all() and (position <= high + 1e-9).all()
        if rng.random() < 0.3:                          # nothing comes any more: stop, and begin anew
            position, last = position + 0.2 * command, ZERO
        else:                                           # until the next measurement
            position, last = position + (0.1 - age) * command, command
        assert (position >= low - 1e-9).all() and (position <= high + 1e-9).all()


@pytest.mark.parametrize(('command', 'situation', 'last', 'expected', 'acted'), [
    ((0.1, 0, 0), AT_REST, (0, 0, 0), (0.1, 0, 0), ()),
    ((0.5, 0.1, 0), AT_REST, (0.2, 0, 0), (0.25, 0.05, 0), (Reason.LIMIT_RANGE,)),
    ((0.25, 0.25, 0), AT_REST, (0.2, 0.2, 0), (0.3 / 2 ** 0.5, 0.3 / 2 ** 0.5, 0), (Reason.LIMIT_SPEED,)),
    ((0.25, 0, 0), AT_REST, (0, 0, 0), (0.2, 0, 0), (Reason.LIMIT_ACCELERATION,)),
    ((0.25, 0, 0), AT_REST, (0.1, 0, 0), (0.25, 0, 0), ()),
    ((0, 0.25, 0), AT_REST, (0.12, 0, 0), (0, 0.16, 0), (Reason.LIMIT_ACCELERATION,)),
    ((0, 0.25, 0), AT_REST, (0.25, 0, 0), (0, 0, 0), (Reason.LIMIT_ACCELERATION,)),     # nothing that way is in reach
    ((-0.25, 0, 0), AT_REST, (0.15, 0, 0), (-0.05, 0, 0), (Reason.LIMIT_ACCELERATION,)),
    ((-0.25, 0, 0), AT_REST, (0.25, 0, 0), (0, 0, 0), (Reason.LIMIT_ACCELERATION,)),    # round by way of a stop
    ((-0.2, 0, 0), AT_REST, (0.2, 0, 0), (0, 0, 0), (Reason.LIMIT_ACCELERATION,)),
    ((0, 0, 0), AT_REST, (0.25, 0, 0), (0, 0, 0), ()),                      # a stop is free
    ((0.02, 0, 0), AT_REST, (0.25, 0, 0), (0.02, 0, 0), ()),                # and so is braking straight
    ((0.02, 0.004, 0), AT_REST, (0.25, 0, 0), (0, 0, 0), (Reason.LIMIT_ACCELERATION,)),
    ((0.2, 0, 0), Situation(AT_REST.position, np.zeros(2), np.zeros(2), 0.1), (-0.01, 0, 0), (0.19, 0, 0),
     (Reason.LIMIT_ACCELERATION,)),
    ((0.25, 0, 0), Situation(np.array([0.4, 0, 0.2]), np.zeros(2), np.zeros(2), 0.2), (0.3, 0, 0), (0.2, 0, 0),
     (Reason.LIMIT_STEP,)),                                                 # 6 cm gone, 4 cm left
    ((0.2, 0, -0.1), Situation(np.array([0.68, 0, 0.2]), np.zeros(2), np.zeros(2)), (0.2, 0, -0.1), (0.1, 0, -0.1),
     (Reason.LIMIT_WORKSPACE,)),                                            # slides along the wall
    ((0.2, 0, 0), Situation(np.array([0.66, 0, 0.2]), np.zeros(2), np.zeros(2), 0.05), (0.2, 0, 0), (0.15, 0, 0),
     (Reason.LIMIT_WORKSPACE,)),                                            # 0.05 s of the last command have passed
    ((0.2, 0, 0), Situation(np.array([0.5, 0, 0.2]), np.zeros(2), np.zeros(2), 9.0), (0.2, 0, 0), (0.2, 0, 0),
     ()),                                                                   # it acted for 0.2 s at most
    ((0.2, 0, 0), Situation(np.array([0.72, 0, 0.2]), np.zeros(2), np.zeros(2), 0.1), (-0.2, 0, 0), (0, 0, 0),
     (Reason.LIMIT_WORKSPACE,)),                                            # back at the wall, and no room
    ((0.1, 0, 0), Situation(np.array([0.72, 0, 0.2]), np.zeros(2), np.zeros(2)), (0, 0, 0), (0, 0, 0),
     (Reason.LIMIT_WORKSPACE,)),
    ((-0.1, 0, 0), Situation(np.array([0.72, 0, 0.2]), np.zeros(2), np.zeros(2)), (0, 0, 0), (-0.1, 0, 0), ()),
    ((0.1, 0, 0), Situation(None, np.zeros(2), np.zeros(2)), (0, 0, 0), (0, 0, 0), (Reason.LIMIT_WORKSPACE,)),
    ((0.1, 0, 0), Situation(AT_REST.position), (0, 0, 0), (0, 0, 0), (Reason.LIMIT_JOINT_POSITION,)),
    ((0.2, 0, 0), Situation(AT_REST.position, np.array([1.85, 0]), np.array([1.0, 0])), (0.2, 0, 0), (0.1, 0, 0),
     (Reason.LIMIT_JOINT_POSITION,)),                                       # 0.15 rad of room, 0.3 rad of way
    ((0.2, 0, 0), Situation(AT_REST.position, np.array([1.85, 0]), np.array([-1.0, 0])), (0.2, 0, 0), (0.2, 0, 0),
     ()),                                                                   # moves away from the limit
    ((0.2, 0, 0), Situation(AT_REST.position, np.zeros(2), np.array([0, -3.0])), (0.2, 0, 0), (0.1, 0, 0),
     (Reason.LIMIT_JOINT_VELOCITY,)),
])
def test_each_rule_on_an_exact_case(command, situation, last, expected, acted):
    sent, rules = limited(command, situation, last)
    np.testing.assert_allclose(sent, expected, atol=1e-12)
    assert rules == acted


def test_acceleration_keeps_the_way_of_the_command():
    last = np.array([0.1, 0.0, 0.0])
    sent, acted = limited((0.25, 0.16, 0.0), last=last, limits=FilterLimits(LOW, HIGH, 0.1, 0.25,
                                                                           max_acceleration=1.0))
    assert acted == (Reason.LIMIT_ACCELERATION,)
    assert np.linalg.norm(sent - last) == pytest.approx(0.1)
    assert sent[1] / sent[0] == pytest.approx(0.16 / 0.25)


def test_a_step_limit_that_is_used_up_leaves_a_stop():
    """Also for the way back: what is allowed must stay allowed when another rule shortens it."""
    tight, late = dataclasses.replace(LIMITS, max_step=0.02), dataclasses.replace(AT_REST, age=0.2)
    for command in ((0.1, 0, 0), (-0.2, 0, 0)):
        sent, acted = limited(command, late, (0.1, 0, 0), tight)
        assert not sent.any() and acted == (Reason.LIMIT_STEP,)
    assert limited((-0.1, 0, 0), late, (0.09, 0, 0), tight)[0][0] == -0.1


def test_the_most_restrictive_limit_wins():
    fast, sent = np.array([0.25, 0.25, 0.25]), {}
    for name in ('max_speed', 'max_acceleration', 'both'):
        changes = {'max_speed': 0.1, 'max_acceleration': 0.5}
        kept = changes if name == 'both' else {name: changes[name]}
        sent[name] = np.linalg.norm(limited(fast, limits=FilterLimits(LOW, HIGH, 0.1, 0.25, **kept))[0])
    assert sent['both'] == pytest.approx(min(sent['max_speed'], sent['max_acceleration'])) == pytest.approx(0.05)


@pytest.mark.parametrize('command', [None, 'x', (1, 2), (1, 2, 3, 4), [[1, 2, 3]], (np.nan, 0, 0), (0, np.inf, 0),
                                     (0, 0, -np.inf), (None, 0, 0), {}, 1.0, [], (1j, 0, 0), ([1], 2, 3)])
def test_a_command_with_one_bad_entry_is_no_command(command):
    assert checked_command(command, 3) is None
    if command is not None:
        assert violations(command, LIMITS, AT_REST, ZERO) == (Reason.COMMAND_INVALID,)


def test_checked_command_copies():
    given_command = np.array([0.1, 0.2, 0.3])
    checked_command(given_command, 3)[0] = 9
    assert given_command[0] == 0.1


def test_violations_name_the_limit():
    assert violations(np.array([0.25, 0.25, 0.25]), LIMITS, AT_REST, np.array([0.2, 0.2, 0.2])) == (Reason.LIMIT_SPEED,)
    assert violations(np.array([0.25, 0, 0]), LIMITS, AT_REST, ZERO) == (Reason.LIMIT_ACCELERATION,)
    assert violations(np.array([0.1, 0, 0]), LIMITS, AT_REST, ZERO) == ()


def test_measured_faults_have_a_margin():
    def faults(position=(0.5, 0, 0.2), joints=(0, 0), speed=(0, 0)):
        return measured_faults(LIMITS, Situation(np.array(position), np.array(joints), np.array(speed)))
    assert faults() == () == faults((0.74, 0, 0.2)) == faults(joints=(2.01, 0)) == faults(speed=(2.3, 0))
    assert faults((0.76, 0, 0.2)) == (Reason.WORKSPACE_MEASURED,) == faults((0.5, 0, -0.03))
    for fault in ({'joints': (2.03, 0)}, {'joints': (0, -1.03)}, {'speed': (0, -1.9)}):
        assert faults(**fault) == (Reason.JOINT_LIMIT_MEASURED,)
    assert measured_faults(LIMITS, Situation()) == ()


@pytest.mark.parametrize('change', [
    {'max_speed': float('nan')}, {'max_speed': 0.0}, {'max_acceleration': -1.0}, {'staleness': float('inf')},
    {'period': 0.0}, {'acts': 0.0}, {'acts': 0.09}, {'low': (0.1, -1, -1)}, {'high': (1.0,)}, {'box_low': (0, 0)},
    {'box_low': (1.0, 1.0, 1.0)},
    {'joint_names': ('a',)}, {'joint_low': (3.0, 0.0)}, {'joint_speed': (0.0, 1.0)}, {'release': -0.1},
    {'box_high': (float('inf'), 1, 1)}, {'alert_factor': 1.1}, {'alert_hold': -1.0}])
def test_limits_that_limit_nothing_are_refused(change):
    good = {f: getattr(LIMITS, f) for f in LIMITS.__dataclass_fields__}
    with pytest.raises(FospError, match='limit'):
        FilterLimits(**{**good, **change})
