# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp bundle verify DIR`: is this model whole, calibrated, and made for this robot? Imported by the CLI alone."""

import argparse

from fosp_core.contract import Contract
from fosp_core.deploy.bundle import Bundle
from fosp_core.io import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `fosp bundle`."""
    parser.add_argument('action', choices=('verify',), help='verify: check hashes, schema, contract and calibration')
    parser.add_argument('dir', help='bundle directory, or a folder with `current` or one bundle in it')
    parser.add_argument('--contract', help='contract YAML that the bundle must have been made for')
    parser.add_argument('--allow-uncalibrated', action='store_true', help='do not demand a calibration')
    parser.add_argument('--json', metavar='PATH', help='also write the result as JSON (- for standard output alone)')


def run(args: argparse.Namespace) -> int:
    """Verify the bundle and say what it is; a fault is raised as BundleError."""
    contract = Contract.load(args.contract) if args.contract else None
    bundle = Bundle.open(args.dir, contract, calibrated=not args.allow_uncalibrated)
    reach = bundle.calibration.get('reachability') or {}
    result = {'path': str(bundle.path), 'name': bundle.name, 'version': bundle.version, 'sha256': bundle.sha256,
              'contract': bundle.contract.name, 'contract_hash': bundle.contract.hash,
              'created': bundle.manifest['created'], 'parent': bundle.manifest['parent'],
              'steps': bundle.manifest['steps'],
              'bytes': sum(record['size'] for record in bundle.manifest['files'].values()),
              'reachability': reach, 'surprise': bundle.calibration.get('surprise') or {}}
    if args.json:
        write_json(args.json, result)
        if args.json == '-':
            return 0
    print(f'{bundle.path}: sound')
    print(f'  {bundle.name} {bundle.version}, {result["bytes"] / 1e6:.1f} MB, contract {bundle.contract.name} '
          f'{bundle.contract.hash[:12]}')
    print(f'  risk level {reach.get("level", float("nan")):.3f} (alpha {reach.get("alpha")}, '
          f'n {reach.get("n")} violating episodes)')
    return 0
