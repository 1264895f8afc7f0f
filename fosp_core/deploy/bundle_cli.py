# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp bundle verify DIR`: is this model whole, calibrated, and made for this robot? `fosp bundle card DIR`: the same
model with what evaluations say of it in its card. Imported by the CLI alone.
"""

import argparse
import hashlib
from pathlib import Path

from fosp_core.contract import Contract
from fosp_core.deploy import card
from fosp_core.deploy.bundle import Bundle, check_word
from fosp_core.errors import FospError
from fosp_core.io import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `fosp bundle`."""
    parser.add_argument('action', choices=('verify', 'card'), help='verify: check hashes, schema, contract and '
                        'calibration; card: a new bundle that differs by its card alone')
    parser.add_argument('dir', help='bundle directory, or a folder with `current` or one bundle in it')
    parser.add_argument('--contract', help='contract YAML that the bundle must have been made for')
    parser.add_argument('--allow-uncalibrated', action='store_true', help='do not demand a calibration')
    parser.add_argument('--json', metavar='PATH', help='also write the result as JSON (- for standard output alone)')
    parser.add_argument('--evaluation', action='append', metavar='FILE', default=[],
                        help='card: what fosp evaluate --json wrote about this model; may be repeated')
    parser.add_argument('--note', metavar='TEXT', help='card: a line that the card begins with')
    parser.add_argument('--out', metavar='DIR', help='card: folder of the new bundle (default: its version, here)')
    parser.add_argument('--version', help='card: version of the new bundle (default: <old>-card-<hash>)')


def run(args: argparse.Namespace) -> int:
    """Verify the bundle, or a new one with another card, and say what it is; a fault is raised as FospError."""
    wanted = bool(args.evaluation) or args.note is not None
    if args.action == 'verify' and (wanted or args.out or args.version):
        raise FospError('bundle verify: --evaluation, --note, --out and --version are of bundle card')
    if args.action == 'card' and not wanted:
        raise FospError('bundle card: expected --evaluation FILE or --note TEXT')
    contract = Contract.load(args.contract) if args.contract else None
    bundle = Bundle.open(args.dir, contract, calibrated=not args.allow_uncalibrated)
    if args.action == 'card':
        bundle = _with_card(bundle, args)
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


def _with_card(bundle: Bundle, args: argparse.Namespace) -> Bundle:
    digest = hashlib.sha256((args.note or '').encode())
    for file in args.evaluation:
        if not Path(file).is_file():
            raise FospError(f'--evaluation {file}: no such file')
        digest.update(Path(file).read_bytes())
    version = check_word('--version', args.version or f'{bundle.version}-card-{digest.hexdigest()[:8]}')
    return card.with_evaluations(bundle, Path(args.out or version), version, [Path(f) for f in args.evaluation],
                                 args.note)
