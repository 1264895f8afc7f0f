# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp bench step`: time of one gradient step and of its parts, on random data of the right shapes."""

import argparse
import resource
import statistics
import time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument('--preset', default='small')
    parser.add_argument('--steps', type=int, default=20, help='timed steps, after two that are not')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=None)
    parser.add_argument('--json', metavar='PATH', default=None, help='- for standard output alone')
    parser.add_argument('--set', action='append', default=[], metavar='SECTION.KEY=VALUE', dest='overrides')
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


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    import torch

    from fosp_core.config import Config
    from fosp_core.contract import Contract
    from fosp_core.io import write_json
    from fosp_core.paths import config_file
    from fosp_core.train.learner import Learner
    if args.threads:
        torch.set_num_threads(args.threads)
    contract = Contract.load(config_file('contract_safereach.yaml'))
    config = Config.load(args.preset, args.overrides)
    learner = Learner(contract, config, args.device)
    cfg = config.train
    replay = random_replay(contract, 4 * cfg.batch * cfg.length)
    times: dict[str, list[float]] = {}

    def synchronise() -> float:
        if learner.device.type == 'cuda':
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(name: str, function):
        def wrapped(*a, **k):
            begin = synchronise()
            try:
                return function(*a, **k)
            finally:
                times.setdefault(name, []).append(synchronise() - begin)
        return wrapped

    # The parts are the learner's own methods, timed in place: the sum is checked against the whole by the reader.
    agent = learner.agent
    learner._world_model = timed('world_model', learner._world_model)
    agent.imagine = timed('imagination', agent.imagine)
    learner._actor = timed('actor', learner._actor)
    critic_loss, reach_loss, apply = agent.critic_loss, agent.reach_loss, learner._apply
    agent.critic_loss = timed('critics', critic_loss)
    agent.reach_loss = timed('reachability', reach_loss)
    backward = {'critic': 'critics_backward', 'reach': 'reachability_backward'}

    def applied(name, *a):
        return (timed(backward[name], apply) if name in backward else apply)(name, *a)

    learner._apply = applied
    sample = timed('replay_sampling', replay.sample)
    whole = []
    for _ in range(args.steps + 2):
        begin = synchronise()
        learner.update(sample(cfg.batch, cfg.length, learner.rng))
        whole.append(synchronise() - begin)
    median = statistics.median(whole[2:])
    parts = {k: statistics.median(v[2:]) for k, v in times.items()}
    for name in ('critics', 'reachability'):
        parts[name] += parts.pop(f'{name}_backward')
    memory = (torch.cuda.max_memory_allocated() if learner.device.type == 'cuda'
              else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    result = {'preset': config.name, 'batch': cfg.batch, 'length': cfg.length, 'device': str(learner.device),
              'threads': torch.get_num_threads(), 'steps': args.steps, 'seconds_per_step': median,
              'steps_per_second': 1 / median, 'parts': parts,
              'parameters': sum(p.numel() for p in agent.parameters()), 'peak_memory_bytes': int(memory)}
    if args.profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            learner.update(replay.sample(cfg.batch, cfg.length, learner.rng))
        print(profiler.key_averages().table(sort_by='self_cpu_time_total', row_limit=25))
    if args.json:
        write_json(args.json, result)
    if args.json != '-':
        print(f'{config.name}: {median * 1e3:.0f} ms a step ({1 / median:.2f} steps/s), '
              + ', '.join(f'{k} {v * 1e3:.0f}' for k, v in parts.items()))
    return 0
