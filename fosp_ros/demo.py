# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp demo`: the whole story through the live graph, watched from outside, told in a table and a page.

Known scene, changed scene, practice on other layouts of it, fine-tune by service while the arm goes on moving, changed
scene again on the layouts of before, of which the trainer has seen none.
"""

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from fosp_core import paths
from fosp_core.deploy.bundle import Bundle
from fosp_core.errors import FospError
from fosp_core.evaluate.statistics import mcnemar
from fosp_ros import graph, report
from fosp_ros.runner import GraphRunner
from fosp_ros.stage import Phase, Stage

FIRST_SEED = 1_900_000_000      # layouts of the demo: in no data set, and apart from those of `fosp evaluate`
OFFLINE_EPISODES = 30       # known data that the fine-tune mixes in, so that it does not forget
CHANGED = 'unseen3'
PRACTICE = 500              # after the first layout of the table: those that the fine-tune learns from begin here
MARKER = '.fosp_demo'       # in the work folder: only such a folder is ever removed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `fosp demo`."""
    parser.add_argument('--out', type=Path, default=Path('out/demo'), metavar='DIR', help='default: %(default)s')
    parser.add_argument('--episodes', type=int, default=20, metavar='N', help='per phase (default: %(default)s)')
    parser.add_argument('--practice', type=int, default=12, metavar='N',
                        help='episodes of the changed scene, on layouts of their own, that the fine-tune learns from '
                             '(default: %(default)s)')
    parser.add_argument('--model', default='', metavar='DIR', help='model bundle (default: models/safereach)')
    parser.add_argument('--realtime', type=float, default=1.0, metavar='X',
                        help='speed of the simulated clock, 1 = 10 decisions a second (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='which layouts (default: %(default)s)')
    parser.add_argument('--steps', type=int, default=40, help='gradient steps of the fine-tune (default: %(default)s)')
    parser.add_argument('--offline-episodes', type=int, default=OFFLINE_EPISODES, help=argparse.SUPPRESS)
    parser.add_argument('--verbose', action='store_true', help='show the output of the nodes')


def offline_bag(folder: Path, episodes: int, seed: int) -> Path:
    """Record known demonstrations in a process of its own (OpenGL must not live in the process that forks nodes)."""
    bag = folder / 'offline'
    command = [sys.executable, '-m', 'fosp_core.cli', 'collect', '--task', 'safereach', '--episodes', str(episodes),
               '--mix', 'safe,reckless,noisy', '--seed', str(seed), '--out', str(bag)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ['no output']
        raise FospError(f'fosp collect: {lines[-1].removeprefix("error: ")}')
    return bag


def film_of(stage: Stage, phases: list[Phase], folder: Path) -> report.Film | None:
    """Run the layout once more on which the filter did most, with large pictures, and return its film."""
    candidates = [(e.changed, max((t.risk for t in e.ticks if t.risk == t.risk), default=0.0), p.phase, e)
                  for p in phases for e in p.episodes]
    if not candidates:
        return None
    episode = max(candidates, key=lambda c: c[:2])[3]
    seeds = range(episode.seed, episode.seed + 1)
    seen = len(stage.finished(episode.task, seeds))
    stage.configure(record_frames_dir=str(folder))
    stage.begin(episode.task, seeds)
    stage.wait(lambda: len(stage.finished(episode.task, seeds)) > seen, 60.0, 'the filmed episode')
    stage.configure(record_frames_dir='')
    filmed = stage.finished(episode.task, seeds)[-1]
    pictures = [_picture(folder, t) for t in filmed.ticks]
    levels = [t.level for t in filmed.ticks if t.level == t.level]
    outcome = f'{"reaches the goal" if filmed.success else "does not reach the goal"}, ' \
              f'{"touches an obstacle" if filmed.violation else "touches nothing"}'
    return report.Film(f'{episode.task}, layout {episode.seed}, phase "after": {outcome}', pictures,
                       [t.risk for t in filmed.ticks], levels[-1] if levels else float('nan'),
                       [t.reason for t in filmed.ticks], [t.altered for t in filmed.ticks],
                       [t.cost for t in filmed.ticks])


def _picture(folder: Path, tick):
    """Return the large picture of a tick when it was saved, else what the camera published."""
    import cv2
    found = next(folder.rglob(f'{tick.stamp}.png'), None)
    large = cv2.imread(str(found)) if found else None
    return tick.picture if large is None else large[..., ::-1]


def machine() -> dict:
    """Describe where this ran, without names."""
    return {'machine': f'{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}',
            'ROS 2': f'{os.environ.get("ROS_DISTRO") or "wheels"}, '
                     f'{os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp")}'}


def play(args: argparse.Namespace, work: Path, bag: Path, bundle: Bundle, findings: report.Findings) -> None:
    """Run the graph through all phases and fill `findings`; raise FospError when it cannot go on."""
    import rclpy
    from tqdm import tqdm

    from fosp_ros.demo_observer import Observer
    specs = graph.build(graph.GraphOptions(model=str(bundle.path), overrides=(
        ('sim_bridge', 'run_on_start', False), ('sim_bridge', 'realtime_factor', float(args.realtime)),
        ('trainer', 'work_dir', str(work / 'trainer')), ('trainer', 'offline_data', str(bag)),
        ('trainer', 'steps', args.steps), ('trainer', 'collect', False))))   # what is scored trains nothing
    log = (lambda line: print(line, flush=True)) if args.verbose else None
    runner = GraphRunner(specs, log=log)
    first = FIRST_SEED + 1000 * args.seed
    phases = [Phase('standard', 'before', range(first, first + args.episodes)),
              Phase(CHANGED, 'before', range(first, first + args.episodes)),
              Phase(CHANGED, 'after', range(first, first + args.episodes))]
    rclpy.init(args=[])
    observer = Observer(period=bundle.contract.period / args.realtime)
    try:
        runner.start()
        stage = Stage(runner, observer, args.realtime)
        stage.ready()
        for phase in phases:
            if phase.phase == 'after':
                practised = practice(stage, args, first + PRACTICE)
                latencies = len(observer.latencies)
                with tqdm(total=args.steps, unit='step', desc='fine-tune') as bar:
                    tuned = stage.fine_tune(CHANGED, range(practised.stop, first + 1000), bar)
                stage.collect(False)
                during = observer.latencies[latencies:]
                del observer.latencies[latencies:]
                spent = report.percentiles(during)
                if 'refused' in tuned:
                    findings.fine_tune = {
                        'fine-tune': f'{args.steps} steps, refused by a gate {tuned["seconds"]:.0f} s after the call, '
                                     f'so "after" is the same model: {tuned["refused"]}'}
                    print(f'the new model was refused: {tuned["refused"]}; going on with the old one')
                else:
                    findings.model['fine_tuned'] = {'version': tuned['version'], 'sha256': tuned['sha256']}
                    findings.fine_tune = {
                        'fine-tune': f'{args.steps} steps, published {tuned["seconds"]:.0f} s after the call',
                        'swap': ', '.join(f'{k} {v:.1f} s' for k, v in tuned['swap'].items())
                                + ' after publication'}
                findings.trained_on = (f'{args.practice} episodes of {CHANGED} on layouts {practised.start} to '
                                       f'{practised.stop - 1}, and {args.offline_episodes} recorded ones of the known '
                                       f'scene; none on the layouts of the table, {first} to '
                                       f'{first + args.episodes - 1}')
                if during:
                    findings.fine_tune['latency meanwhile'] = f'p50 {spent["p50"]:.1f} ms, p99 {spent["p99"]:.1f} ms'
            with tqdm(total=args.episodes, unit='episode', desc=f'{phase.task} {phase.phase}') as bar:
                findings.rows.append(stage.run(phase, bar).row())
        findings.paired = {key: mcnemar([getattr(e, name) for e in phases[1].episodes],
                                        [getattr(e, name) for e in phases[2].episodes])
                           for key, name in (('sr', 'success'), ('cv', 'violation'))}
        findings.latency_ms, findings.missed_deadlines = list(observer.latencies), observer.missed
        if observer.progress[0] == 'rolled back':
            findings.fine_tune['rollback'] = 'by the trainer itself: the filter stepped in more often'
        findings.fine_tune['operator resets'] = f'{len(stage.resets)}' + (
            f' ({", ".join(sorted(set(stage.resets)))})' if stage.resets else '')
        findings.film = film_of(stage, phases[2:], work / 'frames')
        stage.check()
    finally:
        findings.reasons = dict(observer.reasons)
        findings.bypassed_commands = sum(e.bypassed for e in observer.episodes)
        foreign = sorted(observer.foreign_publishers)
        if foreign:
            findings.problems.append(f'command_out has a publisher besides the safety filter: {", ".join(foreign)}')
        if findings.bypassed_commands:
            findings.problems.append(f'{findings.bypassed_commands} commands bypassed the safety filter')
        findings.nodes = runner.stop()
        observer.close()
        rclpy.try_shutdown()
    findings.problems += [f'node {name} ended with exit code {code}' for name, code in findings.nodes.items() if code]
    findings.problems += [f'node {name} did not end on SIGINT and was killed' for name in runner.forced]


def practice(stage: Stage, args: argparse.Namespace, first: int) -> range:
    """Let the trainer collect episodes on layouts that no row of the table has; return their seeds."""
    from tqdm import tqdm
    seeds = range(first, first + args.practice)
    stage.collect(True)
    with tqdm(total=len(seeds), unit='episode', desc=f'{CHANGED} practice') as bar:
        stage.run(Phase(CHANGED, 'practice', seeds), bar)
    return seeds


def _interrupt(number, frame):
    raise KeyboardInterrupt


def fresh_folder(work: Path) -> Path:
    """Make an empty work folder; remove one of an earlier demo, known by its marker, and nothing else."""
    try:
        if (work / MARKER).is_file():
            shutil.rmtree(work)
        work.mkdir(parents=True)
        (work / MARKER).touch()
    except FileExistsError:
        raise FospError(f'{work}: exists and is not the work folder of a demo; give another --out') from None
    except OSError as error:
        raise FospError(f'{work}: {error.strerror}') from None
    return work


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 when every node lived and every command passed the filter."""
    if args.episodes < 1 or not 0.1 <= args.realtime <= 20.0 or not 0 <= args.seed < 9 or args.episodes > PRACTICE \
            or not 1 <= args.practice <= 400:
        raise FospError(f'--episodes {args.episodes} --practice {args.practice} --realtime {args.realtime} --seed '
                        f'{args.seed}: expected 1 to {PRACTICE} episodes, 1 to 400 of practice, a speed of 0.1 to 20 '
                        'and a seed of 0 to 8')
    begin = time.monotonic()
    bundle = Bundle.open(args.model or paths.share_dir() / 'models' / 'safereach', None, True)
    work = fresh_folder(args.out.resolve() / 'work')
    graph.isolate(work)
    try:    # before any node: this is where a machine without OpenGL is found out
        bag = offline_bag(work, args.offline_episodes, args.seed)
    except FospError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    card = bundle.path / 'card.md'
    findings = report.Findings([], [], 0, 0, {'version': bundle.version, 'sha256': bundle.sha256, 'fine_tuned': None},
                               0.0, machine=machine(), card=card.read_text() if card.is_file() else '')
    previous = signal.signal(signal.SIGTERM, _interrupt)     # so that the nodes are ended in order
    try:
        play(args, work, bag, bundle, findings)
    except FospError as error:
        findings.problems.insert(0, str(error))
    finally:
        signal.signal(signal.SIGTERM, previous)
    findings.wall_s = time.monotonic() - begin
    report.write(args.out, findings)
    print(report.text_table(findings))
    print(f'report: {args.out / "report.html"}')
    return 1 if findings.problems else 0
