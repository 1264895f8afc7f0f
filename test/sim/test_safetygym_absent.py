# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Without the package, or with another version of it: one sentence that says what to run, and nothing half-written."""

import importlib.metadata
import sys

import pytest

pytest.importorskip('mujoco', reason='the simulator extra is not installed')

from fosp_core import cli
from fosp_core.errors import FospError
from fosp_ros import graph
from fosp_sim import gymnasium_adapter as adapter
from fosp_sim import safereach, safetygym, tasks


@pytest.mark.parametrize(('version', 'words'), [(None, 'is not installed here; run: make sim-gym'),
                                                ('1.2.0', '1.2.0 is installed, expected exactly 1.0.0; run: make sim')])
def test_absence_and_another_version_are_one_sentence(version, words, monkeypatch, tmp_path, capsys):
    true_version = importlib.metadata.version

    def answer(name):
        if name != 'safety-gymnasium':
            return true_version(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version
    monkeypatch.setattr(adapter.importlib.metadata, 'version', answer)
    assert cli.main(['collect', '--task', 'SafetyPointGoal1', '--episodes', '1', '--out', str(tmp_path / 'bag')]) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and err.startswith('error: ') and words in err
    assert not (tmp_path / 'bag').exists()


def test_a_package_that_somebody_else_has_imported_is_refused(monkeypatch):
    """Its own import would have registered and patched things; ours would then be the second copy."""
    monkeypatch.setattr(adapter, 'require', lambda: None)
    monkeypatch.setitem(sys.modules, adapter.PACKAGE, object())
    with pytest.raises(FospError, match='imported in this process before'):
        adapter.make_builder('SafetyPointGoal1-v0', 'Point')


def test_each_family_knows_its_tasks():
    assert tasks.parse_task('SafetyPointGoal1-v0') == tasks.parse_task('SafetyPointGoal1') == 'SafetyPointGoal1'
    assert tasks.parse_task('safereach/unseen3') == 'unseen3'
    for name in ('SafetyPointGoal9', 'SafetyFadingEasy1', 'SafetyPointRace1'):   # the last is broken in the wheel
        with pytest.raises(FospError, match='expected one of SafetyPointGoal1'):
            tasks.parse_task(name)
    assert tasks.same_robot('SafetyCarGoal2', 'SafetyPointGoal1') and not tasks.same_robot('standard', 'SafetyCarGoal2')
    assert set(graph.GROUND_TASKS) == set(safetygym.TASKS) and set(graph.TASKS) == set(safereach.TASKS)


@pytest.mark.parametrize('task', ['safereach', 'SafetyPointGoal1'])
def test_a_demonstrator_of_the_other_robot_is_refused(task, tmp_path, capsys):
    mix = {'safereach': 'unsafe', 'SafetyPointGoal1': 'reckless'}[task]
    assert cli.main(['collect', '--task', task, '--mix', mix, '--out', str(tmp_path / 'bag')]) == 2
    assert 'expected a comma-separated list of safe, ' in capsys.readouterr().err
