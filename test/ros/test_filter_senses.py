# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the filter makes of each message, rule by rule and to the border; `test/faults` sends them to the process."""

import dataclasses
import math

import numpy as np
import pytest
from filter_cell import CONTRACT
from filter_desk import CAMERA, FASTER, LIMITS, MOVING, POSE, ZERO, Desk, stamp
from geometry_msgs.msg import PoseStamped, TwistStamped
from sensor_msgs.msg import Image

from fosp_core.errors import FospError
from fosp_core.safety.reasons import Reason
from fosp_ros.filter_senses import Senses

POSITION = CONTRACT.vectors[0].fields


@pytest.fixture
def desk():
    return Desk()


# -- pictures ---------------------------------------------------------------------------------------------------------
def test_a_sound_picture_is_taken_and_no_fault(desk):
    assert desk.picture(0.0).shape == (64, 64, 3) and desk.faults(0.0) == set() and desk.lines == []


@pytest.mark.parametrize('change', [
    {'encoding': 'bgr8'}, {'size': (128, 128)}, {'size': (32, 64)}, {'size': (64, 128)},
    {'encoding': 'mono8', 'step': 64, 'data': b'0' * 4096}, {'data': b'0' * (64 * 64 * 3 + 1)},
    {'data': b'0' * (64 * 64 * 3 - 1)}, {'encoding': 'yuv422'}, {'step': 10}])
def test_a_picture_of_another_form_than_before_is_refused_whole(desk, change):
    assert desk.picture(0.0) is not None
    assert desk.picture(0.1, **change) is None
    assert desk.faults(0.1) == {Reason.CAMERA_INVALID} and desk.lines[0].startswith('camera_invalid: image: ')
    assert desk.senses.ages(0.2)['camera'] == pytest.approx(0.2)       # it was no sign of life
    assert desk.picture(0.2) is not None


@pytest.mark.parametrize('change', [
    {'encoding': 'mono8', 'step': 64, 'data': b'0' * 4096}, {'encoding': '16UC1', 'step': 128, 'data': b'0' * 8192},
    {'encoding': 'yuv422'}, {'data': b'0' * 10}, {'data': b'0' * (64 * 64 * 3 + 1)}])
def test_a_first_picture_that_is_no_colour_picture_is_refused_too_and_sets_no_form(desk, change):
    assert desk.picture(0.0, **change) is None and desk.faults(0.0) == {Reason.CAMERA_INVALID}
    assert desk.picture(0.1) is not None


def test_a_larger_camera_is_resized_and_may_go_over_to_the_size_of_the_contract(desk):
    assert desk.picture(0.0, size=(480, 640)).shape == (64, 64, 3)
    assert desk.picture(0.1, size=(240, 320)) is None
    assert desk.picture(0.2).shape == (64, 64, 3) and desk.picture(0.3, size=(480, 640)) is None


def test_a_grey_contract_takes_grey_pictures():
    grey = dataclasses.replace(CAMERA, encoding='mono8')
    desk = Desk(contract=dataclasses.replace(CONTRACT, cameras=(grey,)))
    image = Image(height=64, width=64, encoding='mono8', step=64, data=b'0' * 4096)
    stamp(image, 0.0)
    assert desk.senses.picture(grey, image, 0.0).shape == (64, 64, 1)


def test_a_picture_that_is_no_newer_is_dropped_without_a_fault(desk):
    assert desk.picture(0.0) is not None
    assert desk.picture(0.1, made=0.0) is None and desk.picture(0.2, made=-0.1) is None
    assert desk.faults(0.2) == set() and desk.senses.ages(0.2)['camera'] == pytest.approx(0.2)


@pytest.mark.parametrize(('interval', 'refused'), [(0.069, True), (0.071, False), (0.033, True), (0.3, False)])
def test_the_mean_rate_of_twenty_pictures_counts(desk, interval, refused):
    for k in range(19):
        desk.picture(k * interval)
    assert desk.faults(18 * interval) == set()      # nineteen may be a burst
    assert desk.picture(19 * interval) is not None
    assert desk.faults(19 * interval) == ({Reason.CAMERA_INVALID} if refused else set())


def test_a_pause_begins_the_rate_anew(desk):
    times = [0.03 * k for k in range(10)] + [5.0 + 0.03 * k for k in range(19)]
    for t in times:
        desk.picture(t)
    assert desk.faults(times[-1]) == set()
    desk.picture(times[-1] + 0.03)
    assert desk.faults(times[-1] + 0.03) == {Reason.CAMERA_INVALID}


