# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Unseen 4 and 5: the moving box really moves, within its bounds; the other look is another look and nothing else."""

import contextlib
import dataclasses

import numpy as np
import pytest

pytest.importorskip('mujoco', reason='the simulator extra is not installed')

from fosp_sim import geometry, scene
from fosp_sim.safereach import TASKS, SafeReachEnv

SLOW = 0.125    # m/s: half of the arm's speed along one axis


@pytest.fixture
def env():
    """Return a function that makes environments, all closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(contextlib.closing(SafeReachEnv(*args, **kwargs)))


def places(one, seed, steps=50):
    """Centre (x, y) of each obstacle on each tick while the arm rests, (steps + 1, n, 2)."""
    one.reset(seed=seed)
    geoms = [one.model.geom(f'obstacle{i}').id for i in range(len(one.layout.obstacles))]
    rows = [one.data.geom_xpos[geoms, :2].copy()]
    for _ in range(steps):
        one.step(np.zeros(3))
        rows.append(one.data.geom_xpos[geoms, :2].copy())
    return np.array(rows)


def test_one_box_moves_as_drawn_and_never_fast(env):
    """A seed gives one course; the planner may rely on the box that holds all its places."""
    one, axes = env('unseen4', render=False), set()
    for seed in range(8):
        seen = places(one, seed)
        assert np.array_equal(seen, places(one, seed)), 'not the same course from the same seed'
        obstacles = one.layout.obstacles
        moving = [i for i, o in enumerate(obstacles) if o.period]
        assert len(moving) == 1
        for i, obstacle in enumerate(obstacles):
            course = seen[:, i]
            expected = np.array([obstacle.at(0.1 * k) for k in range(len(course))])
            assert np.abs(course - expected).max() < 1e-9
            assert (np.abs(course - (obstacle.x, obstacle.y)) <= np.array(obstacle.sweep) + 1e-9).all()
            speed = np.linalg.norm(np.diff(course, axis=0), axis=1).max() / 0.1
            assert speed <= obstacle.top_speed + 1e-9 <= SLOW
            reach = np.ptp(course, axis=0).max()
            assert reach == 0.0 if i not in moving else 1.9 * scene.SWEEP[0] < reach <= 2.0 * scene.SWEEP[1] + 1e-9
        axes.add(obstacles[moving[0]].sweep[0] > 0)
        assert one._info()['violation'] is False, 'at rest at the start nothing may come by'
    assert axes == {True, False}


def test_the_picture_shows_the_motion(env):
    one = env('unseen4')
    one.reset(seed=1)
    mover = next(i for i, o in enumerate(one.layout.obstacles) if o.period)
    masks = []
    for _ in range(25):
        one.step(np.zeros(3))
        masks.append(one.render_frame(64, 64, segment=True) == one.model.geom(f'obstacle{mover}').id + 1)
    assert max(np.count_nonzero(masks[0] ^ m) for m in masks) > 15


def test_a_box_that_comes_to_a_resting_arm_costs(env):
    """Who stands in its way is touched, later and not at once: waiting is no safe policy there."""
    one = env('unseen4', render=False)
    one.reset(seed=0)
    layout = one.layout
    x, y, _ = layout.start
    aside = 0.02 + geometry.HAND_HALF[1] + 0.03 + 0.05
    mover = geometry.Obstacle('box', x, y + aside, (0.03, 0.03), 0.2, (0.0, 0.05), 4.0, 0.0)
    one.reset(seed=0, options={'layout': dataclasses.replace(layout, obstacles=(mover,))})
    costs = [one.step(np.zeros(3))[2] for _ in range(40)]
    assert sum(costs) == 0.0
    nearer = dataclasses.replace(mover, y=mover.y - 0.04)
    one.reset(seed=0, options={'layout': dataclasses.replace(layout, obstacles=(nearer,))})
    costs = [one.step(np.zeros(3))[2] for _ in range(40)]
    assert sum(costs[:10]) == 0.0 and sum(costs) > 0.0


def test_clearance_holds_for_every_place_of_a_moving_box():
    box = geometry.Obstacle('box', 0.5, 0.0, (0.04, 0.03), 0.2, (0.05, 0.0), 3.0, 0.4)
    tips = np.random.default_rng(0).uniform(scene.WORKSPACE_LOW, scene.WORKSPACE_HIGH, (200, 3))
    held = geometry.clearance(tips, [box])
    for seconds in np.linspace(0.0, 3.0, 13):
        x, y = box.at(seconds)
        there = geometry.clearance(tips, [geometry.Obstacle('box', x, y, box.half, box.height)])
        assert (held <= there + 1e-9).all()


def test_unseen5_looks_different_and_is_the_same_task(env):
    looks = [scene.sample_layout('unseen5', np.random.default_rng(s)).look for s in range(50)]
    shifts = np.array([look.camera for look in looks]) - scene.CAMERA
    assert np.abs(shifts).max() <= 0.03 and (np.ptp(shifts, axis=0) > 0.04).all()
    assert min(look.brightness for look in looks) < 0.75 and max(look.brightness for look in looks) > 1.25
    assert len({look.light for look in looks}) == 50 and all(look.swapped for look in looks)
    for task in TASKS[:-1]:
        assert scene.sample_layout(task, np.random.default_rng(0)).look == scene.Look()
    one = env('unseen5')
    observation, _ = one.reset(seed=3)
    goal = one.render_frame(64, 64, segment=True) == one.model.geom('goal').id + 1
    mean = observation['image'][goal].mean(0)
    assert mean[1] > mean[0] + 30, 'the goal is green'
    for change in ({'camera': looks[0].camera}, {'light': looks[0].light}, {'brightness': 0.7}, {'swapped': True}):
        pictures = [one.reset(seed=3, options={'layout': dataclasses.replace(one.layout, look=scene.Look(**given))})[0]
                    for given in ({}, change)]
        assert np.abs(pictures[0]['image'].astype(int) - pictures[1]['image']).mean() > 0.5, change
    one.reset(seed=3)
    # The same layout with the usual look: the arm feels nothing of it.
    plain = env('unseen5')
    usual, _ = plain.reset(seed=3, options={'layout': dataclasses.replace(one.layout, look=scene.Look())})
    assert np.abs(usual['image'].astype(int) - observation['image']).mean() > 3
    for _ in range(5):
        a, b = one.step(np.array([0.3, 0.5, 0.1])), plain.step(np.array([0.3, 0.5, 0.1]))
        assert np.array_equal(a[0]['ee_pose'], b[0]['ee_pose']) and a[1:3] == b[1:3]
