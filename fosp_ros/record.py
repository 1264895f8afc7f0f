# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp record`: the contract's topics of a live graph into a rosbag2 that `fosp pretrain` reads, with labels.

What arrives is paired to one record a picture by the code that the learner uses, and written as replay messages; the
messages themselves are kept beside them. Says at once, by topic, what is missing.
"""

import argparse
import contextlib
import importlib.util
import os
import signal
import sys
import threading
import time
from pathlib import Path

from fosp_core.contract import Contract
from fosp_core.data import live_bag
from fosp_core.errors import FospError
from fosp_core.io import write_json
from fosp_core.paths import config_file
from fosp_ros import graph
from fosp_ros.operator_labels import KEYS_TEXT, WORDS, Keyboard, parse_buttons

FIRST_LOOK_S = 1.2      # what has not been found by then is named; discovery on one machine takes half a second
LOOK_S = 0.25


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `fosp record`."""
    parser.add_argument('--out', type=Path, required=True, metavar='BAG', help='folder to make')
    parser.add_argument('--contract', type=Path, help='contract file; default: the one of SafeReach')
    parser.add_argument('--namespace', default=graph.NAMESPACE, metavar='NS',
                        help='of the relative topic names (default: %(default)s)')
    parser.add_argument('--label', default='topic', choices=('topic', 'joy', 'keyboard', 'none'),
                        help='where rewards, costs and episodes come from. topic: a label of the stamp of each picture '
                        "(simulation); joy: an operator's buttons on the label topic; keyboard: keys in this "
                        'terminal; none: one episode until the end (default: %(default)s)')
    parser.add_argument('--buttons', default='', metavar='WORD=N,...',
                        help=f'with --label joy: {", ".join(WORDS)} by button number, -1 for none '
                        '(default: start=0,stop=0,success=1,cost=2,discard=3)')
    parser.add_argument('--topic', action='append', default=[], metavar='NAME=TOPIC', dest='topics',
                        help='where a camera, a vector, `label` or `command` lies, e.g. image=/camera/image_raw')
    parser.add_argument('--best-effort', action='append', default=[], metavar='NAME',
                        help='take this reliable topic (label, command) from a best-effort publisher, too')
    parser.add_argument('--tolerance', type=float, default=0.05, metavar='S',
                        help='largest difference of stamps of picture and vector, seconds (default: %(default)s)')
    parser.add_argument('--no-raw', action='store_true', help='keep the records alone, not the messages as they came')
    parser.add_argument('--episodes', type=int, default=0, metavar='N', help='end after N episodes (0: on Ctrl-C)')
    parser.add_argument('--wait', type=float, default=10.0, metavar='S',
                        help='how long missing topics are waited for, seconds (default: %(default)s)')
    parser.add_argument('--report-every', type=float, default=5.0, metavar='S',
                        help='seconds between two lines of rates (default: %(default)s)')
    parser.add_argument('--network', action='store_true', help='leave discovery and Fast DDS as they are set')
    parser.add_argument('--json', metavar='PATH', help='write the figures as JSON; - for standard output alone')


def _names(args: argparse.Namespace, contract: Contract) -> dict[str, str]:
    """Return name -> topic of all that is recorded."""
    names = {c.name: c.topic for c in contract.cameras} | {v.name: v.topic for v in contract.vectors}
    names['command'] = 'command_out'
    if args.label in ('topic', 'joy'):
        names['label'] = contract.label_topic
    for text in args.topics:
        name, equals, topic = text.partition('=')
        if not equals or not topic or name not in names:
            raise FospError(f'--topic {text!r}: expected NAME=TOPIC with one of {", ".join(names)}')
        names[name] = topic
    for name in args.best_effort:
        if name not in ('command', 'label'):
            raise FospError(f'--best-effort {name!r}: expected command or label; the others are taken as they come')
    return names


def _check(args: argparse.Namespace) -> None:
    if importlib.util.find_spec('rclpy') is None:
        raise FospError('record: Python module rclpy is not installed here')
    for option, value, low, high in (('--wait', args.wait, 0, 3600), ('--report-every', args.report_every, 0.1, 3600),
                                     ('--tolerance', args.tolerance, 0, 1), ('--episodes', args.episodes, 0, 10**6)):
        if not low <= value <= high:
            raise FospError(f'{option} {value:g}: expected {low:g} to {high:g}')


def run(args: argparse.Namespace) -> int:
    """Record until SIGINT or SIGTERM, the key q, or `--episodes`; 0 when an episode was recorded, else 1."""
    _check(args)
    contract = Contract.load(args.contract or config_file('contract_safereach.yaml'))
    names, buttons = _names(args, contract), parse_buttons(args.buttons)
    live_bag.free(args.out)
    for key, value in graph.environment(not args.network).items():
        os.environ.setdefault(key, value)
    ended = threading.Event()
    out = sys.stderr if args.json == '-' else sys.stdout

    def say(line: str) -> None:
        print(line, file=out, flush=True)

    with contextlib.ExitStack() as stack:
        old = {n: signal.signal(n, lambda *_: ended.set()) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        stack.callback(lambda: [signal.signal(n, handler) for n, handler in old.items()])
        keyboard = stack.enter_context(Keyboard()) if args.label == 'keyboard' else None     # forks: before threads
        import rclpy
        from rclpy.signals import SignalHandlerOptions

        from fosp_ros.record_session import Session
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        stack.callback(rclpy.try_shutdown)
        session = stack.enter_context(Session(contract, args, names, buttons, say))
        _loop(session, args, ended, keyboard, say)
        figures = session.finish()
    for line in session.table():
        say(line)
    if args.json:
        write_json(args.json, figures)
    if not figures['episodes']:
        say(f'no episode was recorded; {args.out} was not made')
        return 1
    say(f'{args.out}: {figures["episodes"]} episodes, {figures["steps"]} steps; {figures["discarded"]} discarded')
    return 0


def _loop(session, args: argparse.Namespace, ended: threading.Event, keyboard: Keyboard | None, say) -> None:
    began = looked = time.monotonic()
    reported, told = began, None
    say(f'looking for {", ".join(t.topic for t in session.topics)}')
    while not ended.is_set():
        session.spin()
        for word in keyboard.words() if keyboard else ():
            if word == 'quit':
                return
            session.word(word)
        if session.full:
            return
        now = time.monotonic()
        if now - looked >= LOOK_S:
            looked = now
            problems = session.problems(now)
            if not session.ready and not problems:
                session.begin()
                say(f'recording to {session.folder}; Ctrl-C ends' + (f'\n{KEYS_TEXT}' if keyboard else ''))
                told, reported = (), now
            elif now - began >= FIRST_LOOK_S and [p.split(':')[0] for p in problems] != told:
                told = [p.split(':')[0] for p in problems]      # a line for each fault, not for each second of it
                for problem in problems:
                    say(f'{"warning" if session.ready else "missing"}: {problem}')
            if not session.ready and now - began > args.wait:
                raise FospError(f'nothing recorded: {"; ".join(problems)}')
        if session.ready and now - reported >= args.report_every:
            reported = now
            say(session.line(now))
