# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which environment and which demonstrators a task has: SafeReach, or one of Safety-Gymnasium."""

import types

from fosp_core.errors import FospError
from fosp_sim import demonstrators, ground_demonstrators, safereach, safetygym

TASKS = (*safereach.TASKS, *safetygym.TASKS)


def parse_task(name: str) -> str:
    """Map `safereach/unseen3` or `SafetyPointGoal1-v0` to one of TASKS; raise FospError otherwise."""
    if safetygym.is_task(name):
        return safetygym.parse_task(name)
    if name.startswith('Safety'):
        raise FospError(f'task {name!r} is unknown, expected one of {", ".join(safetygym.TASKS)}')
    return safereach.parse_task(name)


def same_robot(task: str, other: str) -> bool:
    """Return whether two tasks share contract and topics."""
    return (task in safetygym.TASKS) == (other in safetygym.TASKS)


def make_env(task: str, seed: int | None = None, render: bool = True):
    """Return the environment of one of TASKS; its step has six values, and its contract says what they mean."""
    kind = safetygym.SafetyGymEnv if task in safetygym.TASKS else safereach.SafeReachEnv
    return kind(task, seed, render)


def demonstrators_of(task: str) -> types.ModuleType:
    """Return the module whose KINDS and `make_demonstrator` belong to the task."""
    return ground_demonstrators if task in safetygym.TASKS else demonstrators
