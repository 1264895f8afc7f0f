# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Two nodes on one topic, and senders with another clock: nothing of it is wrong in itself, but not all can be true."""

import time

import numpy as np
import pytest
from filter_cell import CONTRACT
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from ros_rig import wait_for, within
from sensor_msgs.msg import Image, Joy
from std_srvs.srv import Trigger

from fosp_core.data import messages
from fosp_core.data.joiner import Label
from fosp_ros import qos


@pytest.fixture
def second(stand):
    """Return a function that makes one more publisher of a topic and calls it from a timer; gone after the test."""
    made, timers = [], []

    def make(kind, topic, profile, period, publish):
        publisher = stand.cell.create_publisher(kind, topic, profile)
        made.append(publisher)
        wait_for(publisher.get_subscription_count, 5.0, f'a subscriber of {topic}')
        timers.append(stand.cell.create_timer(period, lambda: publish(publisher)))
    yield make
    for timer in timers:
        within(stand.cell, lambda t=timer: stand.cell.destroy_timer(t))
    for publisher in made:
        within(stand.cell, lambda p=publisher: stand.cell.destroy_publisher(p))
    time.sleep(0.1)
    stand.call('reset', Trigger.Request())      # what jumped would be remembered for ten seconds


def stands(stand, seconds=1.0):
    """Wait until stops alone have been sent for so long: a loaded computer may hold up what is at fault, too."""
    def silent():
        sent = [s.command for s in list(stand.cell.log) if s.at > time.time_ns() - 1e9 * seconds]
        return len(sent) > 5 * seconds and not any(v.any() for v in sent)
    wait_for(silent, 10.0, f'{seconds} s of stops alone')


def test_a_second_publisher_of_the_pose_stops_and_is_named(stand, second):
    cell = stand.ready()
    since = len(cell.states)

    def publish(publisher):
        publisher.publish(messages.fill(CONTRACT, 'ee_pose', PoseStamped(), time.time_ns(),
                                        cell.position + [0.0, 0.15, 0.0]))
    second(PoseStamped, 'ee_pose', qos.STATE, 0.01, publish)
    stand.reason('pose_jump', since)
    stands(stand)
    wait_for(lambda: '2 publishers on ee_pose, expected one' in cell.report()[0].message, 3.0, 'the report')


def test_a_bag_that_is_played_onto_live_topics_stops(stand, second):
    """Nothing that it says may move the arm; it goes on for ten seconds, as both clocks could be the right one."""
    cell = stand.ready()
    since, away = len(cell.states), 3600 * 10**9
    pixels = np.full((64, 64, 3), 9, np.uint8)
    second(Joy, 'label', qos.LABEL, 0.1, lambda publisher: publisher.publish(messages.fill(
        CONTRACT, 'label', Joy(), time.time_ns() - away, Label(0.0, 0.0, False, False, False, 0))))
    second(PoseStamped, 'ee_pose', qos.STATE, 0.1, lambda publisher: publisher.publish(messages.fill(
        CONTRACT, 'ee_pose', PoseStamped(), time.time_ns() - away, np.array([0.6, 0.3, 0.1]))))
    second(Image, 'image', qos.IMAGE, 0.1, lambda publisher: publisher.publish(messages.fill(
        CONTRACT, 'image', Image(), time.time_ns() - away, pixels)))
    stand.reason('camera_invalid', since)
    stands(stand, 2.0)
    wait_for(lambda: '2 publishers on image, expected one' in cell.report()[0].message, 3.0, 'the report')


def test_one_picture_of_the_future_makes_the_others_not_late(stand):
    cell = stand.ready()

    def hurry(cell):
        stamp = time.time_ns() + 2 * 10**9
        cell.out['image'].publish(messages.fill(CONTRACT, 'image', Image(), stamp, np.zeros((64, 64, 3), np.uint8)))
    cell.inject(hurry)
    begin = time.time_ns()
    wait_for(lambda: any(s.command.any() and s.at > begin + 25e8 for s in cell.log[-5:]), 8.0, lambda: (
        f'motion without a reset (the filter says {cell.reason}: {stand.child.text[-600:]})'))
    wait_for(lambda: "'image': " in cell.report()[1]['doubted'], 3.0, 'the report')


@pytest.fixture
def anew(stand):
    """Return a function that deactivates and activates the filter, which then knows nothing of any picture."""
    client = stand.cell.create_client(ChangeState, 'safety_filter/change_state')

    def change():
        for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE):
            wait_for(client.service_is_ready, 5.0, 'change_state')
            request = ChangeState.Request()
            request.transition.id = transition
            future = client.call_async(request)
            wait_for(future.done, 5.0, 'the transition')
            assert future.result().success
    yield change
    within(stand.cell, lambda: stand.cell.destroy_client(client))


def test_a_camera_smaller_than_the_contract_stops_from_its_first_picture_on(stand, anew):
    cell = stand.ready()
    cell.inject(lambda cell: setattr(cell, 'size', (8, 8)))
    anew()
    since = len(cell.states)
    stand.reason('camera_invalid', since)
    stands(stand)


@pytest.mark.parametrize('ahead', [0.08, 0.3], ids=['80 ms', '300 ms'])
def test_a_camera_whose_clock_is_ahead_of_the_arms_is_named(stand, ahead):
    """All of it is fresh, and nothing of it belongs together."""
    cell = stand.ready()
    since = len(cell.states)

    def hurry(cell):
        publish = cell._publish

        def other(kind, message, *more):
            if kind in ('image', 'command'):
                at = messages.stamp_ns(message) + round(1e9 * ahead)
                message.header.stamp.sec, message.header.stamp.nanosec = divmod(at, 10**9)
            publish(kind, message, *more)
        cell._publish = other
    cell.inject(hurry)
    try:
        stand.reason('pose_stale', since)
        stands(stand)
        wait_for(lambda: 'ee_pose' in cell.report()[1]['unpaired'], 3.0, 'the report')
        wait_for(lambda: f'{ahead:.3f} s older' in stand.child.text, 12.0, 'the line')      # one in five seconds
    finally:
        cell.inject(lambda cell: cell.__dict__.pop('_publish'))
        time.sleep(0.5)
        stand.call('reset', Trigger.Request())      # the camera's clock is set back: its pictures look late
