# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp up`: the whole graph on this machine where `ros2 launch` is not installed. Used by the command line only."""

import argparse
import signal
import sys
import threading

import yaml

from fosp_core.errors import FospError
from fosp_ros import graph
from fosp_ros.output import Relay
from fosp_ros.runner import GraphRunner


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `fosp up`."""
    parser.add_argument('--task', default='',
                        help=f'task of the simulation: {", ".join((*graph.TASKS, *graph.GROUND_TASKS))}')
    parser.add_argument('--model', default='', metavar='DIR', help='model bundle; default: models/safereach')
    parser.add_argument('--params', default='', metavar='FILE', help='parameter file laid over config/*.yaml')
    parser.add_argument('--namespace', default=graph.NAMESPACE, help='namespace of all nodes (default: %(default)s)')
    parser.add_argument('--set', action='append', default=[], metavar='NODE.PARAM=VALUE', dest='settings',
                        help='one parameter, e.g. learner.explore=true; may be repeated')
    parser.add_argument('--no-sim', action='store_true', help='no simulation: camera and arm are started by you')
    parser.add_argument('--nodes', default='', metavar='NAME,...',
                        help=f'only these of {", ".join(graph.NODE_NAMES)}; the others run on another machine')
    parser.add_argument('--camera', default='', metavar='NAME',
                        help=f'with --no-sim, a camera node of ours: {", ".join(graph.CAMERAS)} (default: none)')
    parser.add_argument('--arm', default='', metavar='NAME',
                        help=f'with --no-sim, the topics of a driver: {", ".join(graph.ARMS)} (default: our names)')
    parser.add_argument('--topic', action='append', default=[], metavar='NAME=TOPIC', dest='topics',
                        help='with --no-sim, where a topic of the graph lies, e.g. ee_pose=/arm/current_pose')
    parser.add_argument('--use-sim-time', action='store_true', help='take data stamps from /clock')
    parser.add_argument('--domain-id', type=int, default=None, metavar='N', help='ROS_DOMAIN_ID of the nodes')
    parser.add_argument('--network', action='store_true',
                        help='leave discovery and Fast DDS as they are set, for nodes on several machines')


def parse_setting(text: str) -> tuple[str, str, object]:
    """Split `node.param=value`; the value is read as YAML, as ROS does."""
    name, equals, value = text.partition('=')
    node, dot, parameter = name.partition('.')
    if not (equals and dot and node and parameter):
        raise FospError(f'--set {text!r}: expected NODE.PARAM=VALUE')
    try:
        return node, parameter, yaml.safe_load(value) if value else ''
    except yaml.YAMLError:
        raise FospError(f'--set {text!r}: {value!r} is not a YAML value') from None


def parse_topic(text: str) -> tuple[str, str]:
    """Split `name=topic`."""
    name, _, topic = text.partition('=')
    if not name or not topic:
        raise FospError(f'--topic {text!r}: expected NAME=TOPIC')
    return name, topic


def run(args: argparse.Namespace) -> int:
    """Run the graph until SIGINT or SIGTERM (0) or until a node ends by itself (FospError naming it)."""
    options = graph.GraphOptions(
        namespace=args.namespace, model=args.model, params_file=args.params, task=args.task, sim=not args.no_sim,
        camera=args.camera, arm=args.arm, topics=tuple(parse_topic(text) for text in args.topics),
        use_sim_time=args.use_sim_time, nodes=graph.names(args.nodes),
        overrides=tuple(parse_setting(text) for text in args.settings))
    if args.domain_id is not None and not 0 <= args.domain_id <= 101:
        raise FospError(f'--domain-id {args.domain_id}: expected 0 to 101 (higher ports may be in use)')
    ended = threading.Event()
    old = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    runner = GraphRunner(graph.build(options), args.domain_id, lambda line: print(line, flush=True),
                         local=not args.network)
    relay = Relay()     # a pager at rest must not keep the nodes' lines, nor Ctrl-C, waiting
    try:
        runner.start()
        while not ended.wait(0.2):
            runner.check()
    finally:
        runner.stop()
        for number, handler in old.items():
            signal.signal(number, handler)
        relay.close()
    for name in runner.forced:
        sys.stderr.write(f'warning: node {name} did not end on SIGINT and was killed\n')
    return 1 if runner.forced else 0
