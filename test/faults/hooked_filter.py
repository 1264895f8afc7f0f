# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The filter's process with hooks for faults that no message can cause: slow model, slow disk, wall clock that is set.

The file named by FOSP_TEST_HOOKS holds `delay=<s>` (the model takes so much longer), `disk=<s>` (so does the disk under
the latch) and `wall=<s>` (what Python's wall clock is off by); it is read on every tick.
"""

import os
import sys
import time
from pathlib import Path

from fosp_core.deploy.runtime import FilterRuntime
from fosp_core.io import atomic_write_bytes
from fosp_ros import latch_file
from fosp_ros.lifecycle import spin_node
from fosp_ros.safety_filter_node import SafetyFilterNode

HOOKS = Path(os.environ['FOSP_TEST_HOOKS'])
wall, wall_ns = time.time, time.time_ns


def hook(name):
    """Current value of a hook."""
    found = [line.split('=')[1] for line in HOOKS.read_text().splitlines() if line.startswith(f'{name}=')]
    return float(found[0]) if found else 0.0


class SlowRuntime(FilterRuntime):
    """The real runtime, later."""

    def step(self, *arguments, **options):
        delay = hook('delay')
        end = time.monotonic() + delay
        while time.monotonic() < end:       # busy, as a slow model is
            pass
        return super().step(*arguments, **options)


def slow_write(path, data):
    time.sleep(hook('disk'))
    atomic_write_bytes(path, data)


class HookedFilter(SafetyFilterNode):
    make_runtime = staticmethod(SlowRuntime)


if __name__ == '__main__':
    time.time = lambda: wall() + hook('wall')
    latch_file.atomic_write_bytes = slow_write
    time.time_ns = lambda: wall_ns() + round(1e9 * hook('wall'))
    sys.exit(spin_node(HookedFilter))
