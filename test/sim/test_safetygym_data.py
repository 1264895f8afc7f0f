# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From scripted episodes of a ground robot to a model bundle of its contract; and what `fosp bench sim` prints."""

import json

import numpy as np
import pytest

pytest.importorskip('mujoco', reason='the simulator extra is not installed')

from fosp_core import cli
from fosp_core.contract import Contract
from fosp_core.paths import config_file
from fosp_sim import gymnasium_adapter as adapter

pytestmark = pytest.mark.skipif(adapter.found_version() != adapter.VERSION,
                                reason='Safety-Gymnasium is not installed; run: make sim-gym')
CONTRACT = config_file('contract_safetygym.yaml')


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    """Six episodes, two of each demonstrator."""
    out = tmp_path_factory.mktemp('ground') / 'bag'
    assert cli.main(['collect', '--task', 'SafetyPointGoal1', '--mix', 'safe,unsafe,random', '--episodes', '6',
                     '--seed', '103', '--out', str(out)]) == 0
    return out


def test_what_is_collected_is_what_is_imported(bag):
    from fosp_core.data.bag import ImportReport, read_episodes
    contract = Contract.load(CONTRACT)
    report = ImportReport()
    episodes = list(read_episodes(bag, contract, report=report))
    assert [e.meta['policy'] for e in episodes] == 2 * ['safe', 'unsafe', 'random'] and report.counts.clean
    for episode in episodes:
        episode.validate(contract)
        assert len(episode) == 251 and not episode.is_terminal.any() and episode.is_last[-1]
        assert np.abs(episode.images['vision'].astype(int) - episode.images['vision_back']).mean() > 10
        assert episode.cost.max() <= 4 and episode.cost.sum() == episode.meta['cost_hazards']
        assert np.abs(episode.action).max() <= 1 and episode.meta['task'] == 'SafetyPointGoal1'
    assert any(e.violation for e in episodes)


def test_the_smallest_preset_learns_from_it(bag, tmp_path):
    run = tmp_path / 'run'
    assert cli.main(['pretrain', str(bag), '--contract', str(CONTRACT), '--preset', 'debug', '--steps', '3',
                     '--holdout', '0.5', '--threads', '1', '--name', 'ground', '--out', str(run)]) == 0
    losses = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    assert losses and all(np.isfinite(v) for row in losses for v in row.values() if isinstance(v, float))
    from fosp_core.deploy.bundle import Bundle
    bundle = Bundle.open(run / 'bundle' / 'current', Contract.load(CONTRACT))
    from fosp_core.deploy.runtime import PolicyRuntime
    pictures = {c.name: np.zeros(c.shape, np.uint8) for c in bundle.contract.cameras}
    assert PolicyRuntime(bundle).step(pictures, np.zeros(2, np.float32), True).action.shape == (2,)


def test_the_benchmark_prints_its_figures(capsys):
    assert cli.main(['bench', 'sim', '--task', 'SafetyPointGoal1', '--task', 'safereach', '--decisions', '4',
                     '--rounds', '1', '--json', '-']) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(r['task'], r['cameras']) for r in result['rows']] == [('SafetyPointGoal1', 2), ('standard', 1)]
    for row in result['rows']:
        assert row['decisions_per_s'] > 0 and row['decisions_per_cpu_s'] > 0 and row['reset_ms'] > 0
    assert len(result['load']) == 2 and result['mujoco']
    assert cli.main(['bench', 'sim', '--task', 'SafetyPointGoal7']) == 2
