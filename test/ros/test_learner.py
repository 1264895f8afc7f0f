# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The learner node over real topics: proposes, records what was executed, swaps models, survives junk."""

import threading
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.node import Node
from rclpy.parameter import Parameter
from ros_rig import within
from sensor_msgs.msg import Image, Joy
from std_msgs.msg import UInt8MultiArray

from fosp_core.contract import Contract
from fosp_core.data import messages
from fosp_core.data.joiner import EpisodeAssembler, Label, StepJoiner
from fosp_core.deploy.bundle import Bundle
from fosp_core.paths import config_file
from fosp_ros import diagnostics, qos
from fosp_ros.learner_node import LearnerNode
from fosp_ros.messages import restamped
from fosp_ros.model_slot import _Offered

PERIOD = 100_000_000


class Robot(Node):
    """Sim bridge and safety filter in one: publishes observations, halves each proposal, joins the replay topics."""

    def __init__(self, contract):
        super().__init__('robot', namespace='fosp')
        self.contract = contract
        self.label = self.create_publisher(Joy, 'label', qos.LABEL)
        self.pose = self.create_publisher(PoseStamped, 'ee_pose', qos.STATE)
        self.image = self.create_publisher(Image, 'image', qos.IMAGE)
        self.command_out = self.create_publisher(TwistStamped, 'command_out', qos.COMMAND)
        self.model = self.create_publisher(UInt8MultiArray, 'model', qos.LATCHED)
        self.proposed, self.executed, self.reports, self.steps, self.episodes = {}, {}, [], [], []
        self.answer = True
        self.joiner, self.assembler = StepJoiner(contract), EpisodeAssembler(contract)
        self.create_subscription(TwistStamped, 'command_in', self._on_command, qos.COMMAND)
        self.create_subscription(DiagnosticArray, '/diagnostics', self.reports.append, qos.DIAGNOSTICS)
        kinds = {'image': Image, 'ee_pose': PoseStamped, 'action': TwistStamped, 'label': Joy}
        for kind, cls in kinds.items():
            self.create_subscription(cls, f'replay/{kind}', lambda m, k=kind: self._on_replay(k, m), qos.REPLAY)

    def _on_command(self, message):
        self.proposed[messages.stamp_ns(message)] = message.twist.linear.x
        if self.answer:
            out = restamped(message, messages.stamp_ns(message))
            out.twist.linear.x *= 0.5
            self.executed[messages.stamp_ns(out)] = out
            self.command_out.publish(out)

    def _on_replay(self, kind, message):
        for step in self.joiner.push(kind, *messages.payload(self.contract, kind, message)):
            self.steps.append(step)
            episode = self.assembler.add(step)
            if episode is not None:
                self.episodes.append(episode)

    def show(self, stamp, first=False, last=False, reward=0.0, cost=0.0, image=True, encoding='rgb8', junk=False):
        contract, rng = self.contract, np.random.default_rng(stamp)
        self.label.publish(messages.fill(contract, 'label', Joy(), stamp, Label(reward, cost, first, last, last, 0)))
        self.pose.publish(messages.fill(contract, 'ee_pose', PoseStamped(), stamp, rng.random(3)))
        if image:
            picture = messages.fill(contract, 'image', Image(), stamp, rng.integers(0, 255, (64, 64, 3), np.uint8))
            picture.encoding = encoding
            picture.step = 1 if junk else picture.step
            self.image.publish(picture)


@pytest.fixture
def pair(rig, toy, request):
    """A robot and a learner; `request.param`: its parameter `labels`."""
    contract = Contract.load(config_file('contract_safereach.yaml'))
    robot = rig.add(Robot(contract))
    learner = LearnerNode(namespace='fosp', parameter_overrides=[
        Parameter('model', value=str(toy)), Parameter('pairing_wait_s', value=0.1),
        Parameter('labels', value=getattr(request, 'param', 'stamped'))])
    rig.add(learner)
    assert learner.bring_up(), learner.failure
    rig.wait_for(lambda: robot.image.get_subscription_count() and robot.count_subscribers('replay/label') >= 0
                 and robot.count_publishers('replay/label') and robot.count_publishers('command_in'), what='discovery')
    time.sleep(0.5)  # a publisher that sees its subscriber is not yet seen by it
    return rig, robot, learner


def run_episode(rig, robot, start, length):
    for k in range(length):
        stamp = start + k * PERIOD
        robot.show(stamp, first=k == 0, last=k == length - 1, reward=float(k == length - 1))
        rig.wait_for(lambda s=stamp: s in robot.proposed, 2.0, f'command_in for tick {k}')
        time.sleep(0.01)


