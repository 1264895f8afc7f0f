# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The learner's pure parts: pairing by stamp, what counts as executed. No topics, no clock."""

import numpy as np
import pytest

from fosp_core.contract import Contract
from fosp_core.errors import ContractError
from fosp_core.paths import config_file
from fosp_ros.messages import stamped_class
from fosp_ros.observing import EVENT, JOY, Observer, TickLabel
from fosp_ros.recording import Recorder

MS = 1_000_000
FRAME = np.zeros((64, 64, 3), np.uint8)
POSE = np.zeros(3, np.float32)


@pytest.fixture
def contract():
    return Contract.load(config_file('contract_safereach.yaml'))


def show(observer, stamp, now=0.0, label=True, pose=0, image=True, first=False, last=False, reward=0.0):
    if label:
        observer.put_label(stamp, [reward, 0.0], [first, last, False])
    if pose is not None:
        observer.put('ee_pose', stamp + pose, POSE + stamp % 97, 'pose', now)
    if image:
        observer.put('image', stamp, FRAME, 'image', now)


def test_an_exact_match_is_taken_at_once(contract):
    observer = Observer(contract, 0.05, 0.01)
    show(observer, 10**18, first=True, reward=1.0)
    got = observer.take(0.0)
    assert got.stamp == 10**18 and got.label == TickLabel(1.0, 0.0, True, False, False) and got.missed == 0
    assert observer.take(0.0) is None, 'one picture, one tick'
    observer.put('image', 10**18, FRAME, 'image', 0.0)
    assert observer.take(1.0) is None, 'the same stamp again is no new tick'


def test_the_nearest_pose_is_taken_after_the_wait_and_never_one_beyond_the_tolerance(contract):
    observer = Observer(contract, 0.05, 0.01, EVENT)
    for k, offset in enumerate((-30, -8, 12)):
        observer.put('ee_pose', 10**18 + offset * MS, POSE + k, 'pose', 0.0)
    observer.put('image', 10**18, FRAME, 'image', 0.0)
    assert observer.take(0.009) is None and observer.pending
    assert observer.take(0.011).arrays['ee_pose'][0] == 1
    observer.put('image', 10**18 + 200 * MS, FRAME, 'image', 1.0)
    assert observer.take(2.0) is None and observer.unpaired == {'ee_pose': 1} and not observer.pending


def test_a_picture_waits_for_its_label_and_a_late_one_goes_without(contract):
    observer = Observer(contract, 0.05, 0.01)
    show(observer, 10**18, label=False)
    assert observer.take(0.005) is None
    show(observer, 10**18, image=False, last=True)
    assert observer.take(0.005).label.is_last
    show(observer, 10**18 + 100 * MS, now=1.0, label=False)
    assert observer.take(1.02).label == TickLabel()


def test_labels_without_a_picture_count_as_missed_and_pass_their_episode_border_on(contract):
    observer = Observer(contract, 0.05, 0.01)
    show(observer, 10**18)
    observer.take(0.0)
    show(observer, 10**18 + 100 * MS, image=False, first=True)
    show(observer, 10**18 + 200 * MS, image=False)
    show(observer, 10**18 + 300 * MS)
    got = observer.take(0.0)
    assert got.missed == 2 and got.label.is_first


def test_a_picture_that_is_overtaken_is_counted(contract):
    observer = Observer(contract, 0.05, 0.5)
    show(observer, 10**18, label=False)
    show(observer, 10**18 + 100 * MS)
    assert observer.take(0.0).stamp == 10**18 + 100 * MS and observer.overtaken == 1


def test_an_operators_button_counts_once_and_a_pause_in_the_pictures_is_missed_ticks(contract):
    observer = Observer(contract, 0.05, 0.0, EVENT)
    for _ in range(3):  # joy repeats a pressed button
        observer.put_label(0, [0.0, 0.0], [1, 0, 0])
    show(observer, 10**18, label=False)
    assert observer.take(0.0).label.is_first
    observer.put_label(0, [1.0, 0.0], [1, 0, 0])
    show(observer, 10**18 + 400 * MS, label=False)
    got = observer.take(0.0)
    assert not got.label.is_first and got.label.reward == 1.0 and got.missed == 3


