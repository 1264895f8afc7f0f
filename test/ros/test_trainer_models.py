# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which model the trainer has in force: adopted, rolled back by hand and by itself, after a restart, on a bad disk."""

import errno
import os
import shutil
import time
import types

import psutil
from rclpy.parameter import Parameter
from ros_rig import within
from trainer_cell import adopt

from fosp_core.deploy.bundle import Bundle
from fosp_core.errors import BundleError
from fosp_ros import diagnostics, filter_report
from fosp_ros.trainer_node import TrainerNode


def test_a_rise_of_the_intervention_rate_rolls_back_by_itself(make_trainer, toy):
    rig, client, trainer = make_trainer(rollback_block=2, rollback_min_blocks=10, steps=100000)
    client.send(10**18, 30)
    client.filter_says('toy', 'ok', 36)
    client.filter_says('toy', 'risk_scaled', 2)
    client.filter_says('toy', 'estop', 20)
    seen = trainer.watch.trial._seen
    rig.wait_for(lambda: 'toy' in seen and len(seen['toy'].outcomes) == 19, what='19 blocks of the old model')
    adopt(trainer, toy)
    rig.wait_for(lambda: client.phase() == 'published' and client.models, what='the new model')
    assert client.call('fine_tune').success
    worker = trainer.job.pid
    client.filter_says('toy', 'risk_hold', 20)      # the old one is live until the filter says otherwise
    client.filter_says('child', 'risk_hold', 8)
    rig.wait_for(lambda: trainer.watch.trial.blocks == 4, what='four blocks')
    assert trainer.watch.trial.state == 'watching' and client.phase() == 'training'
    client.filter_says('child', 'risk_hold', 6)
    rig.wait_for(lambda: client.phase() == 'rolled back', what='the rollback')
    values = client.progress[-1][1]
    assert (values['version'], values['rejected'], values['automatic']) == ('toy', 'child', 'True')
    assert values['reason'].startswith('the filter stepped in in 5 of 5 blocks with model child, before it in 7.5%')
    assert trainer.job is None and not psutil.pid_exists(worker), 'a job on a rejected model went on'
    assert trainer.session.store.current().version == 'toy'
    rig.wait_for(lambda: len(client.models) == 2, what='the old model')
    assert Bundle.unpack(client.models[-1], trainer.session.path / 'again').version == 'toy'
    client.filter_says('child', 'risk_hold', 40)
    time.sleep(0.3)
    assert len(client.models) == 2, 'rolled back twice'


def test_no_rollback_when_the_rate_stays_or_when_it_is_switched_off(make_trainer, toy):
    rig, client, trainer = make_trainer(rollback_block=2, rollback_min_blocks=10)
    trial = trainer.watch.trial
    for _ in range(2):
        client.filter_says('toy', 'risk_scaled', 2)
        client.filter_says('toy', 'ok', 18)
    rig.wait_for(lambda: 'toy' in trial._seen and len(trial._seen['toy'].outcomes) == 20, what='20 blocks')
    adopt(trainer, toy)
    for _ in range(40):
        client.filter_says('child', 'ok', 2)
        if trial.state == 'kept':
            break
    rig.wait_for(lambda: trial.state == 'kept', what='the verdict')
    assert trainer._report()[2]['trial'] == 'kept'
    trainer.watch.begin('child', 'toy')     # switched off in the middle of a trial
    assert trial.state == 'watching'
    trainer.set_parameters([Parameter('auto_rollback', value=False)])
    client.filter_says('child', 'risk_hold', 40)
    time.sleep(0.3)
    assert trial.state == 'rejected'
    trainer.watch.begin('child', 'toy')     # and before one
    assert trial.state != 'watching'
    assert trainer.session.store.current().version == 'child' and client.phase() == 'published'


