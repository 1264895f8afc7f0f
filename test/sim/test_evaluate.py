# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp evaluate`: tables that repeat, on layouts that no data set holds, corners beside each policy (lesson 19)."""

import contextlib
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from fosp_core.cli import main
from fosp_core.errors import FospError
from fosp_core.safety.reasons import STAGES
from fosp_sim.actors import Result, Scripted, run_episode
from fosp_sim.demonstrators import KINDS
from fosp_sim.evaluate import FIRST_SEED, evaluation_seeds, row, table, tasks_of
from fosp_sim.safereach import TASKS, SafeReachEnv


def test_layouts_of_evaluations_are_disjoint_from_data_and_from_each_other():
    a, b = evaluation_seeds(0, 10_000), evaluation_seeds(1, 5)
    assert a[0] == FIRST_SEED == 1_000_000 and a[-1] < b[0] == 1_010_000
    with pytest.raises(FospError, match='--episodes 10001'):
        evaluation_seeds(0, 10_001)
    with pytest.raises(FospError, match='--seed -1'):
        evaluation_seeds(-1, 5)


def test_task_names():
    assert tasks_of(None) == ['standard']
    assert tasks_of(['safereach/unseen3', 'all']) == ['unseen3', 'standard', 'unseen1', 'unseen2', 'unseen4',
                                                            'unseen5']


def test_json_on_standard_output_alone_with_the_corners_and_it_repeats(capsys):
    arguments = ['evaluate', '--policy', 'noisy', '--episodes', '4', '--json', '-']
    results = []
    for _ in range(2):
        assert main(arguments) == 0
        results.append(json.loads(capsys.readouterr().out))
        del results[-1]['wall_s']
    assert results[0] == results[1]
    rows = results[0]['rows']
    assert [r['phase'] for r in rows] == ['noisy', 'safe', 'random']
    assert (results[0]['policy'], results[0]['filter'], results[0]['model']) == ('noisy', 'off', None)
    assert list(rows[0])[:8] == ['task', 'phase', 'n', 'sr', 'cv', 'sr_ci', 'cv_ci', 'interventions']
    assert all(r['n'] == 4 and 0.0 <= r['sr_ci'][0] <= r['sr'] <= r['sr_ci'][1] <= 1.0 for r in rows)
    assert rows[1]['sr'] == 1.0 and rows[1]['cv'] == 0.0     # the safe planner is the upper bound
    assert rows[2]['sr'] == 0.0


def test_straight_knows_no_obstacle_and_no_data_set_knows_it(capsys, tmp_path):
    """The filter is judged by a policy that no model has learned from; reckless is a third of the data."""
    with contextlib.closing(SafeReachEnv('unseen3', render=False)) as env:
        observation, _ = env.reset(seed=FIRST_SEED)
        actor = Scripted('straight')
        actor.reset(env, FIRST_SEED)
        first, layout = actor.action(env, observation), env.layout
        way = np.array(layout.goal) - env.tip
        assert first @ way == pytest.approx(np.linalg.norm(first) * np.linalg.norm(way), rel=1e-5)
    assert main(['evaluate', '--policy', 'straight', '--task', 'unseen3', '--episodes', '3', '--no-corners', '--json',
                 '-']) == 0
    (found,) = json.loads(capsys.readouterr().out)['rows']
    assert found['phase'] == 'straight' and found['cv'] == 1.0
    assert 'straight' not in KINDS
    assert main(['collect', '--mix', 'straight', '--episodes', '1', '--out', str(tmp_path / 'bag')]) == 2
    assert 'straight' in capsys.readouterr().err and not (tmp_path / 'bag').exists()


