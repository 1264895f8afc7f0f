# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A Safety-Gymnasium task through ROS: the bridge alone against the environment, then the graph on its contract."""

import collections
import contextlib
import signal
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip('mujoco', reason='the simulator extra is not installed')

from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import TwistStamped
from rcl_interfaces.srv import SetParameters
from rclpy.node import Node
from rclpy.parameter import Parameter
from ros_rig import MAKE_TOY
from sensor_msgs.msg import Image, Joy
from std_srvs.srv import Trigger

from fosp_core.contract import Contract
from fosp_core.data import messages
from fosp_core.paths import config_file
from fosp_ros import diagnostics, qos
from fosp_sim import gymnasium_adapter as adapter
from fosp_sim.safetygym import SafetyGymEnv

pytestmark = pytest.mark.skipif(adapter.found_version() != adapter.VERSION,
                                reason='Safety-Gymnasium is not installed; run: make sim-gym')
CONTRACT = config_file('contract_safetygym.yaml')
SEED, COMMAND = 3, np.array([0.7, 0.15])
PICTURES = {'vision': 'image', 'vision_back': 'image_back'}


class Witness(Node):
    """Sees what the bridge publishes; with `commanding` it is the filter, and sends COMMAND on each label."""

    def __init__(self, commanding):
        super().__init__('safety_filter' if commanding else 'witness', namespace='fosp')
        self.contract, self.ticks = Contract.load(CONTRACT), collections.defaultdict(dict)
        self.results, self.states = [], []
        self.out = self.create_publisher(TwistStamped, 'command_out', qos.COMMAND) if commanding else None
        self.create_subscription(Joy, 'label', lambda m: self._take('label', m), qos.LABEL)
        for name, topic in PICTURES.items():
            self.create_subscription(Image, topic, lambda m, n=name: self._take(n, m), qos.IMAGE)
        self.create_subscription(DiagnosticStatus, 'sim_bridge/episode', self.results.append, qos.EVENT)
        self.create_subscription(DiagnosticStatus, 'safety_filter/state', self.states.append, 50)
        self.parameters = self.create_client(SetParameters, 'sim_bridge/set_parameters')

    def _take(self, kind, message):
        self.ticks[messages.stamp_ns(message)][kind] = message
        if kind == 'label' and self.out is not None:
            stamp = messages.stamp_ns(message)
            self.out.publish(messages.fill(self.contract, 'action', TwistStamped(), stamp, COMMAND))

    def call(self, rig, kind, name, request):
        client = self.create_client(kind, name)
        rig.wait_for(client.service_is_ready, 20.0, f'service {name}')
        future = client.call_async(request)
        rig.wait_for(future.done, what=f'answer of {name}')
        return future.result()

    def set_task(self, rig, task):
        request = SetParameters.Request(parameters=[Parameter('task', value=task).to_parameter_msg()])
        return self.call(rig, SetParameters, 'sim_bridge/set_parameters', request).results[0].successful


