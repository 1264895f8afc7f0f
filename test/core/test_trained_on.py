# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A model knows the episodes it was trained on: the list in its manifest, through every way of training."""

import argparse

import pytest

from fosp_core.data.store import data_hash
from fosp_core.deploy import trained_on
from fosp_core.deploy.bundle import MAX_TEXT, Bundle, write_bundle
from fosp_core.errors import BundleError


def known(bundle):
    return trained_on.known_episodes(bundle.manifest, 'm')


def prints(episodes):
    return {trained_on.fingerprint(e) for e in episodes}


def test_the_list_goes_on_and_is_never_half(make_episodes, monkeypatch):
    made = make_episodes([5] * 4)
    first = trained_on.listing(made[:2])
    both = trained_on.known_episodes({'trained_on': trained_on.listing(made[1:3], first)}, 'm')
    assert both == {trained_on.fingerprint(e) for e in made[:3]}
    # What came before is not known: no list, rather than one that vouches for what it does not know.
    assert trained_on.listing(made, None) is None and trained_on.known_episodes({}, 'm') is None
    monkeypatch.setattr(trained_on, 'MOST', 2)
    assert trained_on.known_episodes({'trained_on': trained_on.listing(made)}, 'm') == set(sorted(
        map(trained_on.fingerprint, made))[:2])


@pytest.mark.parametrize('damage', ['!', 'AAAA', 7])
def test_a_damaged_list_is_named(damage):
    with pytest.raises(BundleError, match='m.json: key trained_on is damaged'):
        trained_on.known_episodes({'trained_on': damage}, 'm.json')


def test_fifty_thousand_episodes_fit_into_a_manifest():
    assert trained_on.MOST * trained_on.BYTES * 4 / 3 < 0.7 * MAX_TEXT


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    pytest.importorskip('torch')
    from fosp_core.deploy.toy import make_toy
    return make_toy(tmp_path_factory.mktemp('toy') / 'toy')


@pytest.mark.parametrize('parent_knows', [True, False])
def test_a_fine_tune_adds_to_what_its_parent_knew(tmp_path, toy, make_episodes, parent_knows):
    from fosp_core.train.finetune import finetune
    made = make_episodes([14] * 4, violation=True)
    files = {name: toy.read(name) for name in toy.manifest['files']}
    earlier = trained_on.listing(made[:1]) if parent_knows else None
    parent = write_bundle(tmp_path / 'parent', files, {**toy.manifest, 'trained_on': earlier})
    finetune(parent, made[1:2], made[2:], tmp_path / 'new', 1, 0, holdout=0.0)
    assert known(Bundle.open(tmp_path / 'new')) == (prints(made) if parent_knows else None)


@pytest.mark.parametrize(('option', 'stored', 'expected'), [
    ('init', 'list', 'list'), ('init', None, None), ('out', 'list', 'list'), ('out', None, None), (None, None, '')])
def test_a_run_that_goes_on_from_another_knows_its_episodes(tmp_path, contract, option, stored, expected):
    """A checkpoint of before there were lists makes the new list unknown; a run from nothing begins with none."""
    pytest.importorskip('torch')
    from fosp_core.config import Config
    from fosp_core.train.checkpoint import save_checkpoint
    from fosp_core.train.learner import Learner
    from fosp_core.train.pretrain import restore
    learner = Learner(contract, Config.load('debug'))
    args = argparse.Namespace(out=str(tmp_path / 'new'), world_model=None, init=None, no_resume=False)
    if option:
        setattr(args, option, str(tmp_path / 'run'))
        extra = {'data_hash': data_hash([])} | ({'trained_on': stored} if stored else {})
        save_checkpoint(tmp_path / 'run' / 'checkpoints', learner, extra)
    assert restore(learner, args, data_hash([]), lambda text: None) == expected
