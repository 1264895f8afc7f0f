# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Freshness: by arrival, by stamp and by content; clocks that are set do not matter."""

import math

import numpy as np
import pytest

from fosp_core.safety.freshness import FrozenPicture, Source

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
    assert source.age(NOW + 1.4) == pytest.approx(0.4)
    source.arrived(STAMP + 1.5, NOW + 1.5)
    assert source.age(NOW + 1.5) == pytest.approx(0.0)


@pytest.mark.parametrize('step', [3600.0, -3600.0])
def test_a_clock_that_is_set_is_no_delay(step):
    source = regular()
    assert source.arrived(STAMP + 1.0 + step, NOW + 1.0)
    assert source.age(NOW + 1.0) == pytest.approx(0.0) and source.clock_steps == 1
    assert source.arrived(STAMP + 1.1 + step, NOW + 1.1)
    assert source.age(NOW + 1.2) == pytest.approx(0.1)


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
