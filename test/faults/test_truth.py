# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Two nodes on one topic, and senders with another clock: nothing of it is wrong in itself, but not all can be true."""

import time

import pytest
from filter_cell import CONTRACT
from geometry_msgs.msg import PoseStamped
from ros_rig import wait_for

from fosp_core.data import messages
from fosp_ros import qos


@pytest.fixture
def second(stand):
    """Return a function that makes one more publisher of a topic and calls it from a timer; gone after the test."""
    made, timers = [], []

    def make(kind, topic, profile, period, publish):
        made.append(stand.cell.create_publisher(kind, topic, profile))
        wait_for(made[-1].get_subscription_count, 5.0, f'a subscriber of {topic}')
        timers.append(stand.cell.create_timer(period, lambda: publish(made[-1])))
    yield make
    for timer in timers:
        stand.cell.destroy_timer(timer)
    for publisher in made:
        stand.cell.destroy_publisher(publisher)


def stood(stand, seconds=1.0):
    """Wait, and return whether no command moved the arm meanwhile."""
    begin = time.time_ns()
    time.sleep(seconds)
    sent = [s.command for s in stand.cell.log if s.at > begin]
    return len(sent) > 5 * seconds and not any(v.any() for v in sent)


def test_a_second_publisher_of_the_pose_stops_and_is_named(stand, second):
    cell = stand.ready()
    since = len(cell.states)

    def publish(publisher):
        publisher.publish(messages.fill(CONTRACT, 'ee_pose', PoseStamped(), time.time_ns(),
                                        cell.position + [0.0, 0.15, 0.0]))
    second(PoseStamped, 'ee_pose', qos.STATE, 0.01, publish)
    stand.reason('pose_jump', since)
    assert stood(stand)
    wait_for(lambda: '2 publishers on ee_pose, expected one' in cell.report()[0].message, 3.0, 'the report')
