# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp bench step`: its interface, parts that sum to the whole, operations that are really those of the step."""

import json

import pytest

from fosp_core.cli import main
from fosp_core.config import Config
from fosp_core.contract import Contract
from fosp_core.paths import config_file
from fosp_core.train import floor, memory
from fosp_core.train.bench_step import random_replay
from fosp_core.train.learner import Learner

KEYS = {'preset', 'batch', 'length', 'device', 'seconds_per_step', 'steps_per_second', 'parts', 'parameters',
        'peak_memory_bytes'}
SMALL = ['--preset', 'debug', '--steps', '3', '--threads', '1', '--set', 'train.batch=4', '--set',
         'behaviour.horizon=2']


@pytest.fixture(autouse=True)
def leave_the_test_process_its_memory(monkeypatch):
    monkeypatch.setattr(memory, 'keep_freed_memory', lambda: True)


def test_json_alone_on_standard_output_with_every_key(capsys):
    """Issue 3's interface; the profile and the report go elsewhere."""
    assert main(['bench', 'step', *SMALL, '--profile', '--floor', '--json', '-']) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert KEYS <= result.keys()
    assert (result['preset'], result['batch'], result['length'], result['device']) == ('debug', 4, 12, 'cpu')
    assert result['steps_per_second'] == pytest.approx(1 / result['seconds_per_step'])
    parts = result['parts']
    assert set(parts) == {'world_model', 'imagination_actor', 'critics', 'reachability', 'replay_sampling', 'other'}
    assert all(v > 0 for v in parts.values())
    assert sum(parts.values()) == pytest.approx(result['seconds_per_step'], rel=0.5)     # medians of three
    assert 5e4 < result['parameters'] < 1e6 and 1e8 < result['peak_memory_bytes'] < 4e9
    assert 'Self CPU' in err and 'aten::' in err
    for key in ('tflop_matmul', 'tflop_convolution', 'gflops_matmul', 'floor_seconds', 'fraction'):
        assert result['floor'][key] > 0


def test_report_for_people(capsys, tmp_path):
    assert main(['bench', 'step', *SMALL, '--json', str(tmp_path / 'step.json')]) == 0
    assert 'debug: ' in capsys.readouterr().out
    assert json.loads((tmp_path / 'step.json').read_text())['steps'] == 3


def test_nonsense_is_refused(capsys):
    assert main(['bench', 'step', '--preset', 'debug', '--steps', '0']) == 2
    assert '--steps 0: expected at least 1' in capsys.readouterr().err
    assert main(['bench', 'step', '--preset', 'debug', '--device', 'tpu']) == 2
    assert 'device tpu: expected cpu' in capsys.readouterr().err


def test_operations_are_counted_on_the_real_step():
    """A kernel that the counter does not know would make the floor too low, and the fraction a lie."""
    contract = Contract.load(config_file('contract_safereach.yaml'))
    config = Config.load('debug', ['behaviour.horizon=3', 'train.batch=6', 'train.length=8', 'network.units=256',
                                   'network.stoch=32', 'network.classes=32', 'behaviour.imagine_starts=0'])
    learner = Learner(contract, config)
    assert learner.columns
    batch = random_replay(contract, 200).sample(6, 8, learner.rng)
    with floor.as_written(learner):
        dense, convolutions = floor.count(learner, dict(batch))
    executed, same = floor.count(learner, dict(batch))
    assert learner.columns and same == convolutions
    net, rows = config.network, 6 * 8
    # By hand: convolutions, forward, and the two gradients of each but the first one's in the encoder's picture.
    channels = [3] + [net.cnn_depth * m for m in net.cnn_multipliers]
    layers = [2 * rows * (32 >> i) ** 2 * a * b * 16 for i, (a, b) in enumerate(zip(channels, channels[1:]))]
    assert convolutions == 2 * 3 * sum(layers) - layers[0]
    # One critic's first layer on the rollout, forward and weight gradient: dense it is there, on columns it is not.
    width = net.stoch * net.classes
    first = 2 * 2 * (config.behaviour.horizon * rows) * width * net.units
    assert dense - executed > 3 * first
    assert executed < 0.7 * dense
    # Seven networks of this size see each rollout state, forward; four of them are trained.
    assert dense > 7 * first / 2
