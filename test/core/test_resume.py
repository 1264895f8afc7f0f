# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Exact resume: "train 20" is "train 10, save, load, train 10", bit for bit; and a run that fails keeps what it had.

Lesson 18: replay, optimisers or counters that were not saved, so that a resumed run was another run.
"""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from fosp_core.cli import main
from fosp_core.config import Config
from fosp_core.data.pack import write_pack
from fosp_core.data.replay import MixedReplay, Replay
from fosp_core.data.store import data_hash, load_episodes, save_episode
from fosp_core.deploy.bundle import Bundle
from fosp_core.deploy.trained_on import fingerprint, known_episodes
from fosp_core.errors import TrainingError
from fosp_core.train.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from fosp_core.train.dataset import load_dataset, split
from fosp_core.train.learner import Learner
from fosp_core.train.pretrain import train_loop
from fosp_core.train.run_log import forget_after

STEPS = ['train.steps=12', 'train.behaviour_steps=8', 'train.behaviour_batch=8', 'train.behaviour_length=6',
         'train.save_every=5', 'train.log_every=1', 'train.length=8', 'train.behaviour_lr_scale=2',
         'train.behaviour_redraw=2']     # not every checkpoint is of a step at which the states are drawn anew
CONFIG = Config.load('debug', [*STEPS, 'constraint.lambda_init=0.01', 'constraint.penalty_init=0.1'])
EXTRA = {'data_hash': 'x'}


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """Sums of several threads may differ in the last bit from run to run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='module')
def replay(contract, make_episodes):
    """Five episodes, two of them with a violation."""
    return Replay(contract, mirror=True).extend([*make_episodes([12, 7, 15]),
                                                 *make_episodes([9, 11], seed=30, violation=True)])


@pytest.fixture(scope='module')
def whole(tmp_path_factory, contract, replay):
    """Folder of an uninterrupted run: 12 joint steps, 8 behaviour steps."""
    out = tmp_path_factory.mktemp('whole')
    train_loop(Learner(contract, CONFIG), replay, out, EXTRA)
    return out


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def interrupt(monkeypatch, at, error):
    """Make the step after `at` end in `error`."""
    for name in ('update', 'update_behaviour'):
        original = getattr(Learner, name)

        def update(self, *args, _original=original):
            if self.step == at:
                raise error
            return _original(self, *args)
        monkeypatch.setattr(Learner, name, update)


