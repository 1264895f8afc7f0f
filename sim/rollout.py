# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp rollout`: records what a model bundle does in the simulator, as a robot's episodes. For the command line.

What the learner node would publish as replay records, without ROS and faster than real time: the pictures, and the
actions that were really sent, behind the safety filter or without it. Input of `fosp finetune`.
"""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fosp_core.data.episode import Episode
from fosp_core.errors import FospError
from fosp_core.safety.reasons import STAGES
from fosp_sim.actors import Actor, Learned
from fosp_sim.collect import EPISODE_GAP_NS, EVALUATION_SEEDS, STAMP_ZERO_NS
from fosp_sim.safereach import SafeReachEnv, parse_task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `fosp rollout`."""
    parser.add_argument('--model', metavar='DIR', help='model bundle (default: models/safereach)')
    parser.add_argument('--task', default='safereach', help='safereach, or safereach/unseen1 and on')
    parser.add_argument('--episodes', type=int, default=20, metavar='N', help='default: %(default)s')
    parser.add_argument('--seed', type=int, default=0,
                        help=f'layout of the first episode, below {EVALUATION_SEEDS}; each later one counts up')
    parser.add_argument('--filter', choices=('on', 'off'), default='on', help='safety filter (default: %(default)s)')
    parser.add_argument('--explore', action='store_true', help='sample the policy; without it its mode acts')
    parser.add_argument('--out', type=Path, required=True, help='bag folder to write; must not exist')
    parser.add_argument('--json', metavar='PATH', help='write the summary; - for standard output alone')


def record_episode(env: SafeReachEnv, actor: Actor, seed: int, stamp_ns: int = STAMP_ZERO_NS, step: int = 0) -> Episode:
    """Run one episode of `actor` on the layout of `seed`; T + 1 records in the arrival convention.

    `action[t]` is the one that was sent after observation t; the last record has none and holds zeros.
    """
    observation, info = env.reset(seed=seed)
    actor.reset(env, seed)
    seen, actions, rewards, costs = [observation], [], [0.0], [0.0]
    done = terminated = False
    while not done:
        actions.append(actor.action(env, observation))
        observation, reward, cost, terminated, truncated, info = env.step(actions[-1])
        seen.append(observation)
        rewards.append(reward)
        costs.append(cost)
        done = terminated or truncated
    count = len(seen)
    first, last = np.zeros(count, bool), np.zeros(count, bool)
    first[0] = last[-1] = True
    contract = env.contract
    return Episode(
        images={c.name: np.stack([o[c.name] for o in seen]) for c in contract.cameras},
        vectors={v.name: np.stack([o[v.name] for o in seen]) for v in contract.vectors},
        action=np.stack([*actions, np.zeros(contract.action.size)]).astype(np.float32),
        reward=np.array(rewards, np.float32), cost=np.array(costs, np.float32),
        is_first=first, is_last=last, is_terminal=last & terminated,
        stamp=stamp_ns + round(contract.period * 1e9) * np.arange(count, dtype=np.int64),
        step=step + np.arange(count, dtype=np.int64),
        meta={'task': env.task, 'policy': actor.phase, 'seed': int(seed), 'interventions': int(actor.interventions)})


def generate(env: SafeReachEnv, actor: Actor, episodes: int, seed: int) -> Iterator[Episode]:
    """Yield `episodes` episodes with rising stamps and step counters."""
    stamp, step = STAMP_ZERO_NS, 0
    for index in range(episodes):
        episode = record_episode(env, actor, seed + index, stamp, step)
        yield episode
        stamp = int(episode.stamp[-1]) + EPISODE_GAP_NS
        step = int(episode.step[-1]) + 1


def altered_words(row: dict) -> str:
    """Return how many commands were altered by what."""
    if row['altered'] is None:
        return 'no filter'
    return f'commands altered by {", ".join(f"{stage} {n}" for stage, n in row["altered"].items())}'


def run(args: argparse.Namespace) -> int:
    """Record, write the bag, print the rates."""
    from tqdm import tqdm

    from fosp_core.data.bag import BagWriter
    from fosp_core.deploy.bundle import Bundle
    from fosp_core.evaluate.statistics import summary_row
    from fosp_core.io import write_json
    from fosp_core.paths import share_dir
    from fosp_sim.guard import Guard
    task = parse_task(args.task)
    if args.episodes < 1:
        raise FospError(f'--episodes {args.episodes}: expected at least 1')
    if not 0 <= args.seed <= EVALUATION_SEEDS - args.episodes:
        raise FospError(f'--seed {args.seed} with --episodes {args.episodes}: expected seeds from 0 to below '
                        f'{EVALUATION_SEEDS}; those from there on are for evaluation alone')
    if args.out.exists():
        raise FospError(f'{args.out}: exists already; choose another folder')
    folder = Path(args.model) if args.model else share_dir() / 'models' / 'safereach'
    bundle = Bundle.open(folder, None, args.filter == 'on')
    actor = Learned(bundle, Guard(bundle) if args.filter == 'on' else None, explore=args.explore)
    done = []
    with contextlib.closing(SafeReachEnv(task)) as env:
        if env.contract.hash != bundle.contract.hash:
            raise FospError(f'{bundle.path}: contract {bundle.contract.hash[:12]}, the simulator has '
                            f'{env.contract.hash[:12]}')
        with BagWriter(args.out, bundle.contract) as writer:
            for episode in tqdm(generate(env, actor, args.episodes, args.seed), total=args.episodes, unit='episode',
                                desc=f'rollout {task}'):
                writer.add(episode)
                done.append((episode.success, episode.violation, dict(actor.altered)))
    row = summary_row(task, actor.phase, [d[0] for d in done], [d[1] for d in done],
                      sum(d[2]['risk'] for d in done))
    row['altered'] = {s: sum(d[2][s] for d in done) for s in STAGES} if actor.guard else None
    if args.json:
        write_json(args.json, {'rows': [row], 'bag': str(args.out), 'seed': args.seed,
                               'model': {'version': bundle.version, 'sha256': bundle.sha256}})
    if args.json != '-':
        print(f'{task} {actor.phase} n={row["n"]}  SR {row["sr"]:.2f}  CV {row["cv"]:.2f}  '
              f'{altered_words(row)}; {args.out}')
    return 0