def test_a_joysticks_buttons_are_an_episode_and_its_sticks_are_no_reward(contract):
    observer = Observer(contract, 0.05, 0.0, JOY)
    said = []
    pressed = [[0, 1, 0], [1, 0, 0], [1, 0, 1], None, [0, 0, 0], [0, 1, 0], [0, 1, 0], [1], [0], [1]]
    for k, buttons in enumerate(pressed):
        if buttons is not None:     # a driver need not repeat a held button
            observer.put_label(0, [0.7, -0.9, 0.4], buttons)
            observer.put_label(0, [-0.7, 0.9, 0.4], buttons)
        show(observer, 10**18 + k * 100 * MS, label=False)
        said.append(observer.take(0.0).label)
    assert said == [TickLabel(), TickLabel(is_first=True), TickLabel(cost=1.0), TickLabel(cost=1.0), TickLabel(),
                    TickLabel(reward=1.0, is_last=True, is_terminal=True), TickLabel(), TickLabel(is_first=True),
                    TickLabel(), TickLabel(is_last=True)]


def test_a_cost_button_counts_when_tapped_and_not_when_its_driver_is_gone(contract):
    observer = Observer(contract, 0.05, 0.0, JOY)
    costs = []
    for k in range(14):
        for down in {0: (1, 0), 1: (1,)}.get(k, ()):
            observer.put_label(0, [], [0, 0, down])
        show(observer, 10**18 + k * 100 * MS, label=False)
        costs.append(observer.take(0.0).label.cost)
    assert costs == [1.0] + [1.0] * 10 + [0.0] * 3, 'a tap, then held for a second'


@pytest.mark.parametrize(('axes', 'buttons'), [([], []), ([float('nan'), -1.0], [1]), ([1.0], [0, 1, 0, 5])])
def test_a_malformed_label_cannot_harm(contract, axes, buttons):
    observer = Observer(contract, 0.05, 0.01)
    observer.put_label(10**18, axes, buttons)
    show(observer, 10**18, label=False)
    label = observer.take(0.0).label
    assert np.isfinite(label.reward) and label.cost >= 0.0


def observation(contract, k, arrived, first=False, last=False, missed=0):
    observer = Observer(contract, 0.05, 0.0)
    show(observer, 10**18 + k * 100 * MS, now=arrived, first=first, last=last)
    got = observer.take(arrived)
    return type(got)(got.stamp, got.arrays, got.messages, got.label, arrived, missed)


def test_the_executed_command_is_the_newest_before_the_next_tick(contract):
    recorder = Recorder(hold=0.2)
    assert recorder.observe(observation(contract, 0, 0.0, first=True), 0.0) == []
    recorder.command('a', np.ones(3), 0.02)
    recorder.command('stop', np.zeros(3), 0.09)  # the watchdog's
    (record,) = recorder.observe(observation(contract, 1, 0.1), 0.1)
    assert (record.command, record.step) == ('stop', 0)
    recorder.command('b', np.ones(3), 0.12)
    done = recorder.observe(observation(contract, 2, 0.2, last=True), 0.2)
    assert [(r.command, r.step) for r in done] == [('b', 1), (None, 2)]


