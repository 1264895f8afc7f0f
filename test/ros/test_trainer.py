# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer node over real topics: episodes, job by service, progress, cancel, refusal, rollback asked for and not.

Guards against lessons.md 11 (a cancel that is never served while training runs) and 20 (a learner that dies of a folder
and an actor that waits for ever: every end of a job is said on `trainer/progress`).
"""

import os
import subprocess
import sys
import time
import types

import numpy as np
import psutil
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image, Joy
from std_msgs.msg import UInt8MultiArray
from std_srvs.srv import Trigger

from fosp_core.contract import Contract
from fosp_core.data import messages
from fosp_core.data.joiner import Label
from fosp_core.deploy.bundle import Bundle, write_bundle
from fosp_core.paths import config_file
from fosp_ros import diagnostics, qos, shared_memory
from fosp_ros.trainer_node import TrainerNode

PERIOD = 100_000_000
KINDS = {'image': Image, 'ee_pose': PoseStamped, 'action': TwistStamped, 'label': Joy}


class Client(Node):
    """A learner's replay side and an operator's service side."""

    def __init__(self, contract):
        super().__init__('client', namespace='fosp')
        self.contract, self.step = contract, 0
        self.out = {k: self.create_publisher(cls, f'replay/{k}', qos.REPLAY) for k, cls in KINDS.items()}
        self.progress, self.models = [], []
        self.create_subscription(DiagnosticStatus, 'trainer/progress', self._on_progress, qos.LATCHED)
        self.create_subscription(UInt8MultiArray, 'model', lambda m: self.models.append(bytes(m.data)), qos.LATCHED)
        self.states = self.create_publisher(DiagnosticStatus, 'safety_filter/state', qos.EVENT)
        self.calls = {name: self.create_client(Trigger, f'trainer/{name}')
                      for name in ('fine_tune', 'cancel', 'rollback')}

    def _on_progress(self, message):
        self.progress.append((message.message, diagnostics.values_of(message)))

    def send(self, start, length, skip=(), double=()):
        rng = np.random.default_rng(self.step)
        for k in range(length):
            stamp, last = start + k * PERIOD, k == length - 1
            action = np.zeros(3) if last else rng.uniform(-1, 1, 3).astype(np.float32)
            values = {'image': rng.integers(0, 255, (64, 64, 3), np.uint8), 'ee_pose': rng.random(3), 'action': action,
                      'label': Label(float(last), 0.0, k == 0, last, last, self.step)}
            self.step += 1
            for _ in range(2 if k in double else 1):
                for kind, value in values.items():
                    if k not in skip:
                        self.out[kind].publish(messages.fill(self.contract, kind, KINDS[kind](), stamp, value))

    def call(self, name):
        future = self.calls[name].call_async(Trigger.Request())
        end = time.monotonic() + 10
        while not future.done() and time.monotonic() < end:
            time.sleep(0.005)
        assert future.done(), f'{name} did not answer'
        return future.result()

    def filter_says(self, version, word, ticks):
        """Be the safety filter for so many ticks."""
        for _ in range(ticks):
            self.states.publish(diagnostics.status('safety_filter', diagnostics.OK, word, {'version': version}))
            time.sleep(0.002)

    def phase(self):
        return self.progress[-1][0] if self.progress else None


@pytest.fixture
def make(rig, toy, tmp_path):
    contract = Contract.load(config_file('contract_safereach.yaml'))

    def _make(**parameters):
        client = rig.add(Client(contract))
        values = {'model': str(toy), 'work_dir': str(tmp_path / 'work'), 'min_steps': 20, 'steps': 3,
                  'require_calibration': False} | parameters
        trainer = TrainerNode(namespace='fosp', parameter_overrides=[Parameter(k, value=v) for k, v in values.items()])
        rig.add(trainer)
        assert trainer.bring_up(), trainer.failure
        rig.wait_for(lambda: all(c.service_is_ready() for c in client.calls.values())
                     and all(p.get_subscription_count() for p in (*client.out.values(), client.states))
                     and client.progress, what='discovery')
        time.sleep(0.3)
        return rig, client, trainer
    return _make


def test_fine_tune_by_service_publishes_a_new_bundle_and_rollback_the_old_one(make, toy):
    rig, client, trainer = make()
    refused = client.call('fine_tune')
    assert not refused.success and refused.message.startswith('not enough steps: 0 of 20')
    assert not client.call('cancel').success
    for i in range(3):
        client.send(10**18 + i * 10**11, 10)
    rig.wait_for(lambda: trainer.session.step_count == 30, what='30 steps')
    assert trainer.joiner.counts.clean
    began = time.monotonic()
    accepted = client.call('fine_tune')
    assert accepted.success and accepted.message == 'ft-0001' and time.monotonic() - began < 1.0
    again = client.call('fine_tune')
    assert not again.success and again.message == 'job ft-0001 is running'
    rig.wait_for(lambda: client.phase() in ('published', 'failed', 'refused'), 150.0, 'the end of the job')
    phase, values = client.progress[-1]
    assert phase == 'published', values
    steps = [v.get('step') for p, v in client.progress if p == 'training']
    assert '1' in steps or '2' in steps, client.progress
    new = Bundle.unpack(rig.wait_for(lambda: client.models, what='the bundle')[-1], trainer.session.path / 'received')
    assert new.version == values['version'] and new.sha256 == values['sha256'] and new.manifest['parent'] == 'toy'
    assert trainer.session.store.current().version == new.version
    back = client.call('rollback')
    assert back.success and back.message == 'toy'
    rig.wait_for(lambda: len(client.models) == 2, what='the old bundle')
    assert Bundle.unpack(client.models[-1], trainer.session.path / 'again').sha256 == Bundle.open(toy).sha256
    assert trainer.session.store.current().version == 'toy'
    assert not (trainer.session.jobs / 'ft-0001' / 'episodes').exists()


def test_cancel_is_honoured_within_a_second_while_training_runs(make):
    rig, client, trainer = make(steps=100000)
    client.send(10**18, 30)
    rig.wait_for(lambda: trainer.session.step_count == 30, what='30 steps')
    assert client.call('fine_tune').success
    worker = trainer.job.pid
    rig.wait_for(lambda: any(v.get('step', '0') not in ('0',) for p, v in client.progress if p == 'training'), 60.0,
                 'a gradient step')
    began = time.monotonic()
    assert client.call('cancel').success
    rig.wait_for(lambda: client.phase() == 'cancelled', 2.0, 'cancelled')
    assert time.monotonic() - began < 1.0 and not psutil.pid_exists(worker)
    assert trainer.session.store.current().version == 'toy' and not client.models
    assert client.call('fine_tune').success, 'a cancelled job must not block the next one'
    worker = trainer.job.pid
    trainer.trigger_deactivate()
    assert not psutil.pid_exists(worker), 'the worker outlived the node'


def test_a_job_that_fails_says_why_and_leaves_the_model_alone(make, tmp_path):
    (tmp_path / 'empty').mkdir()
    rig, client, trainer = make(offline_data=str(tmp_path / 'empty'))
    client.send(10**18, 30)
    rig.wait_for(lambda: trainer.session.step_count == 30, what='30 steps')
    assert client.call('fine_tune').success
    rig.wait_for(lambda: client.phase() == 'failed', 60.0, 'the failure')
    assert str(tmp_path / 'empty') in client.progress[-1][1]['reason']
    assert trainer.session.store.current().version == 'toy' and not client.models
    assert not client.call('rollback').success


def test_a_model_that_fails_a_gate_is_kept_aside_and_never_published(make):
    rig, client, trainer = make(settings='gates.risk_margin=-0.9 train.batch=4', steps=1)
    for i in range(3):
        client.send(10**18 + i * 10**11, 10)
    rig.wait_for(lambda: trainer.session.step_count == 30, what='30 steps')
    assert client.call('fine_tune').success
    rig.wait_for(lambda: client.phase() in ('published', 'failed', 'refused'), 150.0, 'the end of the job')
    phase, values = client.progress[-1]
    assert phase == 'refused' and 'riskier' in values['reason'], values
    kept = trainer.session.jobs / 'ft-0001' / 'bundle.refused'
    assert values['kept_at'] == str(kept) and (kept / 'reason.txt').read_text() == values['reason'] + '\n'
    assert Bundle.open(kept / 'bundle').manifest['metrics']['gate/refused'] == values['reason']
    assert not (trainer.session.jobs / 'ft-0001' / 'bundle').exists()
    assert trainer.session.store.versions() == ['toy'] and not client.models
    level, message, _ = trainer._report()
    assert level == diagnostics.WARN and message.startswith('last fine-tune refused: by the parent estimate')


def child_of(toy, folder, version='child', **manifest):
    """Write a copy of the toy as if a worker had made it."""
    toy = Bundle.open(toy)
    return write_bundle(folder, {name: toy.read(name) for name in toy.manifest['files']},
                        {**toy.manifest, 'version': version, 'parent': 'toy', **manifest})


def adopt(trainer, toy, **manifest):
    """Let the trainer take a worker's result that is there already."""
    child_of(toy, trainer.session.jobs / 'ft-0000' / 'bundle', **manifest)
    trainer.job = types.SimpleNamespace(name='ft-0000', step=1, steps=1, alignment={}, state='running', poll=list)
    trainer._adopt(trainer.job)


