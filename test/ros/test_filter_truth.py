# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the filter believes when two nodes say different things, and when one says what cannot be."""

import math

import pytest
from filter_cell import CONTRACT
from filter_desk import MOVING, ZERO, Desk, ns

from fosp_core.safety.reasons import Reason
from fosp_ros.observing import Observer

JUMP = (Reason.POSE_JUMP,)


@pytest.fixture
def desk():
    return Desk()


def aside(far, at=(0.5, 0.0, 0.2)):
    return at[0], at[1] + far, at[2]


# -- a second publisher of the pose -----------------------------------------------------------------------------------
@pytest.mark.parametrize('after', [0.01, 0.05, 0.09])
def test_a_second_pose_that_no_picture_is_paired_with_is_a_jump(desk, after):
    limit = desk.senses._limits.max_jump + desk.senses._limits.max_speed * min(after, 0.1 - after)
    desk.tick(0.0, last=ZERO, begins=True)
    desk.pose(after, aside(limit - 0.002))
    assert desk.tick(0.1, last=ZERO) == ()
    desk.pose(0.1 + after, aside(limit + 0.002))
    assert desk.tick(0.2, last=ZERO) == JUMP
    assert desk.tick(0.3, last=ZERO) == ()      # it is gone, and what was believed is where the arm is
    desk.pose(0.4, aside(0.2))
    desk.pose(0.401)                            # the newest is the true one
    assert desk.watch(0.4, last=ZERO) == JUMP


def test_a_second_pose_is_a_jump_on_the_first_tick_and_in_a_new_episode_too(desk):
    desk.pose(0.0)
    desk.pose(0.01, aside(0.15))
    assert desk.watch(0.0, begins=True) == JUMP
    desk.pose(0.1)                  # of the episode before; the next one begins elsewhere
    desk.pose(0.2, aside(0.3))
    assert desk.watch(0.2, at=aside(0.3), first=True, begins=True) == ()


def test_a_fast_driver_of_a_fast_arm_is_no_second_publisher(desk):
    speed = desk.senses._limits.max_speed
    for k in range(400):        # at 1 kHz; the picture is 40 ms under way
        desk.pose(1e-3 * k, (0.4 + speed * 1e-3 * k, 0.0, 0.2))
        if k % 100 == 40:
            assert desk.watch(1e-3 * (k - 40), at=(0.4 + speed * 1e-3 * (k - 40), 0.0, 0.2), begins=k == 40,
                              last=(speed, 0.0, 0.0)) == ()


def test_a_reset_forgets_the_poses_of_before(desk):
    desk.tick(0.0, begins=True)
    desk.pose(0.05, aside(0.2))
    desk.senses.forget()
    assert desk.tick(0.1, last=MOVING) == ()
    assert math.isclose(desk.senses.situation.position[1], 0.0)


@pytest.mark.parametrize('far', [0.061, 0.09])
def test_a_small_shift_that_stays_is_a_jump_until_reset(desk, far):
    desk.tick(0.0, last=ZERO, begins=True)
    assert desk.tick(0.1, at=aside(0.059), last=ZERO) == () and desk.tick(0.2, last=ZERO) == ()
    assert all(desk.tick(0.1 * k, at=aside(far), last=ZERO) == JUMP for k in range(3, 30))
    desk.senses.forget()
    assert desk.tick(3.0, at=aside(far), last=ZERO) == ()


@pytest.mark.parametrize('lost', [0, 1, 4])
def test_pictures_that_were_lost_leave_the_arm_its_way(desk, lost):
    """At full speed; the answer to the picture before was late, so that the arm went on."""
    speed, passed = desk.senses._limits.max_speed, 0.1 * (1 + lost)
    desk.tick(0.0, last=ZERO, begins=True)
    assert desk.tick(passed, at=aside(speed * passed), last=ZERO) == ()
    assert desk.tick(2 * passed, at=aside(2 * speed * passed + 0.063), last=ZERO) == JUMP


def test_after_a_pause_the_pose_is_where_the_arm_can_have_gone_meanwhile(desk):
    reach = 0.06 + 0.42 * 1.2
    desk.tick(0.0, last=ZERO, begins=True)
    assert desk.tick(1.2, at=aside(reach - 0.002), last=ZERO, begins=True) == ()
    assert desk.tick(2.4, at=aside(-0.004), last=ZERO, begins=True) == JUMP
    assert desk.tick(2.5, at=aside(-0.004), last=ZERO) == JUMP      # and it stays so
    desk.senses.forget()
    assert desk.tick(2.6, at=aside(-0.004), last=ZERO) == ()
    assert desk.tick(3.8, at=aside(0.6), first=True, last=ZERO, begins=True) == ()      # an episode begins anywhere


# -- senders with another clock ---------------------------------------------------------------------------------------
SENDERS = {'picture': Reason.CAMERA_INVALID, 'pose': Reason.POSE_INVALID, 'joints': Reason.JOINTS_INVALID}


