# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp bench filter`: how long the safety filter takes for a tick, measured from outside while the graph runs.

A tick begins when the queue of the filter holds what it needs, picture and proposal, and ends when the command
is published; both by the times at which the middleware published them. So transport, queue, decoding, the model and the
decision are in it, and the learner's own time is not: that is in `from_picture_ms`.
"""

import argparse
import collections
import threading
import time
from pathlib import Path

from fosp_core.errors import FospError
from fosp_ros.bench_graph import add_common, stage

WARM_UP = 10        # ticks that are not counted
PATIENCE_S = 60.0   # for the start of the graph


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument('--model', default=None, help='bundle (default models/safereach)')
    parser.add_argument('--ticks', type=int, default=300, help='decisions to time, ten a second (default %(default)s)')
    parser.add_argument('--alone', action='store_true', help='the filter alone, fed by this process')
    add_common(parser)


class Stopwatch:
    """Listens to picture, proposal, command and state, and keeps the times of each stamp. Imports ROS."""

    def __init__(self, contract):
        from diagnostic_msgs.msg import DiagnosticStatus
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.node import Node
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import Image
        from std_srvs.srv import Trigger

        from fosp_ros import graph, qos
        from fosp_ros.messages import message_class
        self.node = Node('stopwatch', namespace=graph.NAMESPACE)
        self.times: dict[int, dict[str, int]] = {}
        self.reasons: collections.Counter[str] = collections.Counter()
        self.candidates: list[int] = []
        self.ticks: list[int] = []          # stamps of the ticks that count
        self.version, self._trigger, self._asked = '', Trigger, 0.0
        command = message_class(contract.action.type)
        deep = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
        for kind, topic, name, profile in (('picture', Image, contract.cameras[0].topic, qos.IMAGE),
                                           ('proposal', command, 'command_in', deep),
                                           ('command', command, 'command_out', deep)):
            self.node.create_subscription(topic, name, lambda m, info, k=kind: self._note(k, m, info), profile)
        self.node.create_subscription(DiagnosticStatus, 'safety_filter/state', self._on_state, deep)
        self._reset = self.node.create_client(Trigger, 'safety_filter/reset')
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while not self._end.is_set():
            self._executor.spin_once(timeout_sec=0.1)

    def _note(self, kind: str, message, info: dict) -> None:
        stamp = message.header.stamp
        self.times.setdefault(stamp.sec * 1_000_000_000 + stamp.nanosec, {})[kind] = info['source_timestamp']

    def _on_state(self, message) -> None:
        from fosp_ros.diagnostics import values_of
        values = values_of(message)
        self.version = values['version']
        if values['stamp'].isdecimal():         # the watchdog's stop answers no picture
            self.ticks.append(int(values['stamp']))
            if len(self.ticks) > WARM_UP:
                self.reasons[message.message] += 1
                self.candidates.append(int(values['candidates']))
        if values['latched'] and time.monotonic() > self._asked + 1.0 and self._reset.service_is_ready():
            self._asked = time.monotonic()      # as an operator does between two episodes
            self._reset.call_async(self._trigger.Request())

    def result(self, count: int) -> dict:
        """Return the percentiles over `count` ticks after the warm-up, ms."""
        import numpy as np
        ticks = [self.times[s] for s in self.ticks[WARM_UP:WARM_UP + count] if 'command' in self.times.get(s, {})]
        full = [t for t in ticks if 'picture' in t and 'proposal' in t]
        if not full:
            raise FospError('bench filter: no picture was answered on a proposal')

        def spread(values) -> dict[str, float]:
            return {'p50': float(np.percentile(values, 50)), 'p99': float(np.percentile(values, 99)),
                    'max': float(np.max(values))}
        return {'latency_ms': spread([1e-6 * (t['command'] - max(t['picture'], t['proposal'])) for t in full]),
                'from_picture_ms': spread([1e-6 * (t['command'] - t['picture']) for t in full]),
                'candidates': max(self.candidates, default=0), 'ticks': len(full),
                'without_proposal': sum('proposal' not in t for t in ticks), 'reasons': dict(self.reasons)}

    def close(self) -> None:
        """End the thread and the node."""
        self._end.set()
        self._thread.join(2.0)
        self._executor.shutdown()
        self.node.destroy_node()


class Feeder:
    """Camera, arm and learner in one thread at the control rate: random pictures, an arm that goes to and fro."""

    def __init__(self, node, contract):
        import numpy as np
        from sensor_msgs.msg import Image, JointState, Joy

        from fosp_ros import qos
        from fosp_ros.messages import message_class
        self._contract, self._rng, self._count = contract, np.random.default_rng(0), 0
        self._joints = JointState
        specs = [('label', Joy, contract.label_topic, qos.LABEL), ('joints', JointState, 'joint_states', qos.STATE)]
        specs += [(v.name, message_class(v.type), v.topic, qos.STATE) for v in contract.vectors]
        specs += [(c.name, Image, c.topic, qos.IMAGE) for c in contract.cameras]
        specs += [('action', message_class(contract.action.type), 'command_in', qos.COMMAND)]
        self._out = [(name, kind, node.create_publisher(kind, topic, profile)) for name, kind, topic, profile in specs]
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._end.wait(max(0.0, due - time.monotonic())):
            due += self._contract.period
            self._tick()

    def _tick(self) -> None:
        import numpy as np

        from fosp_core.data import messages
        from fosp_core.data.joiner import Label
        from fosp_ros.filter_parameters import JOINTS
        contract, stamp, phase = self._contract, time.time_ns(), 0.2 * self._count
        values = {'label': Label(0.0, 0.0, self._count == 0, False, False, self._count),
                  'action': np.array([0.0, 0.2 * np.cos(phase), *[0.0] * contract.action.size], np.float32)[
                      :contract.action.size]}
        values |= {v.name: np.array([0.5, 0.02 * np.sin(phase), 0.2, *[0.0] * v.size], np.float32)[:v.size]
                   for v in contract.vectors}
        values |= {c.name: self._rng.integers(0, 256, c.shape, np.uint8) for c in contract.cameras}
        self._count += 1
        for name, kind, publisher in self._out:
            if name == 'joints':
                message = self._joints(name=JOINTS, position=[0.0, -0.785, 0.0, -2.356, 0.0, 1.571, 0.785],
                                       velocity=[0.0] * 7)
                message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 1_000_000_000)
            else:
                message = messages.fill(contract, name, kind(), stamp, values[name])
            publisher.publish(message)

    def close(self) -> None:
        """End the thread."""
        self._end.set()
        self._thread.join(2.0)


def measure(args: argparse.Namespace, work: Path) -> dict:
    """Start the processes, count ticks, stop the processes."""
    import rclpy

    from fosp_core.deploy.bundle import Bundle
    from fosp_core.paths import share_dir
    from fosp_ros import graph
    from fosp_ros.runner import GraphRunner
    bundle = Bundle.open(args.model or share_dir() / 'models' / 'safereach', None, True)
    specs = graph.build(graph.GraphOptions(model=str(bundle.path), sim=not args.alone, overrides=(
        ('sim_bridge', 'episodes', 100_000), *graph.folders(work))))
    specs = [spec for spec in specs if not args.alone or spec.name == 'safety_filter']
    runner, feeder = GraphRunner(specs), None
    rclpy.init(args=[])
    watch = Stopwatch(bundle.contract)
    try:
        runner.start()
        if args.alone:
            feeder = Feeder(watch.node, bundle.contract)
        end = time.monotonic() + PATIENCE_S + 2.0 * args.ticks * bundle.contract.period
        while len(watch.ticks) < WARM_UP + args.ticks:
            runner.check()
            if time.monotonic() > end:
                raise FospError(f'bench filter: {len(watch.ticks)} ticks came in time, expected '
                                f'{WARM_UP + args.ticks}')
            time.sleep(0.1)
        time.sleep(0.3)     # the last messages
        return {'model': watch.version, 'graph': 'alone' if args.alone else 'whole', **watch.result(args.ticks)}
    finally:
        if feeder is not None:
            feeder.close()
        runner.stop()
        watch.close()
        rclpy.try_shutdown()


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from fosp_core.io import write_json
    if args.ticks < 1:
        raise FospError(f'--ticks {args.ticks}: expected at least 1')
    with stage(args.cores) as (folder, cores):
        result = {**measure(args, folder), 'cores': cores}
    if args.json:
        write_json(args.json, result)
    if args.json != '-':
        spent, whole = result['latency_ms'], result['from_picture_ms']
        print(f'filter {result["graph"]}, {result["ticks"]} ticks of {result["candidates"]} candidates on '
              f'{result["cores"]} cores: p50 {spent["p50"]:.1f} ms, p99 {spent["p99"]:.1f} ms; from the picture on '
              f'p50 {whole["p50"]:.1f} ms, p99 {whole["p99"]:.1f} ms')
    return 0
