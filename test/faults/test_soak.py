# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Soak: faults at random for a while. FOSP_SOAK_S=600 is the long run; by default it is short."""

import os
import random
import time
from pathlib import Path

import pytest
from std_msgs.msg import Bool

SECONDS = float(os.environ.get('FOSP_SOAK_S', '12'))
SILENCE = [('image',), ('pose',), ('joints',), ('command',), ('label',),
           ('image', 'pose', 'joints', 'label', 'command')]
BAD = [{'frozen': True}, {'encoding': 'yuv422'}, {'short': True}, {'behind': 4}, {'lag': 0.085}, {'stuck': True},
       {'said': lambda at: at + [0.0, 0.2, 0.0]}, {'joint_names': ['other'] * 7}, {'command': [float('nan')] * 3},
       {'size': (32, 32)}, {'command': [5.0, -5.0, 0.1]}, {'offset': 3600 * 10**9}, {'offset': -7200 * 10**9}]
MAY_GROW_MB = 40        # the incident recorder fills its memory at first


def memory_mb(pid):
    pages = int(Path(f'/proc/{pid}/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


@pytest.mark.timeout(int(3 * SECONDS) + 300)
def test_soak_of_random_faults(shared):
    """It stops for each, moves again after each, exceeds nothing, grows little and never dies."""
    chance = random.Random(int(os.environ.get('FOSP_SEED', '0')))
    cell = shared.ready()
    pid, begin, faults, grown = shared.child.process.pid, time.monotonic(), 0, []
    while time.monotonic() - begin < SECONDS:
        kind = chance.randrange(len(SILENCE) + len(BAD) + 1)
        values = {}
        if kind < len(SILENCE):
            cell.inject(lambda cell, gone=SILENCE[kind]: cell.off.update(gone))
        elif kind < len(SILENCE) + len(BAD):
            values = BAD[kind - len(SILENCE)]
            cell.inject(lambda cell, values=values: [setattr(cell, k, v) for k, v in values.items()])
        else:
            cell.estop.publish(Bool(data=True))
        time.sleep(chance.uniform(0.1, 1.5))
        faults += 1
        shared.ready()
        assert shared.judge() > 0 and shared.child.process.pid == pid
        grown.append(memory_mb(pid))
    assert faults >= SECONDS / 10
    quarter = len(grown) // 4
    assert not quarter or grown[-1] - grown[quarter] < MAY_GROW_MB, grown
    print(f'{faults} faults in {time.monotonic() - begin:.0f} s, {len(cell.log)} commands, {grown[0]:.0f} to '
          f'{grown[-1]:.0f} MB')
