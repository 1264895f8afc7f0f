# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp evaluate`: a model bundle or a scripted policy, with or without the safety filter behind it.

For the command line alone. Without ROS: simulator, ONNX runtimes and the pure safety core in one process, faster than
real time; or through the running graph (`--through ros`). The layouts are never in any training data: their seeds begin
where `fosp collect` ends.
"""

import argparse
import contextlib
import importlib.util
import shlex
import time
from collections import Counter
from pathlib import Path

import numpy as np

from fosp_core.errors import FospError
from fosp_core.evaluate import comparison
from fosp_core.evaluate.statistics import MEANS, bootstrap_mean, mean_text, rate_text, summary_row
from fosp_core.safety.reasons import STAGES
from fosp_sim.actors import Learned, Result, Scripted, run_episode
from fosp_sim.demonstrators import KINDS
from fosp_sim.safereach import TASKS, SafeReachEnv, parse_task

FIRST_SEED = 1_000_000      # `fosp collect` refuses seeds from here on
SEED_STRIDE = 10_000
SUITES = {'safereach': TASKS}
PERIOD = 0.1                # s, of a decision


def evaluation_seeds(seed: int, episodes: int) -> range:
    """Return the seeds of the layouts of evaluation `seed`; no two evaluations share one."""
    if not 0 <= seed or not 1 <= episodes <= SEED_STRIDE:
        raise FospError(f'--seed {seed} --episodes {episodes}: expected a seed from 0 and 1 to {SEED_STRIDE} episodes')
    first = FIRST_SEED + seed * SEED_STRIDE
    return range(first, first + episodes)


def _mean(name: str, values: list[float]) -> dict:
    """Return a mean and its bootstrap interval; None where there is nothing to average, or where all values are one.

    Drawn anew they would be the same: an interval without width, where nobody knows it.
    """
    return {name: float(np.mean(values)) if values else None,
            f'{name}_ci': list(bootstrap_mean(values)) if len(set(values)) > 1 else None}


def row(task: str, phase: str, results: list[Result]) -> dict:
    """Return the summary of one policy on one task: rates with Wilson's, means with bootstrap intervals.

    `path_m` is the way of the fingertip in metres, over all episodes; `time_to_goal_s` seconds, of those that reached.
    """
    out = summary_row(task, phase, [r.success for r in results], [r.violation for r in results],
                      sum(r.interventions for r in results))
    means = {'return': [r.reward for r in results], 'cost': [r.cost for r in results],
             'steps': [float(r.steps) for r in results], 'path_m': [r.path for r in results if r.path == r.path],
             'time_to_goal_s': [PERIOD * r.steps for r in results if r.success]}
    for name, values in means.items():
        out |= _mean(name, values)
    filtered = bool(results) and all(r.altered is not None for r in results)
    out |= {'altered': {stage: sum(r.altered[stage] for r in results) for stage in STAGES} if filtered else None,
            'contacts_unwarned': sum(r.unwarned for r in results) if filtered else None,
            'touched': (dict(Counter(r.touched for r in results if r.touched).most_common())
                        if all(r.touched is not None for r in results) else None)}
    return out | {'outcomes': {'seed': [r.seed for r in results], 'success': [int(r.success) for r in results],
                               'violation': [int(r.violation) for r in results],
                               'interventions': [int(r.interventions) for r in results]}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `fosp evaluate`."""
    parser.add_argument('--suite', choices=SUITES,
                        help='safereach: standard and unseen 1 to 5, unless --task chooses among them')
    parser.add_argument('--model', metavar='DIR', help="model bundle, also the filter's (default: models/safereach)")
    parser.add_argument('--task', action='append', metavar='T',
                        help=f'{", ".join(TASKS)} or all; may be repeated (default: standard)')
    parser.add_argument('--episodes', type=int, default=100, metavar='N', help='per task and policy (default: 100)')
    parser.add_argument('--seed', type=int, default=0, metavar='S',
                        help=f'layouts {FIRST_SEED} + {SEED_STRIDE} S and on, which no data set holds (default: 0)')
    parser.add_argument('--policy', choices=('model', *KINDS, 'straight', 'random'), default='model',
                        help='what acts (default: model); safe, reckless and noisy are scripted with the whole layout, '
                             'straight flies at the goal and knows no obstacle, random knows nothing')
    parser.add_argument('--filter', choices=('on', 'off', 'both'),
                        help='safety filter behind the policy (default: on for the model, off for the others); both: '
                             'with and without it on the same layouts, and compared')
    parser.add_argument('--through', choices=('core', 'ros'), default='core',
                        help='core: one process, no ROS (default); ros: the graph of nodes, at the pace of the robot')
    parser.add_argument('--no-corners', action='store_true',
                        help='leave out the safe planner and the random policy, the corners of every table')
    parser.add_argument('--json', metavar='PATH', help='write the result; - for standard output alone')


def tasks_of(names: list[str] | None) -> list[str]:
    """Return the tasks that `--task` names, in order, without doubles."""
    chosen = [t for name in names or ['standard'] for t in (TASKS if name == 'all' else (parse_task(name),))]
    return list(dict.fromkeys(chosen))


