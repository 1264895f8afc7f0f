# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Camera, arm and command go wrong in every way that a message can; one filter process serves all tests."""

import math
import time

import numpy as np
import pytest
from geometry_msgs.msg import TwistStamped
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_rig import wait_for, within
from stand import MEASURED, PERIOD_S
from std_msgs.msg import Bool, UInt8MultiArray
from std_srvs.srv import SetBool, Trigger

from fosp_core.deploy.bundle import Bundle
from fosp_core.safety.audit import TICK, read_entries
from fosp_ros import diagnostics, qos

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(('fault', 'kinds', 'word'), [
    ('camera missing', ['image'], 'camera_stale'), ('pose missing', ['pose'], 'pose_stale'),
    ('joints missing', ['joints'], 'joints_stale'), ('command stale', ['command'], 'command_stale'),
    ('everything silent', ['image', 'pose', 'joints', 'label', 'command'], 'idle')])
def test_a_silent_source_stops_within_two_periods(stand, fault, kinds, word):
    stand.silence(fault, kinds, word)
    stand.ready()       # no latch: it resumes by itself


def setting(**values):
    """Return a function that sets attributes of the cell."""
    return lambda cell: [setattr(cell, name, value) for name, value in values.items()]


def jumping(position):
    jumping.side = -jumping.side
    return position + [0.0, jumping.side, 0.0]


jumping.side = 0.12


BAD = [
    # fault, reason, what is done to the cell, kind of the first bad message, s until the first stop
    ('camera: wrong encoding', 'camera_invalid', setting(encoding='yuv422'), 'image', 0.2),
    ('camera: size changed', 'camera_invalid', setting(size=(128, 128)), 'image', 0.2),
    ('camera: size too small', 'camera_invalid', setting(size=(32, 32)), 'image', 0.2),
    ('camera: data cut short', 'camera_invalid', setting(short=True), 'image', 0.2),
    ('camera: another encoding than before', 'camera_invalid', setting(encoding='bgr8'), 'image', 0.2),
    ('camera: grey', 'camera_invalid', setting(encoding='mono8'), 'image', 0.2),
    ('camera late', 'camera_stale', setting(behind=4), 'image', 0.2),
    ('camera: one message again and again', 'camera_stale', setting(stuck=True), 'image', 0.2),
    ('pose NaN', 'pose_invalid', setting(said=lambda at: [NAN, 0.0, 0.2]), 'pose', 0.2),
    ('pose in another frame', 'pose_invalid', setting(frames={'pose': 'camera_optical_frame'}), 'pose', 0.2),
    ('pose jumping', 'pose_jump', setting(said=jumping), 'pose', 0.2),
    ('joints: other names', 'joints_invalid', setting(joint_names=['other'] * 7), 'joints', 0.2),
    ('joints NaN', 'joints_invalid', setting(joint_position=[NAN] * 7), 'joints', 0.2),
    ('joints: too few', 'joints_invalid', setting(joint_position=[0.0] * 6), 'joints', 0.2),
    ('command NaN', 'command_invalid', setting(patrol=False, command=[0.1, NAN, 0.0]), 'command', 0.2),
    ('command in another frame', 'command_invalid', setting(frames={'command': 'panda_hand'}), 'command', 0.2),
    ('command without a stamp', 'command_invalid', setting(unstamped=True), 'command', 0.2),
    ('command infinite', 'command_invalid', setting(patrol=False, command=[-INF, 0.0, 0.0]), 'command', 0.2),
]


@pytest.mark.parametrize(('fault', 'word', 'change', 'kind', 'within'), BAD, ids=[row[0] for row in BAD])
def test_a_bad_message_stops(stand, fault, word, change, kind, within):
    stand.rejected(fault, word, change, kind, within)
    if fault == 'camera late':      # pictures come again, each with its answer, and each too old: for good
        states = len(stand.cell.states)
        time.sleep(8.0)
        assert {m.message for _, m in stand.cell.states[states:]} == {word}
        assert not any(s.command.any() for s in stand.cell.log[-8:])


