# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A foreign bag trains a model: through `fosp pretrain`, and through the worker that the trainer node starts."""

import json

import foreign_bags as fb
import numpy as np
import pytest
import yaml

from fosp_core.cli import main
from fosp_core.contract import Contract
from fosp_core.data.store import save_episode
from fosp_core.deploy.toy import make_toy
from fosp_core.errors import TrainingError
from fosp_core.paths import config_file
from fosp_core.train import finetune

SECTION = {'cameras': {'image': {'topic': '/cam'}}, 'vectors': {'ee_pose': {'topic': '/pose'}},
           'action': {'topic': '/cmd', 'type': 'geometry_msgs/Twist', 'fields': ['linear.x', 'linear.y', 'linear.z']},
           'label': {'topic': '/label'}}


@pytest.fixture(scope='module')
def recording(tmp_path_factory):
    """Forty episodes of SafeReach's contract under other names: a bar that moves, cost when it is far to the right."""
    folder = tmp_path_factory.mktemp('training')
    data = yaml.safe_load(config_file('contract_safereach.yaml').read_text())
    (folder / 'mine.yaml').write_text(yaml.safe_dump({**data, 'import': SECTION}))
    rng, rows, tick = np.random.default_rng(0), [], 0
    for _ in range(40):
        x = np.clip(rng.uniform() + np.cumsum(rng.choice([-0.03, 0.03], 16)), 0, 1)
        for k, at in enumerate(x):
            t = fb.START + 100_000_000 * tick
            tick += 1
            picture = np.zeros((64, 64, 3), np.uint8)
            picture[:, :int(64 * at)] = 255
            twist = fb.blank(fb.TYPES['plain_twist'])
            twist.linear.x = 0.1 * float(np.sign(x[min(k + 1, 15)] - at))
            flags = [k == 0, k == 15, k == 15 and at < 0.5]
            rows += [['/cam', 'image', t, fb.picture(picture, t)], ['/pose', 'pose', t, fb.pose((at, 0, 0), t, '')],
                     ['/label', 'joy', t, fb.joy(t, [float(flags[2]), float(at > 0.6)], flags)],
                     ['/cmd', 'plain_twist', t + 1_000_000, twist]]
    return fb.write(folder / 'bag', rows), folder / 'mine.yaml'


def test_pretrain_takes_a_foreign_bag(recording, tmp_path, capsys):
    bag, contract = recording
    assert main(['pretrain', str(bag), '--contract', str(contract), '--preset', 'debug', '--steps', '2', '--out',
                 str(tmp_path / 'run'), '--threads', '1', '--holdout', '0.4', '--json', '-']) == 0
    said = capsys.readouterr()
    assert '40 episodes, 640 steps' in said.err and json.loads(said.out)
    assert 'warning: the risk level rests on ' in said.err


def test_the_trainer_s_worker_takes_one_with_the_contract_that_says_where(recording, tmp_path, capsys, make_episode,
                                                                              monkeypatch):
    bag, contract = recording
    bundle = make_toy(tmp_path / 'toy')
    (tmp_path / 'online').mkdir()
    for seed in range(3):
        save_episode(tmp_path / 'online' / f'{seed}.npz', make_episode(12, seed, violation=seed == 1))
    arguments = ['--bundle', str(bundle.path), '--episodes', str(tmp_path / 'online'), '--offline', str(bag), '--steps',
                 '1', '--nice', '0', '--out']
    def trained(parent, online, offline, *_, **__):
        raise TrainingError(f'{len(offline)} episodes, {sum(e.violation for e in offline)} with a violation')

    monkeypatch.setattr(finetune, 'finetune', trained)      # what comes after is tested elsewhere
    assert finetune.main([*arguments, str(tmp_path / 'a'), '--contract', str(contract)]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out) == {'event': 'start', 'steps': 1, 'online': 3, 'offline': 40}
    assert '40 episodes, 25 with a violation' in said.err
    assert finetune.main([*arguments, str(tmp_path / 'b')]) != 0
    assert 'import-a-bag.md' in ''.join(capsys.readouterr())
    other = tmp_path / 'other.yaml'
    other.write_text(contract.read_text().replace('rate_hz: 10.0', 'rate_hz: 5.0'))
    assert Contract.load(other).rate_hz == 5.0
    assert finetune.main([*arguments, str(tmp_path / 'c'), '--contract', str(other)]) != 0
    assert 'they differ in rate_hz' in ''.join(capsys.readouterr())
