# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of the running graph share: options, a folder and domain of their own, the cores. No rclpy."""

import argparse
import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fosp_core.errors import FospError
from fosp_ros import graph


def add_common(parser: argparse.ArgumentParser) -> None:
    """Declare the options that all of them have."""
    parser.add_argument('--cores', type=int, default=2, help='all processes share so many cores (default %(default)s)')
    parser.add_argument('--json', metavar='PATH', default=None, help='- for standard output alone')


@contextlib.contextmanager
def stage(cores: int) -> Iterator[tuple[Path, int]]:
    """Give a folder for the time of the measurement and the number of cores in use, which the nodes inherit."""
    if importlib.util.find_spec('rclpy') is None:
        raise FospError('Python module rclpy is not installed here: a benchmark of the graph needs it')
    if not 1 <= cores <= 1024:
        raise FospError(f'--cores {cores}: expected 1 to 1024')
    there = sorted(os.sched_getaffinity(0))
    # A thread of a node may still be writing an incident there.
    with tempfile.TemporaryDirectory(prefix='fosp_bench_', ignore_cleanup_errors=True) as folder:
        graph.isolate(Path(folder))
        os.sched_setaffinity(0, there[:cores])
        try:
            yield Path(folder), min(cores, len(there))
        finally:
            os.sched_setaffinity(0, there)
