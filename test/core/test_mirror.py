# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A contract may say that a scene in a mirror is a scene: what is then learned from, and what it does not touch."""

import argparse
import contextlib
import dataclasses
import json

import numpy as np
import pytest
import torch
import yaml

from fosp_core.cli import main
from fosp_core.config import Config
from fosp_core.contract import Contract
from fosp_core.data import mirror
from fosp_core.data.mirror import mirrored
from fosp_core.data.replay import Replay
from fosp_core.data.store import save_episode
from fosp_core.deploy import card
from fosp_core.deploy.bundle import Bundle
from fosp_core.deploy.toy import make_toy
from fosp_core.errors import ContractError, RefusedError, TrainingError
from fosp_core.train import features as features_module
from fosp_core.train import finetune as worker
from fosp_core.train import gates
from fosp_core.train.checkpoint import save_checkpoint
from fosp_core.train.features import FeatureReplay, _groups
from fosp_core.train.finetune import finetune
from fosp_core.train.learner import Learner
from fosp_core.train.pretrain import restore, train_loop

FIELDS = ('pose.position.y', 'twist.linear.y')


@pytest.fixture
def plain(contract) -> Contract:
    return dataclasses.replace(contract, mirror=())


def test_left_is_right_and_nothing_else(contract, make_episode):
    episode = make_episode(9, 3)
    other = mirrored(episode, contract)
    other.validate(contract)
    np.testing.assert_array_equal(other.images['image'], episode.images['image'][:, :, ::-1])
    np.testing.assert_array_equal(other.vectors['ee_pose'], episode.vectors['ee_pose'] * np.float32([1, -1, 1]))
    np.testing.assert_array_equal(other.action, episode.action * np.float32([1, -1, 1]))
    for key in ('reward', 'cost', 'is_first', 'is_last', 'is_terminal', 'stamp', 'step'):
        np.testing.assert_array_equal(getattr(other, key), getattr(episode, key))
    twice = mirrored(other, contract)
    np.testing.assert_array_equal(twice.images['image'], episode.images['image'])
    np.testing.assert_array_equal(twice.action, episode.action)


def test_half_of_the_windows_are_whole_windows_in_the_mirror(contract, plain, make_episode):
    episodes = [make_episode(7, seed) for seed in range(4)]
    there = [mirrored(e, contract) for e in episodes]
    seen, straight, turned = (Replay(c, mirror=True).extend(e).sample(200, 5, np.random.default_rng(2))
                              for c, e in ((contract, episodes), (plain, episodes), (plain, there)))
    assert Replay(plain, mirror=True).mirror is False
    rows = [all(np.array_equal(seen[k][row], batch[k][row]) for k in seen) for batch in (straight, turned)
            for row in range(200)]
    as_they_are, in_the_mirror = np.array(rows[:200]), np.array(rows[200:])
    assert (as_they_are ^ in_the_mirror).all() and 70 < in_the_mirror.sum() < 130
    again = Replay(contract).extend(episodes).sample(200, 5, np.random.default_rng(2))
    for key, value in again.items():
        np.testing.assert_array_equal(value, straight[key])     # without `mirror` nothing is mirrored


def test_parts_of_a_batch_are_the_batch(contract, make_episode):
    replay = Replay(contract, mirror=True).extend([make_episode(7, seed) for seed in range(4)])
    whole = replay.sample(12, 4, np.random.default_rng(5))
    parts = [replay.sample(12, 4, np.random.default_rng(5), slice(at, at + 4)) for at in (0, 4, 8)]
    for key, value in whole.items():
        np.testing.assert_array_equal(value, np.concatenate([p[key] for p in parts]))


def test_states_of_the_behaviour_phase_are_those_of_both(contract, plain, make_episode):
    agent = Learner(contract, Config.load('debug')).agent
    episodes = [make_episode(7, seed, violation=not seed) for seed in range(3)]
    both = FeatureReplay(agent, Replay(contract, mirror=True).extend(episodes))
    straight, turned = (FeatureReplay(agent, Replay(plain).extend(e))
                        for e in (episodes, [mirrored(e, contract) for e in episodes]))
    assert len(both) == 42 and not torch.equal(straight.deter, turned.deter)
    for name in ('deter', 'stoch'):
        torch.testing.assert_close(getattr(both, name), torch.cat([getattr(straight, name), getattr(turned, name)]))
    for key, value in both.series.items():
        assert torch.equal(value, torch.cat([straight.series[key], turned.series[key]]))
    assert both.violating.tolist() == [*range(7), *range(21, 28)]


