# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every test of this folder runs in the isolated domain of `test/ros_rig.py`."""

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed: ROS tests need a ROS 2 distribution or its wheels')

from scripted_filter import filter_model, make_filter  # noqa: F401 - what several files share
from trainer_cell import make_trainer  # noqa: F401


@pytest.fixture(scope='session', autouse=True)
def _isolated(isolated):
    return isolated