def table(rows: list[dict]) -> str:
    """Return the rows as text: rates in per cent and what the filter did, then the means, with 95 % intervals."""
    names = [f'{r["task"]:10s} {r["phase"]:15s}' for r in rows]
    lines = [f'{"task":10s} {"policy":15s} {"n":>4s}  {"SR":>22s}  {"CV":>22s}  interventions '
             + ' '.join(f'{s:>8s}' for s in (*STAGES[1:], 'unwarned'))]
    lines += [f'{name} {r["n"]:4d}  {rate_text(r["sr"], r["sr_ci"]):>22s}  {rate_text(r["cv"], r["cv_ci"]):>22s}  '
              f'{r["interventions"]:13d} ' + ' '.join(f'{"-" if v is None else v:>8}' for v in (
                  *((r['altered'] or {}).get(s) for s in STAGES[1:]), r['contacts_unwarned']))
              for name, r in zip(names, rows)]
    lines.append(f'{"task":10s} {"policy":15s} ' + ' '.join(f'{words:>22s}' for words in MEANS.values()))
    lines += [f'{name} ' + ' '.join(f'{mean_text(r, key):>22s}' for key in MEANS) for name, r in zip(names, rows)]
    if any(r['altered'] for r in rows):
        lines.append('interventions: commands that the risk changed; beside them those altered by surprise, limits and '
                     'stops; unwarned: episodes with a contact and no intervention before it')
    return '\n'.join(lines)


def through_graph(args: argparse.Namespace, bundle, tasks: list[str], seeds: range) -> tuple[dict, dict]:
    """Run the model in the graph; return the results per task, and how the graph fared."""
    if args.policy != 'model' or args.filter != 'on':
        raise FospError('--through ros: expected --policy model and --filter on; in the graph no command reaches the '
                        'arm but through the filter')
    if importlib.util.find_spec('rclpy') is None:
        raise FospError('--through ros: Python module rclpy is not installed here')
    from fosp_ros import evaluate_graph
    from fosp_ros.report import percentiles
    found = evaluate_graph.run(bundle, tasks, seeds)
    results = {}
    for task, episodes in found.episodes.items():
        results[task] = [Result(e.seed, e.success, e.violation, e.steps, e.reward, e.cost, e.changed, e.path, e.altered,
                                e.unwarned) for e in episodes]
    return results, {'latency_ms': percentiles(found.latency_ms), 'missed_deadlines': found.missed_deadlines,
                     'commands': len(found.latency_ms), 'latencies_ms': [round(v, 1) for v in found.latency_ms],
                     'operator_resets': sorted(found.resets)}


def actors_of(args: argparse.Namespace, bundle) -> list:
    """Return the policies of the table: the asked one first, then the corners."""
    guard = None
    if args.filter != 'off':
        from fosp_sim.guard import Guard
        guard = Guard(bundle)
    asked = [Learned(bundle, g) if args.policy == 'model' else Scripted(args.policy, g)
             for g in ((guard, None) if args.filter == 'both' else (guard,))]
    known = [a.phase for a in asked]
    return asked + [Scripted(c) for c in comparison.CORNERS if not args.no_corners and c not in known]


def command(args: argparse.Namespace, tasks: list[str]) -> str:
    """Return the command of this result; through ROS another run of it takes other times, and may decide otherwise."""
    which = ['--suite', args.suite] if args.suite and not args.task else [w for t in tasks for w in ('--task', t)]
    words = [*(('--model', args.model) if args.model else ()), *which, '--episodes', args.episodes, '--seed', args.seed,
             '--policy', args.policy, '--filter', args.filter, '--through', args.through,
             *(('--no-corners',) if args.no_corners else ())]
    return shlex.join(map(str, ('fosp', 'evaluate', *words)))


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table, write the JSON."""
    from tqdm import tqdm

    from fosp_core.io import write_json
    begin = time.monotonic()
    names = ['all'] if args.suite and not args.task else args.task
    tasks, seeds = tasks_of(names), evaluation_seeds(args.seed, args.episodes)
    if args.filter is None:
        args.filter = 'on' if args.policy == 'model' else 'off'
    bundle = None
    if args.policy == 'model' or args.filter != 'off':
        from fosp_core.deploy.bundle import Bundle
        from fosp_core.paths import share_dir
        folder = Path(args.model) if args.model else share_dir() / 'models' / 'safereach'
        bundle = Bundle.open(folder, None, args.filter != 'off')    # the filter runs on no uncalibrated model
    rows, graph, results = [], None, {}
    actors = actors_of(args, bundle)
    if args.through == 'ros':
        results, graph = through_graph(args, bundle, tasks, seeds)
    for task in tasks:
        for actor in actors:
            if args.through == 'ros' and actor is actors[0]:
                rows.append(row(task, actor.phase, results[task]))
                continue
            with contextlib.closing(SafeReachEnv(task, render=actor.pictures)) as env:
                episodes = tqdm(seeds, unit='episode', desc=f'{task} {actor.phase}')
                rows.append(row(task, actor.phase, [run_episode(env, actor, seed) for seed in episodes]))
    paired = comparison.comparisons(rows)   # the same layouts: a paired test sees what two intervals hide
    result = {'suite': args.suite or 'safereach', 'command': command(args, tasks), 'through': args.through,
              'policy': args.policy, 'filter': args.filter, 'seed': args.seed, 'rows': rows, 'paired': paired,
              'graph': graph, 'model': {'version': bundle.version, 'sha256': bundle.sha256} if bundle else None,
              'wall_s': time.monotonic() - begin}
    if args.json != '-':
        print(table(rows))
        if paired:
            print(comparison.text(paired))
        if graph:
            spent = graph['latency_ms']
            print(f'picture to command: p50 {spent["p50"]:.1f} ms, p99 {spent["p99"]:.1f} ms; '
                  f'{graph["missed_deadlines"]} missed deadlines of {graph["commands"]}')
    if args.json:
        write_json(args.json, result)
    return 0