def test_it_is_no_part_of_what_the_data_means(contract, plain):
    assert contract.mirror == FIELDS and contract.hash == plain.hash and contract == plain
    assert 'mirror' not in plain.to_dict()      # contracts of before it read the same
    assert Contract.from_dict(contract.to_dict()).mirror == FIELDS      # a bundle knows it, and so does a fine-tune
    other = dataclasses.replace(plain, rate_hz=20.0)
    with pytest.raises(ContractError, match=r'they differ in rate_hz$'):
        contract.require_same(other.hash, 'bundle', other.to_dict())


@pytest.mark.parametrize('value, found', [(['y'], "'y'"), (['pose.position.y', 3], '3')])
def test_an_unknown_field_is_named(contract, value, found):
    with pytest.raises(ContractError, match=f'here: key mirror has {found}, expected some of pose.position.x, '):
        Contract.from_dict({**contract.to_dict(), 'mirror': value}, 'here')


def test_without_joint_the_world_model_alone_learns(contract, make_episode):
    learner = Learner(contract, Config.load('debug', ['train.joint=false']))
    before = {k: v.clone() for k, v in learner.agent.state_dict().items()}
    metrics = learner.update(Replay(contract).extend([make_episode(20, 0)]).sample(4, 6, learner.rng))
    changed = {k.split('.')[0] for k, v in learner.agent.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {'world_model'} and all(k.startswith('model/') for k in metrics)
    learner.begin_online()      # a fine-tune trains all
    metrics = learner.update(Replay(contract).extend([make_episode(20, 0)]).sample(4, 6, learner.rng))
    assert 'actor/loss' in metrics and 'reach/loss' in metrics


def test_pictures_that_speak_against_it_are_named(contract, plain, make_episode):
    episodes = [make_episode(4, seed) for seed in range(20)]
    for episode in episodes:
        episode.images['image'][:] = np.minimum(episode.images['image'] // 8, 30)
    assert mirror.doubt(episodes, contract) == ''
    for episode in episodes:
        episode.images['image'][:, :, :20] += 60        # a wall on the left
    found = mirror.doubt(episodes, contract)
    assert 'key mirror: the mean picture of camera image is 3' in found and 'train.mirror=false' in found
    assert mirror.doubt(episodes, plain) == mirror.doubt(episodes[:19], contract) == ''


def test_states_of_episodes_side_by_side_are_those_of_each_alone(contract, plain, make_episode):
    """The latents at their mode; drawn, they are others with each generator, and the same with the same one."""
    agent = Learner(contract, Config.load('debug')).agent
    episodes = [make_episode(length, length) for length in (9, 3, 14, 2, *range(4, 24))]
    together = FeatureReplay(agent, Replay(plain).extend(episodes))
    alone = [FeatureReplay(agent, Replay(plain).extend([e])) for e in episodes]
    for name in ('deter', 'stoch'):
        torch.testing.assert_close(getattr(together, name), torch.cat([getattr(one, name) for one in alone]))
    drawn = [FeatureReplay(agent, Replay(plain).extend(episodes), torch.Generator().manual_seed(seed)).stoch
             for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], together.stoch)
    torch.testing.assert_close(drawn[0].sum(-1), together.stoch.sum(-1))


def test_states_drawn_again_are_those_of_a_replay_made_anew(contract, make_episode, monkeypatch):
    """Whether all, some or none of the encoder's output was kept; the images are encoded as often as they must."""
    agent = Learner(contract, Config.load('debug')).agent
    encoded = []
    agent.world_model.encoder.register_forward_hook(lambda module, args, out: encoded.append(out.nbytes))
    episodes = [make_episode(length, length) for length in (9, 3, 14, *range(4, 24))]
    replay, generator = Replay(contract, mirror=True).extend(episodes), torch.Generator
    expected = FeatureReplay(agent, replay, generator().manual_seed(7))
    groups, first, everything = len(encoded), encoded[0], sum(encoded)
    assert groups > 2
    for keep, kept, again in ((True, everything, 0), (True, everything - 1, 1), (True, first, groups - 1),
                              (False, everything, groups)):
        monkeypatch.setattr(features_module, '_KEPT', kept)
        found = FeatureReplay(agent, replay, keep=keep)
        assert not torch.equal(found.stoch, expected.stoch)
        encoded.clear()
        found.draw(generator().manual_seed(7))
        assert torch.equal(found.stoch, expected.stoch) and torch.equal(found.deter, expected.deter)
        assert len(encoded) == again


def test_a_long_episode_is_filtered_alone():
    assert _groups([9] * 20) == [(0, 16), (16, 20)] and _groups([5]) == [(0, 1)]
    assert _groups([900, 900, 900, 5000, 3]) == [(0, 2), (2, 3), (3, 4), (4, 5)]


def test_limits_that_no_mirror_leaves_as_they_are(contract):
    data = contract.to_dict()
    data['action'] = {**data['action'], 'low': [-0.25, -0.1, -0.25]}
    with pytest.raises(ContractError, match='twist.linear.y, whose limits are -0.1 and 0.25, expected limits that are'):
        Contract.from_dict(data, 'here')
    assert Contract.from_dict({**data, 'mirror': []}).mirror == ()


@pytest.mark.parametrize('value', [None, 5, 'pose.position.y', {'pose.position.y': 1}])
def test_the_key_is_a_list(contract, value):
    with pytest.raises(ContractError, match='here: key mirror is .*, expected a list of fields'):
        Contract.from_dict({**contract.to_dict(), 'mirror': value}, 'here')


@pytest.mark.parametrize(('redraw', 'expected'), [(0, [None]), (2, [0, 1, 2])])
def test_states_are_drawn_anew_in_the_behaviour_phase(contract, make_episode, tmp_path, monkeypatch, redraw, expected):
    made, draw = [], FeatureReplay.draw

    def watched(self, generator=None):
        made.append(generator)
        draw(self, generator)
    monkeypatch.setattr(FeatureReplay, 'draw', watched)
    config = Config.load('debug', ['train.steps=0', 'train.behaviour_steps=5', f'train.behaviour_redraw={redraw}',
                                   'train.behaviour_batch=4', 'train.behaviour_length=4', 'train.seed=3'])
    learner, encoded = Learner(contract, config), []
    learner.agent.world_model.encoder.register_forward_hook(lambda *_: encoded.append(1))
    train_loop(learner, Replay(contract).extend([make_episode(12, 0, violation=True)]), tmp_path, {'data_hash': 'x'})
    assert len(encoded) == 1, 'the pictures are encoded once, however often the states are drawn'
    assert [g if g is None else g.initial_seed() - 3 * 1_000_003 for g in made] == expected


def test_actor_and_critics_have_a_rate_of_their_own_in_the_behaviour_phase(contract, make_episode, tmp_path,
                                                                           monkeypatch):
    """At each phase's first step the cosine is at 1; the reachability estimate keeps its rate."""
    seen, finish = [], Learner._finish

    def watched(self, metrics):
        seen.append({name: o.param_groups[0]['lr'] for name, o in self.optimizers.items()})
        return finish(self, metrics)
    monkeypatch.setattr(Learner, '_finish', watched)
    config = Config.load('debug', ['train.steps=1', 'train.behaviour_steps=1', 'train.behaviour_lr_scale=4',
                                   'train.behaviour_batch=4', 'train.behaviour_length=4', 'train.length=4'])
    train_loop(Learner(contract, config), Replay(contract).extend([make_episode(12, 0, violation=True)]), tmp_path,
               {'data_hash': 'x'})
    joint, behaviour = seen
    assert joint['actor'] == joint['critic'] == config.behaviour.lr
    assert {k: behaviour[k] / joint[k] for k in joint} == {'world_model': 1, 'actor': 4, 'critic': 4, 'reach': 1}


def test_a_run_goes_on_with_the_mirror_it_began_with(contract, tmp_path):
    learner = Learner(contract, Config.load('debug'))
    args = argparse.Namespace(out=tmp_path, no_resume=False, init=None, world_model=None)
    save_checkpoint(tmp_path / 'checkpoints', learner, {'data_hash': 'x', 'mirror': list(FIELDS)})
    restore(learner, args, 'x', lambda text: None, list(FIELDS))
    for other in ([], ['pose.position.y']):
        with pytest.raises(TrainingError, match=r"state.json: key mirror is \['pose.position.y', 'twist.l"):
            restore(learner, args, 'x', lambda text: None, other)


def test_a_fine_tune_learns_from_the_mirror_where_its_contract_has_one(make_episode, tmp_path, monkeypatch, contract):
    toy = make_toy(tmp_path / 'toy')
    asked, init = [], Replay.__init__

    def watched(self, *args, **kwargs):
        init(self, *args, **kwargs)
        asked.append(self.mirror)
    monkeypatch.setattr(Replay, '__init__', watched)
    online = [make_episode(20, seed) for seed in range(3)]
    for k, (fields, setting) in enumerate(((FIELDS, True), ((), True), (FIELDS, False))):
        parent = dataclasses.replace(toy, contract=dataclasses.replace(toy.contract, mirror=fields))
        with contextlib.suppress(RefusedError):
            finetune(parent, online, [], tmp_path / f'{k}', 1, 0, overrides=[f'train.mirror={str(setting).lower()}'])
    assert asked == [True, True, False, False, False, False]


@pytest.mark.parametrize(('trained', 'here', 'turned'), [
    (FIELDS, FIELDS, FIELDS), ((), FIELDS, ()), (FIELDS, (), ()), ((), (), ())])
def test_a_mirror_is_for_the_robot_to_allow_and_for_a_model_that_has_seen_one(tmp_path, monkeypatch, make_episode,
                                                                              contract, trained, here, turned):
    toy = make_toy(tmp_path / 'toy')
    parent = card.derive(toy, tmp_path / 'parent', 'parent', {}, mirror=trained)
    save_episode(tmp_path / 'episodes' / '0.npz', make_episode(20, 0))
    file = tmp_path / 'contract.yaml'
    file.write_text(yaml.safe_dump(dataclasses.replace(contract, mirror=here).to_dict()))
    asked, init = [], Replay.__init__

    def watched(self, contract, **kwargs):
        init(self, contract, **kwargs)
        asked.append((contract.mirror, self.mirror))
    monkeypatch.setattr(Replay, '__init__', watched)
    monkeypatch.setattr(gates, 'compare', lambda *args: ('', {}))
    monkeypatch.setattr(worker.os, 'nice', lambda by: 0)
    assert worker.main(['--bundle', str(parent.path), '--episodes', str(tmp_path / 'episodes'), '--contract', str(file),
                        '--steps', '1', '--out', str(tmp_path / 'out'), '--nice', '0']) == 0
    assert asked == [(turned, bool(turned))] * 2
    assert Bundle.open(tmp_path / 'out').contract.mirror == trained, 'it has seen what it has seen'


def test_pretraining_learns_from_the_mirror_and_says_so_in_its_checkpoints(make_episode, tmp_path, monkeypatch, capsys):
    for seed in range(10):
        save_episode(tmp_path / 'data' / f'{seed}.npz', make_episode(24, seed, violation=seed % 2 == 0))
    asked, init = [], Replay.__init__

    def watched(self, *args, **kwargs):
        init(self, *args, **kwargs)
        asked.append(self.mirror)
    monkeypatch.setattr(Replay, '__init__', watched)
    argv = ['pretrain', str(tmp_path / 'data'), '--preset', 'debug', '--holdout', '0.3', '--threads', '1', '--steps',
            '1', '--set', 'train.length=6']
    for name, setting in (('with', []), ('without', ['--set', 'train.mirror=false'])):
        assert main([*argv, '--out', str(tmp_path / name), *setting]) == 0
    assert asked == [True, False]
    states = [json.loads(next((tmp_path / name / 'checkpoints').glob('*/state.json')).read_text())
              for name in ('with', 'without')]
    assert [s['mirror'] for s in states] == [list(FIELDS), []]
    made = [Bundle.open(next((tmp_path / name / 'bundle').iterdir())) for name in ('with', 'without')]
    assert [b.contract.mirror for b in made] == [FIELDS, ()], 'a fine-tune must know what the model has seen'
