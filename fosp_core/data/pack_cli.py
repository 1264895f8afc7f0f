# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp pack`: bags to one flat folder that opens at once. For the command line alone."""

import argparse
import time
from pathlib import Path

from fosp_core.contract import Contract
from fosp_core.errors import FospError
from fosp_core.io import write_json
from fosp_core.paths import config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `fosp pack`."""
    parser.add_argument('sources', nargs='+', metavar='BAG', help='rosbag2, packed or .npz folders')
    parser.add_argument('--out', metavar='DIR', help='folder to make; it must not exist')
    parser.add_argument('--verify', action='store_true', help='read packed folders whole, compare with their hashes')
    parser.add_argument('--contract', help='contract YAML (default config/contract_safereach.yaml)')
    parser.add_argument('--json', metavar='PATH', help='write the figures as JSON; - for standard output alone')


def run(args: argparse.Namespace) -> int:
    """Pack, or verify."""
    from fosp_core.data.pack import INDEX, step_bytes, verify_pack, write_pack
    from fosp_core.data.sources import read_dataset
    contract = Contract.load(args.contract or config_file('contract_safereach.yaml'))
    if args.verify == bool(args.out):
        raise FospError('--out DIR to pack, or --verify to check packed folders: one of them is needed')
    began = time.monotonic()
    if args.verify:
        result = {path: verify_pack(path, contract) for path in args.sources}
        lines = [f'{path}: {n} episodes as packed' for path, n in result.items()]
    else:
        index = write_pack(args.out, contract, read_dataset(args.sources, contract))
        size = sum(f.stat().st_size for f in Path(args.out).iterdir())
        result = {'pack': args.out, 'episodes': len(index['episodes']), 'steps': index['steps'], 'bytes': size,
                  'raw_bytes': index['steps'] * step_bytes(contract), 'data_hash': index['data_hash'],
                  'contract_hash': index['contract_hash'], 'wall_s': time.monotonic() - began}
        lines = [f'{args.out}: {result["episodes"]} episodes, {result["steps"]} steps, {size / 1e6:.1f} MB, '
                 f'{INDEX} with data hash {index["data_hash"][:12]}']
    if args.json:
        write_json(args.json, result)
    if args.json != '-':
        print('\n'.join(lines))
    return 0