def test_a_clock_that_is_set_back_begins_the_rate_anew(desk):
    for k in range(25):
        desk.picture(0.1 * k, made=0.1 * k + (3600.0 if k < 10 else 0.0))
        assert desk.faults(0.1 * k) == set()


# -- pose -------------------------------------------------------------------------------------------------------------
def test_a_sound_pose_is_measured(desk):
    values = desk.pose(0.0, (0.4, 0.1, 0.3))
    np.testing.assert_allclose(values, [0.4, 0.1, 0.3])
    np.testing.assert_allclose(desk.senses.situation.position, [0.4, 0.1, 0.3])
    assert desk.senses.situation.position.dtype == np.float64 and desk.faults(0.0) == set()


@pytest.mark.parametrize('change', [{'at': (math.nan, 0.0, 0.2)}, {'at': (0.5, math.inf, 0.2)},
                                    {'frame': 'camera_optical_frame'}])
def test_a_pose_that_is_no_number_or_of_another_frame_is_refused(desk, change):
    desk.pose(0.0)
    assert desk.pose(0.1, **{'at': (0.6, 0.0, 0.2), **change}) is None
    assert desk.faults(0.1) == {Reason.POSE_INVALID} and desk.lines[0].startswith('pose_invalid: ee_pose: ')
    np.testing.assert_allclose(desk.senses.situation.position, [0.5, 0.0, 0.2])
    assert desk.senses.ages(0.2)['pose'] == pytest.approx(0.2)


def test_a_pose_without_a_frame_is_taken_and_one_of_another_message_type_is_refused(desk):
    assert desk.pose(0.0, frame='') is not None and desk.faults(0.0) == set()
    assert desk.senses.vector(POSE, TwistStamped(), 0.1) is None and desk.faults(0.1) == {Reason.POSE_INVALID}


def test_an_old_pose_is_no_measurement(desk):
    desk.pose(0.0)
    assert desk.pose(0.1, (0.6, 0.0, 0.2), made=-0.1) is None
    np.testing.assert_allclose(desk.senses.situation.position, [0.5, 0.0, 0.2])


def test_the_situation_knows_how_old_the_pose_is(desk, monkeypatch):
    assert desk.senses.situation.age == 0.0 and desk.senses.situation.position is None
    desk.pose(1.0)
    monkeypatch.setattr('time.monotonic', lambda: 1.07)
    assert desk.senses.situation.age == pytest.approx(0.07)


# -- joints -----------------------------------------------------------------------------------------------------------
def test_joints_are_taken_by_name_whatever_their_order_and_company(desk):
    situation = desk.joints(0.0, ('finger', 'b', 'a'), (9.0, 0.2, 0.1), (9.0, 0.4, 0.3))
    np.testing.assert_allclose(situation.joint_position, [0.1, 0.2])
    np.testing.assert_allclose(situation.joint_velocity, [0.3, 0.4])
    assert desk.faults(0.0) == set()


@pytest.mark.parametrize('change', [
    {'names': ('a', 'c')}, {'names': ('a',)}, {'position': (0.2,)}, {'velocity': ()}, {'position': (math.nan, 0.1)},
    {'velocity': (0.4, math.inf)}])
def test_joints_that_lack_a_number_are_refused(desk, change):
    desk.joints(0.0)
    situation = desk.joints(0.1, **change)
    np.testing.assert_allclose(situation.joint_position, [0.1, 0.2])
    assert desk.faults(0.1) == {Reason.JOINTS_INVALID} and desk.lines[0].startswith('joints_invalid: joint_states: ')
    assert desk.senses.ages(0.2)['joints'] == pytest.approx(0.2)


def test_old_joints_are_no_measurement_and_unguarded_ones_none_at_all(desk):
    desk.joints(0.0)
    assert desk.joints(0.1, position=(1.0, 1.0), made=-0.1).joint_position[0] == 0.1
    free = Desk(dataclasses.replace(LIMITS, joint_names=(), joint_low=(), joint_high=(), joint_speed=()))
    assert free.joints(0.0, position=(math.nan, 0.0)).joint_position is None
    assert free.faults(0.0) == set() and 'joints' not in free.senses.ages(0.0)


# -- commands ---------------------------------------------------------------------------------------------------------
def test_a_command_is_handed_on_as_it_is_and_a_foreign_frame_is_none(desk):
    assert desk.command(0.0) == [0.1, 0.0, 0.0] and desk.command(0.1, frame='') == [0.1, 0.0, 0.0]
    assert np.isnan(desk.command(0.2, frame='panda_hand')).all()
    assert 'panda_hand' in desk.lines[0] and desk.lines[0].startswith('command_invalid')
    assert np.isnan(desk.senses.command(PoseStamped(), 0.3)).all()      # a field that is not there