def test_rolling_back_again_and_again_goes_to_the_ancestors_and_then_says_so(make_trainer, toy):
    rig, client, trainer = make_trainer()
    adopt(trainer, toy, version='v2')
    adopt(trainer, toy, version='v3', parent='v2')
    for version in ('v2', 'toy'):
        answer = client.call('rollback')
        assert answer.success and answer.message == version == trainer.session.store.current().version
    answer = client.call('rollback')
    assert not answer.success and answer.message == 'there is no previous model'
    rig.wait_for(lambda: len(client.models) == 4, what='two models and two rollbacks')
    received = [Bundle.unpack(m, trainer.session.path / f'r{k}').version for k, m in enumerate(client.models)]
    assert received == ['v2', 'v3', 'v2', 'toy']


def test_a_worse_child_of_an_undecided_model_leads_back_to_that_one_on_trial(make_trainer, toy):
    rig, client, trainer = make_trainer(rollback_block=2, rollback_min_blocks=10)
    trial = trainer.watch.trial
    client.filter_says('toy', 'ok', 40)
    rig.wait_for(lambda: 'toy' in trial._seen and len(trial._seen['toy'].outcomes) == 20, what='20 blocks')
    adopt(trainer, toy, version='v2')
    client.filter_says('v2', 'risk_hold', 2)
    rig.wait_for(lambda: trial.blocks == 1, what='a block')
    adopt(trainer, toy, version='v3', parent='v2')
    client.filter_says('v3', 'risk_hold', 20)
    rig.wait_for(lambda: client.phase() == 'rolled back', what='the rollback')
    assert client.progress[-1][1]['version'] == 'v2' == trial.version and trial.state == 'watching'
    client.filter_says('v2', 'risk_hold', 20)
    rig.wait_for(lambda: client.progress[-1][1].get('version') == 'toy', what='the second rollback')
    assert client.progress[-1][1]['rejected'] == 'v2' and trainer.session.store.current().version == 'toy'


def read_only(*args, **kwargs):
    """Be a call on a disk that takes nothing."""
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_disk_that_takes_no_link_refuses_a_model_and_stops_no_rollback(make_trainer, toy, monkeypatch):
    rig, client, trainer = make_trainer(keep_models=2)
    store = trainer.session.store
    remove = shutil.rmtree
    monkeypatch.setattr(shutil, 'rmtree', lambda path, ignore_errors=False, **k: remove(path, ignore_errors, **k)
                        if ignore_errors else read_only())
    for version, parent in (('v2', 'toy'), ('v3', 'v2'), ('v4', 'v3'), ('v5', 'v4')):
        adopt(trainer, toy, version=version, parent=parent)     # old versions cannot be removed: a warning, no more
        rig.wait_for(lambda: client.phase() == 'published', what=version)
        assert store.current().version == version
    with monkeypatch.context() as patch:
        patch.setattr(os, 'symlink', read_only)
        patch.setattr(trainer.session, 'set_aside', read_only)
        adopt(trainer, toy, version='v6', parent='v5')
        rig.wait_for(lambda: client.phase() == 'refused', what='the refusal')
        assert 'previous: cannot be written: Read-only file system' in client.progress[-1][1]['reason']
        assert store.current().version == 'v5'
        answer = client.call('rollback')
        assert answer.success and answer.message == 'v4', answer.message
    rig.wait_for(lambda: client.phase() == 'rolled back', what='the rollback')
    assert 'current: cannot be written: Read-only file system' in client.progress[-1][1]['not_written']
    level, message, values = trainer._report()
    assert level == diagnostics.WARN and 'the disk does not know that model v4 is in force' in message
    assert values['current'] == 'v4' == store.current().version
    rig.wait_for(lambda: len(client.models) == 5, what='the old model')
    assert Bundle.unpack(client.models[-1], trainer.session.path / 'received').version == 'v4'


