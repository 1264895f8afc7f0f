# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The watchdog's thread: when it fires, how often, and that nothing silences it. No ROS."""

import time

import numpy as np
import pytest

from fosp_ros.watchdog import Watchdog


@pytest.fixture
def make():
    made = []

    def build(fire, period=0.05, budget=0.09, **more):
        made.append(Watchdog(period, budget, fire, **more))
        made[-1].start()
        return made[-1]
    yield build
    for watchdog in made:
        watchdog.stop()


def test_it_fires_at_once_and_at_the_rate_until_it_is_fed(make):
    times = []
    dog = make(lambda: times.append(time.monotonic()))
    begin = time.monotonic()
    time.sleep(0.43)
    assert times[0] - begin < 0.03 and 7 <= len(times) <= 10
    assert 0.04 < np.median(np.diff(times)) < 0.065
    for _ in range(20):
        dog.feed()
        time.sleep(0.02)
    fed = dog.fired
    assert fed <= len(times) and fed - 10 <= 1
    time.sleep(0.3)
    assert dog.fired > fed


def test_the_first_stop_after_the_last_feed_comes_after_the_budget(make):
    times = []
    dog = make(lambda: times.append(time.monotonic()))
    time.sleep(0.02)
    fed = time.monotonic()
    dog.feed()
    time.sleep(0.2)
    assert 0.085 <= next(t for t in times if t > fed) - fed < 0.13


def test_the_budget_runs_from_what_was_answered(make):
    times = []
    dog = make(lambda: times.append(time.monotonic()))
    time.sleep(0.02)
    now = time.monotonic()
    dog.feed(now - 0.06)
    time.sleep(0.15)
    assert 0.025 <= next(t for t in times if t > now) - now < 0.07


def test_what_fire_raises_is_told_and_survived(make):
    errors = []

    def fire():
        raise RuntimeError('publisher gone')
    dog = make(fire, on_error=errors.append)
    time.sleep(0.3)
    assert dog.alive and dog.errors >= 4 and str(errors[0]) == 'publisher gone'


def test_after_a_stall_there_is_no_burst(make):
    times = []

    def fire():
        times.append(time.monotonic())
        if len(times) == 2:
            time.sleep(0.3)
    make(fire)
    time.sleep(0.7)
    gaps = np.diff(times)
    assert gaps.max() >= 0.3 and (gaps[2:] > 0.03).all()


def test_stop_ends_it(make):
    times = []
    dog = make(lambda: times.append(time.monotonic()))
    time.sleep(0.1)
    dog.stop()
    count = len(times)
    time.sleep(0.15)
    assert len(times) == count and not dog.alive
    dog.start()
    time.sleep(0.1)
    assert len(times) > count


def test_what_on_error_raises_is_survived_as_well(make, capsys):
    def fire():
        raise RuntimeError('publisher gone')

    def on_error(error):
        raise ValueError('no log either')
    dog = make(fire, on_error=on_error)
    time.sleep(0.3)
    assert dog.alive and dog.errors >= 8 and 'no log either' in capsys.readouterr().err
