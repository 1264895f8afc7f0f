# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Freshness: by arrival, by stamp and by content; clocks that are set do not matter."""

import math

import numpy as np
import pytest

from fosp_core.safety.freshness import DIGESTS, DRIFT, FrozenMeasurement, FrozenPicture, Source

NOW, STAMP = 1000.0, 1.7e9


def regular(ticks=10, period=0.1, source=None, start=0):
    source = source or Source()
    for k in range(start, start + ticks):
        assert source.arrived(STAMP + period * k, NOW + period * k)
    return source


def test_age_is_infinite_before_the_first_and_then_counts_from_arrival():
    assert Source().age(NOW) == math.inf
    source = regular()
    assert source.age(NOW + 0.9) == pytest.approx(0.0) and source.age(NOW + 1.2) == pytest.approx(0.3)
    assert source.count == 10 and source.repeated == 0


def test_a_repeated_stamp_is_no_news():
    source = regular()
    for k in range(5):
        assert not source.arrived(STAMP + 0.9, NOW + 1.0 + 0.1 * k)
    assert source.age(NOW + 1.4) == pytest.approx(0.5) and source.repeated == 5
    assert not source.arrived(STAMP + 0.5, NOW + 1.5), 'out of order'


def test_a_message_that_was_long_under_way_is_old_when_it_arrives():
    source = regular()
    source.arrived(STAMP + 1.0, NOW + 1.4)      # usually at once, this one 0.4 s late
    assert source.age(NOW + 1.4) == pytest.approx(0.4, abs=1e-4)
    source.arrived(STAMP + 1.5, NOW + 1.5)
    assert source.age(NOW + 1.5) == pytest.approx(0.0)


@pytest.mark.parametrize('rate', [1.0, 10.0, 1000.0])
def test_lasting_lateness_is_not_forgiven_but_a_drift_of_clocks_is(rate):
    source = Source()
    for k in range(int(30 * rate)):
        late = 0.4 if k >= 2 else 0.0
        source.arrived(STAMP + k / rate, NOW + k / rate + late)
    assert source.age(NOW + (k / rate) + 0.4) == pytest.approx(0.4 - DRIFT * k / rate, abs=1e-4)
    source.forget()     # an operator has looked
    source.arrived(STAMP + 31.0, NOW + 31.4)
    assert source.age(NOW + 31.4) == 0.0
    drifting = Source()
    for k in range(100):
        drifting.arrived(STAMP + 10.0 * k, NOW + 10.0 * k * (1.0 + 0.9 * DRIFT))
    assert drifting.age(NOW + 990.0 * (1.0 + 0.9 * DRIFT)) == pytest.approx(0.0, abs=1e-5)


def test_a_source_lies_behind_the_clock_that_another_one_shows():
    pose, camera = regular(), Source()
    assert camera.behind(pose.clock(NOW + 0.9)) == math.inf and Source().clock(NOW) == -math.inf
    camera.arrived(STAMP + 0.1, NOW + 0.9)      # late from its first picture on
    assert camera.age(NOW + 0.9) == 0.0 and camera.behind(pose.clock(NOW + 0.9)) == pytest.approx(0.8)
    assert pose.behind(camera.clock(NOW + 0.9)) == pytest.approx(-0.8)
    assert camera.behind(pose.clock(NOW + 1.0)) == pytest.approx(0.9)


@pytest.mark.parametrize('step', [3600.0, -3600.0])
def test_a_clock_that_is_set_is_no_delay(step):
    source = regular()
    assert not source.arrived(STAMP + 1.0 + step, NOW + 1.0) and source.clock_steps == 0    # one alone proves nothing
    assert source.age(NOW + 1.0) == pytest.approx(0.1, abs=1e-6)
    assert source.arrived(STAMP + 1.1 + step, NOW + 1.1)
    assert source.age(NOW + 1.1) == pytest.approx(0.0) and source.clock_steps == 1
    assert source.arrived(STAMP + 1.2 + step, NOW + 1.2)
    assert source.age(NOW + 1.3) == pytest.approx(0.1) and not source.unsteady(NOW + 1.3)


@pytest.mark.parametrize('ahead', [0.2, 2.0, 3600.0])
def test_one_message_of_the_future_changes_nothing(ahead):
    source = regular()
    assert not source.arrived(STAMP + 1.0 + ahead, NOW + 0.95) and source.doubted == 1
    regular(source=source, start=10, ticks=30)
    assert source.age(NOW + 3.9) == pytest.approx(0.0, abs=1e-3) and source.clock_steps == 0
    assert not source.unsteady(NOW + 4.0)


def test_what_is_quicker_than_the_quickest_by_a_period_needs_a_second_one():
    source = Source(ahead=0.1)
    source.arrived(STAMP, NOW + 0.5)        # the first one was under way for long
    assert source.arrived(STAMP + 0.1, NOW + 0.501)         # 0.099 s quicker
    assert not source.arrived(STAMP + 0.2, NOW + 0.499)     # 0.102 s quicker still
    assert not source.arrived(STAMP + 0.2, NOW + 0.4995), 'the same again is no second one'
    assert source.arrived(STAMP + 0.3, NOW + 0.55) and source.age(NOW + 0.55) == pytest.approx(0.0)
    assert source.arrived(STAMP + 0.4, NOW + 0.75) and source.age(NOW + 0.75) == pytest.approx(0.1, abs=1e-3)


def test_what_was_in_doubt_is_confirmed_by_one_that_follows_it_alone():
    source = regular()
    for stamp in (3600.0, -3600.0, 3599.0, -1800.0):
        assert not source.arrived(STAMP + stamp, NOW + 1.0)
    assert not source.arrived(STAMP - 1800.0 - 1e-3, NOW + 1.1), 'older than it'
    assert not source.arrived(STAMP - 1789.0, NOW + 1.2), 'another clock again'
    assert source.arrived(STAMP - 1789.0 + 1e-3, NOW + 1.2) and source.doubted == 6 and source.clock_steps == 1