def test_a_rise_of_the_intervention_rate_rolls_back_by_itself(make, toy):
    rig, client, trainer = make(rollback_block=2, rollback_min_blocks=10, steps=100000)
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


def test_no_rollback_when_the_rate_stays_or_when_it_is_switched_off(make, toy):
    rig, client, trainer = make(rollback_block=2, rollback_min_blocks=10)
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


def test_a_bundle_that_cannot_be_taken_is_kept_aside_too(make, toy):
    rig, client, trainer = make(require_calibration=True)
    adopt(trainer, toy, version='toy')
    rig.wait_for(lambda: client.phase() == 'refused', what='the refusal')
    values = client.progress[-1][1]
    kept = trainer.session.jobs / 'ft-0000' / 'bundle.refused'
    assert values == values | {'reason': 'version toy exists already', 'kept_at': str(kept)}
    assert (kept / 'reason.txt').read_text() == values['reason'] + '\n' and Bundle.open(kept / 'bundle')
    assert not client.models


def test_lost_and_doubled_steps_are_counted_and_no_episode_crosses_the_gap(make):
    rig, client, trainer = make()
    client.send(10**18, 20, skip=(5,), double=(9,))
    client.send(10**18 + 10**12, 12)
    rig.wait_for(lambda: trainer.session.step_count == 31, what='31 steps')
    counts = trainer.joiner.counts
    assert (counts.lost, counts.doubled, counts.mismatched) == (1, 4, 0)
    assert trainer.session.episode_count == 3 and trainer.assembler.gaps == 1
    _, message, values = trainer._report()
    assert message == 'replay steps were lost or out of order' and values['lost'] == 1


