# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A run is gone on with as it was begun: every key that changes its result is compared, and named with both values."""

import argparse
import dataclasses

import pytest

from fosp_core.config import Config
from fosp_core.contract import Contract
from fosp_core.errors import TrainingError
from fosp_core.paths import config_file
from fosp_core.train import resume
from fosp_core.train.checkpoint import save_checkpoint
from fosp_core.train.learner import Learner
from fosp_core.train.pretrain import restore

CONTRACT = Contract.load(config_file('contract_safereach.yaml'))
BEGUN = ['train.behaviour_steps=10']        # after 200 joint steps
DEBUG = Config.load('debug', BEGUN)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Folder of a run that has a checkpoint at step 0."""
    out = tmp_path_factory.mktemp('run')
    save_checkpoint(out / 'checkpoints', Learner(CONTRACT, DEBUG), {'data_hash': 'x', 'trained_on': 'list'})
    return out


def go_on(out, *overrides, method=None):
    args, said = argparse.Namespace(out=out, init=None, world_model=None, no_resume=False), []
    found = restore(Learner(CONTRACT, Config.load('debug', [*BEGUN, *overrides], method)), args, 'x', said.append)
    assert found == 'list' and 'resuming' in said[0]


@pytest.mark.parametrize('overrides', [
    [], ['train.log_every=1', 'train.save_every=7'], ['train.steps=300'], ['train.behaviour_steps=11'],
    ['train.steps=201', 'train.behaviour_steps=99']])
def test_more_steps_and_other_intervals_are_the_same_run(run, overrides):
    go_on(run, *overrides)


@pytest.mark.parametrize(('overrides', 'method', 'words'), [
    (['train.seed=5'], None, 'key train.seed is 0, this run asks for 5; go on as it was begun, or give another --out'),
    ([], 'direct', "key method is 'fosp', this run asks for 'direct' (and 1 more keys differ)"),
    (['behaviour.lr=2e-3'], None, 'key behaviour.lr is 0.001, this run asks for 0.002;'),
    (['behaviour.lr=2e-3', 'train.batch=4'], None, '(and 1 more keys differ)'),
    (['network.units=24'], None, 'key network.units is 16, this run asks for 24;'),
    (['constraint.kind=pid'], None, "key constraint.kind is 'alm', this run asks for 'pid';"),
    (['train.steps=199'], None, 'key train.steps is 200, this run asks for 199 (it may only grow);'),
    (['train.behaviour_steps=9'], None, 'key train.behaviour_steps is 10, this run asks for 9 (it may only grow);')])
def test_another_run_is_refused_with_both_values(run, overrides, method, words):
    with pytest.raises(TrainingError) as error:
        go_on(run, *overrides, method=method)
    assert 'step_00000000/state.json: ' + words.split('(and')[0] in str(error.value) or words in str(error.value)
    assert words in str(error.value) and f'(and --init {run})' in str(error.value)


def other(value, choices):
    """Return a value that is not this one."""
    if choices:
        return next(c for c in choices if c != value)
    kinds = {bool: lambda: not value, str: lambda: value + 'x', tuple: lambda: value[::-1]}
    return kinds.get(type(value), lambda: value / 2 + 1e-3 if isinstance(value, float) else value - 1)()


def test_every_key_is_compared():
    """Whatever section gets a key tomorrow: it is compared, unless it is named as one that changes nothing."""
    seen = set()
    for section in dataclasses.fields(DEBUG):
        values = getattr(DEBUG, section.name)
        if not dataclasses.is_dataclass(values):
            continue
        for field in dataclasses.fields(values):
            key, old = f'{section.name}.{field.name}', getattr(values, field.name)
            changed = dataclasses.replace(values, **{field.name: other(old, field.metadata.get('choices'))})
            now = dataclasses.replace(DEBUG, **{section.name: changed})
            seen.add(key)
            if key in resume.FREE:
                resume.check(DEBUG, now, 0, 'x', 'stop')
                continue
            with pytest.raises(TrainingError, match=rf'^x: key {key} is '):
                resume.check(DEBUG, now, 0, 'x', 'stop')
    assert {k for k in resume.FREE if '.' in k} | set(resume.GROWING) < seen and len(seen) > 80


def test_joint_steps_may_grow_until_the_world_model_stands_still():
    more, longer = (Config.load('debug', [*BEGUN, key]) for key in ('train.steps=300', 'train.behaviour_steps=20'))
    for step in (0, 199, 200):
        resume.check(DEBUG, more, step, 'x', 'stop')
    for step in (201, 205, 210):
        resume.check(DEBUG, longer, step, 'x', 'stop')
        with pytest.raises(TrainingError, match=f'train.steps is 200, this run asks for 300, but at step {step} the '
                                                'behaviour phase has begun .*; raise train.behaviour_steps, or stop'):
            resume.check(DEBUG, more, step, 'x', 'stop')
