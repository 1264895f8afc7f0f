# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp film`: one layout run by a model behind the safety filter, as a film. For the command line alone."""

import argparse
import contextlib
from pathlib import Path

from fosp_core.errors import FospError
from fosp_sim.safereach import SafeReachEnv, parse_task

PIXELS = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `fosp film`."""
    parser.add_argument('--model', metavar='DIR', help='model bundle (default: models/safereach)')
    parser.add_argument('--task', default='safereach', help='safereach, or safereach/unseen1 and on')
    parser.add_argument('--seed', type=int, default=0, help='which layout (default: %(default)s)')
    parser.add_argument('--out', type=Path, required=True, metavar='FILE.webp', help='animated picture to write')
    parser.add_argument('--json', metavar='PATH', help='write what happened; - for standard output alone')


def run(args: argparse.Namespace) -> int:
    """Run the layout, write the film."""
    from fosp_core.deploy.bundle import Bundle
    from fosp_core.evaluate import film
    from fosp_core.io import atomic_write_bytes, write_json
    from fosp_core.paths import share_dir
    from fosp_sim.actors import Learned
    from fosp_sim.guard import Guard
    task = parse_task(args.task)
    if args.seed < 0:
        raise FospError(f'--seed {args.seed}: expected at least 0')
    if args.out.suffix != '.webp':
        raise FospError(f'--out {args.out}: expected a name that ends in .webp')
    bundle = Bundle.open(Path(args.model) if args.model else share_dir() / 'models' / 'safereach', None, True)
    guard = Guard(bundle)
    actor = Learned(bundle, guard)
    pictures, records = [], []
    with contextlib.closing(SafeReachEnv(task)) as env:
        observation, info = env.reset(seed=args.seed)
        actor.reset(env, args.seed)
        done = False
        while not done:
            pictures.append(env.render_frame(PIXELS, PIXELS))
            action = actor.action(env, observation)
            records.append(guard.state.record)
            observation, _, _, terminated, truncated, info = env.step(action)
            done = terminated or truncated
    atomic_write_bytes(args.out, film.encode(pictures, [r.risk for r in records], guard.levels[0],
                                             [r.reason.word for r in records], [r.altered for r in records]))
    result = {'task': task, 'seed': args.seed, 'success': bool(info['success']), 'violation': bool(info['violation']),
              'steps': len(records), 'interventions': actor.interventions, 'altered': dict(actor.altered),
              'film': str(args.out), 'model': {'version': bundle.version, 'sha256': bundle.sha256}}
    if args.json:
        write_json(args.json, result)
    if args.json != '-':
        print(f'{task}, layout {args.seed}: {"reaches the goal" if result["success"] else "does not reach the goal"}, '
              f'{"touches an obstacle" if result["violation"] else "touches nothing"}; {args.out}')
    return 0