LATCHING = [('pose outside the box', 'workspace_measured', setting(said=lambda at: [0.9, 0.0, 0.2]), 'pose'),
            ('joint beyond its limit', 'joint_limit_measured', setting(joint_position=[0, 2.0, 0, -2.3, 0, 1.5, 0]),
             'joints')]


@pytest.mark.parametrize(('fault', 'word', 'change', 'kind'), LATCHING, ids=[row[0] for row in LATCHING])
def test_a_measurement_beyond_a_limit_stops_and_latches(stand, fault, word, change, kind):
    stand.rejected(fault, word, change, kind)
    assert word in stand.call('reset', Trigger.Request()).message       # the cause is still there
    cell = stand.cell
    cell.heal()
    cell.off.add('arm')
    time.sleep(0.5)
    assert cell.reason == word and not any(s.command.any() for s in cell.log[-3:])      # it is gone, the latch is not
    stand.ready()


def test_a_frozen_camera_stops_before_the_arm_has_gone_far(stand):
    cell = stand.ready()
    before = cell.inject(setting(frozen=True, patrol=False, command=[0.0, 0.1, 0.0]))
    begin = cell.position.copy()
    stand.reason('camera_frozen', before['states'])
    first = stand.first_stop(cell.published['image'][before['image']])
    at = np.searchsorted(cell.shown, first) - 1
    gone = np.linalg.norm(cell.where[cell.shown[at]] - begin)
    MEASURED.append(('camera frozen', 'camera_frozen', (first - cell.published['image'][before['image']]) * 1e-6, None))
    assert gone <= 0.03 + 2 * 0.1 * PERIOD_S       # frozen_distance, and the way of two periods


def test_a_pose_that_repeats_itself_stops_before_the_arm_has_gone_far(stand):
    cell = stand.ready()
    here = cell.position.copy()
    before = cell.inject(setting(said=lambda at: here, patrol=False, command=[0.0, 0.1, 0.0]))
    begin = cell.position.copy()
    stand.reason('pose_frozen', before['states'])
    first = stand.first_stop(cell.published['pose'][before['pose']])
    at = np.searchsorted(cell.shown, first) - 1
    assert np.linalg.norm(cell.where[cell.shown[at]] - begin) <= 3 * 0.03 + 2 * 0.1 * PERIOD_S
    MEASURED.append(('pose repeats itself', 'pose_frozen', (first - cell.published['pose'][before['pose']]) * 1e-6,
                     None))


def test_a_pose_that_stays_shifted_is_not_taken_for_the_truth(stand):
    stand.rejected('pose shifted for good', 'pose_jump', setting(said=lambda at: at + [0.0, 0.09, 0.0]), 'pose')
    cell = stand.cell
    time.sleep(1.5)
    assert cell.reason == 'pose_jump' and not any(s.command.any() for s in cell.log[-12:])
    assert stand.call('reset', Trigger.Request()).success       # somebody has looked
    wait_for(lambda: cell.reason == 'ok', 3.0, 'motion after the reset')


def test_a_label_that_says_first_again_and_again_does_not_blind_the_filter(stand):
    cell = stand.ready()
    before = cell.inject(setting(borders=True))
    stand.reason('label_invalid', before['states'])
    stand.first_stop(cell.published['label'][before['label']])
    time.sleep(1.0)
    assert not any(s.command.any() for s in cell.log[-8:])


def test_pictures_at_three_times_the_rate_stop(stand):
    cell = stand.ready()
    count = len(cell.states)

    def faster(cell):
        original = cell.proposal

        def twice(stamp):       # two pictures more before the next tick, each with pose, label and answer
            if not cell.also_pictures:
                return original(stamp)
            cell.also_pictures = False
            for _ in range(2):
                time.sleep(PERIOD_S / 3)
                cell.tick()
            cell.also_pictures = True
            return original(stamp)
        cell.also_pictures, cell.proposal = True, twice
    cell.inject(faster)
    try:
        stand.reason('camera_invalid', count, 8.0)
    finally:
        cell.inject(lambda cell: cell.__dict__.pop('proposal'))


