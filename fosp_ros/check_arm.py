# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp check-arm`: does an arm driver do what is commanded, and does it halt by itself when the commands end?

The safety filter can stop the arm by a command, but not when its own computer, or the network, is what died. So a
driver has to halt within 200 ms of the last command. Only a measurement shows that it does: small motions, then
silence.
"""

import argparse
import importlib.util
import math
import os
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fosp_core.contract import Contract
from fosp_core.data import messages
from fosp_core.errors import FospError
from fosp_core.io import write_json
from fosp_core.paths import config_file
from fosp_ros import graph

LIMIT_S = 0.2
REST_S, AFTER_S = 0.6, 1.5      # at rest before the first motion; watched after the last command of each
BLIND_S = 0.3       # without a new pose nothing is commanded, and nothing is judged
GLANCE_S = 0.02     # served at least in each period: a process that was held up finds its poses waiting
AXES = 'xyz'


class Stop(NamedTuple):
    """One motion: seconds and metres from the last command to the standstill; speed before it, m/s."""

    seconds: float
    metres: float
    speed: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `fosp check-arm`."""
    parser.add_argument('--move', action='store_true',
                        help='really move the arm; without it only topics are looked at')
    parser.add_argument('--contract', type=Path, help='contract file; default: the one of SafeReach')
    parser.add_argument('--namespace', default=graph.NAMESPACE, metavar='NS',
                        help='of the relative topic names (default: %(default)s)')
    parser.add_argument('--arm', default='', metavar='NAME', help=f'topics of a driver: {", ".join(graph.ARMS)}')
    parser.add_argument('--topic', action='append', default=[], metavar='NAME=TOPIC', dest='topics',
                        help='where command_out or ee_pose lies; may be repeated')
    parser.add_argument('--axis', default='z', choices=AXES, help='of the base frame (default: %(default)s)')
    parser.add_argument('--speed', type=float, default=0.02, metavar='V', help='m/s (default: %(default)s)')
    parser.add_argument('--seconds', type=float, default=1.0, metavar='S', help='of each motion (default: %(default)s)')
    parser.add_argument('--trials', type=int, default=4, metavar='N',
                        help='motions, to and fro; every other one ends with a zero command (default: %(default)s)')
    parser.add_argument('--age', type=float, default=0.05, metavar='S',
                        help='age of the stamps: the filter stamps with the time of the picture (default: %(default)s)')
    parser.add_argument('--limit', type=float, default=LIMIT_S, metavar='S',
                        help='longest time to standstill, seconds (default: %(default)s)')
    parser.add_argument('--wait', type=float, default=10.0, metavar='S', help='for driver and pose, seconds')
    parser.add_argument('--network', action='store_true', help='leave discovery and Fast DDS as they are set')
    parser.add_argument('--json', metavar='PATH', help='write the figures as JSON; - for standard output alone')


def stop_of(samples: Sequence[tuple[float, float]], last: float, noise: float) -> Stop:
    """Return how a motion ended.

    Parameters
    ----------
    samples
        (time, position along the axis) in s and m, from before the motion to the standstill.
    last
        Time of the last command.
    noise
        Largest deviation of the position at rest, m.

    """
    times, places = np.array(samples).T
    moving = (times > last - 0.4) & (times <= last)
    if moving.sum() < 2:
        raise FospError(f'{int(moving.sum())} poses in the last 0.4 s of a motion; its driver must publish the pose '
                        'at the control rate at least')
    speed = float(np.polyfit(times[moving], places[moving], 1)[0])
    end = float(np.median(places[times > times[-1] - 0.3]))
    # Within a hundredth of a second's way of where it comes to rest, or what cannot be told from rest.
    away = np.abs(places - end) > max(3.0 * noise, 0.01 * abs(speed))
    later = np.flatnonzero(away & (times > last))
    stood = times[min(later[-1] + 1, len(times) - 1)] if later.size else last
    return Stop(float(stood - last), float(end - np.interp(last, times, places)), speed)


