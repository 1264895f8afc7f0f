# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp bench step`: time of one gradient step and of its parts, on random data of the right shapes."""

import argparse
import resource
import statistics
import sys
import time

PARTS = ('world_model', 'imagination_actor', 'critics', 'reachability', 'replay_sampling', 'other')
WARM_UP = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument('--preset', default='small')
    parser.add_argument('--contract', default=None, help="contract YAML (default: the preset's)")
    parser.add_argument('--steps', type=int, default=20, help=f'timed steps, after {WARM_UP} or more that are not')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=None)
    parser.add_argument('--json', metavar='PATH', default=None, help='- for standard output alone')
    parser.add_argument('--set', action='append', default=[], metavar='SECTION.KEY=VALUE', dest='overrides')
    parser.add_argument('--execution', default=None, metavar='NAME,...',
                        help="any of eager, compile, graph, compile+graph, side by side (default: the preset's own)")
    parser.add_argument('--floor', action='store_true', help='count the operations, and the time they need at best')
    parser.add_argument('--profile', action='store_true', help='print the operators that take the time')


def random_replay(contract, steps: int, seed: int = 0):
    """Build a replay of `steps` random records in episodes of 50; its content does not matter, its size does."""
    import numpy as np

    from fosp_core.data.episode import Episode
    from fosp_core.data.replay import Replay
    rng, replay, t = np.random.default_rng(seed), Replay(contract), 50
    for _ in range(max(2, steps // t)):
        last = np.arange(t) == t - 1
        replay.add(Episode(
            images={c.name: rng.integers(0, 256, (t, *c.shape), dtype=np.uint8) for c in contract.cameras},
            vectors={v.name: rng.normal(size=(t, v.size)).astype(np.float32) for v in contract.vectors},
            action=rng.uniform(-1, 1, (t, contract.action.size)).astype(np.float32),
            reward=last.astype(np.float32), cost=(rng.random(t) < 0.05).astype(np.float32),
            is_first=np.arange(t) == 0, is_last=last, is_terminal=last,
            stamp=np.arange(t, dtype=np.int64), step=np.arange(t, dtype=np.int64)))
    return replay


class Clock:
    """Time since the last mark, by part; waits for the device at each mark."""

    def __init__(self, device):
        self._device = device
        self.times: dict[str, list[float]] = {name: [] for name in PARTS}
        self._last = self.now()

    def now(self) -> float:
        """Seconds, all work given to the device done."""
        if self._device.type == 'cuda':
            import torch
            torch.cuda.synchronize()
        return time.perf_counter()

    def mark(self, name: str) -> None:
        """What has passed since the last mark was part `name`."""
        now = self.now()
        self.times[name].append(now - self._last)
        self._last = now

    def restart(self) -> float:
        """Count from now."""
        self._last = self.now()
        return self._last


def measure(learner, replay, steps: int) -> dict:
    """Medians over `steps` updates; the parts of each sum to the whole."""
    import torch

    from fosp_core.train import execution
    cfg, clock = learner.config.train, Clock(learner.device)
    warm_up = WARM_UP
    if cfg.cuda_graph:  # nobody may wait for the device while a graph is captured
        warm_up += execution.WARM_UP
    else:
        learner.part_done = clock.mark
    whole, cpu = [], []
    for _ in range(steps + warm_up):
        begin, begin_cpu = clock.restart(), time.process_time()
        batch = replay.sample(cfg.batch, cfg.length, learner.rng)
        clock.mark('replay_sampling')
        learner.update(batch)
        clock.mark('other')  # targets, checks, metrics; all of the step when it is one CUDA graph
        whole.append(clock.now() - begin)
        cpu.append(time.process_time() - begin_cpu)
    vars(learner).pop('part_done', None)
    median = statistics.median(whole[warm_up:])
    # A captured step shows no parts: the graph runs them all.
    parts = {k: statistics.median(v[warm_up:]) if len(v) == len(whole) else 0.0 for k, v in clock.times.items()}
    memory = (torch.cuda.max_memory_allocated() if learner.device.type == 'cuda'
              else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return {'seconds_per_step': median, 'steps_per_second': 1 / median, 'parts': parts,
            'cpu_seconds_per_step': statistics.median(cpu[warm_up:]),
            'parameters': sum(p.numel() for p in learner.agent.parameters()), 'peak_memory_bytes': int(memory)}


def executions(text: str | None) -> dict[str, list[str]]:
    """Overrides of each execution named in `text`; the configuration's own, unnamed, without any."""
    from fosp_core.errors import FospError
    from fosp_core.train.execution import EXECUTIONS
    if text is None:
        return {'': []}
    chosen = {}
    for name in text.split(','):
        if name not in EXECUTIONS:
            raise FospError(f'--execution {name!r}: expected names of {", ".join(EXECUTIONS)}, with commas between')
        chosen[name] = [f'train.{key}={str(value).lower()}' for key, value in EXECUTIONS[name].items()]
    return chosen


def profile(learner, batch) -> str:
    """Table of the operators that one update spends its time in."""
    import torch
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if learner.device.type == 'cuda' else []
    with torch.profiler.profile(activities=activities) as profiler:
        learner.update(batch)
    key = f'self_{learner.device.type}_time_total'
    return profiler.key_averages().table(sort_by=key, row_limit=25)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from fosp_core.train import options
    options.wait_asleep()

    import torch

    from fosp_core.config import Config
    from fosp_core.contract import Contract
    from fosp_core.io import write_json
    from fosp_core.paths import config_file
    from fosp_core.train import execution, floor, memory
    from fosp_core.train.learner import Learner
    options.at_least('--steps', args.steps, 1)
    options.use_threads(args.threads)
    device = execution.as_device(args.device)
    forms = {name: Config.load(args.preset, [*args.overrides, *extra])
             for name, extra in executions(args.execution).items()}
    config = next(iter(forms.values()))
    for form in forms.values():     # before minutes are spent on the first
        execution.check(form.train, device)
    contract = Contract.load(args.contract or config_file(f'contract_{config.contract}.yaml'))
    memory.keep_freed_memory()
    report = sys.stderr if args.json == '-' else sys.stdout
    cfg = config.train
    replay = random_replay(contract, 4 * cfg.batch * cfg.length)
    found, limits = {}, {}
    for name, form in forms.items():
        if device.type == 'cuda':
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        learner = Learner(contract, form, args.device)
        result = found[name] = {'precision': form.train.precision, 'compile': form.train.compile,
                                'cuda_graph': form.train.cuda_graph, **measure(learner, replay, args.steps)}
        batch = replay.sample(cfg.batch, cfg.length, learner.rng)
        if args.profile:
            print(profile(learner, dict(batch)), file=report)
        if args.floor and device.type == 'cuda':
            result['kernel_seconds'] = floor.kernel_seconds(learner, dict(batch))
        del learner
        if args.floor:
            limits = limits or floor.measure(contract, form, args.device, batch)
            result['floor'] = limits | floor.fractions(limits, result['seconds_per_step'])
        seconds = result['seconds_per_step']
        print(f'{config.name}{" " if name else ""}{name}: {seconds * 1e3:.0f} ms a step ({1 / seconds:.2f} steps/s, '
              f'{result["cpu_seconds_per_step"] * 1e3:.0f} ms of CPU time), '
              + ', '.join(f'{k} {v * 1e3:.0f}' for k, v in result['parts'].items()), file=report)
        for key, value in ({k: result[k] for k in ('kernel_seconds',) if k in result}
                           | result.get('floor', {})).items():
            print(f'  {key} {value:.3g}', file=report)
    if args.json:
        # The first one's figures stand at the top, where a reader of one execution looks for them.
        head = {'preset': config.name, 'batch': cfg.batch, 'length': cfg.length, 'device': args.device,
                'contract': contract.name, 'threads': torch.get_num_threads(), 'steps': args.steps}
        several = {'executions': found} if args.execution else {}
        write_json(args.json, head | next(iter(found.values())) | several)
    return 0
