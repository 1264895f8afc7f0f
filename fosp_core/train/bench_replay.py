# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp bench replay`: memory per step, time to open a packed set, and sampling against the step that it feeds."""

import argparse
import gc
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

EPISODE = 50        # steps of a made-up episode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument('--preset', default='small')
    parser.add_argument('--steps', type=int, default=1_000_000, help='of the packed set (default 1,000,000)')
    parser.add_argument('--memory-steps', type=int, default=20_000, help='of the set held in memory (default 20,000)')
    parser.add_argument('--updates', type=int, default=5, help='gradient steps to time, after one that is not')
    parser.add_argument('--contract', default=None, help='contract YAML (default config/contract_safereach.yaml)')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=None)
    parser.add_argument('--folder', default=None, help='where the packed set is made for a while '
                                                       '(default: the temporary folder)')
    parser.add_argument('--dense', action='store_true', help='write every picture to disk, not a file with holes')
    parser.add_argument('--set', action='append', default=[], metavar='SECTION.KEY=VALUE', dest='overrides')
    parser.add_argument('--json', metavar='PATH', default=None, help='- for standard output alone')


def resident() -> int:
    """Bytes of this process in physical memory."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def make_pack(folder: Path, contract, steps: int, dense: bool) -> None:
    """Write a packed set of `steps` records in random episodes; its pictures are holes in the file unless `dense`."""
    import json

    import numpy as np

    from fosp_core.data.pack import INDEX, SCHEMA, layout
    from fosp_core.data.store import hash_of_digests
    rng = np.random.default_rng(0)
    time_in_episode = np.arange(steps) % EPISODE
    first, last = time_in_episode == 0, (time_in_episode == EPISODE - 1) | (np.arange(steps) == steps - 1)
    count = np.arange(steps, dtype=np.int64)
    known = {'reward.npy': last, 'cost.npy': rng.random(steps) < 0.05, 'is_first.npy': first, 'is_last.npy': last,
             'is_terminal.npy': last, 'stamp.npy': count * 100_000_000, 'step.npy': count}
    for name, (kind, shape) in layout(contract).items():
        array = np.lib.format.open_memmap(folder / name, 'w+', kind, (steps, *shape))
        if name in known:
            array[:] = known[name]
        elif kind == np.float32:
            array[:] = rng.uniform(-1, 1, array.shape)
        elif dense:
            for start in range(0, steps, 4096):
                array[start:start + 4096] = rng.integers(0, 256, array[start:start + 4096].shape, dtype=np.uint8)
        array.flush()
    lengths = np.diff([*np.flatnonzero(first), steps]).tolist()
    episodes = [{'steps': n, 'digest': f'{i:064x}', 'meta': {'seed': i, 'policy': 'none'}}
                for i, n in enumerate(lengths)]
    (folder / INDEX).write_text(json.dumps(
        {'schema': SCHEMA, 'contract_hash': contract.hash, 'contract': contract.to_dict(), 'steps': steps,
         'data_hash': hash_of_digests([e['digest'] for e in episodes]), 'episodes': episodes}))


def forget(file: Path) -> None:
    """Take a file out of the page cache, so that it is read from disk."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def rate(sample: Callable[[], object], windows: int, seconds: float = 2.0) -> float:
    """Windows per second of `sample`, which returns `windows` of them: median over calls for `seconds`."""
    times, end = [], time.perf_counter() + seconds
    sample()
    while time.perf_counter() < end or len(times) < 5:
        began = time.perf_counter()
        sample()
        times.append(time.perf_counter() - began)
    return windows / statistics.median(times)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    import numpy as np

    from fosp_core.config import Config
    from fosp_core.contract import Contract
    from fosp_core.data.pack import step_bytes
    from fosp_core.data.replay import Replay
    from fosp_core.errors import FospError
    from fosp_core.io import write_json
    from fosp_core.paths import config_file
    from fosp_core.train.bench_step import random_replay
    from fosp_core.train.options import at_least
    at_least('--threads', args.threads, 1)
    if args.steps < 2 * EPISODE or args.memory_steps < 2 * EPISODE or args.updates < 1:
        raise FospError(f'--steps {args.steps} --memory-steps {args.memory_steps} --updates {args.updates}: expected '
                        f'at least {2 * EPISODE}, {2 * EPISODE} and 1')
    contract = Contract.load(args.contract or config_file('contract_safereach.yaml'))
    config = Config.load(args.preset, args.overrides)
    batch, length = config.train.batch, config.train.length
    raw, rng = step_bytes(contract), np.random.default_rng(0)

    # Before torch is loaded, so that nothing but the replay grows.
    Replay(contract).extend(random_replay(contract, 4 * EPISODE).episodes).sample(batch, length, rng)
    gc.collect()
    before = resident()
    replay = random_replay(contract, args.memory_steps)
    replay.sample(batch, length, rng)
    gc.collect()
    held = (resident() - before) / len(replay)
    in_memory = rate(lambda: replay.sample(batch, length, rng), batch)

    open_s, on_disk = measure_pack(contract, args, batch, length, raw, rng)
    seconds = step_seconds(contract, config, replay, args)
    consumed = batch / seconds
    result = {'preset': config.name, 'batch': batch, 'length': length, 'steps': args.steps, 'dense': args.dense,
              'open_s': open_s, 'windows_per_second': on_disk, 'memory_windows_per_second': in_memory,
              'seconds_per_step': seconds, 'consumed_windows_per_second': consumed,
              'sampling_ratio': on_disk / consumed, 'raw_bytes_per_step': raw, 'bytes_per_step': held,
              'memory_ratio': held / raw}
    if args.json:
        write_json(args.json, result)
    if args.json != '-':
        print(f'{config.name}: {args.steps} packed steps open in {open_s:.2f} s; {on_disk:.0f} windows/s of {batch} x '
              f'{length} from disk, {in_memory:.0f} from memory, {consumed:.0f} consumed (x{on_disk / consumed:.0f}); '
              f'{held:.0f} bytes per step in memory, {raw} raw (x{held / raw:.3f})')
    return 0


def measure_pack(contract, args: argparse.Namespace, batch: int, length: int, raw: int, rng) -> tuple[float, float]:
    """Make a packed set for a while; return seconds to open it, up to its first record, and windows per second."""
    from fosp_core.data.pack import open_pack
    from fosp_core.data.replay import Replay
    from fosp_core.errors import FospError
    folder = Path(tempfile.mkdtemp(prefix='fosp-bench-', dir=args.folder))
    try:
        need = args.steps * (raw if args.dense else 60)
        if shutil.disk_usage(folder).free < 1.1 * need:
            raise FospError(f'{folder}: {shutil.disk_usage(folder).free} bytes free, expected {need}')
        make_pack(folder, contract, args.steps, args.dense)
        for file in folder.iterdir():
            forget(file)
        began = time.perf_counter()
        replay = Replay(contract).extend(open_pack(folder, contract), check=False)
        replay.sample(1, 1, rng)
        return time.perf_counter() - began, rate(lambda: replay.sample(batch, length, rng), batch)
    finally:
        shutil.rmtree(folder)


def step_seconds(contract, config, replay, args: argparse.Namespace) -> float:
    """Median seconds of one gradient step on batches that are ready: what the sampling must keep up with."""
    from fosp_core.train.learner import Learner
    from fosp_core.train.options import use_threads
    use_threads(args.threads)
    learner, times = Learner(contract, config, args.device), []
    for _ in range(args.updates + 1):
        batch = replay.sample(config.train.batch, config.train.length, learner.rng)
        began = time.perf_counter()
        learner.update(batch)   # its metrics are floats: the device has finished
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])