def test_wrong_sizes_and_nan_are_refused_with_the_topic(make):
    rig, client, trainer = make()
    wrong = messages.fill(client.contract, 'image', Image(), 10**18, np.zeros((64, 64, 3), np.uint8))
    wrong.height = 32
    client.out['image'].publish(wrong)
    pose = PoseStamped()
    pose.pose.position.x = float('nan')
    client.out['ee_pose'].publish(pose)
    rig.wait_for(lambda: trainer.faults == {'replay/image': 1, 'replay/ee_pose': 1}, what='two named faults')


def test_a_resumed_session_keeps_episodes_and_publishes_its_model(make, rig, toy, tmp_path):
    _, client, trainer = make(keep=2)
    for i in range(3):
        client.send(10**18 + i * 10**11, 10)
    rig.wait_for(lambda: trainer.session.step_count == 20 and (trainer.session.episodes / '000002.npz').exists()
                 and not (trainer.session.episodes / '000000.npz').exists(), what='the newest two episodes')
    path = trainer.session.path
    trainer.bring_down()
    again = TrainerNode(name='trainer_again', namespace='other', parameter_overrides=[
        Parameter('model', value=str(toy)), Parameter('work_dir', value=str(tmp_path / 'work')),
        Parameter('resume', value=True)])
    rig.add(again)
    assert again.bring_up(), again.failure
    assert again.session.path == path and again.session.episode_count == 2
    assert sorted(os.listdir(again.session.episodes)) == ['000001.npz', '000002.npz']
    assert again.resumed.version == 'toy'


def test_a_killed_trainer_takes_its_worker_along_and_leaves_a_valid_session(rig, toy, tmp_path):
    """kill -9 in the middle of a job: no orphan, `current` opens, and a resumed trainer has the episodes."""
    contract = Contract.load(config_file('contract_safereach.yaml'))
    client = rig.add(Client(contract))
    work = tmp_path / 'work'
    process = subprocess.Popen([
        sys.executable, '-m', 'fosp_ros.trainer_node', '--ros-args', '-r', '__ns:=/fosp', '-p', f'model:={toy}', '-p',
        f'work_dir:={work}', '-p', 'min_steps:=20', '-p', 'steps:=100000', '-p', 'require_calibration:=false'],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        rig.wait_for(lambda: all(p.get_subscription_count() for p in client.out.values()) and client.progress
                     and client.calls['fine_tune'].service_is_ready(), 20.0, 'the trainer process')
        time.sleep(0.5)
        client.send(10**18, 30)
        rig.wait_for(lambda: list(work.glob('sessions/*/episodes/*.npz')), what='the episode on disk')
        assert client.call('fine_tune').success
        worker = rig.wait_for(lambda: psutil.Process(process.pid).children(), what='the worker')[0]
        rig.wait_for(lambda: any(p == 'training' and v.get('step', '0') != '0' for p, v in client.progress), 60.0,
                     'a gradient step')
        files = {f for f in shared_memory.opened_by(process.pid) if '_port' not in f}
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs([worker], timeout=5)
    shared_memory.remove(files)
    assert not alive, 'the worker is an orphan'
    session = next(work.glob('sessions/*'))
    assert Bundle.open(session / 'models').version == 'toy'
    again = rig.add(TrainerNode(namespace='again', parameter_overrides=[
        Parameter('model', value=str(toy)), Parameter('work_dir', value=str(work)), Parameter('resume', value=True)]))
    assert again.bring_up(), again.failure
    assert again.session.step_count == 30 and again.session.unreadable == []


def test_a_worker_that_prints_nothing_also_ends_with_its_parent():
    code = 'from fosp_ros.trainer_worker import end_with_parent; end_with_parent(0.1); import time; time.sleep(60)'
    parent = subprocess.Popen([sys.executable, '-c', 'import subprocess, sys, time\n'
                               f'print(subprocess.Popen([sys.executable, "-c", {code!r}]).pid, flush=True)\n'
                               'time.sleep(60)'], stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs([worker], timeout=5)
    for process in alive:
        process.kill()
    assert not alive
