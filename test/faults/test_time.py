# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Faults of time: no /clock, clocks that are set by an hour, a slow model, a filter that was held up.

One process with hooks (`hooked_filter.py`), with `use_sim_time` throughout: nothing that protects may read ROS time.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ros_rig import wait_for, within
from rosgraph_msgs.msg import Clock
from stand import MEASURED, PROMISE_S, Stand
from std_srvs.srv import Trigger

HOUR = 3600


@pytest.fixture(scope='module')
def hooked(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp('hooked')
    hooks = folder / 'hooks'
    hooks.write_text('')
    stand = Stand(model, folder, 'timed', (sys.executable, Path(__file__).with_name('hooked_filter.py')),
                  {'FOSP_TEST_HOOKS': str(hooks)}, use_sim_time='true')
    yield stand
    stand.child.end()
    stand.close()


@pytest.fixture
def stand(hooked):
    """The filter with hooks; `stand.hook(delay=..., wall=...)` sets them until the end of the test."""
    def hook(**values):
        new = hooked.folder / 'hooks.new'
        new.write_text('\n'.join(f'{name}={value}' for name, value in values.items()))
        os.replace(new, hooked.folder / 'hooks')
    hooked.hook = hook
    yield hooked
    hook()
    hooked.cell.heal()
    time.sleep(0.3)
    hooked.call('reset', Trigger.Request())     # two steps of a clock within ten seconds would be a fault
    assert hooked.judge() > 0


def test_simulated_time_without_a_clock_stops_no_deadline(stand):
    stand.silence('use_sim_time without /clock: camera', ['image'], 'camera_stale')
    stand.ready()


@pytest.mark.parametrize('step', [HOUR, -HOUR], ids=['forward', 'back'])
def test_clocks_set_by_an_hour_neither_stop_nor_blind_the_filter(stand, step):
    """Three clocks are set at once, in the middle of motion: the senders' stamps, /clock (the ROS time of the filter,
    which runs on simulated time) and Python's wall clock in the filter's process.

    What it proves: no deadline, age or order of motion hangs on any of them. The operating system's own clock is not
    set, since that would be everybody's; the filter reads it through these three alone.
    """
    cell = stand.ready()
    clock = cell.create_publisher(Clock, '/clock', 10)

    def tell(offset):
        message = Clock()
        message.clock.sec = int(time.time()) + offset
        clock.publish(message)
    tell(0)
    states = len(cell.states)

    def set_clocks(cell):
        cell.offset = step * 10**9
        stand.hook(wall=step)
        tell(step)
    cell.inject(set_clocks)
    count, begin = len(cell.log), time.time_ns()
    wait_for(lambda: len(cell.log) >= count + 10, 4.0, 'ten more commands')
    assert sum(s.command.any() for s in cell.log[count:]) >= 8, sorted({m.message for _, m in cell.states[states:]})
    assert not {m.message for _, m in cell.states[states:]} & {'camera_stale', 'idle', 'pose_stale', 'command_stale'}
    cell.inject(lambda cell: cell.off.add('image'))
    stand.reason('camera_stale', states)
    last = cell.published['image'][-1]
    strict = (stand.first_stop(last) - last) * 1e-9
    MEASURED.append((f'clocks set by {step} s: camera', 'camera_stale', 1e3 * (strict - 0.1), 1e3 * strict))
    assert last > begin and strict - 0.1 <= PROMISE_S
    within(cell, lambda: cell.destroy_publisher(clock))


def test_a_slow_model_is_overtaken_by_the_watchdog(stand):
    cell = stand.ready()
    states = len(cell.states)
    stand.hook(delay=0.6)
    begin = time.time_ns()
    wait_for(lambda: [s for s in cell.log if s.at > begin and not s.command.any()], 2.0, 'a stop')
    # Of the last picture that was answered; stamps of the test before this one may lie in the future.
    last = max(s.stamp for s in cell.log if s.at > begin - 5e8 and s.command.any())
    first = stand.first_stop(last + 1)
    MEASURED.append(('slow model', 'repeated_late', (first - last) * 1e-6 - 100, (first - last) * 1e-6))
    assert (first - last) * 1e-9 - 0.1 <= PROMISE_S
    stand.reason('repeated_late', states, 6.0)
    assert not any(s.command.any() for s in cell.log if s.at > first)
    stand.hook()
    stand.ready()


def test_a_filter_that_was_held_up_answers_nothing_old(stand):
    """SIGSTOP for a second, as a swapping computer does: pictures and commands wait in its queues meanwhile."""
    cell = stand.ready()
    child = stand.child.process
    child.send_signal(signal.SIGSTOP)
    try:
        time.sleep(1.0)
    finally:
        resumed = time.time_ns()
        child.send_signal(signal.SIGCONT)
    stand.reason('ok', len(cell.states), 5.0)
    ages = [(s.at - s.stamp) * 1e-9 for s in cell.log if s.at > resumed and s.command.any()]
    assert ages and max(ages) < 0.25, ages
    assert np.isfinite(ages).all()
