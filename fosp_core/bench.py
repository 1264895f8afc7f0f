# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp bench NAME`: measurements with JSON out. Each benchmark lives beside what it measures, imported when run."""

import argparse
import importlib

BENCHMARKS = {
    'step': ('fosp_core.train.bench_step', 'gradient steps per second and where the time goes'),
    'import': ('fosp_core.data.bench_import', 'reading a foreign bag against rosbags alone'),
    'replay': ('fosp_core.train.bench_replay', 'memory, opening and sampling of the replay against the step it feeds'),
    'surprise': ('fosp_core.train.bench_surprise', 'which signal tells a changed scene: the KL against alternatives'),
    'filter': ('fosp_ros.bench_filter', 'latency of the safety filter process, in the running graph or alone'),
    'swap': ('fosp_ros.bench_swap', 'fine-tunes in a row, and what the control path pays for them'),
    'sim': ('fosp_sim.bench_sim', 'decisions per second of a simulated task, pictures included'),
    'runtime': ('fosp_core.deploy.bench_runtime', 'latency of the policy and filter graphs on ONNX Runtime'),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare one sub-command per benchmark."""
    names = parser.add_subparsers(dest='benchmark', required=True, metavar='NAME')
    for name, (module, text) in BENCHMARKS.items():
        importlib.import_module(module).add_arguments(names.add_parser(name, help=text, description=text))


def run(args: argparse.Namespace) -> int:
    """Run the chosen benchmark."""
    return importlib.import_module(BENCHMARKS[args.benchmark][0]).run(args)
