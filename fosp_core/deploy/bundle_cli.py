# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp bundle verify DIR`: is this model whole, calibrated, and made for this robot? `fosp bundle card DIR`: the same
model with what evaluations say of it in its card. `fosp bundle settings DIR`: the same model, whose next fine-tune
learns otherwise. Imported by the CLI alone.
"""

import argparse
import hashlib
import json
from pathlib import Path

from fosp_core.contract import Contract
from fosp_core.deploy import card
from fosp_core.deploy.bundle import Bundle, check_word
from fosp_core.deploy.settings import with_settings
from fosp_core.errors import FospError
from fosp_core.io import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `fosp bundle`."""
    parser.add_argument('action', choices=('verify', 'card', 'settings'), help='verify: check hashes, schema, '
                        'contract and calibration; card: a new bundle that differs by its card alone; settings: one '
                        'that differs by what a fine-tune of it reads')
    parser.add_argument('dir', help='bundle directory, or a folder with `current` or one bundle in it')
    parser.add_argument('--contract', help='contract YAML that the bundle must have been made for')
    parser.add_argument('--allow-uncalibrated', action='store_true', help='do not demand a calibration')
    parser.add_argument('--json', metavar='PATH', help='also write the result as JSON (- for standard output alone)')
    parser.add_argument('--evaluation', action='append', metavar='FILE', default=[],
                        help='card: what fosp evaluate --json wrote about this model; may be repeated')
    parser.add_argument('--set', action='append', metavar='SECTION.KEY=VALUE', default=[], dest='overrides',
                        help='settings: a key that a fine-tune alone reads; may be repeated')
    parser.add_argument('--mirror', action='store_true', help='settings: a fine-tune learns from the mirror images '
                        'that --contract allows, or from none where it allows none')
    parser.add_argument('--note', metavar='TEXT', help='a line that the new card begins with')
    parser.add_argument('--out', metavar='DIR', help='folder of the new bundle (default: its version, here)')
    parser.add_argument('--version', help='version of the new bundle (default: <old>-<action>-<hash>)')


OPTIONS = {'verify': (), 'card': ('--evaluation', '--note', '--out', '--version'),
           'settings': ('--set', '--mirror', '--note', '--out', '--version')}


def run(args: argparse.Namespace) -> int:
    """Verify the bundle, or write a child of it, and say what it is; a fault is raised as FospError."""
    given = {'--evaluation': args.evaluation, '--set': args.overrides, '--note': args.note, '--out': args.out,
             '--version': args.version, '--mirror': args.mirror or None}
    for option, value in given.items():
        if value not in (None, []) and option not in OPTIONS[args.action]:
            raise FospError(f'bundle {args.action}: {option} is no option of it')
    if args.action == 'card' and not args.evaluation and args.note is None:
        raise FospError('bundle card: expected --evaluation FILE or --note TEXT')
    if args.action == 'settings' and not (args.overrides or args.mirror) or args.mirror and not args.contract:
        raise FospError('bundle settings: expected --set SECTION.KEY=VALUE, or --mirror with --contract FILE')
    contract = Contract.load(args.contract) if args.contract else None
    bundle = Bundle.open(args.dir, contract, calibrated=not args.allow_uncalibrated)
    if args.action == 'card':
        bundle = _with_card(bundle, args)
    elif args.action == 'settings':
        mirror = list(contract.mirror) if args.mirror else None
        version = _version(bundle, args, hashlib.sha256(json.dumps([args.overrides, mirror, args.note]).encode()))
        bundle = with_settings(bundle, Path(args.out or version), version, args.overrides, mirror, args.note)
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
    version = _version(bundle, args, digest)
    return card.with_evaluations(bundle, Path(args.out or version), version, [Path(f) for f in args.evaluation],
                                 args.note)


def _version(bundle: Bundle, args: argparse.Namespace, digest) -> str:
    return check_word('--version', args.version or f'{bundle.version}-{args.action}-{digest.hexdigest()[:8]}')