class Checker:
    """Publisher of commands and ear for poses, in a node of its own."""

    def __init__(self, contract: Contract, args):
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.node import Node

        from fosp_ros import qos
        from fosp_ros.messages import message_class
        self.contract, self.args = contract, args
        self._vector = next((v for v in contract.vectors if any(f.endswith(f'position.{args.axis}') for f in v.fields)),
                            None)
        if self._vector is None:
            raise FospError(f'contract {contract.name!r}: no vector with position.{args.axis}: nothing to measure with')
        self._field = next(i for i, f in enumerate(self._vector.fields) if f.endswith(f'position.{args.axis}'))
        named = [i for i, f in enumerate(contract.action.fields) if f.endswith(f'linear.{args.axis}')]
        if not named:
            raise FospError(f'contract {contract.name!r}: no action linear.{args.axis}')
        self._action = named[0]
        topics = {'command_out': 'command_out', self._vector.name: self._vector.topic}
        topics |= {k: v for k, v in graph.ARMS.get(args.arm, {}).items() if k in topics}
        for text in args.topics:
            name, _, topic = text.partition('=')
            if name not in topics or not topic:
                raise FospError(f'--topic {text!r}: expected NAME=TOPIC with one of {", ".join(topics)}')
            topics[name] = topic
        self.node = Node('fosp_check_arm', namespace=args.namespace, enable_rosout=False)
        kind = message_class(contract.action.type)
        self._empty = kind
        target = topics['command_out']
        self._heard: list[tuple[float, float, float]] = []      # stamp, reception, position
        self._advanced = time.monotonic()       # when a pose last said something new
        self._unusable = ''     # the newest one that holds no number
        self.frame = ''
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._pose = self.node.create_subscription(message_class(self._vector.type), topics[self._vector.name],
                                                   self._on_pose, qos.ANY)
        self._out = self.node.create_publisher(kind, target, qos.COMMAND) if args.move else None
        self._name = self.node.resolve_topic_name(target)

    def close(self) -> None:
        """Command a standstill, then go."""
        if self._out is not None:
            self._send(0.0)
            time.sleep(0.05)
        self._executor.shutdown(timeout_sec=1.0)
        self.node.destroy_node()

    def look(self) -> dict:
        """Wait for driver and pose; return what was found, or raise FospError naming what is missing."""
        end = time.monotonic() + self.args.wait
        while True:
            self._spin(0.2)
            others = [i.node_name for i in self.node.get_publishers_info_by_topic(self._name)
                      if i.node_name != self.node.get_name()]
            ears = self.node.get_subscriptions_info_by_topic(self._name)
            if others:
                raise FospError(f'{self._name}: {", ".join(sorted(others))} publishes there; stop the graph first')
            missing = [] if ears else [f'{self._name}: nobody listens: is the arm driver running?']
            if wrong := sorted({i.topic_type for i in ears} - {self.contract.action.type}):
                missing.append(f'{self._name}: the listener wants {wrong[0]}, expected {self.contract.action.type}')
            if len(self._heard) < 10:
                missing.append(f'{self._pose.topic_name}: {len(self._heard)} poses so far{self._unusable}')
            if not missing:
                break
            if time.monotonic() > end:
                raise FospError('; '.join(missing))
        if self.frame != self._vector.frame:
            raise FospError(f'{self._pose.topic_name}: frame {self.frame!r}, expected {self._vector.frame!r}')
        return {'listeners': sorted({i.node_name for i in ears}), 'pose_hz': round(1.0 / self.interval, 2)}

    @property
    def samples(self) -> list[tuple[float, float]]:
        """Time (s) and position (m) of each pose: its stamp, later by the shortest way to us.

        So neither a late delivery counts as motion, nor does a clock that is not ours; what all poses have in common of
        their way counts against the driver.
        """
        way = min((received - stamp for stamp, received, _ in self._heard), default=0.0)
        return [(stamp + way, place) for stamp, _, place in self._heard]

    @property
    def interval(self) -> float:
        """Median time between two poses, s: no time below it can be told."""
        return statistics.median(np.diff([t for t, _ in self.samples[-50:]]))

    def rest(self) -> float:
        """Return the noise of the position at rest, m; raise FospError when the arm moves by itself."""
        began = time.time()
        self._spin(REST_S)
        self._watch()
        places = [p for t, p in self.samples if t >= began]
        noise = float(np.ptp(places)) if len(places) > 1 else 0.0
        if noise > 0.2 * self.args.speed * REST_S:
            raise FospError(f'{self._pose.topic_name}: the arm moved {1e3 * noise:.1f} mm within {REST_S:g} s without '
                            'a command')
        return noise

    def motion(self, sign: float, silent: bool, noise: float) -> Stop:
        """Move, end it by silence or by a zero command, and measure the standstill."""
        args, since = self.args, time.time()
        start, last = self._heard[-1][2], since
        began = due = time.monotonic()
        self._watch()
        while time.monotonic() - began < args.seconds:
            last = self._send(sign * args.speed)
            due += self.contract.period
            self._spin(max(GLANCE_S, due - time.monotonic()))
            self._watch()
            way, longest = self._heard[-1][2] - start, args.speed * (time.monotonic() - began)
            if abs(way) > 2.0 * longest + 0.01 or sign * way < -0.25 * longest - 0.005:
                self._send(0.0)
                raise FospError(f'commanded {sign * args.speed:+.3f} m/s along {args.axis}, but it went '
                                f'{1e3 * way:+.0f} mm in {time.monotonic() - began:.1f} s: units, frame or sign are '
                                'wrong; stopped')
        if not silent:
            last = self._send(0.0)
        self._spin(AFTER_S)
        self._watch()       # poses that ended with the commands would look like a standstill
        return stop_of([s for s in self.samples if s[0] >= since - 0.2], last, noise)

    def _watch(self) -> None:
        """Command a standstill and raise FospError when the newest pose is too old, by arrival or by its stamp."""
        # A pose whose stamp does not advance was not kept; what came late counts from its stamp on.
        age = max(time.time() - self.samples[-1][0], time.monotonic() - self._advanced)
        if age > BLIND_S:
            self._send(0.0)
            raise FospError(f'{self._pose.topic_name}: no new pose for {age:.2f} s{self._unusable}, expected one every '
                            f'{BLIND_S:g} s: the arm would be driven blind; stopped')

    def _send(self, speed: float) -> float:
        command = np.zeros(self.contract.action.size)
        command[self._action] = speed
        now = time.time_ns()
        self._out.publish(messages.fill(self.contract, 'action', self._empty(), now - round(1e9 * self.args.age),
                                        self.contract.action.normalise(command)))
        return 1e-9 * now

    def _spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left)

    def _on_pose(self, message, info: dict) -> None:
        self.frame = message.header.frame_id
        at = int(info.get('received_timestamp') or 0) or time.time_ns()
        stamp = messages.stamp_ns(message)
        place = messages.get_field(message, self._vector.fields[self._field])
        if not math.isfinite(place):
            self._unusable = f', the newest says {place}'
        elif not self._heard or 1e-9 * stamp > self._heard[-1][0]:     # a pose of the same time says nothing new
            self._heard.append((1e-9 * stamp, 1e-9 * at, place))
            self._advanced, self._unusable = time.monotonic(), ''


