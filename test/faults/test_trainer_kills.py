# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the trainer at any moment, and of learner and filter during a swap: nothing lost, nothing unverified.

FOSP_RANDOM_KILLS says how often (default 2), FOSP_SEED which moments.
"""

import hashlib
import os
import random
import sys
import time

import numpy as np
import psutil
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from filter_cell import recalibrated
from rclpy.node import Node
from ros_rig import wait_for, within
from stand import MEASURED, PERIOD_S, PROMISE_S, Child, Participant
from std_msgs.msg import UInt8MultiArray
from std_srvs.srv import Trigger

from fosp_core.data import messages
from fosp_core.data.joiner import Label
from fosp_core.data.store import load_episode, save_episode
from fosp_core.deploy.bundle import Bundle
from fosp_core.safety.audit import TICK, read_entries
from fosp_ros import diagnostics, graph, qos
from fosp_ros.messages import message_class

CHANCE = random.Random(int(os.environ.get('FOSP_SEED', '0')))
KILLS = int(os.environ.get('FOSP_RANDOM_KILLS', '2'))
ENDED = ('published', 'refused', 'failed', 'cancelled')


class Robot(Node):
    """Sends whole episodes as a learner does, and calls the trainer."""

    def __init__(self, context, contract):
        super().__init__('robot', namespace='killed', context=context)
        self.contract, self.progress, self.models, self.reports = contract, [], [], []
        self.out = {kind: self.create_publisher(message_class(name), messages.topic(kind), qos.REPLAY)
                    for kind, name in messages.types(contract).items()}
        self.create_subscription(DiagnosticStatus, 'trainer/progress', self._on_progress, qos.LATCHED)
        self.create_subscription(UInt8MultiArray, 'model', lambda m: self.models.append(bytes(m.data)), qos.LATCHED)
        self.client = self.create_client(Trigger, 'trainer/fine_tune')

    def _on_progress(self, message):
        self.progress.append((message.message, diagnostics.values_of(message)))

    def ready(self):
        """Wait for a trainer that hears this node."""
        wait_for(lambda: self.client.service_is_ready() and self.progress and all(
            p.get_subscription_count() for p in self.out.values()), 40.0, 'the trainer')
        time.sleep(0.5)     # it is seen; now it must see

    def send(self, episode):
        """Publish the records of an episode."""
        series = {**episode.images, **episode.vectors, 'action': episode.action}
        for t in range(len(episode)):
            label = Label(episode.reward[t], episode.cost[t], episode.is_first[t], episode.is_last[t],
                          episode.is_terminal[t], episode.step[t])
            for kind, publisher in self.out.items():
                message = messages.fill(self.contract, kind, publisher.msg_type(), int(episode.stamp[t]),
                                        label if kind == 'label' else series[kind][t])
                publisher.publish(message)

    def fine_tune(self):
        """Call the service and return its answer."""
        wait_for(self.client.service_is_ready, 10.0, 'the service')
        future = self.client.call_async(Trigger.Request())
        wait_for(future.done, 10.0, 'the answer')
        return future.result()


class Workshop:
    """A trainer process that goes on with its session whenever it is started, and a robot that feeds it."""

    def __init__(self, model, folder, contract, offline, **parameters):
        self.folder, self.work = folder, folder / 'work'
        self.parameters = {'model': model, 'work_dir': self.work, 'min_steps': 20, 'steps': 4, 'resume': 'true',
                           'offline_data': offline, **parameters}
        self.participant = Participant(lambda context: Robot(context, contract))
        self.child = None

    @property
    def robot(self):
        return self.participant.node

    @property
    def session(self):
        return next(self.work.glob('sessions/*'))

    def start(self):
        """Start the trainer and wait until it listens."""
        self.robot.progress.clear()
        self.robot.models.clear()
        words = [x for name, value in self.parameters.items() for x in ('-p', f'{name}:={value}')]
        self.child = Child([sys.executable, '-m', 'fosp_ros.trainer_node', '--ros-args', '-r', '__ns:=/killed', *words],
                           self.folder / 'trainer.log', **graph.environment(True))
        self.robot.ready()

    def stored(self):
        """Return the names of the stored episodes."""
        return {p.name for p in (self.session / 'episodes').glob('*.npz')}

    def kill(self):
        """kill -9 of the trainer; its worker must end by itself."""
        workers = psutil.Process(self.child.process.pid).children(recursive=True)
        self.child.kill()
        _, alive = psutil.wait_procs(workers, timeout=8)
        assert not alive, 'the worker is an orphan'

    def close(self):
        if self.child is not None:
            self.child.end()
        self.participant.close()


@pytest.fixture
def workshop(model, tmp_path, contract, make_episodes):
    offline = tmp_path / 'offline'
    offline.mkdir()
    for i, episode in enumerate(make_episodes([24, 18], seed=70, violation=True)):
        save_episode(offline / f'{i}.npz', episode)
    shop = Workshop(model, tmp_path, contract, offline)
    yield shop
    shop.close()


def digest(folder):
    """SHA-256 over names and bytes of a folder."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob('*') if p.is_file()):
        total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return total.hexdigest()


