# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp demo`: the whole story through the live graph, watched from outside, told in a table and a page.

Known scene, changed scene, fine-tune by service while the arm goes on moving, changed scene again on the same layouts.
"""

import argparse
import dataclasses
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fosp_core import paths
from fosp_core.deploy.bundle import Bundle
from fosp_core.errors import FospError
from fosp_core.evaluate.statistics import mcnemar, summary_row
from fosp_ros import graph, report
from fosp_ros.runner import GraphRunner

FIRST_SEED = 1_900_000_000      # layouts of the demo: in no data set, and apart from those of `fosp evaluate`
OFFLINE_EPISODES = 30       # known data that the fine-tune mixes in, so that it does not forget
CHANGED = 'unseen3'
MARKER = '.fosp_demo'       # in the work folder: only such a folder is ever removed
EPISODE_S = 12.0            # a full episode at real time with its reset, generously


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `fosp demo`."""
    parser.add_argument('--out', type=Path, default=Path('out/demo'), metavar='DIR', help='default: %(default)s')
    parser.add_argument('--episodes', type=int, default=20, metavar='N', help='per phase (default: %(default)s)')
    parser.add_argument('--model', default='', metavar='DIR', help='model bundle (default: models/safereach)')
    parser.add_argument('--realtime', type=float, default=1.0, metavar='X',
                        help='speed of the simulated clock, 1 = 10 decisions a second (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='which layouts (default: %(default)s)')
    parser.add_argument('--steps', type=int, default=40, help='gradient steps of the fine-tune (default: %(default)s)')
    parser.add_argument('--offline-episodes', type=int, default=OFFLINE_EPISODES, help=argparse.SUPPRESS)
    parser.add_argument('--verbose', action='store_true', help='show the output of the nodes')


@dataclasses.dataclass
class Phase:
    """One block of scored episodes."""

    task: str
    phase: str
    seeds: range
    episodes: list = dataclasses.field(default_factory=list)
    interventions: int = 0

    def row(self) -> dict:
        """Return its row of the table."""
        return summary_row(self.task, self.phase, [e.success for e in self.episodes],
                           [e.violation for e in self.episodes], self.interventions)


class Stage:
    """The running graph with its services; `check` raises as soon as a node has died."""

    def __init__(self, runner: GraphRunner, observer, realtime: float):
        from rcl_interfaces.srv import SetParameters
        from std_srvs.srv import Trigger
        self.runner, self.observer, self.realtime = runner, observer, realtime
        self._trigger_type = Trigger
        self._parameters = observer.node.create_client(SetParameters, 'sim_bridge/set_parameters')
        self._clients = {name: observer.node.create_client(Trigger, name) for name in
                         ('sim_bridge/start', 'sim_bridge/halt', 'trainer/fine_tune', 'safety_filter/reset')}
        self.resets: list[str] = []     # latched causes that were reset, as an operator would between two episodes
        self._asked: tuple | None = None

    def check(self) -> None:
        """Raise FospError when a node has ended."""
        self.runner.check()

    def wait(self, condition: Callable[[], object], timeout: float, what: str):
        """Return the first true value; raise FospError naming what did not come."""
        value = self.observer.wait(condition, timeout, self.check)
        if not value:
            raise FospError(f'{what} did not come within {timeout:.0f} s (filter says: '
                            f'{self.observer.state.get("reason", "nothing")})')
        return value

    def ready(self, timeout: float = 90.0) -> None:
        """Wait until every service is there and the filter has a model."""
        def connected():
            return self._parameters.service_is_ready() and all(c.service_is_ready() for c in self._clients.values())
        self.wait(connected, timeout, 'a service of the graph')
        self.wait(lambda: self.observer.state and self.observer.state['reason'] not in ('no_model', 'not_active'),
                  timeout, 'a filter with a model')

    def _call(self, client, request):
        future = client.call_async(request)
        self.wait(future.done, 30.0, f'the answer of {client.srv_name}')
        return future.result()

    def trigger(self, name: str) -> str:
        """Call a Trigger service; return its message or raise FospError with it."""
        answer = self._call(self._clients[name], self._trigger_type.Request())
        if not answer.success:
            raise FospError(f'{name}: {answer.message}')
        return answer.message

    def configure(self, **values) -> None:
        """Set parameters of the simulation bridge."""
        from rclpy.parameter import Parameter
        request = self._parameters.srv_type.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg() for name, value in values.items()])
        for result, name in zip(self._call(self._parameters, request).results, values):
            if not result.successful:
                raise FospError(f'sim_bridge parameter {name}: {result.reason}')

    def begin(self, task: str, seeds: range) -> None:
        """Start a run of one episode per seed."""
        self.configure(task=task, episodes=len(seeds), seed=seeds[0])
        self.trigger('sim_bridge/start')

    def finished(self, task: str, seeds: range) -> list:
        """Return the episodes of this task and these seeds that have ended, in order."""
        wanted = set(seeds)
        return [e for e in self.observer.episodes if e.task == task and e.seed in wanted]

    def unlatch(self) -> None:
        """Ask for a reset while the filter has latched; it refuses as long as the cause is present."""
        now = time.monotonic()
        if self._asked is not None:
            future, asked, cause = self._asked
            if future.done() and future.result().success:
                self.resets.append(cause)
                self._asked = None
            elif now - asked > 1.0:
                self._asked = None
        elif self.observer.state.get('latched'):
            client = self._clients['safety_filter/reset']
            self._asked = client.call_async(self._trigger_type.Request()), now, self.observer.state['latched']

    def interventions(self) -> int:
        """Interventions of the filter since it was started."""
        return int(float(self.observer.state.get('interventions', 0)))

    def run(self, phase: Phase, progress) -> Phase:
        """Run one scored phase to its end."""
        before, seen = self.interventions(), len(self.observer.episodes)
        self.begin(phase.task, phase.seeds)
        shown = 0

        def done():
            nonlocal shown
            self.unlatch()
            episodes = [e for e in self.observer.episodes[seen:] if e.task == phase.task and e.seed in phase.seeds]
            for _ in episodes[shown:]:
                progress.update(1)
            shown = len(episodes)
            return episodes if shown >= len(phase.seeds) else None
        limit = 60.0 + len(phase.seeds) * EPISODE_S / min(self.realtime, 1.0)
        phase.episodes = self.wait(done, limit, f'the end of {len(phase.seeds)} episodes of {phase.task}')
        time.sleep(0.3)     # the state after the last tick
        phase.interventions = self.interventions() - before
        return phase

    def tune(self, advanced: Callable[[int], None]) -> tuple[str, dict]:
        """Call the service and wait for the end of the job; `advanced` is given the step.

        Returns the phase in which it ended and the trainer's values, with `seconds` from the call to its end.
        """
        began = time.monotonic()
        job = self.trigger('trainer/fine_tune')

        def over():
            self.unlatch()
            message, values = self.observer.progress
            if values.get('job') != job:
                return None
            advanced(int(float(values.get('step', 0))))
            return (message, values) if message in ('published', 'failed', 'refused', 'cancelled') else None
        phase, values = self.wait(over, 600.0, f'the end of fine-tune {job}')
        return phase, values | {'seconds': time.monotonic() - began}

    def swapped(self, version: str) -> dict[str, float]:
        """Wait until learner and filter run this version; return after how many seconds each did.

        A model that is rolled back meanwhile is waited for no longer: it is missing in the answer.
        """
        began, times = time.monotonic(), {}

        def back():
            return self.observer.progress[0] == 'rolled back'

        def there(read):
            self.unlatch()
            return read() == version or back()
        for node, read in (('learner', lambda: self.observer.diagnostics.get('learner', {}).get('version')),
                           ('safety_filter', lambda: self.observer.state.get('version'))):
            self.wait(lambda read=read: there(read), 60.0, f'the new model in {node}')
            if not back():
                times[node] = time.monotonic() - began
        return times

    def fine_tune(self, seeds: range, progress) -> dict:
        """Fine-tune while the arm goes on moving; wait until learner and filter run the new model.

        One that a gate refuses is an outcome, not a fault: the arm goes on with its parent, and `refused` says why.
        """
        self.begin(CHANGED, seeds)
        phase, values = self.tune(lambda step: step > progress.n and progress.update(step - progress.n))
        if phase == 'refused':
            self.trigger('sim_bridge/halt')
            time.sleep(1.0)
            return {'job': values['job'], 'refused': values.get('reason', 'no reason given'),
                    'seconds': values['seconds']}
        if phase != 'published':
            raise FospError(f'fine-tune {values["job"]} {phase}: {values.get("reason", "no reason given")}')
        times = self.swapped(values['version'])
        self.trigger('sim_bridge/halt')
        time.sleep(1.0)
        return {'job': values['job'], 'version': values['version'], 'sha256': values.get('sha256', ''),
                'seconds': values['seconds'], 'swap': times}


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
                       [t.reason for t in filmed.ticks], [t.changed for t in filmed.ticks],
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
        ('trainer', 'steps', args.steps))))
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
                latencies = len(observer.latencies)
                with tqdm(total=args.steps, unit='step', desc='fine-tune') as bar:
                    tuned = stage.fine_tune(range(first + 500, first + 1000), bar)
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
    if args.episodes < 1 or not 0.1 <= args.realtime <= 20.0 or not 0 <= args.seed < 9 or args.episodes > 500:
        raise FospError(f'--episodes {args.episodes} --realtime {args.realtime} --seed {args.seed}: expected 1 to 500 '
                        'episodes, a speed of 0.1 to 20 and a seed of 0 to 8')
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
