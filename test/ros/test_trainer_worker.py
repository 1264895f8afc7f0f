# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The worker's priority, where the kernel shares the processor out by sessions."""

import subprocess
import sys
from pathlib import Path

import pytest

AUTOGROUP = Path('/proc/self/autogroup')


def test_a_worker_with_a_session_of_its_own_steps_back_as_a_session():
    """Its os.nice alone would count among the processes of its session: among itself."""
    if not AUTOGROUP.is_file():
        pytest.skip('this kernel has no autogroup')
    code = ('import sys; from fosp_core.train import finetune; from fosp_ros import trainer_worker\n'
            f'finetune.main = lambda argv: print(open({str(AUTOGROUP)!r}).read().split()[-1]) or 0\n'
            'sys.exit(trainer_worker.main())')
    done = subprocess.run([sys.executable, '-c', code, '--bundle', 'b', '--nice', '7'], capture_output=True, text=True,
                          start_new_session=True, check=False)
    assert (done.returncode, done.stdout) == (0, '7\n'), done.stderr
