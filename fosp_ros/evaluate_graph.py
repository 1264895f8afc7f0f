# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp evaluate --through ros`: the layouts of an evaluation run by the graph, at the pace of the robot.

Simulation bridge, learner, safety filter and trainer as four processes in a domain of their own; no fine-tuning.
"""

import dataclasses
import tempfile
from pathlib import Path

from fosp_core.errors import FospError
from fosp_ros import graph, stage
from fosp_ros.runner import GraphRunner


@dataclasses.dataclass
class Run:
    """What the graph did: finished episodes per task in the order of their seeds, and how it fared."""

    episodes: dict[str, list] = dataclasses.field(default_factory=dict)
    interventions: dict[str, int] = dataclasses.field(default_factory=dict)
    resets: list[str] = dataclasses.field(default_factory=list)
    latency_ms: list[float] = dataclasses.field(default_factory=list)
    missed_deadlines: int = 0
    bypassed_commands: int = 0


def run(bundle, tasks: list[str], seeds: range) -> Run:
    """Run one episode per task and seed; FospError when a node dies, or a command does not come from the filter."""
    import rclpy
    from tqdm import tqdm

    from fosp_ros.demo_observer import Observer
    found = Run()
    with tempfile.TemporaryDirectory(prefix='fosp_evaluate_', ignore_cleanup_errors=True) as folder:
        graph.isolate(Path(folder))
        runner = GraphRunner(graph.build(graph.GraphOptions(model=str(bundle.path), overrides=(
            ('sim_bridge', 'run_on_start', False), *graph.folders(Path(folder))))))
        rclpy.init(args=[])
        observer = Observer(period=bundle.contract.period)
        try:
            runner.start()
            operator = stage.Stage(runner, observer, 1.0)
            operator.ready()
            for task in tasks:
                with tqdm(total=len(seeds), unit='episode', desc=f'{task} through ROS') as bar:
                    phase = operator.run(stage.Phase(task, 'ros', seeds, warm_up=True), bar)
                found.episodes[task] = sorted(phase.episodes, key=lambda e: e.seed)
                found.interventions[task] = sum(e.changed for e in phase.episodes)
            found.resets, found.latency_ms = operator.resets, list(observer.latencies)
            found.missed_deadlines = observer.missed
            found.bypassed_commands = sum(e.bypassed for e in observer.episodes)
            if found.bypassed_commands or observer.foreign_publishers:
                raise FospError(f'{found.bypassed_commands} commands bypassed the safety filter; other publishers of '
                                f'command_out: {", ".join(sorted(observer.foreign_publishers)) or "none"}')
        finally:
            runner.stop()
            observer.close()
            rclpy.try_shutdown()
    return found
