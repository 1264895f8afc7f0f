# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The filter's process is killed while something is latched: the next one comes up latched, whatever the disk did."""

import sys
import time
from pathlib import Path

import pytest
from ros_rig import wait_for
from stand import Stand
from std_srvs.srv import SetBool, Trigger

from fosp_ros.latch_file import memory_path


@pytest.fixture
def stand(model, tmp_path):
    """A filter with hooks in a namespace of its own."""
    (tmp_path / 'hooks').write_text('')
    made = Stand(model, tmp_path, 'latched', (sys.executable, Path(__file__).with_name('hooked_filter.py')),
                 {'FOSP_TEST_HOOKS': str(tmp_path / 'hooks')})
    yield made
    made.child.end()
    made.close()


def killed_and_back(stand):
    """Kill -9, everything around it healed, a new process; return after a second and a half of its states."""
    stand.child.kill()
    cell = stand.cell
    cell.heal()
    cell.patrol = True
    states, sent = len(cell.states), len(cell.log)
    stand.start()
    wait_for(lambda: len(cell.states) > states, 25.0, 'the next process')
    time.sleep(1.5)
    latched = {state.values[[v.key for v in state.values].index('latched')].value for _, state in cell.states[states:]}
    assert len(cell.log) - sent >= 8 and not any(s.command.any() for s in cell.log[sent:])
    return latched


def test_a_filter_killed_while_latched_comes_up_latched_though_the_disk_was_slow(stand):
    cell = stand.ready()
    (stand.folder / 'hooks').write_text('disk=60')
    before = len(cell.states)
    assert stand.call('estop', SetBool.Request(data=True)).success
    stand.reason('estop', before)
    first = {m.message for _, m in cell.states[before:]}
    assert not (stand.folder / 'latch.json').exists() and memory_path(stand.folder / 'latch.json').exists()
    assert 'repeated_late' not in first and 'late_hold' not in first       # nobody waits for the disk
    (stand.folder / 'hooks').write_text('')
    assert killed_and_back(stand) == {'estop'} and cell.reason == 'estop'
    assert 'estop' in stand.call('reset', Trigger.Request()).message       # the press outlived the process, too

    assert killed_and_back(stand) == {'estop'}      # and once more, from the disk alone
    stand.call('estop', SetBool.Request(data=False))
    assert stand.call('reset', Trigger.Request()).success
    stand.ready()

    cell.inject(lambda cell: setattr(cell, 'said', lambda at: [0.9, 0.0, 0.2]))     # outside the box
    stand.reason('workspace_measured', len(cell.states))
    assert killed_and_back(stand) == {'workspace_measured'}     # though the cause is gone
    assert stand.call('reset', Trigger.Request()).success
    stand.ready()
    stand.child.kill()
    stand.start()
    stand.ready()       # after the reset nothing is left
    assert not (stand.folder / 'latch.json').exists() and not memory_path(stand.folder / 'latch.json').exists()
