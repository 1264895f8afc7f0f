# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp bench filter`: its keys, figures that can be true, and bad usage in one line."""

import json

import pytest

from fosp_core import cli

pytestmark = pytest.mark.usefixtures('kept_environment')


def check(result, count):
    assert {'latency_ms', 'candidates', 'ticks', 'cores', 'from_picture_ms', 'reasons', 'model'} <= set(result)
    spent, whole = result['latency_ms'], result['from_picture_ms']
    assert 0.3 < spent['p50'] <= spent['p99'] <= spent['max'] and spent['p50'] <= whole['p50']
    # The toy model is untrained: its learner is sometimes late, and such a tick has no proposal to be timed from.
    assert 0.25 * count <= result['ticks'] <= count and 5 < result['candidates'] <= 16
    assert sum(result['reasons'].values()) >= count and result['model'] == 'toy'


def test_the_filter_alone(toy, capsys):
    assert cli.main(['bench', 'filter', '--alone', '--ticks', '20', '--model', str(toy), '--json', '-']) == 0
    check(json.loads(capsys.readouterr().out), 20)


def test_the_filter_in_the_graph(toy, tmp_path):
    pytest.importorskip('mujoco', reason='the simulator extra is not installed')
    assert cli.main(['bench', 'filter', '--ticks', '20', '--model', str(toy), '--json', str(tmp_path / 'j')]) == 0
    result = json.loads((tmp_path / 'j').read_text())
    check(result, 20)
    assert result['graph'] == 'whole'


@pytest.mark.parametrize('options', [['--ticks', '0'], ['--cores', '0'], ['--model', '/nowhere']])
def test_bad_usage_is_one_line(options, capsys):
    assert cli.main(['bench', 'filter', *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith('error: ') and captured.err.count('\n') == 1 and not captured.out
