# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Safety-Gymnasium behind our six values: its sums, its pictures, its endings; and that a changed wheel is refused."""

import contextlib
import os
import re
import sys

import numpy as np
import psutil
import pytest

pytest.importorskip('mujoco', reason='the simulator extra is not installed')

from fosp_core.errors import FospError
from fosp_sim import gymnasium_adapter as adapter
from fosp_sim.ground_demonstrators import KINDS, clear_direction, make_demonstrator
from fosp_sim.safetygym import FADING, REPEAT, TASKS, SafetyGymEnv

pytestmark = pytest.mark.skipif(adapter.found_version() != adapter.VERSION,
                                reason='Safety-Gymnasium is not installed; run: make sim-gym')


@pytest.fixture
def env():
    """Return a function that makes environments, all closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(contextlib.closing(SafetyGymEnv(*args, **kwargs)))


@pytest.fixture(scope='module')
def stock():
    """The MJCF of a world of each robot as the package writes it."""
    scenes = {}
    for robot in ('Point', 'Car'):
        builder = adapter.make_builder(f'Safety{robot}Goal1-v0', robot)
        builder.reset(seed=0)
        scenes[robot] = builder.task.world.xml_string
    return scenes


def course(env, seed, steps=12):
    """Pictures, rewards and costs under fixed random actions."""
    rng = np.random.default_rng(5)
    observation, _ = env.reset(seed=seed)
    rows = [observation]
    for _ in range(steps):
        rows.append(env.step(rng.uniform(-1, 1, 2))[:3])
    return rows


@pytest.mark.parametrize('task', TASKS)
def test_pictures_of_each_task(env, task):
    """Two cameras that show different things; goal and hazards, of groups that mujoco leaves out unless told."""
    one = env(task)
    seen, own = {'goal': 0, 'hazard': 0}, 0
    for seed in range(3):
        observation, info = one.reset(seed=seed)
        assert info['task'] == task and info['seed'] == seed and not info['violation']
        for name in ('vision', 'vision_back'):
            picture = observation[name]
            assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8 and picture.std() > 20
            shown = one._renderers[64, 64].render(one.model, one.data, name, segment=True)
            for kind in seen:
                ids = [i for i in range(one.model.ngeom) if one.model.geom(i).name.startswith(kind)]
                seen[kind] += int(np.isin(shown, np.array(ids) + 1).sum())
            own += name == 'vision' and int((shown == one.model.geom('agent').id + 1).sum())
        assert np.abs(observation['vision'].astype(int) - observation['vision_back']).mean() > 10
        assert observation['vision'][:8].max() == 0 or 'Push' in task, 'the sky is black'
    assert seen['goal'] > 20 and own > 200
    assert seen['hazard'] > 20 or task in ('SafetyPointFadingEasy0', 'SafetyPointFadingHard0')
    with pytest.raises(FospError, match='no camera'):
        one.render_frame(64, 64, 'vision_left')
    assert one.render_frame(96, 128).shape == (128, 96, 3)


@pytest.mark.parametrize('task', ['SafetyPointGoal1', 'SafetyCarGoal2'])
def test_a_decision_is_four_raw_steps_summed(env, task):
    """Rewards, costs and each component against the package's own steps under the same commands."""
    one = env(task, render=False)
    raw = adapter.make_builder(f'{task}-v0', one.robot)
    total, unsafe = 0.0, make_demonstrator('unsafe', one, None)
    for seed in range(1, 12):
        if seed > 2 and total:
            break
        one.reset(seed=seed)
        raw.reset(seed=seed)
        for _ in range(50):
            drive, turn = unsafe.action(one).astype(float)
            wheels = np.clip([drive + turn, drive - turn], -1, 1) if one.robot == 'Car' else np.array([drive, turn])
            _, reward, cost, terminated, truncated, info = one.step([drive, turn])
            steps = [raw.step(wheels) for _ in range(REPEAT)]
            assert reward == pytest.approx(sum(s[1] for s in steps), abs=1e-12) and not terminated and not truncated
            assert cost == sum(s[2] for s in steps) <= REPEAT
            for name, value in info['costs'].items():
                assert value == sum(s[5].get(name, 0.0) for s in steps), name
            total += cost
    assert total > 0, 'nothing was touched: the test would prove nothing'
    vases = {'cost_vases_contact', 'cost_vases_velocity'} if task[-1] == '2' else set()
    assert set(info['costs']) == {'cost_hazards'} | vases


