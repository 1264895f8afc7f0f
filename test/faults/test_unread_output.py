# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Nobody reads what the filter's process says (a pager at rest, Ctrl-S, a parent that drains no pipe): it goes on."""

import fcntl
import subprocess
import time

import pytest
from stand import Child, Stand
from std_srvs.srv import SetBool, Trigger

PIPES = (1 << 12) + (1 << 16)   # bytes: the pipe to the reader, cut short, and the one behind it


class Unread(Child):
    """A process whose stdout and stderr are a pipe that nobody reads."""

    OUT = subprocess.PIPE


@pytest.fixture
def stand(model, tmp_path):
    """A filter of its own, its output unread."""
    made = Stand(model, tmp_path, 'unread', child=Unread)
    fcntl.fcntl(made.child.process.stdout, fcntl.F_SETPIPE_SZ, 1 << 12)
    yield made
    made.close()
    made.child.process.stdout.close()


def test_a_filter_whose_output_nobody_reads_goes_on_stopping_and_ends_in_time(stand):
    cell = stand.ready()
    stand.call('estop', SetBool.Request(data=True))
    said, refusals = 0, 0
    while said < PIPES:     # a refused reset is a line in the log, longer by time and name
        said += len(stand.call('reset', Trigger.Request()).message)
        refusals += 1
    before = len(cell.log)
    time.sleep(1.0)
    assert len(cell.log) - before >= 8 and not any(s.command.any() for s in cell.log[before:]), refusals
    stand.ready()           # it also resumes
    stand.rejected('output unread: command NaN', 'command_invalid',
                   lambda cell: vars(cell).update(patrol=False, command=[float('nan'), 0.0, 0.0]), 'command')
    assert stand.child.end() == 0       # else it was ended by force