def moment(shop, kind):
    """Wait until it is time to kill."""
    robot = shop.robot
    if kind == 'during a fine-tune':
        wait_for(lambda: any(p == 'training' and v.get('step', '0') != '0' for p, v in robot.progress), 90.0, 'a step')
        time.sleep(CHANCE.uniform(0.0, 0.5))
    elif kind == 'during publication':
        jobs = shop.session / 'jobs'
        before = {p for p in jobs.glob('*/bundle/manifest.json')}
        wait_for(lambda: {p for p in jobs.glob('*/bundle/manifest.json')} - before or
                 robot.progress[-1][0] in ENDED, 90.0, 'the bundle of the worker')
        time.sleep(CHANCE.uniform(0.0, 0.3))
    else:
        time.sleep(CHANCE.uniform(0.0, 8.0))


@pytest.mark.timeout(1800)
def test_a_trainer_killed_at_any_moment_keeps_its_episodes_and_a_valid_model(workshop, contract, make_episodes, same):
    shop, robot = workshop, workshop.robot
    sent = iter(make_episodes([12 + k % 5 for k in range(6 * (KILLS + 3))]))
    known, offline = {}, digest(shop.parameters['offline_data'])
    last = 'calibrated'
    for k, kind in enumerate(['during a fine-tune', 'during publication', *['at random'] * (KILLS - 2)][:KILLS]):
        shop.start()
        if k:       # it goes on with the model in force, and offers it to learner and filter
            wait_for(lambda: robot.models, 10.0, 'the model of a resumed trainer')
            assert Bundle.unpack(robot.models[-1], shop.folder / f'received{k}').version == last
        for _ in range(3):
            before, episode = shop.stored(), next(sent)
            robot.send(episode)
            (name,) = wait_for(lambda before=before: shop.stored() - before, 10.0, 'the episode on disk')
            known[name] = episode
        answer = robot.fine_tune()
        assert answer.success, answer.message
        moment(shop, kind)
        robot.send(next(sent))      # one is under way
        shop.kill()
        for name, episode in known.items():
            same(load_episode(shop.session / 'episodes' / name, contract), episode, meta=False)
        current = Bundle.open(shop.session / 'models', contract, True)      # verified, hash by hash
        assert (shop.session / 'models' / 'current').resolve().name == current.version
        last = current.version
        for extra in shop.stored() - set(known):        # the one under way: whole or not there
            known[extra] = load_episode(shop.session / 'episodes' / extra, contract)
        assert digest(shop.parameters['offline_data']) == offline
    shop.start()
    assert 'episode not used' not in shop.child.text and shop.stored() == set(known)
    answer = robot.fine_tune()
    assert answer.success, answer.message
    phase, values = wait_for(lambda: robot.progress[-1][0] in ENDED and robot.progress[-1], 120.0, 'the end of the job')
    assert phase in ('published', 'refused'), values     # a gate may say no to a toy
    if phase == 'published':
        last = values['version']
    assert Bundle.open(shop.session / 'models', contract, True).version == last


@pytest.fixture(scope='module')
def shared_graph(model, tmp_path_factory):
    pytest.importorskip('mujoco', reason='the simulator extra is not installed')
    from live import Graph
    graph = Graph(tmp_path_factory.mktemp('swaps'), model)
    yield graph
    graph.close()


@pytest.mark.timeout(1800)
def test_learner_and_filter_killed_during_a_swap_run_only_verified_models(shared_graph, model, tmp_path):
    """A bundle is offered and its receiver killed while it loads, shadows or swaps it."""
    live = shared_graph
    second = recalibrated(model, tmp_path / 'b', Bundle.open(model).calibration, version='second')
    offers = [second, Bundle.open(model)]
    witness = live.ready()
    out = witness.create_publisher(UInt8MultiArray, 'model', qos.LATCHED)
    begin = time.time()
    for k in range(KILLS):
        name, bundle = ('learner', 'safety_filter')[k % 2], offers[k // 2 % 2]
        live.ready()
        before, states = witness.bridge(time.time_ns()), len(witness.states)
        message = UInt8MultiArray()
        message.data.frombytes(bundle.to_bytes())
        out.publish(message)
        time.sleep(CHANCE.uniform(0.0, 1.5))
        killed = live.children[name].kill()
        if name == 'learner':
            wait_for(lambda states=states: 'command_stale' in witness.states[states:], 3.0, 'command_stale')
            first = next(at for at, v in witness.commands if at > killed and not v.any())
            MEASURED.append(('learner killed during a swap', 'command_stale', (first - killed) * 1e-6, None))
            assert (first - killed) * 1e-9 <= PROMISE_S + PERIOD_S
        else:
            driven = [killed, *witness.driven(killed, before)]
            MEASURED.append(('filter killed during a swap', 'no command acts', (driven[-1] - killed) * 1e-6, None))
            assert len(driven) - 1 <= 2, driven
        live.ready()    # it starts from its own model and is offered the latched one again

        def both(version=bundle.version):
            return all(witness.reports.get(n, {}).get('version') == version for n in ('learner', 'safety_filter'))
        wait_for(both, 30.0, lambda bundle=bundle: f'{bundle.version} in learner and filter')
        assert all(witness.reports[n]['refused_models'] == '0' for n in ('learner', 'safety_filter'))
    within(witness, lambda: witness.destroy_publisher(out))
    ticks = [e for e in read_entries(live.folder / 'audit') if e['k'] == TICK and e['t'] > begin]
    assert {e['model'] for e in ticks} <= {'calibrated', 'second'} and np.isfinite([e['sent'] for e in ticks]).all()