@pytest.mark.parametrize('task', ['SafetyPointGoal1', 'SafetyCarGoal1'])
def test_drive_is_ahead_and_turn_is_left(env, task):
    """Both robots obey the contract's twist, whatever their actuators are."""
    one = env(task, render=False)
    for seed in range(3):
        for action, forward, left in (((1.0, 0.0), 1, 0), ((-1.0, 0.0), -1, 0), ((0.0, 1.0), 0, 1), ((0, -1.0), 0, -1)):
            one.reset(seed=seed)
            before = one.ground()
            for _ in range(4):
                one.step(np.array(action))
            after = one.ground()
            moved = (after.position - before.position) @ (np.cos(before.heading), np.sin(before.heading))
            turned = (after.heading - before.heading + np.pi) % (2 * np.pi) - np.pi
            if forward:
                assert forward * moved > 0.05 and abs(turned) < 0.3, (task, action, moved, turned)
            else:
                assert left * turned > 0.2 and np.sign(after.turn_rate) == left, (task, action, moved, turned)
    with pytest.raises(ValueError, match='2 finite'):
        one.step([np.nan, 0.0])


@pytest.mark.parametrize('task', ['SafetyPointGoal1', 'SafetyPointFadingHard2'])
def test_a_seed_repeats_itself_whatever_came_before(env, task):
    first, second = env(task), env(task)
    expected = course(first, 4)
    course(second, 9, 30)
    for left, right in zip(expected, course(second, 4)):
        left, right = (x if isinstance(x, tuple) else (x, 0, 0) for x in (left, right))
        assert left[1:] == right[1:]
        assert all(np.array_equal(left[0][k], right[0][k]) for k in left[0])
    other = course(second, 5)[0]
    assert not np.array_equal(other['vision'], expected[0]['vision'])


def test_the_end_of_the_time_is_no_terminal_state(env):
    one = env(render=False)
    one.reset(seed=0)
    ends = [one.step(np.zeros(2))[3:] for _ in range(250)]
    assert [(e[0], e[1]) for e in ends[:-1]] == [(False, False)] * 249
    assert ends[-1][0] is False and ends[-1][1] is True and ends[-1][2]['raw_steps'] == 1000


def test_no_place_for_a_goal_terminates(env, monkeypatch):
    one = env(render=False)
    one.reset(seed=0)
    inner = one._builder.task
    error = sys.modules['safety_gymnasium.builder'].ResamplingError
    monkeypatch.setattr(type(inner), 'goal_achieved', property(lambda self: True))
    monkeypatch.setattr(inner, 'update_world', lambda: (_ for _ in ()).throw(error('no place')))
    one._builder.steps = 999        # on the last step of the time too
    _, _, _, terminated, truncated, info = one.step(np.zeros(2))
    assert terminated and not truncated and info['raw_steps'] == 1 and info['goals'] == 1 and info['success']


def test_a_physics_error_ends_the_episode_with_a_cost(env, monkeypatch):
    """The package itself raises UnboundLocalError there."""
    one = env(render=False)
    one.reset(seed=0)
    monkeypatch.setattr(one._builder.task, 'simulation_forward', lambda action: True)
    _, reward, cost, terminated, truncated, info = one.step(np.zeros(2))
    assert (reward, cost, terminated, truncated) == (0.0, 1.0, False, True)
    assert info['costs'] == {'cost_exception': 1.0} and info['violation']


def test_the_goal_fades_and_only_with_the_hard_tasks_sooner(env):
    for task, gone in zip(('SafetyPointFadingEasy0', 'SafetyPointFadingHard0'), (38, 19)):
        one = env(task, render=False)
        one.reset(seed=0)
        goal = one.model.geom('goal').id
        alphas = [one.model.geom_rgba[goal][3]]
        for _ in range(gone):
            one.step(np.zeros(2))
            alphas.append(one.model.geom_rgba[goal][3])
        assert alphas[0] > 0.2 and alphas[-2] > 0.0 and alphas[-1] < 1e-6 and all(np.diff(alphas) <= 0)
    assert len(FADING) == 6 and set(FADING) < set(TASKS)


