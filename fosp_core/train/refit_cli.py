# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp refit`: the reachability estimate learns from what the model's own policy did wrong."""

import argparse
import sys
from pathlib import Path

from fosp_core.errors import DataError, FospError, TrainingError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `fosp refit`."""
    parser.add_argument('bundle', metavar='BUNDLE', help='model whose estimate is to learn')
    parser.add_argument('episodes', nargs='+', metavar='BAG',
                        help="episodes of the model's own policy, unfiltered: bags, packed or .npz folders")
    parser.add_argument('--offline', action='append', default=[], metavar='BAG',
                        help='what the model was trained on, to be mixed in; may be repeated')
    parser.add_argument('--out', type=Path, required=True, help='bundle folder to make; must not exist')
    parser.add_argument('--steps', type=int, default=4000, help='gradient steps (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--holdout', type=float, default=0.3,
                        help="share of the policy's episodes to calibrate with (default: %(default)s)")
    parser.add_argument('--alpha', type=float, help="allowed rate of missed violations (default: the bundle's)")
    parser.add_argument('--confidence', type=float, help="as in fosp calibrate (default: the bundle's)")
    parser.add_argument('--version', help="default: the parent's with -refit- and a hash of the data")
    parser.add_argument('--threads', type=int, help='computing threads (default: one per core)')
    parser.add_argument('--json', metavar='PATH', help='write the summary; - for standard output alone')


def run(args: argparse.Namespace) -> int:
    """Refit, calibrate, export."""
    from fosp_core.train import options
    options.wait_asleep()
    from tqdm import tqdm

    from fosp_core.deploy.bundle import Bundle, check_word
    from fosp_core.io import write_json
    from fosp_core.safety.calibration import doubts
    from fosp_core.train.dataset import load_dataset
    from fosp_core.train.refit import refit
    options.use_threads(args.threads)
    options.between('--holdout', args.holdout, 0, 1)
    for name, value in (('--alpha', args.alpha), ('--confidence', args.confidence)):
        if value is not None:
            options.between(name, value, 0, 1)
    if args.steps < 1:
        raise TrainingError(f'--steps {args.steps}: expected at least 1')
    if args.out.exists():
        raise FospError(f'--out {args.out}: exists already; a bundle is never overwritten')
    if args.version is not None:
        check_word('--version', args.version)
    bundle = Bundle.open(args.bundle)
    own = load_dataset(args.episodes, bundle.contract)
    offline = load_dataset(args.offline, bundle.contract) if args.offline else []
    bar = None

    def progress(step: int, metrics: dict) -> None:
        nonlocal bar        # begins with the first step: what comes before it is no step
        bar = bar or tqdm(total=args.steps, unit='step', desc=f'refit {bundle.version}', file=sys.stderr)
        bar.update()

    print(f'{len(own)} episodes of the policy, {len(offline)} offline: states under the world model first',
          file=sys.stderr)
    try:
        new = refit(bundle, own, offline, args.out, args.steps, args.seed, args.holdout, args.alpha, args.confidence,
                    args.version, progress)
    except DataError as error:
        raise DataError(f'{", ".join(args.episodes)}: {error}') from None
    finally:
        if bar:
            bar.close()
    if args.json:
        write_json(args.json, {'parent': bundle.version, 'bundle': str(new.path), 'version': new.version,
                               'sha256': new.sha256, 'metrics': new.manifest['metrics'],
                               'calibration': new.calibration})
    if args.json != '-':
        print(f'bundle {new.path}')
    for doubt in doubts(new.calibration['reachability'], new.manifest['metrics']['heldout_alarm_rate_safe_steps']):
        print(f'warning: {doubt}', file=sys.stderr)
    return 0
