# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp evaluate` through the core and through the graph agree: prevents fast figures that the robot never sees."""

import json

import pytest

from fosp_core.cli import main

pytestmark = pytest.mark.usefixtures('kept_environment')


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_core_and_graph_agree(capsys):
    results = {}
    for through in ('core', 'ros'):
        assert main(['evaluate', '--through', through, '--episodes', '2', '--seed', '5', '--no-corners', '--json',
                     '-']) == 0
        results[through] = json.loads(capsys.readouterr().out)
    assert results['core']['graph'] is None and results['ros']['through'] == 'ros'
    core, ros = (results[k]['rows'][0] for k in ('core', 'ros'))
    assert core['phase'] == ros['phase'] == 'model+filter'
    assert core['outcomes']['seed'] == [1_050_000, 1_050_001]
    assert all(core['outcomes'][k] == ros['outcomes'][k] for k in ('seed', 'success', 'violation'))
    assert core['return'] == pytest.approx(ros['return']) and core['cost'] == ros['cost']
    assert ros['steps'] == pytest.approx(core['steps'], rel=0.25)
    graph = results['ros']['graph']
    assert graph['commands'] >= ros['steps'] and 0.0 < graph['latency_ms']['p50'] <= graph['latency_ms']['p99']


@pytest.mark.parametrize('more', [['--policy', 'safe'], ['--filter', 'off']])
def test_in_the_graph_only_the_model_behind_the_filter(capsys, more):
    assert main(['evaluate', '--through', 'ros', *more]) == 2
    assert '--through ros: expected --policy model and --filter on' in capsys.readouterr().err