@pytest.mark.parametrize('kind', SENDERS)
def test_stamps_that_jump_to_and_fro_are_a_fault_for_ten_seconds(desk, kind):
    send = getattr(desk, kind)
    for k in range(40):
        send(0.1 * k, made=0.1 * k - (10.0 if 20 <= k < 30 and k % 2 else 0.0))
        assert desk.faults(0.1 * k) == ({SENDERS[kind]} if k >= 23 else set())
    assert desk.faults(12.8) == {SENDERS[kind]} and desk.faults(13.0) == set()      # the last one came at 2.9 s
    assert desk.lines[-1].startswith(f'{SENDERS[kind].word}: ') and 'two publishers' in desk.lines[-1]


def test_a_reset_ends_what_jumped_and_commands_are_judged_by_their_pictures_alone(desk):
    for k in range(4):
        desk.picture(0.1 * k, made=0.1 * k - 10.0 * (k % 2))
        desk.command(0.1 * k, made=0.1 * k - 10.0 * (k % 2))
    assert desk.faults(0.3) == {Reason.CAMERA_INVALID}
    desk.senses.forget()
    assert desk.faults(0.3) == set()


@pytest.mark.parametrize('ahead', [0.3, 2.0, 60.0])
def test_one_picture_of_the_future_is_dropped_and_named(desk, ahead):
    for k in range(10):
        assert desk.picture(0.1 * k) is not None
    assert desk.picture(0.95, made=0.95 + ahead) is None
    for k in range(10, 40):
        assert desk.picture(0.1 * k) is not None
        assert desk.faults(0.1 * k) == set() and desk.senses.ages(0.1 * k)['camera'] == pytest.approx(0.0, abs=1e-3)
    assert len(desk.lines) == 1 and desk.lines[0].startswith('camera_stale: image: stamp ')


def test_ticks_that_begin_anew_by_their_stamps_again_and_again_are_no_label(desk):
    found = [desk.tick(t, begins=True) for t in (0.0, 0.1, 1.0, 1.1, 2.1)]      # the first one is none of stamps
    assert found == [(), (), (Reason.LABEL_INVALID,), (Reason.LABEL_INVALID,), ()]
    assert desk.tick(2.2, first=True, begins=True) == ()        # a pause, then an episode
    assert desk.tick(3.1, begins=True) == ()


# -- the first picture ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('size', [(8, 8), (1, 1), (63, 64), (64, 63), (40000, 1), (3, 70000), (32, 32)])
def test_a_first_picture_smaller_than_the_contract_is_refused_and_sets_no_form(desk, size):
    assert desk.picture(0.0, size=size) is None and desk.faults(0.0) == {Reason.CAMERA_INVALID}
    assert desk.lines == [f'camera_invalid: image: picture of {size[0]}x{size[1]}, expected at least 64x64']
    assert desk.senses.ages(0.1)['camera'] == math.inf
    assert desk.picture(0.1).shape == (64, 64, 3) and desk.picture(0.2).shape == (64, 64, 3)


@pytest.mark.parametrize('size', [(64, 65), (480, 640)])
def test_a_first_picture_larger_than_the_contract_is_resized(desk, size):
    assert desk.picture(0.0, size=size).shape == (64, 64, 3) and desk.faults(0.0) == set()


# -- pictures without a pose ------------------------------------------------------------------------------------------
def paired(desk, skew, ticks=10, start=0, poses=True):
    """Camera and arm whose clocks differ by `skew` s; returns the faults after each tick."""
    for k in range(start, start + ticks):
        t = 0.1 * k
        if poses:
            desk.observer.put('ee_pose', ns(t), desk.pose(t), None, t)
        pixels = desk.picture(t, made=t + skew)
        if pixels is not None:
            desk.observer.put('image', ns(t + skew), pixels, None, t)
        observation = desk.observer.take(t + 0.02)
        desk.senses.unpaired(desk.observer, t + 0.02)
        if observation is not None:
            desk.senses.watch(observation, ZERO, desk.senses.begins(observation))
        yield desk.faults(t + 0.02)


@pytest.mark.parametrize(('skew', 'text'), [(0.06, '0.060 s older'), (3600.0, '3600.000 s older')])
def test_pictures_that_no_pose_is_paired_with_are_stale_after_a_while(desk, skew, text):
    desk.observer = Observer(CONTRACT, 0.05, 0.01)
    assert not any(paired(desk, 0.04))
    found = list(paired(desk, skew, start=20))
    if skew < 0.1:      # else the stamp alone is in doubt once
        assert found == [set()] * 3 + [{Reason.POSE_STALE}] * 7
    assert found[-1] == {Reason.POSE_STALE} and text in desk.lines[-1] and desk.lines[-1].startswith('pose_stale: ')
    assert not any(list(paired(desk, 0.04, start=400))[2:])


def test_a_picture_now_and_then_without_a_pose_is_no_fault(desk):
    desk.observer = Observer(CONTRACT, 0.05, 0.01)
    for start in range(0, 40, 4):
        assert not any(paired(desk, 0.06 if start % 8 else 0.0, ticks=3, start=start))
        assert not any(paired(desk, 0.04, ticks=1, start=start + 3))
    assert desk.observer.unpaired == {'ee_pose': 15}


def test_without_any_pose_the_fault_says_so(desk):
    desk.observer = Observer(CONTRACT, 0.05, 0.01)
    assert list(paired(desk, 0.0, poses=False))[-1] == {Reason.POSE_STALE} and 'none has come' in desk.lines[-1]
