# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A whole run on two workers, where pytest-xdist is there: one has all that runs nodes, one test after another, the
other, which yields to it, the rest. `pytest -n 0` and a run of some files alone keep to one process.
"""

import contextlib
import os
from pathlib import Path

import pytest
from ros_rig import FOLDERS

TESTS = Path(__file__).resolve().parent
NODES = 'nodes'
_lower = os.nice
_state = {'yields': False}


def runs_nodes(path: Path) -> bool:
    """Return whether the tests of a file are of real nodes, which must not meet one another's load."""
    return path.parent.name in FOLDERS


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Choose two workers when nobody chose otherwise; xdist reads it next."""
    if hasattr(config, 'workerinput') or 'PYTEST_XDIST_WORKER' in os.environ:
        return      # a worker, or a run that a test began, must not begin workers of its own
    whole = {(config.invocation_params.dir / a).resolve() for a in config.args} <= {TESTS, TESTS.parent}
    if whole and len(os.sched_getaffinity(0)) > 1 and getattr(config.option, 'numprocesses', 0) is None:
        config.option.numprocesses = 0 if config.option.usepdb else 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hand out tests singly, but those of nodes as one, and that first, as it takes longest."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return NODES if runs_nodes(Path(nodeid.split('::')[0])) else nodeid

    return Scheduler(config, log)


def pytest_runtest_setup(item):
    """A worker that has come to other tests gets what the nodes leave over."""
    if hasattr(item.config, 'workerinput') and not runs_nodes(item.path) and not _state['yields']:
        _state['yields'] = True
        with contextlib.suppress(OSError):
            os.setsid()     # Linux shares time between sessions first, and only within one by niceness
            Path('/proc/self/autogroup').write_text('19')
        _lower(19)
