# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp finetune`: the trainer's job by hand, from a bundle and a robot's episodes to a new bundle or a refusal."""

import argparse
import sys
from pathlib import Path

from fosp_core.errors import AlignmentError, FospError, RefusedError, TrainingError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `fosp finetune`."""
    parser.add_argument('bundle', metavar='BUNDLE', help='model to go on from')
    parser.add_argument('episodes', nargs='+', metavar='BAG', help="the robot's episodes: bags, packed or .npz folders")
    parser.add_argument('--offline', action='append', default=[], metavar='BAG',
                        help='known episodes to mix in; may be repeated')
    parser.add_argument('--out', type=Path, required=True, help='bundle folder to make; must not exist')
    parser.add_argument('--steps', type=int, default=40, help='gradient steps (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--version', help="default: the parent's with a time stamp")
    parser.add_argument('--method', help="a method of config/ (default: the bundle's own configuration)")
    parser.add_argument('--set', action='append', default=[], metavar='SECTION.KEY=VALUE', dest='overrides')
    parser.add_argument('--threads', type=int, help='computing threads (default: one per core)')
    parser.add_argument('--ungated', action='store_true',
                        help='keep a model that a gate refuses, as --out; for studies, never for a robot')
    parser.add_argument('--json', metavar='PATH', help='write the summary; - for standard output alone')


def run(args: argparse.Namespace) -> int:
    """Fine-tune; exit code 1 when a gate refuses the model, or pre-alignment its critics."""
    from fosp_core.train import options
    options.wait_asleep()
    from tqdm import tqdm

    from fosp_core.deploy.bundle import Bundle
    from fosp_core.io import write_json
    from fosp_core.train.dataset import load_dataset
    from fosp_core.train.finetune import finetune, refused_folder
    options.use_threads(args.threads)
    if args.steps < 1:
        raise TrainingError(f'--steps {args.steps}: expected at least 1')
    if args.out.exists() or refused_folder(args.out).exists():
        raise FospError(f'{args.out}: exists already, or {args.out.name}.refused beside it; choose another --out')
    bundle = Bundle.open(args.bundle)
    online = load_dataset(args.episodes, bundle.contract)
    offline = load_dataset(args.offline, bundle.contract) if args.offline else []
    refused = None
    with tqdm(total=args.steps, unit='step', desc=f'fine-tune {bundle.version}', file=sys.stderr) as bar:
        try:
            new = finetune(bundle, online, offline, args.out, args.steps, args.seed, args.version,
                           progress=lambda step, metrics: bar.update(step - bar.n), method=args.method,
                           overrides=args.overrides)
        except (RefusedError, AlignmentError) as error:
            refused = str(error)
    if refused:
        kept = refused_folder(args.out)
        if args.ungated and (kept / 'bundle').is_dir():
            (kept / 'bundle').rename(args.out)
            new = Bundle.open(args.out)
    summary = {'parent': bundle.version, 'refused': refused, 'online_episodes': len(online),
               'offline_episodes': len(offline), 'steps': args.steps, 'seed': args.seed}
    usable = not refused or args.ungated and args.out.is_dir()
    if usable:
        summary |= {'bundle': str(new.path), 'version': new.version, 'sha256': new.sha256,
                    'metrics': new.manifest['metrics']}
    if args.json:
        write_json(args.json, summary)
    if refused:
        print(f'refused: {refused}' + ('' if usable or not refused_folder(args.out).exists() else
                                      f'; kept in {refused_folder(args.out)}'), file=sys.stderr)
    if usable and args.json != '-':
        print(f'bundle {new.path}')
    return 0 if usable else 1
