# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer node over real topics: episodes, job by service, progress, cancel, refusal, rollback, resume.

Guards against lessons.md 11 (a cancel that is never served while training runs) and 20 (a learner that dies of a folder
and an actor that waits for ever: every end of a job is said on `trainer/progress`).
"""

import os
import subprocess
import sys
import time

import numpy as np
import psutil
from geometry_msgs.msg import PoseStamped
from rclpy.parameter import Parameter
from ros_rig import within
from sensor_msgs.msg import Image
from trainer_cell import Client

from fosp_core.contract import Contract
from fosp_core.data import messages
from fosp_core.deploy.bundle import Bundle
from fosp_core.paths import config_file
from fosp_ros import diagnostics, shared_memory
from fosp_ros.trainer_node import TrainerNode


def test_fine_tune_by_service_publishes_a_new_bundle_and_rollback_the_old_one(make_trainer, toy):
    rig, client, trainer = make_trainer()
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
    assert not os.listdir(trainer.session.jobs / 'ft-0001')


def test_what_is_scored_trains_nothing(make_trainer):
    rig, client, trainer = make_trainer(collect=False)

    def collect(wanted):
        assert trainer.set_parameters([Parameter('collect', value=wanted)])[0].successful
    client.send(10**18, 10)
    rig.wait_for(lambda: trainer.left_out == 1, what='an episode left out')
    client.send(2 * 10**18, 10, part=slice(5))      # switched on in its middle, it is one of an evaluation still
    rig.wait_for(lambda: trainer.assembler.open_steps == 5, what='half an episode')
    collect(True)
    client.send(2 * 10**18, 10, part=slice(5, None))
    rig.wait_for(lambda: trainer.left_out == 2, what='a second one left out')
    assert trainer.session.episode_count == 0
    client.send(3 * 10**18, 10)
    rig.wait_for(lambda: trainer.session.episode_count == 1, what='an episode')
    client.send(4 * 10**18, 10, part=slice(5))
    rig.wait_for(lambda: trainer.assembler.open_steps == 5, what='half an episode')
    collect(False)
    client.send(4 * 10**18, 10, part=slice(5, None))
    rig.wait_for(lambda: trainer.left_out == 3, what='a third one left out')
    assert (trainer.session.episode_count, trainer.session.step_count) == (1, 10)
    assert trainer._report()[2]['left_out'] == 3


def test_cancel_is_honoured_within_a_second_while_training_runs(make_trainer):
    rig, client, trainer = make_trainer(steps=100000)
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
    within(trainer, trainer.trigger_deactivate)
    assert not psutil.pid_exists(worker), 'the worker outlived the node'


def test_a_job_that_fails_says_why_and_leaves_the_model_alone(make_trainer, tmp_path):
    (tmp_path / 'empty').mkdir()
    rig, client, trainer = make_trainer(offline_data=str(tmp_path / 'empty'))
    client.send(10**18, 30)
    rig.wait_for(lambda: trainer.session.step_count == 30, what='30 steps')
    assert client.call('fine_tune').success
    rig.wait_for(lambda: client.phase() == 'failed', 60.0, 'the failure')
    assert str(tmp_path / 'empty') in client.progress[-1][1]['reason']
    assert trainer.session.store.current().version == 'toy' and not client.models
    assert not client.call('rollback').success


def test_a_model_that_fails_a_gate_is_kept_aside_and_never_published(make_trainer):
    rig, client, trainer = make_trainer(settings='gates.risk_margin=-0.9 train.batch=4', steps=1)
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


def test_lost_and_doubled_steps_are_counted_and_no_episode_crosses_the_gap(make_trainer):
    rig, client, trainer = make_trainer()
    client.send(10**18, 20, skip=(5,), double=(9,))
    client.send(10**18 + 10**12, 12)
    rig.wait_for(lambda: trainer.session.step_count == 31, what='31 steps')
    counts = trainer.joiner.counts
    assert (counts.lost, counts.doubled, counts.mismatched) == (1, 4, 0)
    assert trainer.session.episode_count == 3 and trainer.assembler.gaps == 1
    _, message, values = trainer._report()
    assert message == 'replay steps were lost or out of order' and values['lost'] == 1


def test_wrong_sizes_and_nan_are_refused_with_the_topic(make_trainer):
    rig, client, trainer = make_trainer()
    wrong = messages.fill(client.contract, 'image', Image(), 10**18, np.zeros((64, 64, 3), np.uint8))
    wrong.height = 32
    client.out['image'].publish(wrong)
    pose = PoseStamped()
    pose.pose.position.x = float('nan')
    client.out['ee_pose'].publish(pose)
    rig.wait_for(lambda: trainer.faults == {'replay/image': 1, 'replay/ee_pose': 1}, what='two named faults')


def test_a_resumed_session_keeps_episodes_and_publishes_its_model(make_trainer, rig, toy, tmp_path):
    _, client, trainer = make_trainer(keep=2)
    for i in range(3):
        client.send(10**18 + i * 10**11, 10)
    rig.wait_for(lambda: trainer.session.step_count == 20 and (trainer.session.episodes / '000002.npz').exists()
                 and not (trainer.session.episodes / '000000.npz').exists(), what='the newest two episodes')
    path = trainer.session.path
    within(trainer, trainer.bring_down)
    again = TrainerNode(name='trainer_again', namespace='other', parameter_overrides=[
        Parameter('model', value=str(toy)), Parameter('work_dir', value=str(tmp_path / 'work')),
        Parameter('resume', value=True)])
    rig.add(again)
    assert again.bring_up(), again.failure
    assert again.session.path == path and again.session.episode_count == 2
    assert sorted(os.listdir(again.session.episodes)) == ['000001.npz', '000002.npz']
    assert again.session.store.current_version() == 'toy'


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
