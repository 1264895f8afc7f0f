# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Two processes that share each batch make the run of one process: losses, weights, normalisers, random states."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fosp_core.cli import main
from fosp_core.config import Config
from fosp_core.data.pack import write_pack
from fosp_core.errors import TrainingError
from fosp_core.nn import parallel
from fosp_core.train.checkpoint import list_checkpoints, load_checkpoint
from fosp_core.train.distributed import check_shares
from fosp_core.train.learner import Learner

JOB = Path(__file__).with_name('parallel_job.py')
ENV = {**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p), 'CI': '1', 'OMP_NUM_THREADS': '1'}


@pytest.fixture(scope='module')
def pack(tmp_path_factory, contract, make_episodes):
    """A packed set of 13 episodes, 9 of them with a violation."""
    path = tmp_path_factory.mktemp('data') / 'pack'
    write_pack(path, contract, [*make_episodes([12, 5, 9, 14]), *make_episodes([8] * 9, seed=40, violation=True)])
    return path


def start(*argv, size=2):
    """Start `size` processes of the job as torchrun would; return them."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    return [subprocess.Popen([sys.executable, str(JOB), *map(str, argv)], text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE,
                             env={**ENV, 'RANK': str(r), 'LOCAL_RANK': str(r), 'WORLD_SIZE': str(size),
                                  'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}) for r in range(size)]


def finish(jobs):
    """Wait for all; return their exit codes and what they said on standard error."""
    try:
        said = [job.communicate(timeout=200)[1] for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    return [job.returncode for job in jobs], said


def near(a, b, where):
    """Assert |a - b| <= 1e-4 max(1, |a|) for numbers, lists and dicts of them."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            near(a[key], b[key], f'{where} {key}')
    elif isinstance(a, list):
        assert len(a) == len(b)
        for i, (x, y) in enumerate(zip(a, b)):
            near(x, y, f'{where} {i}')
    else:
        assert abs(a - b) <= 1e-4 * max(1.0, abs(a)), (where, a, b)


def test_a_global_value_has_the_same_bits_in_all_processes(monkeypatch):
    """The multiplier grows by it: weights that differ in one bit end a run."""
    monkeypatch.setattr(parallel, '_size', 2)
    monkeypatch.setattr(parallel, '_reduce', lambda x: torch.full_like(x, 0.1))     # whatever this process has
    for mine in (1e8, -3.3, 0.7):
        x = torch.tensor(mine, requires_grad=True)
        value = parallel.global_value(x)
        value.backward()
        assert value.item() == torch.tensor(0.1).item() and x.grad.item() == 1.0


@pytest.mark.timeout(280)
def test_two_processes_make_the_run_of_one(tmp_path, pack):
    jobs = start('curve', pack, tmp_path / 'two.json')
    spec = importlib.util.spec_from_file_location('parallel_job', JOB)
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    one = job.curve(str(pack))
    codes, said = finish(jobs)
    assert codes == [0, 0], said
    two = json.loads((tmp_path / 'two.json').read_text())
    near(one, two, '')
    # Where the normalisers or the multiplier never moved, the test would prove nothing of them.
    for name, run in one.items():
        assert run['ends']['constraint.multiplier'][0] > 0.1
        for key in ('reward_scale.low', 'reward_scale.high', 'cost_scale.low', 'cost_scale.high'):
            here, there = run['ends'][key][0], two[name]['ends'][key][0]
            assert abs(here - there) <= 1e-3 * abs(here), (name, key, here, there)
        assert run['ends']['reward_scale.high'][0] > 0.0 and run['ends']['cost_scale.high'][0] > 0.0


@pytest.mark.timeout(280)
def test_torchrun_resumes_what_one_process_began(tmp_path, pack, contract):
    """And writes once: one bundle, one TensorBoard file, one line per step."""
    def argv(out, steps):
        return ['pretrain', str(pack), '--preset', 'debug', '--holdout', '0.3', '--steps', str(steps), '--threads', '1',
                '--set', 'train.log_every=1', '--set', 'train.length=8', '--out', str(tmp_path / out)]
    assert main(argv('two', 4)) == 0
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '-m',
                           'fosp_core.cli', *argv('two', 8)], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('resuming from') == done.stdout.count('bundle ') == 1
    assert main(argv('one', 8)) == 0
    curves = [[json.loads(line) for line in open(tmp_path / run / 'metrics.jsonl')] for run in ('one', 'two')]
    near(*curves, 'metrics')
    assert [entry['step'] for entry in curves[1]] == list(range(1, 9))
    assert sorted(p.name for p in (tmp_path / 'two' / 'bundle').iterdir() if not p.is_symlink()) == ['v4-s0', 'v8-s0']
    assert len(list((tmp_path / 'two' / 'tensorboard').iterdir())) == 2      # one of each of the two runs
    states = []
    for run in ('one', 'two'):
        learner = Learner(contract, Config.load('debug'))
        load_checkpoint(list_checkpoints(tmp_path / run / 'checkpoints')[-1], learner)
        states.append(({k: float(v.double().sum()) for k, v in learner.agent.state_dict().items()},
                       learner.rng.bit_generator.state))
    near(states[0][0], states[1][0], 'weights')
    assert states[0][1] == states[1][1]


@pytest.mark.timeout(280)
@pytest.mark.parametrize(('kind', 'rank', 'codes', 'line'), [
    ('error', 1, [2, 2], 'error: process 1 of 2: the disk has gone'),
    ('drift', 1, [2, 2], 'step 3: weights of process 1 not as in process 0'),
    ('kill', 1, [2, -9], 'error: process 0 of 2: lost contact to another process: '),
])
def test_the_failure_of_one_ends_all_in_one_line(tmp_path, pack, kind, rank, codes, line):
    jobs = start('fault', kind, rank, 2, 'pretrain', pack, '--preset', 'debug', '--holdout', '0.3', '--steps', '4',
                 '--set', 'train.save_every=1', '--set', 'train.length=8', '--out', tmp_path)
    found, said = finish(jobs)
    assert found == codes, said
    told = [text for text in ''.join(said).splitlines() if text]
    assert len(told) == 1 and line in told[0] and told[0].startswith('error: process '), said
    assert [p.name for p in list_checkpoints(tmp_path / 'checkpoints')] == ['step_00000001', 'step_00000002']


def test_what_all_find_wrong_one_says(tmp_path):
    found, said = finish(start('fault', 'none', 0, 0, 'pretrain', tmp_path / 'absent', '--preset', 'debug', '--out',
                               tmp_path / 'out'))
    assert found == [2, 2] and not (tmp_path / 'out').exists()
    told = ''.join(said).splitlines()
    assert len(told) == 1 and told[0].startswith('error: process ') and f'{tmp_path}/absent: no such bag' in told[0]


def test_a_batch_that_cannot_be_shared(monkeypatch):
    monkeypatch.setattr(parallel, '_size', 3)
    with pytest.raises(TrainingError, match=r'train\.batch 8: expected a multiple of the 3 processes'):
        check_shares(Config.load('debug'))
    monkeypatch.setattr(parallel, '_size', 2)
    check_shares(Config.load('debug'))
    with pytest.raises(TrainingError, match=r'imagine_starts 15: '):
        check_shares(Config.load('debug', ['behaviour.imagine_starts=15']))
