# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The fault suite: real processes, one fault a test. What was measured is printed at the end."""

import sys
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed: ROS tests need a ROS 2 distribution or its wheels')

sys.path.insert(0, str(Path(__file__).parent))      # pytest's importlib mode does not
from filter_cell import recalibrated
from stand import MEASURED, Stand

PASSING = {'schema': 1, 'reachability': {'level': 1.0, 'alpha': 0.1, 'n': 50}, 'data_hash': 'test',
           'surprise': {'level_slow': 1e9, 'level_stop': 1e9, 'alpha': 0.1, 'n': 50}}


@pytest.fixture(scope='session', autouse=True)
def _isolated(isolated):
    return isolated


@pytest.fixture(scope='session')
def model(toy, tmp_path_factory):
    """A toy bundle whose levels let everything pass: what stops is not the learned part."""
    return recalibrated(toy, tmp_path_factory.mktemp('passing') / 'b', PASSING).path


@pytest.fixture(scope='module')
def shared(model, tmp_path_factory):
    """One filter process for the tests of a module that leave it alive. Not for the session: it would go on speaking
    while the tests of other folders run in the same domain.
    """
    stand = Stand(model, tmp_path_factory.mktemp('stand'))
    yield stand
    code = stand.child.end()
    stand.close()
    assert code == 0, stand.child.text[-2000:]


@pytest.fixture
def stand(shared):
    """The shared filter; afterwards every command is held to the limits."""
    yield shared
    shared.cell.heal()
    assert shared.judge() > 0


def pytest_terminal_summary(terminalreporter):
    """Print what was measured, one row a fault: the slowest of its trials."""
    rows = {}
    for fault, word, due, strict in MEASURED:
        rows.setdefault((fault, word), []).append((due, strict))
    if rows:
        terminalreporter.section('first stop after a fault: reason, ms from its begin, ms from the last good message')
    for (fault, word), of in rows.items():
        due, strict = max(due for due, _ in of), [s for _, s in of if s is not None]
        terminalreporter.write_line(f'{fault:34} {word:22} {due:6.0f} {max(strict):6.0f}' if strict else
                                    f'{fault:34} {word:22} {due:6.0f}')