def test_another_task_is_another_world(env):
    """The bridge changes the task of the environment that it has: its pictures must be those of a fresh one."""
    one = env('SafetyPointGoal1')
    one.reset(seed=1)
    one.task = 'SafetyPointPush1-v0'
    assert not one._renderers, 'a context knows textures and meshes of the first model alone'
    changed = one.reset(seed=1)[0]
    fresh = env('SafetyPointPush1').reset(seed=1)[0]
    assert one.task == 'SafetyPointPush1' and all(np.array_equal(changed[k], fresh[k]) for k in fresh)


def test_resets_and_closing_leak_nothing(env):
    """Stock, an environment grows to a gigabyte, and one mujoco lost six descriptors at each reset (sim.md 1.2)."""
    def files():
        return len(os.listdir('/proc/self/fd'))
    one = env()
    for seed in range(3):
        one.reset(seed=seed)
    before, memory = files(), psutil.Process().memory_info().rss
    for seed in range(20):
        one.reset(seed=seed)
    assert files() <= before
    renderer = one._renderers[64, 64]
    one.close()
    one.close()
    assert renderer._gl is None and renderer._context is None
    for _ in range(4):
        with contextlib.closing(SafetyGymEnv()) as other:
            other.reset(seed=0)
    assert files() <= before
    assert psutil.Process().memory_info().rss - memory < 40e6


@pytest.mark.parametrize('robot', ['Point', 'Car'])
@pytest.mark.parametrize(('old', 'new', 'words'), [
    ('name="vision"', 'name="eye"', '0 elements camera'),
    ('type="skybox"', 'type="cube"', '0 elements asset/texture'), ('<asset>', '<visual></visual><asset>', 'visual'),
    ('name="vision"', 'name="vision_back"', 'has a camera'),
    ('xyaxes="0 -1 0 .4 0 1"', 'xyaxes="0 -1 0 0 0 1"', 'at ('),
    ('xyaxes="-1 0 0 0 -.4 1"', 'xyaxes="-1 0 0 0 0 1"', 'at ('), ('fileup=', 'up=', 'six files')])
def test_a_scene_that_is_not_as_published_is_refused(stock, robot, old, new, words):
    """A substitution that misses draws another picture without an error: that is what the trained model would see."""
    xml = stock[robot]
    assert adapter.rewrite(xml).count('vision_back') == 1
    if old not in xml:
        assert 'xyaxes' in old, 'the other robot has another camera, all else is the same'
        return
    with pytest.raises(FospError, match=f'not as it was published: .*{re.escape(words)}'):
        adapter.rewrite(xml.replace(old, new))


def test_the_clear_direction_goes_around_and_never_stops_an_escape():
    goal, wall = np.array([2.0, 0.0]), np.array([[0.6, 0.0, 0.3]])
    angle, room = clear_direction(np.zeros(2), goal, wall, 0.1)
    assert room >= 0.1 and np.deg2rad(35) < abs(angle) < np.deg2rad(60)
    assert clear_direction(np.zeros(2), goal, np.array([[0.6, 2.0, 0.3]]), 0.1)[0] == pytest.approx(0.0)
    inside = clear_direction(np.zeros(2), goal, np.array([[-0.1, 0.0, 0.3]]), 0.1)
    assert inside[0] == pytest.approx(0.0) and inside[1] > 0.1
    surrounded = np.array([[0.5 * np.cos(a), 0.5 * np.sin(a), 0.3] for a in np.arange(8) * np.pi / 4])
    assert clear_direction(np.zeros(2), goal, surrounded, 0.3)[1] < 0.3


def test_the_demonstrators_are_what_they_are_called(env):
    """Goal 1, three layouts: the safe one reaches goals at little cost, the unsafe one more of both, chance nothing."""
    one = env(render=False)
    goals, costs = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0.0)
    for kind in KINDS:
        for seed in range(100, 103):
            one.reset(seed=seed)
            demonstrator, done = make_demonstrator(kind, one, np.random.default_rng(seed)), False
            while not done:
                _, _, cost, terminated, truncated, info = one.step(demonstrator.action(one))
                costs[kind] += cost
                done = terminated or truncated
            goals[kind] += info['goals']
    assert goals['unsafe'] > goals['safe'] > 10 and goals['random'] <= 4
    assert costs['safe'] < 5 and costs['unsafe'] > costs['safe'] + 8 and costs['random'] > costs['safe'] + 8
