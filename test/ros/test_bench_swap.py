# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp bench swap`: its keys, figures that can be true, and bad usage in one line."""

import json

import pytest

from fosp_core import cli

pytestmark = pytest.mark.usefixtures('kept_environment')


def test_two_fine_tunes_in_the_running_graph(toy, capsys):
    pytest.importorskip('mujoco', reason='the simulator extra is not installed')
    assert cli.main(['bench', 'swap', '--fine-tunes', '2', '--steps', '2', '--offline-episodes', '0',
                     '--min-steps', '10', '--model', str(toy), '--json', '-']) == 0
    result = json.loads(capsys.readouterr().out)
    assert result['refused'] == 0 and result['reasons'] == [], result
    assert len(result['fine_tune_s']) == 2 and all(1.0 < s < 120.0 for s in result['fine_tune_s']), result
    assert result['swaps'] == 2 and result['swaps_of'] == {'learner': 2, 'safety_filter': 2}, result
    spent = result['latency_ms']
    assert 0.3 < spent['p50'] <= spent['p99'] <= result['latency_max_ms'] < 1000.0, result
    # About ten commands a second come, and a deadline that is missed has mostly no command in time.
    assert result['commands'] > 10 and 0 <= result['missed_deadlines'] < result['commands'], result
    assert result['episodes'] >= 1 and result['steps'] == 2 and result['model'] == 'toy'


@pytest.mark.parametrize('options', [['--fine-tunes', '0'], ['--steps', '0'], ['--cores', '0'],
                                     ['--model', '/nowhere']])
def test_bad_usage_is_one_line(options, capsys):
    assert cli.main(['bench', 'swap', *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith('error: ') and captured.err.count('\n') == 1 and not captured.out
