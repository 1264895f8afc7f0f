# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp evaluate`: tables that repeat, on layouts that no data set holds, with corners beside each policy (lesson 19)."""

import json

import pytest

from fosp_core.cli import main
from fosp_core.errors import FospError
from fosp_sim.evaluate import FIRST_SEED, evaluation_seeds, tasks_of


def test_layouts_of_evaluations_are_disjoint_from_data_and_from_each_other():
    a, b = evaluation_seeds(0, 10_000), evaluation_seeds(1, 5)
    assert a[0] == FIRST_SEED == 1_000_000 and a[-1] < b[0] == 1_010_000
    with pytest.raises(FospError, match='--episodes 10001'):
        evaluation_seeds(0, 10_001)
    with pytest.raises(FospError, match='--seed -1'):
        evaluation_seeds(-1, 5)


def test_task_names():
    assert tasks_of(None) == ['standard']
    assert tasks_of(['safereach/unseen3', 'all']) == ['unseen3', 'standard', 'unseen1', 'unseen2']


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
    assert list(rows[0])[:8] == ['task', 'phase', 'n', 'sr', 'cv', 'sr_ci', 'cv_ci', 'interventions']
    assert all(r['n'] == 4 and 0.0 <= r['sr_ci'][0] <= r['sr'] <= r['sr_ci'][1] <= 1.0 for r in rows)
    assert rows[1]['sr'] == 1.0 and rows[1]['cv'] == 0.0     # the safe planner is the upper bound
    assert rows[2]['sr'] == 0.0


def test_a_missing_model_is_one_line(capsys, tmp_path):
    assert main(['evaluate', '--model', str(tmp_path / 'none')]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith('error: ') and str(tmp_path / 'none') in error and '\n' not in error
