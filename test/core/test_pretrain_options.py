# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Values on the command lines of training and benchmarks: refused in one line, before anything is computed."""

import json
import os
import subprocess
import sys

import pytest

from fosp_core.cli import main
from fosp_core.data.pack import write_pack
from fosp_core.deploy.bundle import Bundle
from fosp_core.deploy.bundle_store import BundleStore
from fosp_core.deploy.trained_on import known_episodes
from fosp_core.paths import config_file
from fosp_core.train import learner, memory
from fosp_core.train.run_log import RunLog

DEBUG = config_file('preset_debug.yaml')


@pytest.fixture(autouse=True)
def leave_the_test_process_its_memory(monkeypatch):
    monkeypatch.setattr(memory, 'keep_freed_memory', lambda: True)
    monkeypatch.setenv('CI', '1')


@pytest.fixture(scope='module')
def pack(tmp_path_factory, contract, make_episodes):
    path = tmp_path_factory.mktemp('data') / 'pack'
    write_pack(path, contract, make_episodes([8] * 10, violation=True))
    return str(path)


@pytest.mark.parametrize('command', ['pretrain x --out y --threads 0', 'bench step --threads 0'])
def test_threads_are_told_to_sleep_before_torch_is_there(command):
    """Torch reads it when it is loaded; a value from outside stands."""
    code = ("import sys, builtins, os; from fosp_core import cli; real = builtins.__import__\n"
            "def watch(name, *a, **k):\n"
            "    if name == 'torch' and 'torch' not in sys.modules:\n"
            "        print(os.environ.get('OMP_WAIT_POLICY')); sys.stdout.flush(); os._exit(0)\n"
            "    return real(name, *a, **k)\n"
            f"builtins.__import__ = watch; cli.main({command.split()!r})")
    env = {k: v for k, v in os.environ.items() if k != 'OMP_WAIT_POLICY'}
    for given, expected in (({}, 'PASSIVE'), ({'OMP_WAIT_POLICY': 'ACTIVE'}, 'ACTIVE')):
        done = subprocess.run([sys.executable, '-c', code], env=env | given, capture_output=True, text=True)
        assert done.stdout.split() == [expected], done


def refused(capsys, argv, line):
    assert main([str(a) for a in argv]) == 2
    out, err = capsys.readouterr()
    assert err.splitlines() == [f'error: {line}'], err
    return out


@pytest.mark.parametrize(('options', 'line'), [
    (['--threads', '-1'], '--threads -1: expected at least 1'),
    (['--threads', '0'], '--threads 0: expected at least 1'),
    (['--device', 'tpu'], 'device tpu: expected cpu, cuda or cuda:N'),
    (['--device', 'cuda'], 'device cuda: torch sees no GPU here; expected cpu'),
    (['--holdout', '1'], '--holdout 1: expected more than 0 and less than 1'),
    (['--alpha', '0'], '--alpha 0: expected more than 0 and less than 1'),
    (['--alpha', 'nan'], '--alpha nan: expected more than 0 and less than 1'),
    (['--steps', '0'], 'keys train.steps and train.behaviour_steps are 0: nothing to train'),
    (['--steps', '-1'], f'{DEBUG}: train: key steps is -1, expected 0 to 1000000000'),
    (['--init', 'a', '--world-model', 'b'], '--init and --world-model: expected one of them'),
    (['--seed', '-1'], f'{DEBUG}: train: key seed is -1, expected 0 to 4294967295'),
    (['--set', 'train.batch=0'], f'{DEBUG}: train: key batch is 0, expected 1 to 1000000'),
    (['--set', 'behaviour.lr=.nan'], f'{DEBUG}: behaviour: key lr is nan, expected 0 to 1'),
    (['--set', 'network.cnn_multipliers=[1,2]'], f'{DEBUG}: network: key cnn_multipliers has 2 entries, expected 4'),
    (['--version', 'a/b'], "--version 'a/b', expected a word of letters, digits and ._+-"),
    (['--name', ''], "--name '', expected a word of letters, digits and ._+-")])
def test_pretrain_refuses_before_it_reads(tmp_path, capsys, monkeypatch, options, line):
    import torch
    if options[-1] == 'cuda' and torch.cuda.is_available():
        pytest.skip('there is a GPU')
    out = tmp_path / 'run'
    refused(capsys, ['pretrain', tmp_path / 'absent', '--preset', 'debug', '--out', out, *options], line)
    assert not out.exists()


def test_a_run_folder_below_a_file(tmp_path, capsys):
    file = tmp_path / 'file'
    file.write_text('mine')
    for out in (file, file / 'a' / 'b'):
        refused(capsys, ['pretrain', tmp_path / 'absent', '--preset', 'debug', '--out', out],
                f'--out {out}: {file} is a file, expected a folder')
    assert file.read_text() == 'mine'


