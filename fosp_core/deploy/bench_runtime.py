# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp bench runtime`: latency of a bundle's two graphs, one ONNX thread, random pictures."""

import argparse
import time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument('--model', default=None, help='bundle (default models/safereach)')
    parser.add_argument('--ticks', type=int, default=500)
    parser.add_argument('--candidates', type=int, default=16)
    parser.add_argument('--json', metavar='PATH', default=None, help='- for standard output alone')


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    import numpy as np

    from fosp_core.deploy.bundle import Bundle
    from fosp_core.deploy.runtime import FilterRuntime, PolicyRuntime
    from fosp_core.errors import FospError
    from fosp_core.io import write_json
    from fosp_core.paths import share_dir
    for option in ('ticks', 'candidates'):
        if getattr(args, option) < 1:
            raise FospError(f'--{option} {getattr(args, option)}: expected at least 1')
    bundle = Bundle.open(args.model or share_dir() / 'models' / 'safereach')
    contract, rng = bundle.contract, np.random.default_rng(0)
    observation = {c.name: rng.integers(0, 256, c.shape, dtype=np.uint8) for c in contract.cameras}
    observation |= {v.name: rng.normal(size=v.size).astype(np.float32) for v in contract.vectors}
    action = np.zeros(contract.action.size, np.float32)
    candidates = rng.uniform(-1, 1, (args.candidates, contract.action.size)).astype(np.float32)
    result = {'model': bundle.version, 'ticks': args.ticks, 'candidates': args.candidates, 'latency_ms': {}}
    runtimes = {'policy': (PolicyRuntime(bundle), ()), 'filter': (FilterRuntime(bundle), (candidates,))}
    for name, (runtime, extra) in runtimes.items():
        runtime.warm_up()
        spent = []
        for t in range(args.ticks):
            begin = time.perf_counter()
            runtime.step(observation, action, t == 0, *extra)
            spent.append(1e3 * (time.perf_counter() - begin))
        result['latency_ms'][name] = {'p50': float(np.percentile(spent, 50)), 'p99': float(np.percentile(spent, 99))}
    if args.json:
        write_json(args.json, result)
    if args.json != '-':
        print(result)
    return 0