def test_a_model_that_cannot_be_published_is_not_the_current_one(make_trainer, toy, monkeypatch):
    rig, client, trainer = make_trainer()

    def fail(bundle):
        raise BundleError(f'{bundle.version} cannot be packed')
    monkeypatch.setattr(trainer, '_publish_model', fail)
    adopt(trainer, toy)
    rig.wait_for(lambda: client.phase() == 'refused', what='the refusal')
    assert client.progress[-1][1]['reason'] == 'child cannot be packed'
    store = trainer.session.store
    assert store.current().version == 'toy' and store.previous() is None and not trainer.watch.trial.version


def test_a_trainer_that_is_activated_again_offers_the_model_in_force(make_trainer, rig, toy, tmp_path):
    """It once offered the model that it had been resumed with, whatever had been made since."""
    _, client, trainer = make_trainer()
    within(trainer, trainer.trigger_deactivate)
    trainer.trigger_activate()
    time.sleep(0.3)
    assert not client.models, 'a model that nobody changed needs no offer'
    adopt(trainer, toy, version='v2')
    rig.wait_for(lambda: len(client.models) == 1, what='the new model')
    within(trainer, trainer.bring_down)
    again = TrainerNode(namespace='fosp', name='trainer_again', parameter_overrides=[
        Parameter('model', value=str(toy)), Parameter('work_dir', value=str(tmp_path / 'work')),
        Parameter('resume', value=True)])
    rig.add(again)
    assert again.bring_up(), again.failure
    rig.wait_for(lambda: len(client.models) == 2, what='the resumed model')
    adopt(again, toy, version='v3', parent='v2')
    rig.wait_for(lambda: len(client.models) == 3, what='the model made since')
    within(again, again.trigger_deactivate)
    again.trigger_activate()
    rig.wait_for(lambda: len(client.models) == 4, what='the model in force')
    received = [Bundle.unpack(m, tmp_path / f'r{k}').version for k, m in enumerate(client.models)]
    assert received == ['v2', 'v2', 'v3', 'v3']


def test_a_filter_that_runs_another_model_is_said_after_ten_seconds(make_trainer, monkeypatch):
    """A trainer that was killed and started without `resume` does not know what it has made live."""
    rig, client, trainer = make_trainer()
    clock = types.SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(filter_report, 'time', clock)
    for now, version, told in ((0, 'live', False), (9, 'live', False), (11, 'live', True), (12, 'toy', False),
                               (20, 'live', False), (31, 'live', True), (60, '', False)):
        if version:
            trainer.watch._on_state(diagnostics.status('safety_filter', diagnostics.OK, 'ok', {'version': version}))
        level, message, values = trainer._report()
        assert ('the filter runs model live, the trainer has toy in force, for ' in message) is told, (now, message)
        assert level == (diagnostics.WARN if told else diagnostics.OK)
        assert values['filter_version'] == (version or 'live')


def test_a_resumed_trainer_says_that_a_trial_was_lost(make_trainer, rig, toy, tmp_path):
    _, client, trainer = make_trainer()
    adopt(trainer, toy)
    within(trainer, trainer.bring_down)
    again = TrainerNode(namespace='other', parameter_overrides=[
        Parameter('model', value=str(toy)), Parameter('work_dir', value=str(tmp_path / 'work')),
        Parameter('resume', value=True)])
    rig.add(again)
    assert again.bring_up(), again.failure
    values = again._report()[2]
    assert (values['trial'], values['trial_version']) == ('not watched: trainer restarted', 'child')


def test_a_bundle_that_cannot_be_taken_is_kept_aside_too(make_trainer, toy):
    rig, client, trainer = make_trainer(require_calibration=True)
    adopt(trainer, toy, version='toy')
    rig.wait_for(lambda: client.phase() == 'refused', what='the refusal')
    values = client.progress[-1][1]
    kept = trainer.session.jobs / 'ft-0000' / 'bundle.refused'
    assert values == values | {'reason': 'version toy exists already', 'kept_at': str(kept)}
    assert (kept / 'reason.txt').read_text() == values['reason'] + '\n' and Bundle.open(kept / 'bundle')
    assert not client.models
