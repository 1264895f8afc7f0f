# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The fine-tuning worker: warm start, value pre-alignment with its refusal, methods, what a second fine-tune may do."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from fosp_core.cli import main
from fosp_core.config import Config
from fosp_core.contract import Contract
from fosp_core.data import replay
from fosp_core.data.episode import Episode
from fosp_core.data.store import save_episode
from fosp_core.deploy.bundle import Bundle
from fosp_core.deploy.toy import make_toy
from fosp_core.errors import FospError, TrainingError
from fosp_core.paths import config_file, share_dir
from fosp_core.train import align, finetune

CONTRACT = Contract.load(config_file('contract_safereach.yaml'))


def walk(seed: int, length: int = 16) -> Episode:
    """A point that drifts a little from where it began: cost beyond 0.6, reward when it ends below 0.5."""
    rng = np.random.default_rng(seed)
    x = np.clip(rng.uniform() + np.cumsum(rng.choice([-0.03, 0.03], length)), 0, 1).astype(np.float32)
    pose = np.stack([x, np.zeros_like(x), np.zeros_like(x)], 1)
    images = np.zeros((length, 64, 64, 3), np.uint8)
    # A bar that even a world model which learned nothing must see.
    images[np.arange(64) < 64 * x[:, None, None].repeat(64, 1)] = 255
    action = np.zeros((length, 3), np.float32)
    action[:-1, 0] = np.sign(np.diff(x))
    first, last = np.arange(length) == 0, np.arange(length) == length - 1
    return Episode(images={'image': images}, vectors={'ee_pose': pose}, action=action,
                   reward=(last & (x < 0.5)).astype(np.float32), cost=(x > 0.6).astype(np.float32), is_first=first,
                   is_last=last, is_terminal=last & (x < 0.5), stamp=np.arange(length, dtype=np.int64) * 10 ** 8,
                   step=np.arange(length, dtype=np.int64))


@pytest.fixture(scope='module')
def bundle(tmp_path_factory) -> Bundle:
    return make_toy(tmp_path_factory.mktemp('toy') / 'toy')


@pytest.fixture(scope='module')
def folders(tmp_path_factory) -> tuple:
    """Folders of online and of offline episodes."""
    made = []
    for name, seeds in (('online', range(100, 104)), ('offline', range(30))):
        folder = tmp_path_factory.mktemp(name)
        for seed in seeds:
            save_episode(folder / f'{seed:03d}.npz', walk(seed))
        made.append(folder)
    return tuple(made)


@pytest.fixture
def worker(bundle, folders, tmp_path, capsys):
    """Return a function that runs the worker: worker(*options) -> (exit code, events, error text, out folder)."""
    def run(*options, parent=None, offline=True):
        out = tmp_path / f'out{len(list(tmp_path.iterdir()))}'
        arguments = ['--bundle', str((parent or bundle).path), '--episodes', str(folders[0]), '--steps', '2', '--out',
                     str(out), '--nice', '0', *options]
        code = finetune.main(arguments + (['--offline', str(folders[1])] if offline else []))
        said = capsys.readouterr()
        return code, [json.loads(line) for line in said.out.splitlines()], said.err, out
    return run


def tensors(bundle: Bundle) -> dict:
    from safetensors.torch import load
    return load(bundle.read('weights.safetensors'))


def parts_equal(a: dict, b: dict, prefix: str) -> bool:
    keys = [k for k in a if k.startswith(prefix)]
    assert keys
    return all(torch.equal(a[k], b[k]) for k in keys)


def test_warm_start_needs_no_alignment(worker, bundle):
    code, events, error, out = worker()
    assert (code, error) == (0, '')
    assert [e['event'] for e in events] == ['start', 'step', 'step', 'done']
    new = Bundle.open(out)
    assert parts_equal(tensors(bundle), tensors(new), 'offline_actor.')
    assert new.manifest['metrics']['method'] == 'fosp' and new.manifest['parent'] == 'toy'


