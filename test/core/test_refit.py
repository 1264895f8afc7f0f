# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp refit`: the estimate learns from the policy's own violations, and nothing else of the model changes."""

import json

import numpy as np
import pytest
from safetensors.numpy import load

from fosp_core.cli import main
from fosp_core.data.store import save_episode
from fosp_core.deploy.bundle import Bundle
from fosp_core.deploy.toy import make_toy
from fosp_core.deploy.trained_on import KEY, fingerprint, known_episodes, listing
from fosp_core.errors import DataError
from fosp_core.train.refit import refit


@pytest.fixture(scope='module')
def toy(tmp_path_factory) -> Bundle:
    return make_toy(tmp_path_factory.mktemp('toy') / 'toy')


@pytest.fixture(scope='module')
def own(make_episode):
    """Forty episodes; in every fourth the action turns to +1, which ends in a contact five records later."""
    made = []
    for seed in range(40):
        episode = make_episode(16, seed)
        episode.action[:] = 0.3 * np.clip(episode.action, -1, 1)
        episode.cost[:] = 0.0
        if seed % 4 == 0:
            episode.action[6:12] = 1.0
            episode.cost[12:] = 1.0
        made.append(episode)
    return made


def weights(bundle: Bundle) -> dict:
    return load(bundle.read('weights.safetensors'))


def test_nothing_but_the_estimate_changes_and_it_learns(toy, own, tmp_path):
    seen = []
    new = refit(toy, own, [], tmp_path / 'new', 300, 0, progress=lambda step, metrics: seen.append(metrics))
    before, after = weights(toy), weights(new)
    changed = {key for key in before if not np.array_equal(before[key], after[key])}
    assert changed and all(key.startswith(('reach.', 'reach_target.')) for key in changed)
    assert {key.split('.')[0] for key in changed} == {'reach', 'reach_target'}
    metrics = new.manifest['metrics']
    assert metrics['warned_at_1%_alarms'] == 1.0 > metrics['warned_at_1%_alarms_before']
    assert seen[-1]['reach/loss'] < 0.95 * seen[0]['reach/loss'] and len(seen) == 300
    assert metrics['own_violating'] == 7 and metrics['own_episodes'] == 27 and metrics['refit_steps'] == 300
    assert new.manifest['parent'] == toy.version and new.manifest['steps'] == toy.manifest['steps']
    assert new.calibration['reachability']['n'] == 3     # its level is that of the held-out ones


def test_the_same_seed_makes_the_same_model(toy, own, tmp_path):
    made = [weights(refit(toy, own, own[:8], tmp_path / f'{k}', 3, seed)) for k, seed in enumerate((5, 5, 6))]
    same = [all(np.array_equal(made[0][key], other[key]) for key in made[0]) for other in made[1:]]
    assert same == [True, False]


def test_half_of_the_windows_begin_in_violating_episodes(toy, own, tmp_path, monkeypatch):
    from fosp_core.train import features
    asked, sample = [], features.FeatureReplay.sample

    def watched(self, batch, length, rng, rows=slice(None), violating=False):
        asked.append((len(self), batch, violating))
        return sample(self, batch, length, rng, rows, violating)
    monkeypatch.setattr(features.FeatureReplay, 'sample', watched)
    refit(toy, own, own[:2], tmp_path / 'new', 1, 0)
    size, mine = sum(batch for _, batch, _ in asked), 2 * 27 * 16      # each episode, and in the mirror
    assert [(length, violating) for length, _, violating in asked] == [(mine, False), (mine, True), (64, False),
                                                                       (64, True)]
    assert [batch for _, batch, _ in asked] == [size / 4] * 4
    asked.clear()
    refit(toy, own, own[1:3], tmp_path / 'without', 1, 0)       # the known ones need not have a violation
    assert [violating for _, _, violating in asked] == [False, True, False]


def test_a_violating_window_begins_in_an_episode_with_a_violation(toy, own):
    from fosp_core.data.replay import Replay
    from fosp_core.train.features import FeatureReplay
    from fosp_core.train.finetune import load_learner
    features = FeatureReplay(load_learner(toy, 0).agent, Replay(toy.contract).extend(own[:5], check=False))
    rng = np.random.default_rng(0)
    _, batch = features.sample(64, 1, rng, violating=True)
    allowed = np.concatenate([own[0].action, own[4].action])
    for action in batch['action'][:, 0].numpy():
        assert (action == allowed).all(1).any()


def test_offline_episodes_that_the_parent_does_not_list_stay_fresh(toy, own, tmp_path):
    listed = toy.manifest | {KEY: listing(own[:3])}
    parent = Bundle(toy.path, listed, toy.sha256, toy.contract, toy.calibration)
    new = refit(parent, own[8:], own[:8], tmp_path / 'new', 1, 0)
    known = known_episodes(new.manifest, 'new')
    assert new.manifest['metrics']['offline_episodes'] == 3
    assert {fingerprint(e) for e in own[:3]} <= known and not {fingerprint(e) for e in own[3:8]} & known


def test_too_few_violations_are_refused(toy, own, tmp_path):
    safe = [e for e in own if not e.violation]
    with pytest.raises(DataError, match='none to learn from has a violation at record'):
        refit(toy, safe, [], tmp_path / 'new', 1, 0)
    with pytest.raises(DataError, match='none held out to calibrate with has a violation'):
        refit(toy, [*safe, own[0]], [], tmp_path / 'new', 1, 0)
    assert not (tmp_path / 'new').exists()


def test_command(toy, own, tmp_path, capsys):
    for number, episode in enumerate(own):
        save_episode(tmp_path / 'own' / f'{number:03d}.npz', episode)
    arguments = ['refit', str(toy.path), str(tmp_path / 'own'), '--out', str(tmp_path / 'new'), '--steps', '2']
    assert main([*arguments, '--version', 'v9', '--alpha', '0.3', '--json', str(tmp_path / 'out.json')]) == 0
    assert 'warning: the risk level rests on ' in capsys.readouterr().err
    said = json.loads((tmp_path / 'out.json').read_text())
    new = Bundle.open(tmp_path / 'new')
    assert said['version'] == new.version == 'v9' and said['sha256'] == new.sha256
    assert said['calibration']['reachability']['alpha'] == 0.3
    assert main(arguments) == 2 and 'exists already' in capsys.readouterr().err
    for number in range(0, 40, 4):
        (tmp_path / 'own' / f'{number:03d}.npz').unlink()
    assert main([*arguments[:4], str(tmp_path / 'other')]) == 2
    assert f"{tmp_path / 'own'}: 30 episodes of the policy: none to learn from" in capsys.readouterr().err
    for wrong in (['--steps', '0'], ['--holdout', '1'], ['--alpha', '0'], ['--version', 'a b']):
        assert main([*arguments[:4], str(tmp_path / 'other'), *wrong]) == 2
        assert wrong[0].strip('-').split()[0] in capsys.readouterr().err