def test_a_second_command_for_one_picture_is_a_conflict_even_if_another_came_between(desk):
    for t in (0.0, 0.1, 0.2):
        desk.command(t)
    assert desk.faults(0.2) == set()
    desk.command(0.25, made=0.1)
    assert desk.faults(0.25) == {Reason.COMMAND_CONFLICT}


# -- what lasts -------------------------------------------------------------------------------------------------------
def test_a_fault_of_a_message_counts_for_as_long_as_an_input_may_be_old(desk):
    desk.senses.fault(Reason.JOINTS_INVALID, 'a test', 1.0)
    assert desk.faults(1.25) == {Reason.JOINTS_INVALID} and desk.faults(1.26) == set()
    assert desk.lines == ['joints_invalid: a test']


def test_a_box_needs_the_position():
    with pytest.raises(FospError, match="position_vector: contract 'safereach' has no vector 'elsewhere' of 3 entries"):
        Senses(CONTRACT, LIMITS, 'elsewhere', [].append)


@pytest.mark.parametrize(('vector', 'action'), [
    ({'fields': (*POSITION, 'pose.orientation.w'), 'unit': 'm, 1'}, {}), ({'unit': 'm,rad'}, {'unit': 'm/s, rad/s'})])
def test_a_vector_that_begins_with_the_position_is_as_good(vector, action):
    contract = dataclasses.replace(CONTRACT, vectors=(dataclasses.replace(CONTRACT.vectors[0], **vector),),
                                   action=dataclasses.replace(CONTRACT.action, **action))
    Senses(contract, LIMITS, 'ee_pose', [].append)


@pytest.mark.parametrize(('vector', 'action'), [
    ({}, {'unit': 'rad/s'}), ({'unit': 'mm'}, {}), ({}, {'frame': 'tool0'}), ({'frame': 'base'}, {}),
    ({}, {'fields': ('twist.linear.y', 'twist.linear.x', 'twist.linear.z')}),
    ({}, {'fields': ('twist.angular.x', 'twist.linear.z', 'twist.linear.y')})])
def test_a_position_that_the_command_does_not_move_is_refused(vector, action):
    contract = dataclasses.replace(CONTRACT, vectors=(dataclasses.replace(CONTRACT.vectors[0], **vector),),
                                   action=dataclasses.replace(CONTRACT.action, **action))
    with pytest.raises(FospError, match="position_vector: vector 'ee_pose' .* is not the position that the action"):
        Senses(contract, LIMITS, 'ee_pose', [].append)
    Senses(contract, dataclasses.replace(LIMITS, box_low=(), box_high=()), '', [].append)   # guarded by less, and told


def test_ages_are_those_of_the_oldest_and_infinite_before_the_first(desk):
    assert set(desk.senses.ages(0.0)) == {'camera', 'command', 'pose', 'joints'}
    assert all(age == math.inf for age in desk.senses.ages(0.0).values()) and desk.senses.oldest(0.0) == math.inf
    desk.picture(0.0)
    desk.command(0.1)
    desk.pose(0.2)
    desk.joints(0.3)
    assert desk.senses.ages(0.4) == pytest.approx({'camera': 0.4, 'command': 0.3, 'pose': 0.2, 'joints': 0.1})
    assert desk.senses.oldest(0.4) == pytest.approx(0.2)
    desk.pose(0.4)
    assert desk.senses.oldest(0.5) == pytest.approx(0.2)


def test_a_camera_that_was_late_from_its_first_picture_on_is_found_out_by_the_pose(desk):
    for k in range(5):
        desk.picture(0.1 * k, made=0.1 * k - 0.3)
        desk.pose(0.1 * k)
    assert desk.senses.ages(0.4)['camera'] == pytest.approx(0.3) and desk.senses.ages(0.4)['pose'] == pytest.approx(0.0)


def test_forget_takes_the_next_way_for_the_quickest_and_the_next_pose_for_the_right_one(desk):
    for t in (0.0, 0.1):
        desk.tick(t)
    desk.pose(0.4, made=0.2)
    assert desk.senses.ages(0.4)['pose'] == pytest.approx(0.2, abs=1e-3)
    desk.senses.forget()
    desk.pose(0.5, (0.3, 0.3, 0.3), made=0.3)
    assert desk.senses.ages(0.5)['pose'] == pytest.approx(0.0, abs=1e-6)
    assert desk.tick(0.6, at=(0.3, 0.3, 0.3)) == ()


