# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp play BAG`: a bag's replay records onto the live replay topics, so that a trainer gets them as from a robot.

The messages of a bag go out byte for byte as they were recorded, as `ros2 bag play` sends them; those of a folder of
episodes are made by the code that the learner uses. The whole input is read and checked before the first one goes out.
"""

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fosp_core.contract import Contract
from fosp_core.data import messages
from fosp_core.data.joiner import ACTION, LABEL, Label
from fosp_core.data.pack import is_pack
from fosp_core.errors import FospError
from fosp_core.formats.detect import format_of
from fosp_core.paths import config_file
from fosp_ros import graph

LONGEST_PAUSE_S = 1.0   # between two records: what was recorded days apart is not waited for
MATCHING_S = 0.5        # a publisher that sees its subscriber is not yet seen by it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `fosp play`."""
    parser.add_argument('bag', type=Path, help='rosbag2 folder or file, packed folder, or folder of .npz episodes')
    parser.add_argument('--rate', type=float, default=1.0, metavar='R', help='times as fast (default: %(default)s)')
    parser.add_argument('--namespace', default=graph.NAMESPACE, metavar='NS',
                        help='where the trainer listens (default: %(default)s)')
    parser.add_argument('--from-namespace', default=None, metavar='NS',
                        help='where the replay topics lie in the bag, when it has them more than once')
    parser.add_argument('--contract', type=Path, help='contract file; default: the one of SafeReach')
    parser.add_argument('--wait', type=float, default=10.0, metavar='S',
                        help='how long a trainer is waited for, seconds (default: %(default)s)')
    parser.add_argument('--network', action='store_true',
                        help='leave discovery and Fast DDS as they are set, for a trainer on another machine')


def is_bag(path: Path) -> bool:
    """Tell a bag from a folder of episodes, as `read_dataset` does."""
    return not is_pack(path) and not (path.is_dir() and any(path.glob('*.npz'))) and format_of(path) is None


def examine(path: Path, contract: Contract, namespace: str | None) -> tuple[int, int]:
    """Read all of it; return (steps, episodes) or raise DataError or ContractError, naming what is wrong."""
    from fosp_core.data.bag import read_episodes
    from fosp_core.data.sources import read_dataset
    source = read_episodes([path], contract, namespace) if is_bag(path) else read_dataset([path], contract)
    lengths = [len(episode) for episode in source]
    return sum(lengths), len(lengths)


def recorded(path: Path, contract: Contract, namespace: str | None = None) -> Iterator[tuple[int, str, bytes]]:
    """Yield (received, ns; kind; serialised message) of each replay message of a bag, in its order."""
    from fosp_core.data.bag import find_topics, open_bag, stored_messages
    with open_bag(path) as reader:
        of = {topic: kind for kind, topic in find_topics(path, reader, contract, namespace).items()}
        wanted = [c for c in reader.connections if c.topic in of]
        for connection, received, raw in stored_messages(path, reader, wanted):
            yield received, of[connection.topic], bytes(raw)


def made(path: Path, contract: Contract) -> Iterator[tuple[int, str, object]]:
    """Yield (stamp, ns; kind; message) of each record of a folder of episodes. Imports ROS messages."""
    from fosp_core.data.sources import read_dataset
    from fosp_ros.messages import message_class
    kinds = {kind: message_class(name) for kind, name in messages.types(contract).items()}
    for episode in read_dataset([path], contract):
        series = {**episode.images, **episode.vectors, ACTION: episode.action}
        for t, stamp in enumerate(episode.stamp.tolist()):
            label = Label(episode.reward[t], episode.cost[t], episode.is_first[t], episode.is_last[t],
                          episode.is_terminal[t], episode.step[t])
            for kind, cls in kinds.items():
                value = label if kind == LABEL else series[kind][t]
                yield stamp, kind, messages.fill(contract, kind, cls(), stamp, value)


class Player:
    """Publishers of the replay topics in a node of their own; `play` sends at the pace of the stamps."""

    def __init__(self, contract: Contract, namespace: str):
        from rclpy.node import Node

        from fosp_ros import qos
        from fosp_ros.messages import message_class
        self.node = Node('fosp_play', namespace=namespace, enable_rosout=False)
        self.out = {kind: self.node.create_publisher(message_class(name), messages.topic(kind), qos.REPLAY)
                    for kind, name in messages.types(contract).items()}

    def match(self, timeout: float) -> None:
        """Wait for a listener on every topic; raise FospError naming a topic without one."""
        end = time.monotonic() + timeout
        while deaf := [p.topic_name for p in self.out.values() if not p.get_subscription_count()]:
            if time.monotonic() > end:
                raise FospError(f'nobody listens to {deaf[0]} after {timeout:g} s: start the trainer, or see '
                                '--namespace')
            time.sleep(0.05)
        time.sleep(MATCHING_S)

    def rivals(self) -> list[str]:
        """Topics on which somebody else publishes too."""
        return [p.topic_name for p in self.out.values() if self.node.count_publishers(p.topic_name) > 1]

    def play(self, stream: Iterator[tuple[int, str, object]], rate: float) -> int:
        """Publish everything, `rate` times as fast as it was recorded; return the number of messages."""
        from rclpy.duration import Duration
        before, due, count = None, time.monotonic(), 0
        for at, kind, message in stream:
            if before is not None and at > before:
                due += min((at - before) * 1e-9, LONGEST_PAUSE_S) / rate
                late = time.monotonic() - due
                if late < 0:
                    time.sleep(-late)
                else:
                    due += late     # no burst to catch up: it would overrun the queue
            before = at
            self.out[kind].publish(message)
            count += 1
        for publisher in self.out.values():     # what is not acknowledged dies with this process
            if not publisher.wait_for_all_acked(Duration(seconds=10.0)):
                raise FospError(f'{publisher.topic_name}: the last messages were not taken within 10 s')
        return count


def run(args: argparse.Namespace) -> int:
    """Check the input, wait for the trainer, publish."""
    if importlib.util.find_spec('rclpy') is None:
        raise FospError('play: Python module rclpy is not installed here')
    if not 0.01 <= args.rate <= 100.0 or not 0.0 <= args.wait <= 3600.0:
        raise FospError(f'--rate {args.rate} --wait {args.wait}: expected 0.01 to 100 and 0 to 3600')
    contract = Contract.load(args.contract or config_file('contract_safereach.yaml'))
    steps, episodes = examine(args.bag, contract, args.from_namespace)
    for key, value in graph.environment(not args.network).items():
        os.environ.setdefault(key, value)
    import rclpy
    rclpy.init(args=[])
    player = Player(contract, args.namespace)
    try:
        player.match(args.wait)
        if rivals := player.rivals():
            sys.stderr.write(f'warning: {rivals[0]} has another publisher: its steps and these will mix\n')
        began = time.monotonic()
        stream = recorded(args.bag, contract, args.from_namespace) if is_bag(args.bag) else made(args.bag, contract)
        count = player.play(stream, args.rate)
        print(f'{args.bag}: {steps} steps of {episodes} episodes, {count} messages in {time.monotonic() - began:.1f} s')
    finally:
        player.node.destroy_node()
        rclpy.try_shutdown()
    return 0
