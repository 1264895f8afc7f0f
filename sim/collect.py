# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp collect`: records scripted demonstrations in simulation as a rosbag2. For the command line alone."""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fosp_core.data.episode import Episode
from fosp_core.errors import FospError
from fosp_sim import demonstrators, ground_demonstrators
from fosp_sim.tasks import demonstrators_of, make_env, parse_task

STAMP_ZERO_NS = 1_000_000_000_000_000_000       # a fixed date, so that a seed gives the same bag
EPISODE_GAP_NS = 2_000_000_000
EVALUATION_SEEDS = 1_000_000    # layouts from here on are never in a data set


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `fosp collect`."""
    parser.add_argument('--task', default='safereach',
                        help='safereach, safereach/unseen1 to unseen5, or of Safety-Gymnasium: SafetyPointGoal1 ...')
    parser.add_argument('--episodes', type=int, default=60, help='number of episodes, shared by the mix in turn')
    parser.add_argument('--mix', help=f'demonstrators in turn (default: all of {", ".join(demonstrators.KINDS)}; for '
                                      f'Safety-Gymnasium of {", ".join(ground_demonstrators.KINDS)})')
    parser.add_argument('--seed', type=int, default=0, help='seed of the first episode; each later one counts up')
    parser.add_argument('--out', type=Path, help='bag folder to write; must not exist')
    parser.add_argument('--storage', choices=('mcap', 'sqlite3'), default='mcap', help='storage of the bag')
    parser.add_argument('--npz', type=Path, help=argparse.SUPPRESS)


def record_episode(env, kind: str, seed: int, stamp_ns: int = STAMP_ZERO_NS, step: int = 0) -> Episode:
    """Run one episode of `kind` and return its T + 1 records in the arrival convention.

    Parameters
    ----------
    env
        Environment of `fosp_sim.tasks.make_env`; is reset with `seed`.
    kind
        One of the KINDS of its demonstrators.
    seed
        Seed of layout and demonstrator.
    stamp_ns, step
        Stamp and step counter of the first record; they rise by one period and by one.

    """
    observation, info = env.reset(seed=seed)
    demonstrator = demonstrators_of(env.task).make_demonstrator(kind, env, np.random.default_rng([seed, 7]))
    records = [(observation, 0.0, 0.0)]
    actions, done, terminated = [], False, False
    costs: dict[str, float] = {}
    while not done:
        actions.append(demonstrator.action(env))
        observation, reward, cost, terminated, truncated, info = env.step(actions[-1])
        records.append((observation, reward, cost))
        for name, part in info.get('costs', {}).items():
            costs[name] = costs.get(name, 0.0) + part
        done = terminated or truncated
    count = len(records)
    first, last = np.zeros(count, bool), np.zeros(count, bool)
    first[0] = last[-1] = True
    period = round(env.contract.period * 1e9)
    return Episode(
        images={c.name: np.stack([r[0][c.name] for r in records]) for c in env.contract.cameras},
        vectors={v.name: np.stack([r[0][v.name] for r in records]) for v in env.contract.vectors},
        action=np.stack([*actions, np.zeros(env.contract.action.size)]).astype(np.float32),
        reward=np.array([r[1] for r in records], np.float32), cost=np.array([r[2] for r in records], np.float32),
        is_first=first, is_last=last, is_terminal=last & terminated,
        stamp=stamp_ns + period * np.arange(count, dtype=np.int64), step=step + np.arange(count, dtype=np.int64),
        meta={'task': env.task, 'policy': kind, 'seed': int(seed), **costs,
              **{k: info[k] for k in ('min_clearance', 'goals') if k in info}})


def generate(env, episodes: int, kinds: list[str], seed: int) -> Iterator[Episode]:
    """Yield `episodes` episodes of `env`, the kinds in turn, with rising stamps and step counters."""
    stamp, step = STAMP_ZERO_NS, 0
    for index in range(episodes):
        episode = record_episode(env, kinds[index % len(kinds)], seed + index, stamp, step)
        yield episode
        stamp = int(episode.stamp[-1]) + EPISODE_GAP_NS
        step = int(episode.step[-1]) + 1


def run(args: argparse.Namespace) -> int:
    """Collect, write, and print success and violation rates per kind."""
    from tqdm import tqdm

    task = parse_task(args.task)
    known = demonstrators_of(task).KINDS
    kinds = list(known) if args.mix is None else [k.strip() for k in args.mix.split(',') if k.strip()]
    unknown = [k for k in kinds if k not in known]
    if unknown or not kinds:
        raise FospError(f'--mix {args.mix!r}: expected a comma-separated list of {", ".join(known)}')
    if args.episodes < 1:
        raise FospError(f'--episodes {args.episodes}: expected at least 1')
    if not 0 <= args.seed <= EVALUATION_SEEDS - args.episodes:
        raise FospError(f'--seed {args.seed} with --episodes {args.episodes}: expected seeds from 0 to below '
                        f'{EVALUATION_SEEDS}; those from there on are for evaluation alone')
    if not args.out and not args.npz:
        raise FospError('--out is missing: name the bag folder to write')
    if args.out and args.out.exists():
        raise FospError(f'{args.out}: exists already; choose another folder')
    results: dict[str, list[tuple]] = {k: [] for k in kinds}
    with contextlib.ExitStack() as stack:
        writer = None
        env = stack.enter_context(contextlib.closing(make_env(task)))
        source = generate(env, args.episodes, kinds, args.seed)
        for index, episode in enumerate(tqdm(source, total=args.episodes, unit='episode', desc=f'collect {task}')):
            if args.out and writer is None:     # opened late: without GL nothing is left behind
                from fosp_core.data.bag import BagWriter
                writer = stack.enter_context(BagWriter(args.out, env.contract, storage=args.storage))
            if writer is not None:
                writer.add(episode)
            if args.npz:
                from fosp_core.data.store import save_episode
                args.npz.mkdir(parents=True, exist_ok=True)
                save_episode(args.npz / f'{task}_{args.seed + index:06d}.npz', episode)
            success = episode.meta.get('goals', episode.success) > 0    # there, approach is a reward too
            results[episode.meta['policy']].append((
                success, episode.violation, len(episode) - 1, episode.meta.get('goals'), episode.reward.sum(),
                episode.cost.sum()))
    results['all'] = [r for v in results.values() for r in v]
    for kind, rows in results.items():
        if rows:
            success, violation, length, goals, reward, cost = np.array(rows, float).T
            line = f'{kind:9s} n={len(rows):4d}  SR {success.mean():.2f}  CV {violation.mean():.2f}  ' \
                   f'mean length {length.mean():.1f}'
            if rows[0][3] is not None:
                line += f'  goals {goals.mean():.1f}  return {reward.mean():.1f} ± {reward.std():.1f}  ' \
                        f'cost {cost.mean():.1f} ± {cost.std():.1f}'
            print(line)
    return 0