@contextlib.contextmanager
def process(*arguments):
    """A child that is asked to end, and killed only if it does not."""
    child = subprocess.Popen([sys.executable, '-m', *map(str, arguments)], stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
        try:
            child.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()


def expected(standing):
    """What the environment answers to zero on the first `standing` steps and to COMMAND from then on, without ROS."""
    with contextlib.closing(SafetyGymEnv('SafetyPointGoal1')) as env:
        rows, done = [(env.reset(seed=SEED)[0], 0.0, 0.0)], False
        action = env.contract.action.normalise(env.contract.action.denormalise(COMMAND))
        while not done:
            observation, reward, cost, terminated, truncated, info = env.step(action * (len(rows) > standing))
            rows.append((observation, reward, cost))
            done = terminated or truncated
    return rows, info


def test_one_episode_equals_the_environment_and_the_robot_cannot_be_changed(rig, isolated):
    """Both pictures, reward and cost of every tick; no pose and no joints, which this robot has not."""
    with process('fosp_sim.bridge_node', '--ros-args', '-r', '__ns:=/fosp', '-p', 'task:=SafetyPointGoal1', '-p',
                 'run_on_start:=false', '-p', 'episodes:=1', '-p', f'seed:={SEED}', '-p', 'realtime_factor:=5.0', '-p',
                 'command_timeout_periods:=20.0') as child:
        witness = rig.add(Witness(True))
        for _ in range(3):
            witness.ticks.clear()
            witness.results.clear()
            assert witness.call(rig, Trigger, 'sim_bridge/start', Trigger.Request()).success
            rig.wait_for(lambda: witness.results, 60.0, 'the end of the episode')
            result = diagnostics.values_of(witness.results[0])
            standing = int(result['standing'])      # until the first command has come; later ones only on a stall
            if standing < 10:
                break
        assert result['task'] == 'SafetyPointGoal1' and result['steps'] == '250' and result['bypassed'] == '0'
        assert {'goals', 'cost_hazards'} <= set(result) and 'min_clearance' not in result
        assert witness.count_publishers('/fosp/ee_pose') == witness.count_publishers('/fosp/joint_states') == 0
        assert witness.set_task(rig, 'unseen3')
        refused = witness.call(rig, Trigger, 'sim_bridge/start', Trigger.Request())
        assert not refused.success and 'of another robot than SafetyPointGoal1' in refused.message
        assert witness.set_task(rig, 'SafetyPointFadingEasy1')
        assert 'SafetyPointFadingEasy1' in witness.call(rig, Trigger, 'sim_bridge/start', Trigger.Request()).message
        child.send_signal(signal.SIGINT)
        output, _ = child.communicate(timeout=20)
        assert child.returncode == 0 and 'Traceback' not in output, output
    rows, info = expected(standing)
    stamps = sorted(s for s in witness.ticks if 'label' in witness.ticks[s])[:len(rows)]
    assert len(stamps) == 251 and sum(len(witness.ticks[s]) == 3 for s in stamps) > 100
    for stamp, (observation, reward, cost) in zip(stamps, rows):
        tick = witness.ticks[stamp]
        assert list(tick['label'].axes) == [np.float32(reward), np.float32(cost)]
        for name in PICTURES:
            if name in tick:
                assert np.array_equal(np.frombuffer(tick[name].data, np.uint8).reshape(64, 64, 3), observation[name])
    assert list(witness.ticks[stamps[-1]]['label'].buttons) == [0, 1, 0], 'the end of the time is no terminal state'
    assert float(result['return']) == pytest.approx(sum(r[1] for r in rows), abs=1e-6)
    assert result['goals'] == str(info['goals'])


@pytest.mark.slow
def test_the_graph_runs_on_the_contract_of_the_ground(rig, isolated, tmp_path):
    """Learner and filter take the model of that contract; the filter lets commands through, and nothing bypasses it."""
    subprocess.run([sys.executable, '-c', MAKE_TOY, str(tmp_path / 'toy'), str(CONTRACT)], check=True,
                   capture_output=True)
    witness = rig.add(Witness(False))
    with process('fosp_core.cli', 'up', '--task', 'SafetyPointGoal1-v0', '--model', tmp_path / 'toy', '--set',
                 f'trainer.work_dir={tmp_path / "work"}', '--set', 'safety_filter.incidents=false', '--set',
                 f'safety_filter.audit_dir={tmp_path / "audit"}') as child:
        def passing():
            assert child.poll() is None, child.communicate()[0][-3000:]
            return sum(s.message == 'ok' for s in witness.states) > 15
        rig.wait_for(passing, 90.0, lambda: f'15 of {collections.Counter(s.message for s in witness.states)} passing')
        assert witness.call(rig, Trigger, 'sim_bridge/halt', Trigger.Request()).success
    pairs = [t for t in witness.ticks.values() if len(t) == 3]
    assert len(pairs) > 8 and any(not np.array_equal(t['vision'].data, t['vision_back'].data) for t in pairs)