def test_an_episode_is_proposed_recorded_and_joined_with_the_executed_command(pair):
    rig, robot, _ = pair
    start = 10**18
    for episode in range(2):
        run_episode(rig, robot, start + episode * 10**10, 6)
    episodes = rig.wait_for(lambda: robot.episodes if len(robot.episodes) == 2 else None, what='two episodes')
    assert robot.joiner.counts.clean and robot.joiner.counts.steps == 12
    first = episodes[0]
    first.validate(robot.contract)
    assert first.is_first[0] and first.is_last[-1] and first.reward[-1] == 1.0 and not first.meta.get('gap')
    assert list(first.step) == list(range(6)) and list(episodes[1].step) == list(range(6, 12))
    for k, stamp in enumerate(first.stamp[:-1]):
        sent = robot.executed[int(stamp)].twist.linear
        expected = robot.contract.action.normalise([sent.x, sent.y, sent.z])
        assert np.array_equal(first.action[k], expected)
        assert robot.proposed[int(stamp)] == pytest.approx(2 * sent.x)
    assert (first.action[-1] == 0).all()
    # Which policy proposed is on every label but the last, whose action is never executed.
    policies = [s.label.policy for s in robot.steps[:6]]
    assert set(policies[:5]) <= {'offline', 'online'} and first.meta['online_share'] == policies[:5].count('online') / 5
    rng = np.random.default_rng(int(first.stamp[3]))
    assert np.allclose(first.vectors['ee_pose'][3], rng.random(3)), 'pose of another tick'
    assert np.array_equal(first.images['image'][3], rng.integers(0, 255, (64, 64, 3), np.uint8))


@pytest.mark.parametrize('pair', ['stamped', 'event'], indirect=True)
def test_from_the_end_of_an_episode_on_the_arm_is_told_to_stand(pair):
    rig, robot, learner = pair
    start, moving = 10**18, [True, True, True, False]
    # Beyond the end there is no simulation; an operator's arm waits, button released, for the next beginning.
    for k, flags in enumerate([(1, 0), (0, 0), (0, 0), (0, 1)] + [(0, 0)] * 3 * (learner.p.labels == 'event')):
        robot.show(start + k * PERIOD, *map(bool, flags))
        rig.wait_for(lambda s=start + k * PERIOD: s in robot.proposed, 2.0, f'command_in for tick {k}')
    assert [robot.proposed[s] != 0.0 for s in sorted(robot.proposed)] == moving + [False] * (len(robot.proposed) - 4)
    run_episode(rig, robot, start + 10**10, 3)
    assert [robot.proposed[s] != 0.0 for s in sorted(robot.proposed)[-3:]] == [True, True, False]


def test_a_lost_picture_becomes_a_gap_that_the_joiner_counts(pair):
    rig, robot, _ = pair
    start = 10**18 + 2 * 10**12
    for k in range(6):
        robot.show(start + k * PERIOD, first=k == 0, last=k == 5, image=k != 3)
        time.sleep(0.08)
    run_episode(rig, robot, start + 10**11, 10)  # the joiner holds back what follows a gap until more has come
    episode = rig.wait_for(lambda: robot.episodes, what='a fragment')[0]
    assert robot.joiner.counts.lost == 1 and len(episode) == 3
    assert 3 not in [s.label.step for s in robot.steps]


@pytest.mark.parametrize('heard', [True, False])
def test_a_learner_served_late_takes_the_answer_to_a_picture_for_no_other(pair, monkeypatch, heard):
    """Without a proposal in time the filter holds and answers the picture that the learner has not yet looked at."""
    rig, robot, learner = pair
    robot.answer = False
    given, step, busy, go_on = [], learner.slot.runtime.step, threading.Event(), threading.Event()

    def stalled(arrays, previous, *args, **kwargs):
        given.append(previous)
        busy.set()
        assert go_on.wait(5.0)
        return step(arrays, previous, *args, **kwargs)
    monkeypatch.setattr(learner.slot.runtime, 'step', stalled)
    start = 10**18 + 8 * 10**12

    def sent(k, x):
        stamp = start + k * PERIOD
        robot.command_out.publish(messages.fill(robot.contract, 'action', TwistStamped(), stamp, [x, 0, 0]))

    robot.show(start, first=True)
    assert busy.wait(5.0)
    if heard:
        go_on.set()
        rig.wait_for(lambda: start in robot.proposed, 2.0, 'a proposal')
    sent(0, 0.25)
    if heard:
        rig.wait_for(lambda: len(learner.recorder._sent), 2.0, 'the answer to be heard')
    sent(1, 0.0)
    time.sleep(0.2)     # the executor hears the command first
    robot.show(start + PERIOD)
    time.sleep(0.2)
    go_on.set()
    rig.wait_for(lambda: start + PERIOD in robot.proposed, 2.0, 'a proposal')
    robot.show(start + 2 * PERIOD, last=True)
    rig.wait_for(lambda: robot.episodes, what='an episode')
    assert given[1].tolist() == robot.episodes[0].action[0].tolist() == [0.25, 0.0, 0.0]
    assert not robot.episodes[0].action[1].any()