@pytest.mark.parametrize(('argv', 'line'), [
    (['step', '--preset', 'debug', '--steps', '0'], '--steps 0: expected at least 1'),
    (['step', '--preset', 'debug', '--threads', '-1'], '--threads -1: expected at least 1'),
    (['step', '--preset', 'debug', '--execution', 'fast'],
     "--execution 'fast': expected names of eager, compile, graph, compile+graph, products, with commas between"),
    (['step', '--preset', 'debug', '--execution', 'eager,graph'], 'train.cuda_graph needs a GPU, the device is cpu'),
    (['replay', '--preset', 'debug', '--threads', '0'], '--threads 0: expected at least 1'),
    (['runtime', '--ticks', '0'], '--ticks 0: expected at least 1'),
    (['runtime', '--candidates', '0'], '--candidates 0: expected at least 1')])
def test_benchmarks_refuse_counts_of_nothing(capsys, argv, line):
    assert refused(capsys, ['bench', *argv], line) == ''


def test_two_bundles_of_a_run_and_a_version_that_is_taken(tmp_path, capsys, monkeypatch, pack):
    out = tmp_path / 'run'
    argv = ['pretrain', pack, '--preset', 'debug', '--holdout', '0.3', '--threads', '1', '--out', str(out),
            '--set', 'train.length=6']
    assert main([*argv, '--steps', '2', '--version', 'first']) == 0
    assert Bundle.open(out / 'bundle').version == 'first'
    assert main([*argv, '--steps', '3', '--version', 'second']) == 0
    store = BundleStore(out / 'bundle')
    assert Bundle.open(out / 'bundle').version == store.current().version == 'second'
    assert store.previous().version == 'first'
    capsys.readouterr()
    monkeypatch.setattr(learner.Learner, 'update', lambda *a: pytest.fail('trained for a name that is taken'))
    refused(capsys, [*argv, '--steps', '4', '--version', 'second'],
            f'{out}/bundle/second: exists already; choose another --version, or remove it')
    assert main([*argv, '--steps', '4', '--version', 'third', '--set', 'behaviour.lr=0.5']) == 2
    assert 'state.json: key behaviour.lr is 0.001, this run asks for 0.5; ' in capsys.readouterr().err
    assert [json.loads(line)['step'] for line in open(out / 'metrics.jsonl')] == [2, 3]


def test_tensorboard_shows_each_step_of_a_resumed_run_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    for begin, end, offset in ((0, 5, 0.0), (3, 7, 10.0), (0, 2, 20.0)):
        log = RunLog(tmp_path, begin, 10)
        for step in range(begin + 1, end + 1):
            log.write(step, {'a/b': offset + step})
        log.close()
        # They are read in the order of their names, which hold the second (three are made in one) and then how many
        # this process has made: 10 would come before 9.
        for file in (tmp_path / 'tensorboard').iterdir():
            if '.part' not in file.name:
                file.rename(file.with_name(f'events.out.tfevents.part{offset:03.0f}'))
        found = EventAccumulator(str(tmp_path / 'tensorboard')).Reload().Scalars('a/b')
        kept = range(1, begin + 1)
        expected = [(s, float(s)) for s in kept] + [(s, offset + s) for s in range(begin + 1, end + 1)]
        assert [(e.step, e.value) for e in found] == expected


def test_another_method_on_the_same_world_model(tmp_path, pack, capsys):
    """Its world model stays bit for bit; the rest is its own."""
    import torch
    from safetensors.torch import load
    common = ['pretrain', pack, '--preset', 'debug', '--holdout', '0.3', '--set', 'train.length=8', '--set',
              'train.behaviour_length=4', '--set', 'train.behaviour_steps=2', '--set', 'world_model.autoencode=1.0']
    assert main([*common, '--steps', '3', '--out', str(tmp_path / 'a')]) == 0
    first = Bundle.open(tmp_path / 'a' / 'bundle')
    assert main([*common, '--steps', '0', '--method', 'bc', '--world-model', str(first.path), '--out',
                 str(tmp_path / 'b')]) == 0
    assert f'the world model of {first.path}' in capsys.readouterr().out
    second = Bundle.open(tmp_path / 'b' / 'bundle')
    weights = [load(b.read('weights.safetensors')) for b in (first, second)]
    shared = weights[0].keys() & weights[1].keys()     # the constraints differ
    same = {k.split('.')[0] for k in shared if torch.equal(weights[0][k], weights[1][k])}
    other = {k.split('.')[0] for k in shared if not torch.equal(weights[0][k], weights[1][k])}
    assert 'world_model' in same and 'world_model' not in other and {'actor', 'v_reward', 'reach'} <= other
    known = [known_episodes(b.manifest, '') for b in (first, second)]
    assert known[0] and known[0] <= known[1], 'what shaped the world model is known of its heir'
    assert main([*common, '--steps', '0', '--world-model', str(first.path), '--set', 'network.deter=24', '--out',
                 str(tmp_path / 'c')]) == 2
    assert f'{first.path}/weights.safetensors: key world_model.' in capsys.readouterr().err
