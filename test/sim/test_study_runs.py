# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp study` from data to verdicts on real commands, killed and gone on with; `rollout` and `finetune` in it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fosp_core.cli import main
from fosp_core.contract import Contract
from fosp_core.data.bag import read_episodes
from fosp_core.paths import config_file
from fosp_sim.actors import Scripted
from fosp_sim.rollout import record_episode
from fosp_sim.safereach import SafeReachEnv

PLAN = """
data:
  mix: {task: safereach, episodes: 12, mix: 'safe,reckless,noisy', seed: 5}
models:
  a: {preset: debug, data: [mix], holdout: 0.3, set: [train.steps=6, train.behaviour_steps=2, train.length=8]}
adapt: {tasks: [unseen1], methods: [fosp], episodes: 3, steps: 2, offline: [mix]}
evaluate: {tasks: [unseen1], episodes: 2, seed: 1, filter: [on, off]}
"""


def test_a_recorded_episode_holds_what_was_sent():
    """The simulator, stepped with the recorded actions, shows the recorded pictures, rewards and costs again."""
    with contextlib.closing(SafeReachEnv('unseen1')) as env:
        episode = record_episode(env, Scripted('noisy'), 7, step=100)
        assert episode.step[0] == 100 and episode.meta['seed'] == 7 and not episode.action[-1].any()
        observation, _ = env.reset(seed=7)
        for t in range(len(episode) - 1):
            assert np.array_equal(observation['image'], episode.images['image'][t])
            assert np.array_equal(observation['ee_pose'], episode.vectors['ee_pose'][t])
            observation, reward, cost, terminated, truncated, _ = env.step(episode.action[t])
            assert (reward, cost) == (episode.reward[t + 1], episode.cost[t + 1])
        assert (terminated or truncated) and bool(terminated) == bool(episode.is_terminal[-1])
    episode.validate(Contract.load(config_file('contract_safereach.yaml')))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_study_that_is_killed_goes_on(tmp_path, capsys):
    (tmp_path / 'plan.yaml').write_text(PLAN)
    out = tmp_path / 'study'
    arguments = ['study', str(tmp_path / 'plan.yaml'), '--out', str(out), '--jobs', '2']
    first = subprocess.Popen([sys.executable, '-m', 'fosp_core.cli', *arguments], stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL, start_new_session=True)
    bag = out / 'data' / 'mix'
    end = time.monotonic() + 100
    while not bag.is_dir() and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    made = bag.stat().st_ino
    assert main([*arguments, '--json', str(tmp_path / 'found.json')]) == 0
    assert bag.stat().st_ino == made, 'the data was made again'
    found = json.loads((tmp_path / 'found.json').read_text())
    assert (found['jobs'], found['done'], found['failed'], found['waiting']) == (8, 8, {}, [])
    assert [(r['stage'], r['filter'], r['n']) for r in found['rows']] == [
        ('before', 'on', 2), ('before', 'off', 2), ('fosp', 'on', 2), ('fosp', 'off', 2)]
    assert len({r['sha256'] for r in found['rows']}) == 2
    assert {c['verdict'] for c in found['comparisons']} == {'too few'}
    assert found['fine_tunes'][0]['method'] == 'fosp' and found['rollouts'][0]['n'] == 3
    episodes = list(read_episodes(out / 'rollouts' / 'a-s0' / 'unseen1',
                                  Contract.load(config_file('contract_safereach.yaml'))))
    assert len(episodes) == 3 and all(len(e) > 1 for e in episodes)
    assert 'http' not in (out / 'study.html').read_text().replace('http://www.w3.org', '')
    assert 'unseen1' in capsys.readouterr().out
    # Nothing is left to do, and nothing is done.
    before = {p: p.stat().st_mtime_ns for p in (out / 'record').rglob('*.json')}
    assert main(arguments) == 0 and before == {p: p.stat().st_mtime_ns for p in (out / 'record').rglob('*.json')}


@pytest.mark.parametrize(('arguments', 'words'), [
    (['rollout', '--seed', '1000000', '--out', 'x'], 'those from there on are for evaluation alone'),
    (['rollout', '--episodes', '0', '--out', 'x'], '--episodes 0: expected at least 1'),
    (['rollout', '--out', '.'], 'exists already'),
    (['finetune', 'absent', 'bag', '--out', 'x'], 'absent'),
    (['finetune', 'absent', 'bag', '--steps', '0', '--out', 'x'], '--steps 0: expected at least 1'),
    (['finetune', 'absent', 'bag', '--out', '.'], 'exists already'),
])
def test_bad_usage_is_one_line(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and '\n' not in error and not list(tmp_path.iterdir())