def test_a_command_out_of_range_is_scaled_not_passed(stand):
    cell = stand.ready()
    before = cell.inject(setting(patrol=False, command=[0.0, 0.1, 3.0]))
    stand.reason('limit_range', before['states'])
    since = cell.published['command'][before['command']]

    def sent():
        return [s.command for s in cell.log if s.at > since]
    wait_for(lambda: len(sent()) >= 5, 2.0, 'five commands')
    assert all(np.linalg.norm(v) <= 0.2 + 1e-6 for v in sent())


def test_one_late_command_holds_and_lasting_lateness_stops(stand):
    cell = stand.ready()
    before = cell.inject(setting(off={'command'}))
    wait_for(lambda: len(cell.published['image']) > before['image'], 1.0, 'a picture without a command')
    cell.inject(setting(off=set()))
    stand.reason('late_hold', before['states'])
    stand.reason('ok', len(cell.states), 1.0)
    assert not {m.message for _, m in cell.states[before['states']:]} & {'repeated_late', 'command_stale', 'releasing'}
    stand.rejected('command late on every tick', 'repeated_late', setting(lag=0.085), 'image')


def test_a_single_lost_message_of_the_joints_costs_one_tick_at_most(stand):
    cell = stand.ready()
    before = cell.inject(setting(off={'joints'}))
    cell.inject(setting(off=set()))
    time.sleep(0.5)
    words = {m.message for _, m in cell.states[before['states']:]}
    assert 'joints_stale' not in words and 'releasing' not in words
    assert cell.reason in ('ok', 'limit_acceleration')      # the patrol is turning round


@pytest.fixture
def button(stand):
    """A further publisher of the e-stop, made with a QoS of the test's choice."""
    made = []

    def make(profile):
        made.append(stand.cell.create_publisher(Bool, 'estop', profile))
        wait_for(lambda: made[-1].get_subscription_count(), 5.0, 'the filter to find the button')
        time.sleep(0.1)
        return made[-1]
    yield make
    for publisher in made:
        within(stand.cell, lambda p=publisher: stand.cell.destroy_publisher(p))


@pytest.mark.parametrize(('name', 'profile'), [
    ('latched', qos.LATCHED), ('volatile, as every tool does by default', 10),
    ('best effort', QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))],
    ids=['latched', 'volatile', 'best effort'])
def test_estop_stops_whatever_its_qos_and_its_release_is_no_reset(stand, button, name, profile):
    cell = stand.ready()
    estop, pressed = button(profile), time.time_ns()
    estop.publish(Bool(data=True))
    first = stand.first_stop(pressed)
    MEASURED.append((f'e-stop, {name[:20]}', 'estop', (first - pressed) * 1e-6, None))
    assert cell.reason == 'estop' and (first - pressed) * 1e-9 <= PERIOD_S
    assert not stand.call('reset', Trigger.Request()).success
    estop.publish(Bool(data=False))
    time.sleep(1.5)     # there is another button, so all are asked
    assert cell.reason == 'estop' and not any(s.command.any() for s in cell.log[-4:])
    assert stand.call('reset', Trigger.Request()).success
    stand.ready()


def test_the_release_of_one_estop_button_does_not_release_the_other(stand, button):
    cell = stand.ready()
    estop, pressed = button(qos.LATCHED), time.time_ns()
    estop.publish(Bool(data=True))
    stand.first_stop(pressed)
    cell.estop.publish(Bool(data=False))
    time.sleep(1.5)
    assert cell.reason == 'estop' and not stand.call('reset', Trigger.Request()).success
    estop.publish(Bool(data=False))
    stand.ready()