@pytest.mark.parametrize('off', [-6.0, 6.0, -3600.0])
@pytest.mark.parametrize('turn', [1, 2, 3])
def test_stamps_of_two_clocks_by_turns_are_no_clock_that_was_set(off, turn):
    source, found = Source(), []
    for k in range(210):
        at = 0.1 * k
        source.arrived(STAMP + at + (off if 20 <= k < 100 and k // turn % 2 else 0.0), NOW + at)
        found.append(source.unsteady(NOW + at))
    assert not any(found[:20]) and all(found[20 + 3 * turn:198]) and not found[-1]


def test_somebody_who_has_looked_ends_the_doubts():
    source = regular()
    for k in range(10, 14):
        source.arrived(STAMP + 0.1 * k - 60.0 * (k % 2), NOW + 0.1 * k)
    assert source.unsteady(NOW + 1.4)
    source.forget()
    assert not source.unsteady(NOW + 1.4)
    assert not source.arrived(STAMP - 60.0, NOW + 1.4) and not source.unsteady(NOW + 1.4)   # the first one of its kind


@pytest.mark.parametrize('late', [4.0, 6.0, 3600.0])
def test_lateness_that_begins_with_a_gap_is_no_clock_that_was_set(late):
    source = regular()
    for k in range(10, 100):
        assert source.arrived(STAMP + 0.1 * k, NOW + 0.1 * k + late)
    assert source.clock_steps == 0 and source.age(NOW + 9.9 + late) == pytest.approx(late, abs=DRIFT * (late + 12.0))
    for k in range(100, 200):       # what was delayed comes in time again: no clock either
        source.arrived(STAMP + late + 0.1 * k, NOW + 0.1 * k + late)
    assert source.clock_steps == 0 and source.age(NOW + 19.9 + late) == pytest.approx(0.0, abs=2e-3)


def test_a_sender_with_a_paused_clock_is_late_until_somebody_has_looked():
    source = regular(source=regular(), start=10)
    source.arrived(STAMP + 2.0, NOW + 62.0)
    assert source.age(NOW + 62.0) == pytest.approx(60.0, abs=0.01) and source.clock_steps == 0
    source.forget()
    assert source.arrived(STAMP + 2.1, NOW + 62.1) and source.age(NOW + 62.1) == 0.0


def test_a_pause_is_no_clock_step():
    source = regular()
    assert source.arrived(STAMP + 60.0, NOW + 60.0)
    assert source.clock_steps == 0 and source.age(NOW + 60.0) == pytest.approx(0.0)


def test_a_constant_offset_of_the_senders_clock_does_not_matter():
    source = Source()
    for k in range(10):
        source.arrived(0.1 * k + 12345.0, NOW + 0.1 * k)
    assert source.age(NOW + 0.9) == pytest.approx(0.0)


def at(x):
    return np.array([x, 0.0, 0.0])


def test_the_same_picture_while_the_arm_moves_is_frozen():
    watch = FrozenPicture(0.03)
    assert not watch.update(b'a', at(0.0), 0.01)
    assert [watch.update(b'a', at(0.01 * k), 0.01) for k in range(1, 6)] == [False, False, False, True, True]
    assert not watch.update(b'b', at(0.06), 0.01)
    assert not watch.update(b'b', at(0.08), 0.01)


def test_a_ring_of_buffers_that_goes_round_is_frozen():
    watch = FrozenPicture(0.03)
    seen = [watch.update(bytes([k % DIGESTS]), at(0.002 * k), 0.002) for k in range(2 * DIGESTS)]
    assert not any(seen[:DIGESTS]) and seen[-1]
    watch.reset()
    assert not any(watch.update(k.to_bytes(2, 'big'), at(0.01 * k), 0.01) for k in range(100))


def test_a_measurement_that_repeats_itself_while_commands_are_sent_is_frozen():
    watch, values = FrozenMeasurement(0.03), np.array([0.5, 0.1])
    assert [watch.update(values.copy(), 0.03) for _ in range(6)] == [False] * 4 + [True] * 2     # beyond 0.09 m
    assert not watch.update(values + 1e-9, 0.03) and not any(watch.update(values + 1e-9, 0.0) for _ in range(9))
    assert not any(watch.update(values + 1e-9, 0.03) for _ in range(3))
    watch.reset()
    assert not watch.update(values + 1e-9, 1.0)


def test_the_same_picture_of_an_arm_at_rest_is_fine():
    watch = FrozenPicture(0.03)
    assert not any(watch.update(b'a', at(0.0), 0.0) for _ in range(100))


def test_when_nothing_at_all_changes_in_spite_of_commands_all_is_frozen():
    watch = FrozenPicture(0.03)
    seen = [watch.update(b'a', at(0.5), 0.02) for _ in range(8)]
    assert seen == [False] * 5 + [True] * 3     # 0.09 m were commanded
    watch.reset()
    assert not watch.update(b'a', at(0.5), 0.02)


def test_an_arm_that_is_held_but_trembles_is_not_frozen():
    watch = FrozenPicture(0.03)
    rng = np.random.default_rng(0)
    assert not any(watch.update(b'a', at(0.5 + 1e-4 * rng.random()), 0.02) for _ in range(50))


def test_without_a_measured_position_commands_alone_tell():
    watch = FrozenPicture(0.03)
    assert [watch.update(b'a', None, 0.05) for _ in range(4)] == [False, False, True, True]
