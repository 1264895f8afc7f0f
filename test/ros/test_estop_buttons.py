# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Several e-stop buttons on one topic: pressed while any of them is, over the real middleware."""

import time

import pytest
import rclpy
from std_msgs.msg import Bool

from fosp_ros import qos
from fosp_ros.estop import Buttons
from fosp_ros.lifecycle import ManagedNode

VOLATILE = 10


@pytest.fixture
def panel(rig):
    """Return (rig, buttons of a node, what it was told, function that makes a button with a QoS)."""
    ear, told, made = rig.add(ManagedNode('ear')), [], []
    buttons = Buttons(ear, told.append)
    desk = rclpy.create_node('desk')

    def make(profile=qos.LATCHED):
        made.append(desk.create_publisher(Bool, 'estop', profile))
        wanted = 3 if profile is qos.LATCHED else 2
        rig.wait_for(lambda: made[-1].get_subscription_count() >= wanted
                     and ear.count_publishers('estop') == len(made), what='discovery')

        def say(pressed):
            made[-1 if len(made) == 1 else say.index].publish(Bool(data=pressed))
            time.sleep(0.15)
        say.index, say.gone = len(made) - 1, lambda: desk.destroy_publisher(made[say.index])
        return say
    yield rig, buttons, told, make
    desk.destroy_node()


def test_one_button_is_released_at_once(panel):
    rig, buttons, told, make = panel
    button = make(VOLATILE)
    button(True)
    button(False)
    assert told == [True, False] and not buttons.pressed


@pytest.mark.parametrize('profiles', [(qos.LATCHED, qos.LATCHED), (VOLATILE, qos.LATCHED), (qos.LATCHED, VOLATILE),
                                      (VOLATILE, VOLATILE)],
                         ids=['both latched', 'other latched', 'it latched', 'none'])
def test_the_release_of_another_button_releases_nothing(panel, profiles):
    rig, buttons, told, make = panel
    pressed, other = (make(profile) for profile in profiles)
    pressed(True)
    for _ in range(3):
        other(False)
    time.sleep(1.2)
    assert buttons.pressed and told == [True] and buttons.doubt
    pressed(False)
    if profiles == (VOLATILE, VOLATILE):    # cannot be told apart: pressed until one of them is left
        time.sleep(1.2)
        assert buttons.pressed and 'cannot be told apart' in buttons.doubt
        other.gone()
        rig.wait_for(lambda: buttons._node.count_publishers('estop') == 1, what='the other to leave')
        pressed(False)
    rig.wait_for(lambda: not buttons.pressed, 4.0, 'the release')
    assert told == [True, False]


def test_a_button_that_is_gone_is_released_when_asked_again(panel):
    rig, buttons, told, make = panel
    make()(False)
    button = make()
    button(True)
    button.gone()
    rig.wait_for(lambda: buttons._node.count_publishers('estop') == 1, what='it to leave')
    time.sleep(0.5)
    assert buttons.pressed
    buttons.ask()
    rig.wait_for(lambda: not buttons.pressed, 4.0, 'the release')