def test_a_learner_that_is_switched_off_and_on_joins_no_two_pictures(pair):
    rig, robot, learner = pair
    start = 10**18 + 7 * 10**12
    for k in (0, 1, 2, 5, 6, 7, 8):     # half a second of nothing: no jump of the stamps tells
        if k == 5:
            within(learner, learner.trigger_deactivate)
            learner.trigger_activate()
        robot.show(start + k * PERIOD, first=k == 0, last=k == 8)
        rig.wait_for(lambda s=start + k * PERIOD: s in robot.proposed, 2.0, f'command_in for tick {k}')
        time.sleep(0.02)
    run_episode(rig, robot, start + 10**11, 10)
    rig.wait_for(lambda: len(robot.episodes) >= 2, what='two fragments')
    ticks = [[round((s - start) / PERIOD) for s in e.stamp] for e in robot.episodes[:2]]
    assert ticks == [[0, 1], [5, 6, 7, 8]] and robot.joiner.counts.lost == 1
    assert all(e.meta['gap'] for e in robot.episodes[:2])


def test_without_an_answer_of_the_filter_the_arm_stands_still_in_the_record(pair):
    rig, robot, _ = pair
    robot.answer = False
    run_episode(rig, robot, 10**18 + 3 * 10**12, 4)
    episode = rig.wait_for(lambda: robot.episodes, what='an episode')[0]
    assert (episode.action == 0).all()


def test_a_new_bundle_is_swapped_in_between_ticks_and_a_damaged_one_is_refused(pair, tmp_path):
    rig, robot, learner = pair
    import subprocess
    import sys
    code = (f'from fosp_core.deploy.toy import make_toy; make_toy({str(tmp_path / "b")!r}, seed=1, version="toy2")')
    subprocess.run([sys.executable, '-c', code], check=True, capture_output=True)
    data = Bundle.open(tmp_path / 'b').to_bytes()
    start = 10**18 + 4 * 10**12

    def publish(raw):
        message = UInt8MultiArray()
        message.data.frombytes(raw)
        robot.model.publish(message)

    publish(data[:9000] + bytes(64) + data[9064:])
    stamps = iter(range(start, start + 1000 * PERIOD, PERIOD))
    robot.show(next(stamps), first=True)

    def tick(condition, what):
        for _ in range(100):
            stamp = next(stamps)
            robot.show(stamp)
            rig.wait_for(lambda s=stamp: s in robot.proposed, 2.0, 'command_in')
            if condition():
                return
            time.sleep(0.02)
        pytest.fail(f'{what} within 100 ticks')
    tick(lambda: learner.slot.refused == 1, 'the damaged bundle refused')
    assert learner.slot.version == 'toy'
    publish(data)
    tick(lambda: learner.slot.version == 'toy2', 'the swap')
    reports = rig.wait_for(lambda: [s for a in robot.reports for s in a.status if s.name == '/fosp/learner'
                                    and diagnostics.values_of(s)['version'] == 'toy2'], 3.0, 'diagnostics')
    assert diagnostics.values_of(reports[-1])['swaps'] == '1'


def test_a_swapped_model_continues_the_episode_with_the_same_state(pair, toy):
    """The state rebuilt from the history equals the state that had been carried all along."""
    rig, robot, learner = pair
    run_episode(rig, robot, 10**18 + 5 * 10**12, 5)
    carried = [a.copy() for a in learner.slot.runtime.state]
    from fosp_ros.learner_node import make_policy
    slot = learner.slot
    fresh = make_policy(slot.bundle, 0)
    fresh.warm_up()
    slot.shadow_ticks = 0
    slot._settle(_Offered(fresh, slot.bundle))
    assert (slot.swap() or slot.swaps) and slot.runtime is fresh   # the node swaps, too, when it is idle
    for a, b in zip(carried, slot.runtime.state):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_junk_pictures_are_dropped_and_named(pair):
    rig, robot, learner = pair
    robot.show(10**18 + 6 * 10**12, first=True, junk=True)
    robot.show(10**18 + 6 * 10**12 + PERIOD, encoding='yuv422')
    rig.wait_for(lambda: learner.faults['image'] == 2, what='two counted faults')
    assert not robot.proposed
    robot.show(10**18 + 6 * 10**12 + 2 * PERIOD)
    rig.wait_for(lambda: robot.proposed, what='a proposal for the good picture')


def test_a_bundle_for_another_contract_fails_configure(rig, toy, tmp_path):
    text = config_file('contract_safereach.yaml').read_text().replace('rate_hz: 10.0', 'rate_hz: 20.0')
    (tmp_path / 'other.yaml').write_text(text)
    learner = rig.add(LearnerNode(namespace='fosp', parameter_overrides=[
        Parameter('model', value=str(toy)), Parameter('contract', value=str(tmp_path / 'other.yaml'))]))
    assert not learner.bring_up()
    assert 'contract' in learner.failure and 'Traceback' not in learner.failure