def test_alignment_ranks_held_out_returns_and_reports_it(worker, bundle):
    code, events, error, out = worker('--set', 'alignment.steps=150', '--set', 'alignment.lr=0.01', '--set',
                                      'alignment.ema=0.1')
    assert (code, error) == (0, '')
    assert [e['event'] for e in events] == ['start', 'align', 'step', 'step', 'done']
    report = events[1]
    assert report['measured_on'] == 'held-out' and report['steps'] == 150 and report['pairs'] > 50
    # The toy's critics are zero at first: they rank nothing.
    assert (report['rho_reward_before'], report['rho_cost_before']) == (0.0, 0.0)
    assert report['rho_cost_after'] > 0.4 and report['rho_reward_after'] > 0.2
    new = Bundle.open(out)
    assert new.manifest['metrics']['align/rho_cost_after'] == report['rho_cost_after']
    # Three of the five held-out episodes violate, all from their first record: before it nothing could have warned.
    assert new.manifest['metrics']['gate/calibrated_on'] == 0
    assert parts_equal(tensors(bundle), tensors(new), 'offline_actor.')


def test_alignment_that_does_not_rank_is_refused_with_its_figures(worker):
    code, events, error, out = worker('--set', 'alignment.steps=2', '--set', 'alignment.min_rho=0.99')
    assert code == 2 and not out.exists()
    assert [e['event'] for e in events] == ['start']
    assert error.startswith('error: value pre-alignment refused: rho of Q^r 0.000 before and ')
    assert 'held-out pairs; Q^r is below alignment.min_rho 0.99' in error and error.count('\n') == 1


def test_by_hand_a_refusal_of_the_alignment_is_a_result_with_its_figures(bundle, folders, tmp_path, capsys):
    out, told = tmp_path / 'new', tmp_path / 'told.json'
    assert main(['finetune', str(bundle.path), str(folders[0]), '--offline', str(folders[1]), '--steps', '1', '--out',
                 str(out), '--ungated', '--json', str(told), '--set', 'alignment.steps=2', '--set',
                 'alignment.min_rho=0.99']) == 1
    summary, error = json.loads(told.read_text()), capsys.readouterr().err
    assert 'Q^r is below alignment.min_rho 0.99' in summary['refused'] and 'bundle' not in summary
    assert 'refused: value pre-alignment refused' in error and 'kept in' not in error
    assert list(tmp_path.iterdir()) == [told]


def test_a_tuned_model_keeps_the_promise_of_its_parent_or_its_level(bundle, make_episodes):
    agent = finetune.load_learner(bundle, 0).agent
    parent = {'schema': 1, 'reachability': {'level': 0.3, 'alpha': 0.4, 'n': 9, 'horizon': 4, 'lead': 2,
                                            'confidence': 0.95, 'guaranteed': True},
              'surprise': {'level_slow': 1.0, 'level_stop': 2.0, 'guaranteed': True}}
    bad, calm = make_episodes([8] * 6, violation=True), make_episodes([8] * 3, seed=9)
    early = [dataclasses.replace(e, cost=np.roll(e.cost, -3)) for e in bad]      # contact at record 1, before `lead`
    new = finetune.recalibrated(agent, bad + calm, parent, 'v0')
    assert 'inherited_from' not in new and new['reachability']['n'] == 6 and new['reachability']['guaranteed']
    assert all(new['reachability'][k] == parent['reachability'][k] for k in ('alpha', 'horizon', 'lead', 'confidence'))
    assert finetune.violating(bad + calm + early, parent['reachability']) == 6
    for held in ([], calm, early, bad[:5]):     # six violations are needed for alpha 0.4 with 95 % confidence
        kept = finetune.recalibrated(agent, held, parent, 'v0')
        assert kept['inherited_from'] == 'v0' and kept['schema'] == 1
        for gate in ('reachability', 'surprise'):   # what was shown for the parent is not shown for this model
            assert kept[gate] == parent[gate] | {'guaranteed': False}
        # A grandchild's levels are those of the model that they were found with, until there is enough again.
        assert finetune.recalibrated(agent, held, kept, 'v1') == kept
        assert 'inherited_from' not in finetune.recalibrated(agent, bad, kept, 'v1')