def test_the_suite_is_every_scene_with_means_and_their_intervals(capsys):
    """`--suite safereach`: one row per scene; the time to the goal counts only those that reached it."""
    assert tasks_of(['all']) == list(TASKS) and len(TASKS) == 6
    assert main(['evaluate', '--suite', 'safereach', '--policy', 'random', '--episodes', '1', '--no-corners', '--json',
                 '-']) == 0
    found = json.loads(capsys.readouterr().out)
    rows = found['rows']
    assert [r['task'] for r in rows] == list(TASKS)
    assert found['command'] == ('fosp evaluate --suite safereach --episodes 1 --seed 0 --policy random --filter off '
                                '--through core --no-corners')
    assert all(r['time_to_goal_s'] is None and r['path_m_ci'] is None and r['path_m'] > 0.1 for r in rows)
    done = [Result(1, True, False, 30, 1.0, 0.0, 0, 0.7), Result(2, False, True, 80, 0.0, 5.0, 0, 1.1),
            Result(3, True, False, 40, 1.0, 0.0, 0, 0.9), Result(4, True, False, 20, 1.0, 0.0)]
    found = row('standard', 'model', done)
    assert found['time_to_goal_s'] == pytest.approx(3.0) and found['path_m'] == pytest.approx(0.9)
    assert found['return'] == 0.75 and found['steps'] == 42.5
    for name in ('return', 'steps', 'path_m', 'time_to_goal_s', 'cost'):
        low, high = found[f'{name}_ci']
        assert low <= found[name] <= high and low < high
    means = table([found]).splitlines()[3]
    assert '0.90 [0.70, 1.10]      3.00 [2.00, 4.00]' in means and '0.75 [' in means and '1.25 [' in means


def test_the_path_is_the_way_of_the_fingertip():
    with contextlib.closing(SafeReachEnv(render=False)) as env:
        env.reset(seed=1)
        way, tip = 0.0, env.tip
        for action in ([0.0, 0.0, 1.0], [0.3, 0.0, -1.0], [0.0, 0.0, 0.0]):
            info = env.step(np.array(action))[-1]
            way, tip = way + np.linalg.norm(env.tip - tip), env.tip
            assert info['path_m'] == pytest.approx(way)
        assert way > 0.03 and env.reset(seed=1)[1]['path_m'] == 0.0


