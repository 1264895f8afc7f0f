# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp import`: a data set of another project as a packed folder or a bag. For the command line alone."""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from fosp_core.contract import Contract
from fosp_core.data.episode import Episode
from fosp_core.errors import DataError, FospError
from fosp_core.formats.detect import FORMATS, Options
from fosp_core.formats.export_cli import report
from fosp_core.paths import config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `fosp import`."""
    parser.add_argument('source', metavar='DATASET', type=Path, help='HDF5 file, Minari or LeRobot folder')
    parser.add_argument('--format', choices=FORMATS, help='default: as found')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder to make; it must not exist')
    parser.add_argument('--to', choices=('pack', 'bag'), default='pack', help='packed folder, or rosbag2 (mcap)')
    parser.add_argument('--contract', type=Path, help='contract file; default: the one of SafeReach')
    parser.add_argument('--map', action='append', default=[], metavar='NAME=KEY',
                        help='observation NAME of the contract is KEY there, or KEY[a:b]; may be repeated')
    parser.add_argument('--actions', choices=('normalised', 'unit'),
                        help="actions are in -1 to 1, or in the contract's unit; default: as the data set says")
    parser.add_argument('--zero', action='append', default=[], choices=('reward', 'cost'),
                        help='take it as zero when the data set has none; may be repeated')
    parser.add_argument('--json', metavar='PATH', help='write the figures as JSON; - for standard output alone')


def run(args: argparse.Namespace) -> int:
    """Read, write, print."""
    from fosp_core.formats.detect import format_of, read
    contract = Contract.load(args.contract or config_file('contract_safereach.yaml'))
    if not args.source.exists():
        raise DataError(f'{args.source}: no such data set')
    name = args.format or format_of(args.source)
    if name is None:
        raise DataError(f'{args.source}: neither an HDF5 file nor a Minari or LeRobot folder (bags and packed folders '
                        'need no import)')
    keys = dict(_pair(text, contract) for text in args.map)
    episodes = read(args.source, contract, Options(keys, args.actions, tuple(args.zero)), name)
    began = time.monotonic()
    if args.to == 'pack':
        from fosp_core.data.pack import write_pack
        index = write_pack(args.out, contract, episodes)
        counts = {'episodes': len(index['episodes']), 'steps': index['steps'], 'data_hash': index['data_hash']}
    else:
        counts = _write_bag(args.out, contract, episodes)
    return report(args, began, {'format': name, **counts})


def _write_bag(path: str, contract: Contract, episodes: Iterator[Episode]) -> dict:
    from fosp_core.data.bag import BagWriter
    count = steps = 0
    with BagWriter(path, contract) as writer:
        for episode in episodes:
            writer.add(episode)
            count, steps = count + 1, steps + len(episode)
    return {'episodes': count, 'steps': steps}


def _pair(text: str, contract: Contract) -> tuple[str, str]:
    name, _, key = text.partition('=')
    if name not in contract.observation_names or not key:
        raise FospError(f'--map {text}: expected NAME=KEY with NAME one of {", ".join(contract.observation_names)}')
    return name, key
