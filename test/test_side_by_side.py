# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Two workers for a whole run, and never more: prevents workers that begin workers, and two graphs at one time."""

import os
import types
from pathlib import Path

import pytest
from side_by_side import TESTS, pytest_cmdline_main, pytest_xdist_make_scheduler, runs_nodes


def workers(monkeypatch, *args, chosen=None, pdb=False, folder=TESTS.parent, inside='', cores=2, **more):
    """Return how many workers a run with these arguments gets."""
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(cores)))
    monkeypatch.delenv('PYTEST_XDIST_WORKER', raising=False)
    if inside:
        monkeypatch.setenv('PYTEST_XDIST_WORKER', inside)
    config = types.SimpleNamespace(args=args, invocation_params=types.SimpleNamespace(dir=Path(folder)),
                                   option=types.SimpleNamespace(numprocesses=chosen, usepdb=pdb), **more)
    pytest_cmdline_main(config)
    return config.option.numprocesses


def test_a_whole_run_has_two_workers_and_every_other_one_process(monkeypatch):
    assert workers(monkeypatch, 'test') == workers(monkeypatch, str(TESTS)) == workers(monkeypatch, '.') == 2
    assert workers(monkeypatch, 'test/core') is None and workers(monkeypatch, 'test/test_walls.py') is None
    assert workers(monkeypatch, 'test', cores=1) is None and workers(monkeypatch, 'test', pdb=True) == 0
    assert workers(monkeypatch, 'test', chosen=0) == 0 and workers(monkeypatch, 'test', chosen=5) == 5


def test_a_worker_begins_no_workers(monkeypatch):
    assert workers(monkeypatch, 'test', workerinput={}) is None
    assert workers(monkeypatch, 'test', inside='gw1') is None


def test_all_that_runs_nodes_is_one_work_of_one_worker():
    pytest.importorskip('xdist', reason='pytest-xdist is not installed: one process runs all')
    scheduler = pytest_xdist_make_scheduler(types.SimpleNamespace(getvalue=lambda name: ['2*popen']), None)
    names = ['test/ros/test_a.py::test_x[a]', 'test/faults/test_b.py::test_y', 'test/core/test_c.py::test_z',
             'test/core/test_c.py::test_w', 'test/test_walls.py::test_v']
    assert [scheduler._split_scope(n) for n in names] == ['nodes', 'nodes', *names[2:]]
    assert all(runs_nodes(p) == (p.parent.name in ('ros', 'faults')) for p in TESTS.rglob('test_*.py'))
