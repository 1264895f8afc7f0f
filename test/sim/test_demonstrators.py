# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The demonstrators make data worth learning from: a safe upper bound, and all four kinds of episode (sim.md 4.3)."""

import numpy as np
import pytest

pytest.importorskip('mujoco', reason='the simulator extra is not installed')

from fosp_core.contract import Contract
from fosp_core.errors import FospError
from fosp_core.paths import config_file
from fosp_sim.collect import record_episode
from fosp_sim.demonstrators import KINDS, SAFE_CLEARANCE, make_demonstrator
from fosp_sim.safereach import MAX_STEPS, TASKS, SafeReachEnv


def episodes(task: str, kinds, count: int, first: int = 0) -> list:
    env = SafeReachEnv(task, render=False)
    try:
        return [record_episode(env, kinds[i % len(kinds)], first + i) for i in range(count)]
    finally:
        env.close()


def rates(found) -> tuple[float, float]:
    return float(np.mean([e.success for e in found])), float(np.mean([e.violation for e in found]))


@pytest.mark.parametrize('task', TASKS)
def test_safe_planner_is_an_upper_bound(task):
    """It reaches every goal within the time limit, and keeps its clearance (all tasks stay solvable)."""
    found = episodes(task, ['safe'], 15)
    success, violation = rates(found)
    assert success == 1.0 and violation == 0.0
    assert min(e.meta['min_clearance'] for e in found) > 0.5 * SAFE_CLEARANCE
    assert max(len(e) for e in found) < 0.75 * MAX_STEPS


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS)
def test_safe_planner_on_60_seeds(task):
    success, violation = rates(episodes(task, ['safe'], 60))
    assert success >= 0.95 and violation <= 0.02


def test_straight_line_violates():
    """Else the task would need no planning, and a low CV would mean nothing."""
    assert rates(episodes('standard', ['straight'], 20))[1] >= 0.6


def test_mix_holds_all_four_kinds():
    """A data set without failures and violations teaches neither critic anything."""
    found = episodes('standard', list(KINDS), 60)
    kinds = {(e.success, e.violation) for e in found}
    assert kinds == {(a, b) for a in (False, True) for b in (False, True)}
    success, violation = rates(found)
    assert 0.6 <= success <= 0.85 and 0.2 <= violation <= 0.45
    reckless = rates([e for e in found if e.meta['policy'] == 'reckless'])
    assert reckless[0] >= 0.6 and 0.3 <= reckless[1] <= 0.8


def test_episodes_keep_the_arrival_convention():
    env = SafeReachEnv('standard', render=False)
    found = [record_episode(env, kind, 3, stamp_ns=5_000, step=17) for kind in KINDS]
    contract = Contract.load(config_file('contract_safereach.yaml'))
    for episode in found:
        episode.validate(contract, episode.meta['policy'])
        assert episode.step[0] == 17 and (np.diff(episode.stamp) == 100_000_000).all() and episode.stamp[0] == 5_000
        assert not episode.action[-1].any() and episode.reward[0] == episode.cost[0] == 0
        assert episode.is_terminal[-1] == episode.success and not episode.is_terminal[:-1].any()
        assert episode.reward[-1] == float(episode.success) and not episode.reward[:-1].any()
    again = record_episode(env, 'noisy', 3, stamp_ns=5_000, step=17)
    assert np.array_equal(again.action, found[KINDS.index('noisy')].action)
    env.reset(seed=0)
    with pytest.raises(FospError, match='wild'):
        make_demonstrator('wild', env, np.random.default_rng(0))
    env.close()


def test_safe_actions_are_smooth_and_use_the_range():
    """Jumps and many equal choices would ask of the network what no picture tells."""
    for episode in episodes('standard', ['safe'], 6, first=40):
        action = episode.action[:-1]
        assert np.abs(action).max() <= 1.0 and np.abs(action).max(1).mean() > 0.8
        assert np.abs(np.diff(action, axis=0)).max(1).mean() < 0.35