# -- one tick ---------------------------------------------------------------------------------------------------------
def test_the_recurrent_state_begins_with_the_first_picture_an_episode_and_after_a_pause(desk):
    assert desk.senses.begins(desk.observation(0.0))
    desk.tick(0.0)
    assert not desk.senses.begins(desk.observation(0.1)) and not desk.senses.begins(desk.observation(0.999))
    assert desk.senses.begins(desk.observation(1.0)) and desk.senses.begins(desk.observation(0.1, first=True))
    assert desk.senses.begins(desk.observation(0.0)) and desk.senses.begins(desk.observation(-0.1))


@pytest.mark.parametrize(('between', 'refused'), [(0.9, True), (1.0, False), (0.1, True)])
def test_two_beginnings_within_a_second_are_no_label(desk, between, refused):
    assert desk.tick(0.0, first=True, begins=True) == ()
    found = desk.tick(between, first=True, begins=True)
    assert (Reason.LABEL_INVALID in found) is refused
    assert Reason.LABEL_INVALID not in desk.tick(between + 0.1)


def test_a_beginning_that_never_ends_goes_on_being_a_fault(desk):
    found = [desk.tick(0.3 * k, first=True, begins=True) for k in range(6)]
    assert found[0] == () and all(Reason.LABEL_INVALID in faults for faults in found[1:])


def test_a_jump_is_what_the_command_does_not_explain_and_the_new_place_is_not_believed(desk):
    desk.tick(0.0, last=ZERO, begins=True)
    assert desk.tick(0.1, at=(0.565, 0.0, 0.2)) == ()           # 0.065 m, of which 0.01 were commanded
    assert desk.tick(0.2, at=(0.624, 0.0, 0.2), last=ZERO) == ()
    assert desk.tick(0.3, at=(0.57, 0.01, 0.2), last=MOVING) == (Reason.POSE_JUMP,)    # the other way
    for k in range(4, 20):
        assert Reason.POSE_JUMP in desk.tick(0.1 * k, at=(0.57 - 1e-4 * k, 0.01, 0.2), last=ZERO)
    assert desk.tick(2.0, at=(0.635, 0.0, 0.2), last=ZERO) == ()        # where the command has brought it from there
    assert desk.tick(2.1, at=(0.4, 0.0, 0.2), first=True, begins=True) == ()      # an episode begins anywhere


def test_a_picture_that_repeats_itself_is_frozen_once_the_arm_has_moved(desk):
    same = np.full((64, 64, 3), 7, np.uint8)
    found = [desk.tick(0.1 * k, at=(0.5 + 0.0125 * k, 0.0, 0.2), last=ZERO, picture=same) for k in range(5)]
    assert found == [(), (), (), (Reason.CAMERA_FROZEN,), (Reason.CAMERA_FROZEN,)]      # 0.0375 m beyond 0.03 m
    assert desk.tick(0.5, at=(0.5625, 0.0, 0.2), last=ZERO, picture=same, begins=True) == ()


def test_a_picture_and_a_pose_that_stand_still_under_commands_are_frozen(desk):
    same = np.full((64, 64, 3), 7, np.uint8)
    found = [desk.tick(0.1 * k, last=FASTER, picture=same) for k in range(12)]
    assert [Reason.CAMERA_FROZEN in faults for faults in found] == [False] * 8 + [True] * 4
    assert [Reason.POSE_FROZEN in faults for faults in found] == [False] * 8 + [True] * 4


@pytest.mark.parametrize('source', ['pose', 'joints'])
def test_a_measurement_that_repeats_itself_under_commands_is_frozen(desk, source):
    found = []
    for k in range(13):
        pose = (0.5, 0.0, 0.2) if source == 'pose' else (0.5 + 1e-6 * k, 0.0, 0.2)
        found.append(desk.tick(0.1 * k, at=pose, last=FASTER, joints=(0.1, 0.2) if source == 'joints' else None))
    assert [Reason.POSE_FROZEN in faults for faults in found] == [False] * 8 + [True] * 5
    assert desk.tick(1.3, at=(0.51, 0.0, 0.2), joints=(0.3, 0.2)) == ()
    found = [desk.tick(1.4 + 0.1 * k, last=ZERO, joints=(0.3, 0.2)) for k in range(20)]
    assert not any(found)       # an arm that is not commanded may stand still


def test_a_beginning_forgets_that_a_measurement_stood_still(desk):
    for k in range(8):
        desk.tick(0.1 * k, joints=(0.1, 0.2), last=FASTER)
    assert desk.tick(0.8, joints=(0.1, 0.2), last=FASTER, begins=True) == ()
    later = [desk.tick(0.9 + 0.1 * k, at=(0.5 + 1e-6 * k, 0.0, 0.2), joints=(0.1, 0.2), last=FASTER) for k in range(8)]
    assert not any(later[:7]) and later[7] == (Reason.POSE_FROZEN,)