@pytest.mark.parametrize(('stop', 'saved'), [(11, 10), (12, 12), (17, 15)])
def test_pretraining_goes_on_bit_for_bit(tmp_path, monkeypatch, contract, replay, whole, stop, saved):
    """Stopped among the joint steps, between the phases, among the behaviour steps."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, stop, KeyboardInterrupt())
        train_loop(Learner(contract, CONFIG), replay, tmp_path, EXTRA)
    resumed = Learner(contract, CONFIG, seed=99)  # everything must come from the checkpoint
    assert load_checkpoint(list_checkpoints(tmp_path / 'checkpoints')[-1], resumed)['step'] == saved
    train_loop(resumed, replay, tmp_path, EXTRA)
    assert contents(tmp_path / 'checkpoints') == contents(whole / 'checkpoints')
    assert (tmp_path / 'metrics.jsonl').read_text() == (whole / 'metrics.jsonl').read_text()
    assert [json.loads(line)['step'] for line in open(tmp_path / 'metrics.jsonl')] == list(range(1, 21))


def test_a_checkpoint_depends_on_its_random_states(tmp_path, contract, replay, whole):
    """The comparison above can fail: another state of either generator gives another run."""
    source = list_checkpoints(whole / 'checkpoints')[0]
    ends = []
    for change in (lambda g: None, lambda g: g.rng.random(), lambda g: torch.rand(1, generator=g.generator)):
        learner = Learner(contract, CONFIG)
        load_checkpoint(source, learner)
        change(learner)
        train_loop(learner, replay, tmp_path / str(len(ends)), EXTRA)
        ends.append(contents(tmp_path / str(len(ends)) / 'checkpoints')['step_00000020/agent.safetensors'])
    assert ends[0] == contents(whole / 'checkpoints')['step_00000020/agent.safetensors']
    assert ends[1] != ends[0] != ends[2]


@pytest.mark.parametrize('overrides', [
    ['constraint.kind=pid', 'expansion.init=copy'], ['constraint.kind=apid', 'expansion.init=fresh'],
    ['constraint.kind=alm', 'constraint.lambda_init=0.1', 'constraint.penalty_init=0.5']])
def test_fine_tuning_goes_on_bit_for_bit(tmp_path, contract, replay, make_episode, overrides):
    """Mixed replay that grows, multiplier fed by real episodes, scaled learning rates, frozen policy, normalisers."""
    config = Config.load('debug', [*overrides, 'train.length=8', 'constraint.gain_p=0.1'])
    for i in range(4):
        save_episode(tmp_path / 'online' / f'{i}.npz', make_episode(10, 70 + i, violation=i % 2 == 0))
    folder = tmp_path / 'checkpoints'

    def train(learner, online, steps):
        mixed, log = MixedReplay(replay, online, config.train.online_fraction), []
        for _ in range(steps):
            log.append(learner.update(mixed.sample(config.train.batch, config.train.length, learner.rng)))
            if learner.step % 5 == 0:   # an episode has ended on the robot
                episode = load_episodes(tmp_path / 'online')[learner.step // 5 % 4]
                online.add(episode)
                learner.end_episode(float(episode.cost.sum()))
        return log

    def begin(others):
        torch.manual_seed(others)    # whatever else the process has drawn: the fresh policy must not depend on it
        learner, online = Learner(contract, config), Replay(contract, capacity=25)
        for _ in range(2):
            learner.update(replay.sample(config.train.batch, config.train.length, learner.rng))
        learner.begin_online()
        return learner, online

    whole, online = begin(1)
    frozen = {k: v.clone() for k, v in whole.agent.offline_actor.state_dict().items()}
    log = train(whole, online, 20)
    half, online = begin(2)
    train(half, online, 10)
    path = save_checkpoint(folder, half, {'online_hash': data_hash(online.episodes)})
    for i, episode in enumerate(online.episodes):
        save_episode(tmp_path / 'kept' / f'{i}.npz', episode)

    again = Replay(contract, capacity=25).extend(load_episodes(tmp_path / 'kept', contract))
    resumed = Learner(contract, config, seed=99)
    state = load_checkpoint(path, resumed)
    assert state['online_hash'] == data_hash(again.episodes) and resumed.online
    assert train(resumed, again, 10) == log[10:]
    first, second = save_checkpoint(tmp_path / 'a', whole), save_checkpoint(tmp_path / 'b', resumed)
    assert contents(first) == contents(second)
    for name, optimizer in whole.optimizers.items():
        rates = [g['lr'] for g in optimizer.param_groups]
        assert rates == [g['lr'] for g in resumed.optimizers[name].param_groups]
    assert resumed.optimizers['actor'].param_groups[0]['lr'] == pytest.approx(
        config.behaviour.lr * config.expansion.online_lr_scale)
    assert all(torch.equal(frozen[k], v) for k, v in resumed.agent.offline_actor.state_dict().items())
    assert float(whole.agent.constraint.multiplier) != 0.0, 'the multiplier never moved: the test would prove nothing'


@pytest.mark.timeout(280)
def test_two_processes_one_killed_make_the_same_model(tmp_path, contract, make_episodes, replay):
    """The same command in two processes, the second ended by kill -9 and begun again: same weights, same bundle."""
    write_pack(tmp_path / 'data', contract, [*replay.episodes, *make_episodes([8] * 6, seed=60, violation=True)])
    argv = ['pretrain', str(tmp_path / 'data'), '--preset', 'debug', '--threads', '1', '--holdout', '0.3']
    argv += [word for key in STEPS for word in ('--set', key)]
    assert main([*argv, '--out', str(tmp_path / 'a')]) == 0
    code = ('import os, signal, sys\n'
            'from fosp_core import cli\n'
            'from fosp_core.train.learner import Learner\n'
            'original = Learner.update_behaviour\n'
            'def update(self, *args):\n'
            '    if self.step == 17 and "die" in sys.argv: os.kill(os.getpid(), signal.SIGKILL)\n'
            '    return original(self, *args)\n'
            'Learner.update_behaviour = update\n'
            'sys.exit(cli.main([a for a in sys.argv[1:] if a != "die"]))')
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p), 'CI': '1'}
    again = [sys.executable, '-c', code, *argv, '--out', str(tmp_path / 'b')]
    assert subprocess.run([*again, 'die'], env=env, capture_output=True).returncode == -signal.SIGKILL
    assert [p.name for p in list_checkpoints(tmp_path / 'b' / 'checkpoints')] == ['step_00000012', 'step_00000015']
    done = subprocess.run(again, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and 'resuming from' in done.stdout, done.stderr
    assert contents(tmp_path / 'a' / 'checkpoints') == contents(tmp_path / 'b' / 'checkpoints')
    assert (tmp_path / 'a' / 'metrics.jsonl').read_text() == (tmp_path / 'b' / 'metrics.jsonl').read_text()
    bundles = [contents(tmp_path / run / 'bundle' / 'v20-s0') for run in 'ab']
    for name in ('weights.safetensors', 'policy.onnx', 'filter.onnx', 'calibration.json'):
        assert bundles[0][name] == bundles[1][name], name
    training, _ = split(list(load_dataset([tmp_path / 'data'], contract)), 0.3)
    for run in 'ab':
        bundle = Bundle.open(tmp_path / run / 'bundle' / 'v20-s0')
        assert known_episodes(bundle.manifest, run) == {fingerprint(e) for e in training}


@pytest.mark.parametrize(('part', 'at'), [('world_model', 7), ('actor', 7), ('critic', 7), ('reach', 13)])
def test_a_loss_that_is_not_a_number_leaves_the_last_checkpoint(tmp_path, monkeypatch, contract, replay, whole, part,
                                                               at):
    learner = Learner(contract, CONFIG)
    names = {'world_model': (learner.agent.world_model, 'loss'), 'actor': (learner.agent, 'offline_actor_loss'),
             'critic': (learner.agent, 'critic_loss'), 'reach': (learner.agent, 'reach_loss')}
    owner, name = names[part]
    original = getattr(owner, name)

    def poisoned(*args):
        loss, *rest = original(*args)
        return loss * (float('nan') if learner.step + 1 == at else 1.0), *rest
    monkeypatch.setattr(owner, name, poisoned)
    with pytest.raises(TrainingError, match=rf'gradient step ({at}|{at + 1}): .*not finite; the last checkpoint is'):
        train_loop(learner, replay, tmp_path, EXTRA)
    kept = contents(tmp_path / 'checkpoints')
    saved = {5: ['step_00000005'], 10: ['step_00000010', 'step_00000012']}[at // 5 * 5]
    assert {name.split('/')[0] for name in kept} == set(saved)
    again = Learner(contract, CONFIG, seed=99)
    load_checkpoint(tmp_path / 'checkpoints' / saved[-1], again)
    assert all(torch.isfinite(v).all() for v in again.agent.state_dict().values())
    # From there the run goes on as if nothing had been: what was kept is what had been saved.
    train_loop(again, replay, tmp_path, EXTRA)
    assert contents(tmp_path / 'checkpoints') == contents(whole / 'checkpoints')


@pytest.mark.parametrize('where', ['weight', 'optimiser'])
def test_broken_weights_are_never_saved(tmp_path, monkeypatch, contract, replay, where):
    """A finite loss with an infinite gradient: the step that is about to be saved has broken weights already."""
    learner = Learner(contract, CONFIG)
    original = Learner._finish

    def finish(self, metrics):
        out = original(self, metrics)
        if self.step == 10:
            weight = self.agent.v_cost.net.output.weight
            target = weight if where == 'weight' else self.optimizers['critic'].state[weight]['exp_avg_sq']
            with torch.no_grad():
                target[0, 0] = np.inf
        return out
    monkeypatch.setattr(Learner, '_finish', finish)
    with pytest.raises(TrainingError, match='gradient step 10: .* not finite; the last checkpoint is intact'):
        train_loop(learner, replay, tmp_path, EXTRA)
    assert [p.name for p in (tmp_path / 'checkpoints').iterdir()] == ['step_00000005']
    load_checkpoint(tmp_path / 'checkpoints' / 'step_00000005', learner)


def test_other_data_are_refused(tmp_path, contract, replay, make_episodes, capsys):
    """A run that went on with other bags would be neither run."""
    for name, seed in (('a', 60), ('b', 61)):
        write_pack(tmp_path / name, contract, [*replay.episodes, *make_episodes([8] * 6, seed=seed, violation=True)])
    save_checkpoint(tmp_path / 'run' / 'checkpoints', Learner(contract, CONFIG), {'data_hash': data_hash([])})
    before = contents(tmp_path / 'run')
    argv = ['pretrain', str(tmp_path / 'a'), '--preset', 'debug', '--holdout', '0.3', '--out', str(tmp_path / 'run')]
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert 'state.json: data_hash' in err and err.count('\n') == 1
    assert contents(tmp_path / 'run') == before


def test_lines_of_steps_that_are_made_again_are_dropped(tmp_path):
    file = tmp_path / 'metrics.jsonl'
    forget_after(file, 3)
    file.write_text(''.join(f'{{"step": {i}, "x": 1}}\n' for i in range(1, 6)) + '{"step": 6, "x"')
    forget_after(file, 3)
    assert [json.loads(line)['step'] for line in file.open()] == [1, 2, 3]
    forget_after(file, 3)
    assert [json.loads(line)['step'] for line in file.open()] == [1, 2, 3]