def test_alignment_touches_critics_and_reachability_alone(bundle):
    anything = ['alignment.steps=3', 'alignment.min_rho=-1', 'alignment.max_drop=2']
    learner = finetune.load_learner(bundle, 0, overrides=anything)
    learner.begin_online()
    before = {k: v.clone() for k, v in learner.agent.state_dict().items()}
    episodes = [walk(seed) for seed in range(6)]
    report = align.pre_align(learner, episodes[:3], [], episodes[3:])
    changed = {k.split('.')[0] for k, v in learner.agent.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {'q_reward', 'q_cost', 'v_reward', 'v_cost', 'reach', 'q_reward_target', 'q_cost_target',
                       'reach_target'}
    assert report['measured_on'] == 'held-out' and learner.step == 0
    assert align.pre_align(learner, [], episodes, [])['measured_on'] == 'online'


@pytest.mark.parametrize('turned', [True, False])
def test_alignment_learns_from_mirror_images_and_is_judged_by_episodes_as_they_were(bundle, monkeypatch, turned):
    learner = finetune.load_learner(bundle, 0, overrides=[
        'alignment.steps=1', 'alignment.min_rho=-1', 'alignment.max_drop=2', f'train.mirror={turned}'.lower()])
    made, init = [], align.FeatureReplay.__init__

    def watched(self, *args):
        init(self, *args)
        made.append(len(self))
    monkeypatch.setattr(align.FeatureReplay, '__init__', watched)
    episodes = [walk(seed) for seed in range(5)]
    align.pre_align(learner, episodes[:3], [], episodes[3:])
    assert made == [3 * len(episodes[0]) * (2 if turned else 1), 2 * len(episodes[0])]


def test_a_refusal_leaves_the_learner_as_it_was(bundle):
    learner = finetune.load_learner(bundle, 0, overrides=['alignment.steps=3', 'alignment.min_rho=0.999'])
    learner.begin_online()
    before = {k: v.clone() for k, v in learner.agent.state_dict().items()}
    random = learner.generator.get_state(), learner.rng.bit_generator.state
    episodes = [walk(seed) for seed in range(6)]
    with pytest.raises(TrainingError, match=r'Q\^r is below alignment.min_rho 0.999'):
        align.pre_align(learner, episodes[:3], [], episodes[3:])
    assert all(torch.equal(v, before[k]) for k, v in learner.agent.state_dict().items())
    assert torch.equal(learner.generator.get_state(), random[0]) and learner.rng.bit_generator.state == random[1]


def test_a_fine_tune_has_a_batch_of_its_own(bundle, tmp_path, monkeypatch):
    seen = []
    sample = replay.MixedReplay.sample
    monkeypatch.setattr(replay.MixedReplay, 'sample', lambda self, batch, *more: seen.append(batch) or sample(
        self, batch, *more))
    online, offline = [walk(s) for s in range(3)], [walk(s) for s in range(10, 40)]
    finetune.finetune(bundle, online, offline, tmp_path / 'out', 1, 0, overrides=['train.online_batch=5'])
    assert seen == [5]
    assert Config.load('small').train.online_batch == 48 > Config.load('small').train.batch


def test_who_acted_is_in_the_card_and_on_the_board(bundle, tmp_path):
    class Board(dict):
        def add_scalar(self, key, value, step):
            self[key, step] = value

    board, online = Board(), [dataclasses.replace(walk(k), meta={'online_share': s}) for k, s in ((1, 0.5), (2, 1.0))]
    new = finetune.finetune(bundle, online, [], tmp_path / 'new', 2, 0, board=board)
    assert new.manifest['metrics']['online_share'] == 0.75
    first = bundle.manifest['steps'] + 1
    assert {step for _, step in board} == {first, first + 1}
    assert all(0.0 <= board['expansion/online_share', step] <= 1.0 for step in (first, first + 1))


def config_of(**alignment):
    from fosp_core.config import AlignmentConfig
    return AlignmentConfig(steps=5, **alignment)


def report_of(before, after):
    return {'pairs': 9, 'measured_on': 'online', 'rho_reward_before': before[0], 'rho_reward_after': after[0],
            'rho_cost_before': before[1], 'rho_cost_after': after[1]}


@pytest.mark.parametrize(('before', 'after', 'reason'), [
    ((0.1, 0.1), (0.5, 0.5), ''), ((0.1, None), (0.5, None), ''), ((0.5, 0.5), (0.45, 0.45), ''),
    ((0.1, 0.1), (0.5, 0.2), r'rho of Q\^c 0.100 before and 0.200 after 5 steps on 9 online pairs; Q\^c is below'),
    ((0.9, 0.5), (0.5, 0.5), r'Q\^r fell by more than alignment.max_drop 0.1'),
    ((None, None), (None, None), 'nothing can be ranked')])
def test_what_is_refused(before, after, reason):
    if reason:
        with pytest.raises(TrainingError, match=reason):
            align._judge(report_of(before, after), config_of(min_rho=0.3))
    else:
        align._judge(report_of(before, after), config_of(min_rho=0.3))


def test_returns_that_do_not_vary_are_refused(bundle):
    learner = finetune.load_learner(bundle, 0, overrides=['alignment.steps=1'])
    flat = [dataclasses.replace(e, reward=0 * e.reward, cost=0 * e.cost) for e in (walk(1), walk(2))]
    with pytest.raises(TrainingError, match='rho of Q.r unknown before and unknown after'):
        align.pre_align(learner, flat, [], flat)
    with pytest.raises(TrainingError, match='no episode to align on'):
        align.pre_align(learner, [], [], [])


def test_another_method_at_fine_tuning_and_episodes_counted_once(worker, bundle):
    """The bundle was made with a Lagrangian per step; Marvel's multiplier follows the measured cost of episodes."""
    quick = ('--method', 'marvel', '--set', 'alignment.steps=2', '--set', 'alignment.min_rho=-1', '--set',
             'alignment.max_drop=2', '--set', 'constraint.gain_p=0.5')
    code, events, error, out = worker(*quick)
    assert (code, error) == (0, '')
    first = Bundle.open(out)
    assert first.manifest['config']['method'] == 'marvel' and not first.manifest['config']['expansion']['enabled']
    multiplier = tensors(first)['constraint.multiplier'].item()
    assert multiplier > 0
    code, _, error, out = worker(*quick, parent=first)      # the trainer hands the same episodes over again
    assert (code, error) == (0, '')
    assert tensors(Bundle.open(out))['constraint.multiplier'].item() == multiplier


def test_a_fresh_online_policy_is_fresh_once(worker, bundle):
    fresh = ('--set', 'expansion.init=fresh', '--set', 'expansion.online_lr_scale=1e-9')
    _, _, error, out = worker(*fresh)
    assert error == ''
    first = Bundle.open(out)
    assert not parts_equal(tensors(bundle), tensors(first), 'actor.output.weight')
    _, _, _, out = worker(*fresh, parent=first)
    again = tensors(Bundle.open(out))
    assert torch.allclose(again['actor.output.weight'], tensors(first)['actor.output.weight'], atol=1e-5)
    assert parts_equal(tensors(bundle), again, 'offline_actor.')


@pytest.mark.parametrize(('options', 'message'), [
    (['--method', 'ppo'], "error: method 'ppo', expected one of bc"),
    (['--set', 'network.deter=64'], 'has shape'), (['--steps', '0'], '--steps 0: expected at least 1')])
def test_wrong_options_are_one_line_and_2(worker, options, message):
    code, _, error, out = worker(*options, offline=False)
    assert code == 2 and message in error and error.count('\n') == 1 and not out.exists()


def test_the_shipped_model_still_loads_and_is_fine_tuned_as_a_new_one_would_be():
    """Bundles written before a key existed take its default; one that says another value than today's is stale."""
    shipped = sorted((share_dir() / 'models' / 'safereach').iterdir())
    for folder in [f for f in shipped if f.is_dir()]:
        try:
            learner = finetune.load_learner(Bundle.open(folder), 0)
        except FospError as error:
            pytest.fail(str(error))
        assert learner.config.alignment.steps == 0 and learner.config.method == 'fosp'
        assert learner.config.expansion == Config.load('small').expansion
        assert learner.config.expansion.online_in_sample == 0.0
        finetune.load_learner(Bundle.open(folder), 0, 'marvel')