def run(args: argparse.Namespace) -> int:
    """Look, move if told to, judge: 0 when every stop is short enough, else 1."""
    if importlib.util.find_spec('rclpy') is None:
        raise FospError('check-arm: Python module rclpy is not installed here')
    for option, value, low, high in (
            ('--speed', args.speed, 0.005, 0.1), ('--seconds', args.seconds, 0.5, 5.0),
            ('--trials', args.trials, 1, 20), ('--age', args.age, 0.0, 1.0), ('--limit', args.limit, 0.02, 5.0),
            ('--wait', args.wait, 0.0, 3600.0)):
        if not low <= value <= high:
            raise FospError(f'{option} {value:g}: expected {low:g} to {high:g}')
    if args.arm and args.arm not in graph.ARMS:
        raise FospError(f'--arm {args.arm}: expected one of {", ".join(graph.ARMS)}')
    contract = Contract.load(args.contract or config_file('contract_safereach.yaml'))
    for key, value in graph.environment(not args.network).items():
        os.environ.setdefault(key, value)
    import rclpy
    from rclpy.signals import SignalHandlerOptions
    out = sys.stderr if args.json == '-' else sys.stdout
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    checker = None
    # Both end the motion with a zero command: the handlers of rclpy would take the publisher away first.
    old = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        checker = Checker(contract, args)
        found = checker.look()
        print(f'listening: {", ".join(found["listeners"])}; poses at {found["pose_hz"]:g} Hz', file=out, flush=True)
        if not args.move:
            print(f'{args.trials} motions of {args.speed * args.seconds * 1e3:.0f} mm along {args.axis} would follow; '
                  'clear the way, hold the emergency stop, and add --move', file=out)
            if args.json:
                write_json(args.json, found)
            return 0
        noise = checker.rest()
        stops = []
        for i in range(args.trials):
            silent = i % 2 == 0
            stop = checker.motion(1.0 if i % 2 == 0 else -1.0, silent, noise)
            stops.append((silent, stop))
            print(f'{"silence" if silent else "zero   "}: at {stop.speed:+.4f} m/s, standstill after '
                  f'{stop.seconds:.3f} s and {1e3 * abs(stop.metres):.1f} mm', file=out, flush=True)
        resolution = checker.interval
    finally:
        if checker is not None:
            checker.close()
        rclpy.try_shutdown()
        signal.signal(signal.SIGTERM, old)
    return _judge(args, found, noise, stops, resolution, out)


def _judge(args, found: dict, noise: float, stops: list[tuple[bool, Stop]], resolution: float, out) -> int:
    worst = max(stop.seconds for silent, stop in stops if silent)
    ratio = statistics.median(abs(stop.speed) for _, stop in stops) / args.speed
    follows, halts = 0.7 <= ratio <= 1.3, worst <= args.limit + resolution
    print(f'commanded {args.speed:g} m/s, measured {ratio * args.speed:.4f} m/s: {"ok" if follows else "NOT followed"}',
          file=out)
    print(f'silence: standstill after {worst:.3f} s at most (told to {resolution:.3f} s), limit {args.limit:g} s: '
          f'{"ok" if halts else "TOO LATE: the driver has no command timeout, or one that is too long"}', file=out)
    if args.json:
        write_json(args.json, {
            **found, 'speed_ratio': ratio, 'noise_m': noise, 'resolution_s': resolution, 'limit_s': args.limit,
            'silence_s': [s.seconds for silent, s in stops if silent], 'silence_worst_s': worst,
            'zero_s': [s.seconds for silent, s in stops if not silent], 'follows': follows, 'halts': halts})
    return 0 if follows and halts else 1