def test_a_missing_model_is_one_line(capsys, tmp_path):
    assert main(['evaluate', '--model', str(tmp_path / 'none')]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith('error: ') and str(tmp_path / 'none') in error and '\n' not in error


@pytest.fixture(scope='module')
def calibrated_toy(tmp_path_factory):
    """A toy bundle whose levels are named calibrated: random weights, made in a child so that torch stays out."""
    code = ('import sys; from pathlib import Path; from fosp_core.deploy import toy, export\n'
            'real = export.export_bundle\n'
            'def calibrated(agent, out, *, calibration, **rest):\n'
            '    for part in ("reachability", "surprise"): calibration[part]["n"] = 100\n'
            '    return real(agent, out, calibration=calibration, **rest)\n'
            'toy.export_bundle = calibrated; toy.make_toy(Path(sys.argv[1]))')
    folder = tmp_path_factory.mktemp('evaluate') / 'toy'
    subprocess.run([sys.executable, '-c', code, str(folder)], check=True, capture_output=True)
    return folder


def test_the_model_with_and_without_the_filter(capsys, calibrated_toy):
    rows = {}
    for which in ('on', 'off'):
        assert main(['evaluate', '--model', str(calibrated_toy), '--filter', which, '--episodes', '1', '--no-corners',
                     '--json', '-']) == 0
        result = json.loads(capsys.readouterr().out)
        rows[which] = result['rows'][0]
        assert result['model']['version'] == 'toy' and len(result['model']['sha256']) == 64
    assert rows['on']['phase'] == 'model+filter' and rows['off']['phase'] == 'model'
    assert rows['off']['interventions'] == 0 and rows['off']['altered'] is rows['off']['contacts_unwarned'] is None
    assert rows['on']['altered']['risk'] == rows['on']['interventions'] and set(rows['on']['altered']) == set(STAGES)


def test_a_scripted_policy_behind_the_filter(capsys, calibrated_toy):
    arguments = ['evaluate', '--policy', 'safe', '--filter', 'on', '--model', str(calibrated_toy), '--episodes', '1']
    assert main([*arguments, '--json', '-']) == 0
    result = json.loads(capsys.readouterr().out)
    # Its own unfiltered self stays a corner of the table, and is paired with it.
    assert [r['phase'] for r in result['rows']] == ['safe+filter', 'safe', 'random']
    assert [p['against'] for p in result['paired']] == ['safe', 'random']
    assert (result['filter'], result['model']['version'], result['seed']) == ('on', 'toy', 0)


def test_with_and_without_the_filter_on_the_same_layouts(capsys, calibrated_toy):
    arguments = ['evaluate', '--policy', 'straight', '--filter', 'both', '--model', str(calibrated_toy), '--episodes',
                 '2', '--no-corners']
    assert main([*arguments, '--json', '-']) == 0
    result = json.loads(capsys.readouterr().out)
    assert [r['phase'] for r in result['rows']] == ['straight+filter', 'straight']
    (compared,) = result['paired']
    assert (compared['phase'], compared['against'], compared['n']) == ('straight+filter', 'straight', 2)
    assert {'gained', 'lost', 'difference', 'p_value', 'ci', 'verdict', 'needed'} == set(compared['cv'])
    assert compared['sr']['verdict'] == 'no winner'
    assert (result['rows'][1]['altered'], result['filter']) == (None, 'both')
    assert result['command'] == (f'fosp evaluate --model {calibrated_toy} --task standard --episodes 2 --seed 0 '
                                 '--policy straight --filter both --through core --no-corners')
    assert main(arguments) == 0
    assert 'standard: straight+filter against straight on the same 2 layouts\n  SR' in capsys.readouterr().out


def test_a_scripted_policy_does_not_pass_without_a_calibrated_model(capsys, tmp_path):
    assert main(['evaluate', '--policy', 'reckless', '--filter', 'on', '--model', str(tmp_path / 'none')]) == 2
    assert str(tmp_path / 'none') in capsys.readouterr().err


@pytest.mark.parametrize('filtered', [True, False])
def test_what_the_guard_returns_is_what_is_sent_and_what_it_hears_of_next(filtered):
    """A guard that halves everything and counts every second change: the arm gets half, and no more is claimed."""
    heard = []

    class Half:
        begun = 0

        def reset(self):
            self.begun += 1

        def __call__(self, env, observation, previous, is_first, action):
            heard.append((previous, is_first, action))
            return 0.5 * action, ('', 'risk', 'limits')[(len(heard) - 1) % 3]

    guard = Half() if filtered else None
    actor, env = Scripted('safe', guard), SafeReachEnv('standard', render=False)
    alone = Scripted('safe')
    assert actor.phase == ('safe+filter' if filtered else 'safe') and actor.pictures == filtered
    for _ in range(2):      # an episode's count and history are its own
        observation, _ = env.reset(seed=FIRST_SEED)
        alone.reset(env, FIRST_SEED)
        actor.reset(env, FIRST_SEED)
        heard.clear()
        sent = [actor.action(env, observation) for _ in range(3)]
        wanted = alone.action(env, observation)
        np.testing.assert_array_equal(sent[0], 0.5 * wanted if filtered else wanted)
        assert actor.interventions == (1 if filtered else 0)
        assert actor.altered == {'risk': filtered, 'surprise': 0, 'limits': filtered, 'stopped': 0}
    if filtered:
        assert guard.begun == 2 and [is_first for _, is_first, _ in heard] == [True, False, False]
        assert not heard[0][0].any()
        for (previous, *_), before in zip(heard[1:], sent):
            np.testing.assert_array_equal(previous, before)


@pytest.mark.parametrize(('stage', 'late', 'unwarned'), [('limits', False, 1), ('risk', False, 0),
                                                         ('risk', True, 1)])
def test_a_contact_without_an_intervention_before_it_is_unwarned(stage, late, unwarned):
    """What limits altered is no warning of a contact, nor is what the risk changed after it."""
    class Marks:
        def reset(self):
            self.cost = False

        def __call__(self, env, observation, previous, is_first, action):
            self.cost |= bool(env.last_cost)
            return action, stage if self.cost or not late else ''

    class Watched(SafeReachEnv):
        last_cost = 0.0

        def step(self, action):
            answer = super().step(action)
            self.last_cost = answer[2]
            return answer
    with contextlib.closing(Watched('unseen3', render=False)) as env:
        found = run_episode(env, Scripted('straight', Marks()), FIRST_SEED)
    assert found.violation and found.altered[stage] > 0
    summary = row('unseen3', 'straight+filter', [found])
    assert summary['contacts_unwarned'] == unwarned and summary['interventions'] == found.altered['risk']
    assert summary['altered'] == found.altered
    assert summary['touched'] == {found.touched: 1} and ', side of a ' in found.touched     # it flies low
    assert row('unseen3', 'x', [dataclasses.replace(found, touched=None)])['touched'] is None
    assert 'unwarned: episodes' in table([summary]) and f'{found.altered["limits"]:8d}' in table([summary])


def sent_on(actor, env, *seeds, end=None):
    """Return the first four actions (4, 3) that `actor` sends on the last layout; `end(observation)` closes each."""
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        actor.reset(env, seed)
        actions = []
        for _ in range(4):
            actions.append(actor.action(env, observation))
            observation, *_ = env.step(actions[-1])
        if end:
            end(observation)
    return np.stack(actions)


def test_what_is_drawn_on_a_layout_does_not_hang_on_the_layouts_before(calibrated_toy):
    from fosp_core.deploy.bundle import Bundle
    from fosp_sim.actors import Learned

    def sent(*seeds):
        return sent_on(Learned(Bundle.open(calibrated_toy), explore=True), env, *seeds)
    with contextlib.closing(SafeReachEnv('standard')) as env:
        alone = sent(FIRST_SEED)
        assert np.array_equal(alone, sent(FIRST_SEED + 1, FIRST_SEED))
        assert not np.array_equal(alone, sent(FIRST_SEED + 1))


def test_what_the_filter_does_on_a_layout_does_not_hang_on_the_layouts_before(calibrated_toy):
    """Not on a stop in which the last one ended either: a row can then be made again without those before it."""
    from fosp_core.deploy.bundle import Bundle
    from fosp_sim.actors import Learned
    from fosp_sim.guard import Guard

    def sent(*seeds):
        actor = Learned(Bundle.open(calibrated_toy), Guard(Bundle.open(calibrated_toy)))

        def stop(observation):
            actor.guard(env, observation, np.zeros(3, np.float32), False, np.full(3, np.nan, np.float32))
            assert not actor.guard.state.released
        return sent_on(actor, env, *seeds, end=stop)
    with contextlib.closing(SafeReachEnv('standard')) as env:
        alone = sent(FIRST_SEED)
        assert np.abs(alone).max() > 0.1
        assert np.array_equal(alone, sent(FIRST_SEED + 1, FIRST_SEED))


def test_the_guard_keeps_the_limits_and_tells_the_model_what_was_sent(calibrated_toy):
    """An action that leads out of the workspace box is cut; the learner must hear of the cut one."""
    from fosp_core.deploy.bundle import Bundle
    from fosp_sim.actors import Learned
    from fosp_sim.guard import Guard
    guard = Guard(Bundle.open(calibrated_toy))
    # Above the simulator's own floor, which stops the arm before the configured one of the filter does.
    guard.limits = dataclasses.replace(guard.limits, box_low=(*guard.limits.box_low[:2], 0.06))
    actor = Learned(Bundle.open(calibrated_toy), guard)
    env = SafeReachEnv('standard')
    try:
        observation, _ = env.reset(seed=FIRST_SEED)
        actor.reset(env, FIRST_SEED)
        heights = []
        for _ in range(60):
            down = np.array([0.0, 0.0, -1.0], np.float32)
            sent, _ = guard(env, observation, actor._previous, actor._first, down)
            actor._previous, actor._first = sent, False
            observation, *_ = env.step(sent)
            heights.append(float(observation['ee_pose'][2]))
        assert min(heights) > guard.limits.box_low[2] - 0.01
        assert np.abs(sent).max() < 0.2         # at the floor of the box nothing more is let through downwards
    finally:
        env.close()
