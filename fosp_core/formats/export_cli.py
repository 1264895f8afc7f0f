# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp export`: a data set in the layout of another project. For the command line alone."""

import argparse
import time
from pathlib import Path

from fosp_core.contract import Contract
from fosp_core.formats.detect import FORMATS
from fosp_core.io import write_json
from fosp_core.paths import config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `fosp export`."""
    parser.add_argument('sources', nargs='+', metavar='DATASET', help='bags, packed folders, folders of .npz, others')
    parser.add_argument('--format', required=True, choices=FORMATS,
                        help='hdf5: flat transitions with costs, as DSRL; minari; lerobot (v3.0)')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder to make; it must not exist')
    parser.add_argument('--contract', type=Path, help='contract file; default: the one of SafeReach')
    parser.add_argument('--json', metavar='PATH', help='write the figures as JSON; - for standard output alone')


def run(args: argparse.Namespace) -> int:
    """Read, write, print."""
    from fosp_core.data.sources import read_dataset
    from fosp_core.formats.detect import write
    contract = Contract.load(args.contract or config_file('contract_safereach.yaml'))
    return report(args, time.monotonic(), write(args.out, contract, read_dataset(args.sources, contract), args.format))


def report(args: argparse.Namespace, began: float, counts: dict) -> int:
    """Print what was written, as text or JSON."""
    size = sum(f.stat().st_size for f in Path(args.out).rglob('*') if f.is_file())
    result = {'out': args.out, **counts, 'bytes': size, 'wall_s': time.monotonic() - began}
    if args.json:
        write_json(args.json, result)
    if args.json != '-':
        print(f'{args.out}: {result["episodes"]} episodes, {result["steps"]} records, {size / 1e6:.1f} MB')
    return 0
