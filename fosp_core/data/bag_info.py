# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp bag-info`: what a bag holds, as the importer sees it. For the command line alone."""

import argparse
from pathlib import Path

from fosp_core.contract import Contract
from fosp_core.data import bag
from fosp_core.io import write_json
from fosp_core.paths import config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `fosp bag-info`."""
    parser.add_argument('bag', type=Path, help='rosbag2 folder, or a single .mcap or .db3 file')
    parser.add_argument('--contract', type=Path, help='contract file; default: the one of SafeReach')
    parser.add_argument('--namespace', help='where the replay topics lie, when the bag has them more than once')
    parser.add_argument('--json', metavar='PATH', help='write the figures as JSON; - for standard output alone')


def describe(path: Path, contract: Contract, namespace: str | None = None) -> dict:
    """Read a whole bag, one episode at a time, and return its figures; rates are fractions."""
    with bag.open_bag(path) as reader:
        topics = [{'topic': c.topic, 'type': c.msgtype, 'messages': c.msgcount} for c in reader.connections]
    report = bag.ImportReport()
    success = violation = 0
    policies: dict[str, int] = {}
    for episode in bag.read_episodes(path, contract, namespace, report):
        success += episode.success
        violation += episode.violation
        policy = str(episode.meta.get('policy', 'unknown'))
        policies[policy] = policies.get(policy, 0) + 1
    c = report.counts
    return {'bag': str(path), 'topics': topics, 'steps': c.steps, 'episodes': report.episodes,
            'sr': success / report.episodes, 'cv': violation / report.episodes, 'policies': policies,
            'lost': c.lost, 'doubled': c.doubled, 'reordered': c.reordered, 'mismatched': c.mismatched,
             'restarts': c.restarts, 'unseen': c.unseen, 'gaps': report.gaps,
             'single_steps': report.short, 'outside': report.outside, 'unseen_successes': report.unseen,
            'sources': {name: counts.to_dict() | {'text': counts.text()} for name, counts in report.topics.items()}}


def run(args: argparse.Namespace) -> int:
    """Print the figures."""
    contract = Contract.load(args.contract or config_file('contract_safereach.yaml'))
    info = describe(args.bag, contract, args.namespace)
    if args.json:
        write_json(args.json, info)
    if args.json == '-':
        return 0
    width = max(len(t['topic']) for t in info['topics'])
    for topic in info['topics']:
        print(f'{topic["topic"]:<{width}}  {topic["messages"]:>8}  {topic["type"]}')
    kinds = ', '.join(f'{n} {name}' for name, n in sorted(info['policies'].items()))
    print(f'steps {info["steps"]}, episodes {info["episodes"]} ({kinds})')
    print(f'SR {info["sr"]:.3f}, CV {info["cv"]:.3f} (fractions of episodes)')
    print(f'lost {info["lost"]} steps, doubled {info["doubled"]} messages, reordered {info["reordered"]}, '
          f'incomplete stamps {info["mismatched"]}, gaps {info["gaps"]}, restarts {info["restarts"]}, '
          f'steps before the first one seen {info["unseen"]}, '
          f'single steps dropped {info["single_steps"]}, records outside of episodes {info["outside"]}, '
          f'ranges with success whose end was not seen {info["unseen_successes"]}')
    for name, counts in info['sources'].items():
        print(f'{name}: {counts["text"]}')
    return 0
