# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Without OpenGL: one sentence, exit code 2, nothing half-written (lessons.md 25)."""

import os
import subprocess
import sys

import pytest

pytest.importorskip('mujoco', reason='the simulator extra is not installed')

from fosp_core.errors import RenderError
from fosp_sim import render


def test_no_platform_draws(monkeypatch):
    """Each platform that was tried is named with its reason, on one line."""
    for name in ('MUJOCO_GL', 'FOSP_GL_PROBED', 'PYOPENGL_PLATFORM'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(render, 'PLATFORMS', ('nonsense', 'glfw'))
    monkeypatch.delitem(sys.modules, 'mujoco', raising=False)
    monkeypatch.setenv('DISPLAY', '')
    with pytest.raises(RenderError) as caught:
        render.choose_gl()
    text = str(caught.value)
    assert '\n' not in text and 'nonsense' in text and 'glfw' in text and 'libosmesa6' in text
    assert 'MUJOCO_GL' not in os.environ


def test_collect_without_gl_is_one_line_and_exit_code_2(tmp_path):
    environment = {**os.environ, 'MUJOCO_GL': 'nonsense'}
    environment.pop('FOSP_GL_PROBED', None)
    out = tmp_path / 'bag'
    child = subprocess.run([sys.executable, '-m', 'fosp_core.cli', 'collect', '--episodes', '1', '--out', str(out)],
                           env=environment, capture_output=True, text=True, timeout=60, check=False)
    lines = [line for line in child.stderr.splitlines() if line.strip()]
    assert child.returncode == 2, child.stderr
    assert len(lines) == 1 and lines[0].startswith('error:') and 'OpenGL' in lines[0], child.stderr
    assert not list(tmp_path.iterdir())


def test_process_ends_silently_after_close():
    """Unfreed contexts print a page of ignored exceptions at exit (sim.md 2)."""
    code = ('from fosp_sim.safereach import SafeReachEnv\n'
            'e = SafeReachEnv(); e.reset(seed=0); e.step([0, 0, 1.0]); e.close()')
    child = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60, check=False)
    assert child.returncode == 0 and child.stderr == '', child.stderr
