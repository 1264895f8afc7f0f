# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp bench sim`: decisions per second of simulated tasks, all pictures included, and what a reset costs."""

import argparse
import contextlib
import os
import statistics
import time

DECISIONS, ROUNDS = 250, 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument('--task', action='append', metavar='T',
                        help='safereach/unseen3, SafetyPointGoal1 ...; may be repeated (default: SafetyPointGoal1)')
    parser.add_argument('--decisions', type=int, default=DECISIONS, help='per round (default %(default)s)')
    parser.add_argument('--rounds', type=int, default=ROUNDS, help='the median of so many counts (default %(default)s)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--no-pictures', action='store_true', help='the dynamics alone')
    parser.add_argument('--json', metavar='PATH', default=None, help='- for standard output alone')


def measure(task: str, decisions: int, rounds: int, seed: int, pictures: bool) -> dict:
    """Return one row: decisions of a random policy per second and per second of processor time, ms per reset."""
    import numpy as np

    from fosp_sim.tasks import make_env
    rng = np.random.default_rng(seed)
    walls, cpus, resets = [], [], []
    with contextlib.closing(make_env(task, render=pictures)) as env:
        env.reset(seed=seed)
        env.step(np.zeros(env.action_space.shape))          # compiled, drawn, warm
        for _ in range(rounds):
            done, wall, cpu, paused = True, time.perf_counter(), time.process_time(), [0.0, 0.0]
            for index in range(decisions):
                if done:
                    begin = time.perf_counter(), time.process_time()
                    seed += 1
                    env.reset(seed=seed)
                    spent = time.perf_counter() - begin[0], time.process_time() - begin[1]
                    resets.append(spent[0])
                    paused = [a + b for a, b in zip(paused, spent)]
                if index % 5 == 0:
                    action = rng.uniform(-1.0, 1.0, env.action_space.shape)
                _, _, _, terminated, truncated, _ = env.step(action)
                done = terminated or truncated
            walls.append(time.perf_counter() - wall - paused[0])
            cpus.append(time.process_time() - cpu - paused[1])
        cameras = len(env.contract.cameras) if pictures else 0
    return {'task': task, 'cameras': cameras, 'decisions_per_s': decisions / statistics.median(walls),
            'decisions_per_cpu_s': decisions / statistics.median(cpus), 'reset_ms': 1e3 * statistics.median(resets),
            'decisions': decisions, 'rounds': rounds}


def run(args: argparse.Namespace) -> int:
    """Measure each task, print the table, write the JSON."""
    from importlib.metadata import version

    from fosp_core.errors import FospError
    from fosp_core.io import write_json
    from fosp_sim.tasks import parse_task
    if args.decisions < 1 or args.rounds < 1:
        raise FospError('--decisions and --rounds: expected at least 1')
    names = [parse_task(name) for name in args.task or ['SafetyPointGoal1']]
    load = os.getloadavg()[0]
    rows = [measure(task, args.decisions, args.rounds, args.seed, not args.no_pictures) for task in names]
    result = {'rows': rows, 'load': [load, os.getloadavg()[0]], 'cores': os.cpu_count(),
              'mujoco': version('mujoco'), 'gl': os.environ.get('MUJOCO_GL', '') if not args.no_pictures else ''}
    if args.json != '-':
        for row in rows:
            print(f'{row["task"]:24s} {row["cameras"]} cameras  {row["decisions_per_s"]:7.1f} decisions/s  '
                  f'({row["decisions_per_cpu_s"]:.1f} per second of processor time)  reset {row["reset_ms"]:.0f} ms')
        print(f'load {load:.1f} to {result["load"][1]:.1f}, mujoco {result["mujoco"]}, {result["gl"] or "no pictures"}')
    if args.json:
        write_json(args.json, result)
    return 0