def test_estop_by_service_is_released_by_service_alone(stand):
    cell = stand.ready()
    pressed = time.time_ns()
    assert stand.call('estop', SetBool.Request(data=True)).success
    stand.first_stop(pressed)
    cell.estop.publish(Bool(data=False))        # the other button
    time.sleep(0.2)
    assert cell.reason == 'estop' and not stand.call('reset', Trigger.Request()).success


@pytest.fixture
def intruder(stand):
    """Return a function that makes one more publisher of commands; it is gone after the test."""
    made = []

    def make(topic):
        made.append(stand.cell.create_publisher(TwistStamped, topic, qos.COMMAND))
        wait_for(made[-1].get_subscription_count, 5.0, f'a subscriber of {topic}')
        return made[-1]
    yield make
    for publisher in made:
        within(stand.cell, lambda p=publisher: stand.cell.destroy_publisher(p))


def test_two_publishers_on_command_in_stop(stand, intruder):
    cell = stand.ready()
    other = intruder('command_in')
    stand.rejected('two publishers on command_in', 'command_conflict', setting(also=other), 'command')
    wait_for(lambda: '2 publishers on command_in' in cell.report()[0].message, 3.0, 'the report')


def test_a_second_publisher_on_command_out_is_reported(stand, intruder):
    cell = stand.ready()
    intruder('command_out')
    wait_for(lambda: 'bypass' in cell.report()[0].message and cell.report()[0].level == diagnostics.ERROR, 4.0,
             'the report')


def test_a_command_publisher_of_another_qos_is_no_command_and_is_named(stand):
    cell = stand.ready()
    good, since = cell.out['command'], len(cell.states)
    cell.out['command'] = cell.create_publisher(TwistStamped, 'command_in', QoSProfile(
        depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    begin = time.time_ns()
    try:
        stand.reason('command_stale', since)
        stand.first_stop(begin)
        wait_for(lambda: 'command_in' in stand.child.text and 'incompatible QoS' in stand.child.text, 3.0, 'the line')
    finally:
        bad, cell.out['command'] = cell.out['command'], good
        within(cell, lambda: cell.destroy_publisher(bad))


def offered(stand, bundle_bytes):
    before = len(stand.cell.states)
    message = UInt8MultiArray()
    message.data.frombytes(bundle_bytes)
    refused = int(stand.cell.values()['refused_models'])
    stand.cell.model.publish(message)
    wait_for(lambda: int(stand.cell.values()['refused_models']) == refused + 1, 8.0, 'the refusal')
    return before


def test_a_corrupt_bundle_in_flight_is_refused_and_costs_no_tick(stand, model):
    cell = stand.ready()
    wait_for(lambda: cell.report()[0] is not None, 3.0, 'a report')
    raw = bytearray(Bundle.open(model).to_bytes())
    raw[len(raw) // 2] ^= 0xFF
    before = offered(stand, bytes(raw))
    assert cell.values()['version'] == 'calibrated' and all(s.command.any() for s in cell.log[-3:])
    wait_for(lambda: 'model refused' in cell.report()[0].message, 3.0, 'the report')
    words = {m.message for _, m in cell.states[before:]}
    assert words <= {'ok', 'limit_acceleration', 'late_hold'}, words


def test_camera_arm_and_learner_leave_the_middleware_and_come_back(stand):
    """DDS restarts on their side: every participant but the filter's goes and a new one comes."""
    stand.ready()
    stand.judge()
    gone = stand.restart_cell(pause=0.6)
    assert not any(s.command.any() for s in stand.cell.log)     # nothing moved for those that had gone
    stand.ready()
    # Nobody was there to hear the filter meanwhile, but it keeps a book.
    ticks = [e for e in read_entries(stand.folder / 'audit') if e['k'] == TICK and gone < 1e9 * e['t'] < gone + 6e8]
    stopped = [e for e in ticks if 1e9 * e['t'] > gone + 2e8]
    assert len(stopped) >= 3 and stopped[-1]['reason'] == 'idle' and not any(any(e['sent']) for e in stopped)
