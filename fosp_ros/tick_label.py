# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The label of one tick: what pairs observations and what an operator says both make it."""

from typing import NamedTuple


class TickLabel(NamedTuple):
    """What came with an observation: reward, cost, episode flags."""

    reward: float = 0.0
    cost: float = 0.0
    is_first: bool = False
    is_last: bool = False
    is_terminal: bool = False