def test_the_answer_to_a_picture_that_is_served_before_it_belongs_to_it_all_the_same(contract):
    """The learner was busy for 0.2 s; the filter has answered picture 1, for want of a proposal, before it looks."""
    recorder, stamp = Recorder(hold=0.2), lambda k: 10**18 + k * 100 * MS
    recorder.observe(observation(contract, 0, 0.0, first=True), 0.0)
    recorder.command('answer to 0', np.ones(3), 0.02, stamp(0))
    recorder.command('late_hold for 1', np.zeros(3), 0.25, stamp(1))
    second = observation(contract, 1, 0.251)
    recorder.settle(second)
    assert recorder.executed(second.arrived)[0] == 'answer to 0'
    assert [r.command for r in recorder.observe(second, 0.251)] == ['answer to 0']
    recorder.command('stop of the watchdog', np.zeros(3), 0.26, stamp(1) + 70 * MS)
    assert [r.command for r in recorder.observe(observation(contract, 2, 0.27), 0.27)] == ['stop of the watchdog']
    # Stamps of another clock tell nothing: then it is the order of arrival.
    recorder.command('of another clock', np.ones(3), 0.28, 5)
    recorder.command('too late', np.ones(3), 0.40, 6)
    assert [r.command for r in recorder.observe(observation(contract, 3, 0.35), 0.35)] == ['of another clock']


def test_a_dropped_episode_gives_its_numbers_back(contract):
    recorder = Recorder(hold=0.2, continuous=False)
    for k in range(3):
        recorder.observe(observation(contract, k, 0.1 * k, first=k == 0), 0.1 * k)
    recorder.interrupt(0)
    assert recorder.observe(observation(contract, 3, 0.3), 0.3) == []
    steps = [r.step for k in (4, 5) for r in recorder.observe(observation(contract, k, 0.1 * k, first=k == 4), 0.1 * k)]
    assert steps == [0]


def test_a_command_acts_on_until_it_is_too_old(contract):
    recorder = Recorder(hold=0.2)
    recorder.observe(observation(contract, 0, 0.0, first=True), 0.0)
    recorder.command('a', np.ones(3), 0.02)
    commands = []
    for k in range(1, 5):
        commands += [r.command for r in recorder.observe(observation(contract, k, 0.1 * k), 0.1 * k)]
    assert commands == ['a', 'a', None, None]
    assert recorder.executed(0.4) is None


@pytest.mark.parametrize('continuous', [True, False])
def test_an_interruption_drops_the_open_record_and_its_number(contract, continuous):
    """The record would join two pictures a minute apart, with consecutive counters: one transition for the model."""
    recorder, steps = Recorder(hold=0.2, continuous=continuous), []
    for k, tick in {0: {'first': True}, 1: {}, 2: {}, 600: {}, 601: {}, 602: {'first': True}, 603: {}}.items():
        if k == 600:
            recorder.interrupt()
            recorder.interrupt()    # once more, with nothing open, loses nothing
        steps += [(r.step, r.observation.stamp // (100 * MS) % 1000)
                  for r in recorder.observe(observation(contract, k, 0.1 * k, **tick), 0.1 * k)]
    assert steps == [(0, 0), (1, 1)] + ([(3, 600), (4, 601), (5, 602)] if continuous else [(3, 602)])


def test_missed_ticks_make_the_counter_jump_and_operators_pauses_are_not_recorded(contract):
    recorder = Recorder(hold=0.2, continuous=False)
    steps = []
    first, last = {'first': True}, {'last': True}
    ticks = [{}, {'missed': 5}, first, {}, {'missed': 2}, last, {}, first, last]
    for k, tick in enumerate(ticks):
        steps += [(r.step, r.observation.label.is_first, r.observation.label.is_last)
                  for r in recorder.observe(observation(contract, k, 0.1 * k, **tick), 0.1 * k)]
    assert steps == [(0, True, False), (1, False, False), (4, False, False), (5, False, True),
                     (6, True, False), (7, False, True)]


def test_a_contract_of_messages_without_a_header_is_refused():
    assert stamped_class('geometry_msgs/msg/PoseStamped', 'x').__name__ == 'PoseStamped'
    with pytest.raises(ContractError, match='contract a: action: message type geometry_msgs/msg/Twist has no header'):
        stamped_class('geometry_msgs/msg/Twist', 'contract a: action')
