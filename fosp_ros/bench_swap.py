# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp bench swap`: fine-tunes in a row in the running graph, and what control pays for them. Watched from outside.

While the arm goes on moving, the trainer's service is called N times, each time as soon as learner and filter run the
model of the call before. Latency and missed deadlines are the demo's (`demo_observer.py`): latency from each call to
its swap, deadlines from the first call to the last swap.
"""

import argparse
import math
from pathlib import Path

from fosp_core.errors import FospError
from fosp_ros.bench_graph import add_common, stage

LAYOUTS = range(1_910_000_000, 1_910_100_000)   # in no data set, and apart from those of evaluation and demo
TASK = 'unseen3'
PATIENCE_S = 300.0      # for the robot steps that the first fine-tune needs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument('--fine-tunes', type=int, default=10, metavar='N', help='in a row (default %(default)s)')
    parser.add_argument('--steps', type=int, default=40, help='gradient steps of each (default %(default)s)')
    parser.add_argument('--model', default=None, help='bundle (default models/safereach)')
    parser.add_argument('--offline-episodes', type=int, default=30, metavar='N',
                        help='known data to mix in, recorded before the measurement; 0 for none (default %(default)s)')
    parser.add_argument('--min-steps', type=int, default=100, metavar='N',
                        help='steps of the robot before the first one (default %(default)s)')
    add_common(parser)


def _count(values: dict, key: str) -> int:
    return int(float(values.get(key, 0)))


def measure(args: argparse.Namespace, work: Path) -> dict:
    """Record offline data, start the graph, fine-tune N times, stop the graph."""
    import rclpy

    from fosp_core.deploy.bundle import Bundle
    from fosp_core.paths import share_dir
    from fosp_ros import demo, graph, report
    from fosp_ros.demo_observer import Observer
    from fosp_ros.runner import GraphRunner
    from fosp_ros.stage import Stage
    bundle = Bundle.open(args.model or share_dir() / 'models' / 'safereach', None, True)
    offline = demo.offline_bag(work, args.offline_episodes, 0) if args.offline_episodes else ''
    runner = GraphRunner(graph.build(graph.GraphOptions(model=str(bundle.path), overrides=(
        ('sim_bridge', 'run_on_start', False), ('trainer', 'offline_data', str(offline)),
        ('trainer', 'steps', args.steps), ('trainer', 'min_steps', args.min_steps), *graph.folders(work)))))
    rclpy.init(args=[])
    observer = Observer(period=bundle.contract.period)
    try:
        runner.start()
        graph_of = Stage(runner, observer, 1.0)
        graph_of.ready()
        graph_of.begin(TASK, LAYOUTS)

        def trainer() -> dict:
            return observer.diagnostics.get('trainer', {})

        def enough() -> bool:
            graph_of.unlatch()
            return _count(trainer(), 'steps_kept') >= args.min_steps
        graph_of.wait(enough, PATIENCE_S + args.min_steps, f'{args.min_steps} steps in the trainer')
        missed, latencies, seconds, reasons, refusals = observer.missed, [], [], [], 0
        for _ in range(args.fine_tunes):
            known = len(observer.latencies)
            phase, values = graph_of.tune(lambda step: None)
            if phase == 'published':
                seconds.append(round(values['seconds'], 3))
                graph_of.swapped(values['version'])
            elif phase in ('refused', 'cancelled'):     # cancelled: its parent was rolled back
                refusals += phase == 'refused'
                reasons.append(f'{phase}: {values.get("reason", "")}')
            else:
                raise FospError(f'bench swap: {values["job"]} {phase}: {values.get("reason", "no reason given")}')
            latencies += observer.latencies[known:]
        nodes = ('learner', 'safety_filter')

        def reported() -> bool:     # both say so once a second
            graph_of.unlatch()
            return all(_count(observer.diagnostics.get(n, {}), 'swaps') >= len(seconds) for n in nodes)
        observer.wait(reported, 5.0, graph_of.check)
        swaps = {n: _count(observer.diagnostics.get(n, {}), 'swaps') for n in nodes}
        refused = {n: _count(observer.diagnostics.get(n, {}), 'refused_models') for n in nodes}
        refused['trainer'] = refusals
        spent = report.percentiles(latencies) if latencies else {'p50': math.nan, 'p99': math.nan}
        return {'fine_tune_s': seconds, 'latency_ms': {'p50': spent['p50'], 'p99': spent['p99']},
                'missed_deadlines': observer.missed - missed, 'swaps': min(swaps.values()),
                'refused': sum(refused.values()), 'swaps_of': swaps, 'refused_by': refused, 'reasons': reasons,
                'commands': len(latencies), 'latency_max_ms': max(latencies, default=math.nan), 'steps': args.steps,
                'model': bundle.version, 'episodes': _count(trainer(), 'episodes')}
    finally:
        runner.stop()
        observer.close()
        rclpy.try_shutdown()


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from fosp_core.io import write_json
    if not 1 <= args.fine_tunes <= 1000 or args.steps < 1 or args.min_steps < 2 or args.offline_episodes < 0:
        raise FospError(f'--fine-tunes {args.fine_tunes} --steps {args.steps} --min-steps {args.min_steps} '
                        f'--offline-episodes {args.offline_episodes}: expected 1 to 1000, at least 1, at least 2 and '
                        'not below 0')
    with stage(args.cores) as (folder, cores):
        result = {**measure(args, folder), 'cores': cores}
    if args.json:
        write_json(args.json, result)
    if args.json != '-':
        spent, seconds = result['latency_ms'], result['fine_tune_s'] or [math.nan]
        print(f'{len(result["fine_tune_s"])} fine-tunes of {result["steps"]} steps on {result["cores"]} cores: '
              f'{min(seconds):.1f} to {max(seconds):.1f} s; meanwhile p50 {spent["p50"]:.1f} ms, p99 '
              f'{spent["p99"]:.1f} ms from picture to command, {result["missed_deadlines"]} missed deadlines; '
              f'{result["swaps"]} swaps, {result["refused"]} refused')
    return 0
