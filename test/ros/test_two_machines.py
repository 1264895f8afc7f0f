# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer on another machine: prevents a model that never arrives, and steps that get lost on the wire uncounted.

Two network namespaces, joined by a virtual cable, each with its own /dev/shm: nothing is shared but the wire.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fosp_core.paths import config_file

JOB = Path(__file__).with_name('two_machines_job.py')
NAMES = ('fosp_robot', 'fosp_remote')


def sh(*words, check=True):
    return subprocess.run(words, check=check, capture_output=True, text=True, timeout=20)


@pytest.fixture
def machines():
    """Return how to start a command on either machine; skip where namespaces cannot be made."""
    if not (shutil.which('ip') and shutil.which('unshare')) or os.geteuid() != 0:
        pytest.skip('network namespaces need root, ip and unshare')
    tag = f'{os.getpid() % 10000}'
    names, ends = [f'{n}{tag}' for n in NAMES], [f'fr{tag}', f'ft{tag}']
    with contextlib.ExitStack() as stack:
        try:
            for name in names:
                sh('ip', 'netns', 'add', name)
                stack.callback(sh, 'ip', 'netns', 'del', name, check=False)
            sh('ip', 'link', 'add', ends[0], 'netns', names[0], 'type', 'veth', 'peer', 'name', ends[1],
               'netns', names[1])
            for i, (name, end) in enumerate(zip(names, ends)):
                inside = ('ip', '-n', name)
                sh(*inside, 'addr', 'add', f'10.213.7.{i + 1}/24', 'dev', end)
                sh(*inside, 'link', 'set', end, 'up')
                sh(*inside, 'link', 'set', 'lo', 'up')
                sh(*inside, 'route', 'add', '224.0.0.0/4', 'dev', end)
            sh('ip', 'netns', 'exec', names[0], 'unshare', '-m', 'mount', '-t', 'tmpfs', 'tmpfs', '/dev/shm')
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f'network namespaces cannot be made here: {error}')
        profile = str(config_file('fastdds_network.xml'))
        environment = {**os.environ, 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'SUBNET',
                       'FASTDDS_DEFAULT_PROFILES_FILE': profile, 'FASTRTPS_DEFAULT_PROFILES_FILE': profile}

        def start(machine, *words):
            process = subprocess.Popen(
                ['ip', 'netns', 'exec', names[machine], 'unshare', '-m', 'sh', '-c',
                 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', 'sh', sys.executable, *words], env=environment,
                text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            stack.callback(process.wait, 20)
            stack.callback(process.terminate)
            return process
        yield start


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_fine_tune_across_the_wire(machines, isolated, toy, tmp_path):
    # A folder of its own for each: neither machine reads the other's files.
    models = [shutil.copytree(toy, tmp_path / name / 'toy') for name in ('robot', 'remote')]
    remote = machines(1, '-m', 'fosp_core.cli', 'up', '--network', '--nodes', 'trainer', '--model', str(models[1]),
                      '--set', f'trainer.work_dir={tmp_path / "remote" / "work"}', '--set', 'trainer.min_steps=20',
                      '--set', 'trainer.steps=4')
    robot = machines(0, str(JOB), str(models[0]), str(tmp_path / 'robot'))
    said = robot.communicate(timeout=170)[0]
    assert robot.returncode == 0, said[-4000:]
    assert remote.poll() is None, 'the trainer has ended'
    found = json.loads(said.splitlines()[-1])
    assert found['nodes'] == ['learner', 'safety_filter', 'sim_bridge']
    assert found['joined'] + found['unseen'] == found['steps'] > 20
    assert found['lost'] == found['doubled'] == found['reordered'] == 0
    assert found['learner'] == found['filter'] == found['published'] != 'toy'
