# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer: collects replay steps into episodes, fine-tunes in a worker process, publishes new model bundles.

This process imports no torch and never blocks in a callback: a service answers at once, the work is a child process, a
timer follows it.
"""

import collections
import contextlib
import functools
import itertools
import sys
import time
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticStatus
from std_msgs.msg import UInt8MultiArray
from std_srvs.srv import Trigger

from fosp_core import paths
from fosp_core.contract import Contract
from fosp_core.data import messages as replay_messages
from fosp_core.data.joiner import EpisodeAssembler, StepJoiner
from fosp_core.deploy.bundle import Bundle
from fosp_core.errors import BundleError, ContractError, DataError, FospError
from fosp_ros import diagnostics, qos, rollback_watch, sessions, trainer_job
from fosp_ros.lifecycle import ManagedNode, spin_node
from fosp_ros.messages import message_class
from fosp_ros.parameters import P

IDLE, TRAINING, CHECKING, PUBLISHED = 'idle', 'training', 'checking', 'published'
REFUSED, FAILED, CANCELLED, ROLLED_BACK = 'refused', 'failed', 'cancelled', 'rolled back'

PARAMETERS = (
    P('model', 'string', '', 'Folder of the model bundle to start from. Empty: the one that the package ships.',
      read_only=True),
    P('contract', 'string', '', 'Contract file. Empty: config/contract_safereach.yaml.', read_only=True),
    P('work_dir', 'string', '', 'Folder for episodes, jobs and models. Empty: fosp_ros/trainer in the user cache.',
      read_only=True),
    P('resume', 'bool', False, 'Continue the newest session of work_dir, with its episodes and its current model; '
      'refused when that model does not fit, or another trainer works there.', read_only=True),
    P('keep_sessions', 'int', 5, 'Sessions kept in work_dir when a new one begins, with their episodes and models; '
      'those in which a trainer works stay anyway.', low=1, high=10000, read_only=True),
    P('steps', 'int', 40, 'Gradient steps of one fine-tune.', low=1, high=100000),
    P('min_steps', 'int', 100, 'Replay steps needed before a fine-tune is accepted.', unit='steps', low=2,
      high=1000000),
    P('offline_data', 'string', '', 'Bag or folder of .npz episodes to mix with the new ones. Empty: none.'),
    P('method', 'string', 'as_trained', "Method of a fine-tune, a file of config/ (see the algorithm's page). "
      "as_trained: the model's own configuration.",
      choices=('as_trained', 'bc', 'direct', 'dreamerv3', 'fosp', 'fosp_marvel', 'marvel', 'no_expectile',
               'no_lagrangian', 'no_reachability', 'pex', 'safedreamer')),
    P('settings', 'string', '', "Changes of the model's configuration, SECTION.KEY=VALUE separated by spaces, such as "
      'gates.risk_margin=0.05. The new model keeps them.'),
    P('collect', 'bool', True, 'Keep the episodes that arrive. False leaves them out of every fine-tune, as those of '
      'an evaluation must be. An episode is kept when it holds from the first step to the last.'),
    P('keep', 'int', 200, 'Episodes kept on disk; the oldest go first.', low=1, high=100000, read_only=True),
    P('keep_models', 'int', 10, 'Model versions kept on disk, and as many refused ones.', low=2, high=1000,
      read_only=True),
    P('seed', 'int', 0, 'Seed of the first job; each further job takes the next one.', low=0, high=2**31 - 1),
    P('threads', 'int', 1, 'Computing threads of the worker. More than one slows the control path on two cores.',
      low=1, high=64),
    P('nice', 'int', 10, 'How far the worker steps back behind the other processes.', low=0, high=19),
    P('require_calibration', 'bool', True, 'Refuse a new model without usable calibration.', read_only=True),
    *rollback_watch.PARAMETERS,
)


class TrainerNode(ManagedNode):
    """Wires the replay topics to the session on disk and the services to the job; see the module docstring."""

    NAME = 'trainer'
    PARAMETERS = PARAMETERS

    def set_up(self) -> None:
        """Verify the model, open the session on disk, create the topics."""
        p = self.p
        self.contract = Contract.load(p.contract or paths.config_file('contract_safereach.yaml'))
        bundle = Bundle.open(p.model or paths.share_dir() / 'models' / 'safereach', self.contract)
        if p.offline_data and not Path(p.offline_data).exists():
            raise DataError(f'{p.offline_data}: no such bag or folder (parameter offline_data)')
        self.session = sessions.Session(p.work_dir or sessions.default_work_dir(), self.contract, p.keep, p.resume,
                                        p.keep_sessions, p.require_calibration, p.keep_models)
        for text in self.session.unreadable:
            self.get_logger().warning(f'episode not used: {text}')
        for name in self.session.removed:
            self.get_logger().info(f'old session {name} removed (parameter keep_sessions)')
        store = self.session.store
        self._offered = store.current() is not None     # learner and filter start from the model that is packaged
        if not self._offered:
            store.put(bundle)
            store.set_current(bundle.version)
        self.joiner, self.assembler = StepJoiner(self.contract), EpisodeAssembler(self.contract)
        self._wanted, self.left_out = p.collect, 0
        self.faults: collections.Counter[str] = collections.Counter()
        self.rate = diagnostics.RateCounter()
        self.job: trainer_job.Job | None = None
        self._numbers = itertools.count(1 + sum(1 for _ in self.session.jobs.iterdir()))
        self._phase, self._detail = IDLE, {}
        self._asked_at = 0.0
        self.watch = rollback_watch.RollbackWatch(self, self._on_worse)
        if self._offered:
            self.watch.restarted(store.current(), store.versions())

        for kind, name in replay_messages.types(self.contract).items():
            self.listen(message_class(name), replay_messages.topic(kind), functools.partial(self._on_replay, kind),
                        qos.REPLAY)
        self.model = self.publish_on(UInt8MultiArray, 'model', qos.LATCHED)
        self.progress = self.publish_on(DiagnosticStatus, 'trainer/progress', qos.LATCHED)
        self.serve(Trigger, 'trainer/fine_tune', self._on_fine_tune)
        self.serve(Trigger, 'trainer/cancel', self._on_cancel)
        self.serve(Trigger, 'trainer/rollback', self._on_rollback)
        self.every(0.1, self._follow)
        diagnostics.Reporter(self, self._report)
        self.get_logger().info(f'session {self.session.path}, model {store.current().version}, '
                               f'{self.session.episode_count} episodes')

    def start(self) -> None:
        """Publish the state, and the model in force unless it is the one that everybody starts from."""
        self._say(self._phase)
        if self._offered:
            self._publish_model(self.session.store.current())

    def stop(self) -> None:
        """End a running job: nobody would follow it."""
        if self.job is not None:
            self.job.end()
            self._finish(CANCELLED, {'reason': 'trainer deactivated'})

    def tear_down(self) -> None:
        """End a job that is left, and let others have the session."""
        job = getattr(self, 'job', None)
        if job is not None:
            job.end()
            self.job = None
        session = getattr(self, 'session', None)
        if session is not None:
            session.close()

    # -- replay -------------------------------------------------------------------------------------------------------
    def _on_replay(self, kind: str, message) -> None:
        if not self.active:
            return
        try:
            stamp, value = replay_messages.payload(self.contract, kind, message)
        except (DataError, ContractError) as error:
            self._fault(replay_messages.topic(kind), str(error))
            return
        for step in self.joiner.push(kind, stamp, value):
            self.rate.tick()
            episode = self.assembler.add(step)
            wanted = self._wanted and self.p.collect
            self._wanted = self.p.collect and (self._wanted or step.label.is_first)
            if episode is None:
                continue
            if not wanted:
                self.left_out += 1
                continue
            try:
                self.session.add(episode)
            except FospError as error:
                self._fault('episode', str(error))

    # -- services -----------------------------------------------------------------------------------------------------
    def _on_fine_tune(self, _request, response):
        reason = self._start_job()
        response.success = not reason
        response.message = reason or self.job.name
        return response

    def _start_job(self) -> str:
        """Start a job; return why not, or an empty string."""
        p, session = self.p, self.session
        if not self.active:
            return 'the trainer is not active'
        if self.job is not None:
            return f'job {self.job.name} is running'
        if session.step_count < p.min_steps:
            return f'not enough steps: {session.step_count} of {p.min_steps} (parameter min_steps)'
        number = next(self._numbers)
        name = f'ft-{number:04d}'
        try:
            parent = session.store.current()
            arguments = ['--bundle', str(parent.path), '--episodes', str(session.snapshot(name)), '--steps',
                         str(p.steps), '--out', str(session.jobs / name / 'bundle'), '--seed', str(p.seed + number - 1),
                         '--threads', str(p.threads), '--nice', str(p.nice)]
            arguments += ['--offline', p.offline_data] if p.offline_data else []
            arguments += ['--contract', p.contract] if p.contract else []
            if p.method != 'as_trained':
                arguments += ['--method', p.method]
            for setting in p.settings.split():
                arguments += ['--set', setting]
            self.job = trainer_job.Job(name, arguments, threads=p.threads)
        except (FospError, OSError) as error:
            session.forget_data(name)
            return f'the job cannot be started: {error}'
        self._asked_at = time.monotonic()
        self.get_logger().info(f'job {name}: {p.steps} steps on {session.episode_count} episodes from model '
                               f'{parent.version}')
        self._parent = parent.version
        self._say(TRAINING, {'step': 0, 'steps': p.steps, 'parent': self._parent})
        return ''

    def _on_cancel(self, _request, response):
        response.success = self.job is not None
        response.message = f'cancelling {self.job.name}' if self.job else 'no job is running'
        if self.job is not None:
            self.job.cancel()
        return response

    def _on_rollback(self, _request, response):
        try:
            if not self.active:
                raise FospError('the trainer is not active')
            if self.job is not None:
                raise FospError(f'job {self.job.name} is running; cancel it first')
            previous = self.session.store.previous()
            if previous is None:
                raise FospError('there is no previous model')
            self._return_to(previous.version, {'automatic': False})
        except (FospError, OSError) as error:
            response.success, response.message = False, str(error)
            return response
        response.success, response.message = True, previous.version
        return response

    def _return_to(self, version: str, values: dict) -> None:
        """Make a stored version current and publish it, without the disk if need be; FospError when it is unusable."""
        store = self.session.store
        try:
            store.roll_back(version)
        except BundleError as error:
            if store.current_version() != version:
                raise
            values = {**values, 'not_written': str(error)}
            self.get_logger().error(f'the rollback to model {version} is in force, but: {error}')
        bundle = store.current()
        self.watch.back(version)
        self._publish_model(bundle)
        why = f': {values["reason"]}' if 'reason' in values else ''
        self.get_logger().warning(f'rolled back to model {version}{why}')
        self._say(ROLLED_BACK, {'version': version, 'sha256': bundle.sha256, **values})

    def _on_worse(self, parent: str, reason: str, figures: dict) -> None:
        """Go back to `parent` without being asked: the filter steps in more often since its child is live."""
        if self.job is not None:    # it trains the model that was just found to be worse
            self.job.end()
            self._finish(CANCELLED, {'reason': f'the model that it began from is rolled back: {reason}'})
        try:
            self._return_to(parent, {'automatic': True, 'reason': reason, **figures})
        except (FospError, OSError) as error:
            self.get_logger().error(f'cannot roll back to model {parent}: {error}')
            self._say(FAILED, {'reason': f'cannot roll back to model {parent}: {error}', **figures})

    # -- the job ------------------------------------------------------------------------------------------------------
    def _follow(self) -> None:
        job = self.job
        if job is None:
            return
        events = job.poll()
        if job.state == trainer_job.RUNNING:
            if events:
                self._say(TRAINING, {'step': job.step, 'steps': job.steps, 'parent': self._parent,
                                     'eta_s': f'{job.eta:.1f}',
                                     **{k: f'{v:.5g}' for k, v in job.losses.items()}, **job.alignment})
        elif job.state == trainer_job.DONE:
            self._say(CHECKING, {'step': job.step, 'steps': job.steps})
            self._adopt(job)
        elif job.state == trainer_job.REFUSED:
            self._finish(REFUSED, {'reason': job.reason, 'kept_at': job.kept_at})
        else:
            phase = CANCELLED if job.state == trainer_job.CANCELLED else FAILED
            self._finish(phase, {'reason': job.reason})

    def _adopt(self, job: trainer_job.Job) -> None:
        """Verify the worker's bundle, store it, make it current and publish it; or say why not and keep the old."""
        store = self.session.store
        try:
            bundle = Bundle.open(self.session.jobs / job.name / 'bundle', self.contract, self.p.require_calibration)
            if bundle.version in store.versions():
                raise BundleError(f'version {bundle.version} exists already')
            stored = store.put(bundle)
            self._make_live(stored)
        except (FospError, OSError) as error:
            self._finish(REFUSED, {'reason': str(error), **self._set_aside(job.name, str(error))})
            return
        self.session.forget_result(job.name)
        try:
            store.prune(self.p.keep_models)
        except (FospError, OSError) as error:
            self.get_logger().warning(str(error))
        seconds = time.monotonic() - self._asked_at
        self._finish(PUBLISHED, {'version': stored.version, 'sha256': stored.sha256, **job.alignment,
                                 'parent': stored.manifest['parent'], 'fine_tune_s': f'{seconds:.2f}'})

    def _make_live(self, bundle: Bundle) -> None:
        """Make a stored bundle the current one and publish it: both or neither."""
        store = self.session.store
        before = store.current_version()
        store.set_current(bundle.version)
        try:
            self._publish_model(bundle)
        except Exception:
            with contextlib.suppress(BundleError):      # what cannot be written holds for this process
                store.roll_back(before)
            raise
        self.watch.begin(bundle.version, bundle.manifest['parent'])

    def _set_aside(self, job: str, reason: str) -> dict[str, str]:
        try:
            return {'kept_at': str(self.session.set_aside(job, reason))}
        except (FospError, OSError) as error:
            self.get_logger().error(f'job {job}: the refused model cannot be set aside: {error}')
            return {}

    def _finish(self, phase: str, values: dict) -> None:
        job, self.job = self.job, None
        self.session.forget_data(job.name)
        text = f'job {job.name}: {phase}; ' + ', '.join(f'{k} {v}' for k, v in values.items())
        if phase == PUBLISHED:      # two calls: rclpy pins the severity to the line of code that logs
            self.get_logger().info(text)
        else:
            self.get_logger().warning(text)
        self._say(phase, {'step': job.step, 'steps': job.steps, **values}, job.name)

    def _publish_model(self, bundle: Bundle) -> None:
        message = UInt8MultiArray()
        message.data.frombytes(bundle.to_bytes())
        self.model.publish(message)
        self._offered = True

    # -- reports ------------------------------------------------------------------------------------------------------
    def _say(self, phase: str, values: dict | None = None, job: str | None = None) -> None:
        self._phase, self._detail = phase, {'job': job or (self.job.name if self.job else ''), **(values or {})}
        level = {FAILED: diagnostics.ERROR, REFUSED: diagnostics.ERROR, CANCELLED: diagnostics.WARN,
                 ROLLED_BACK: diagnostics.WARN}.get(phase, diagnostics.OK)
        self.progress.publish(diagnostics.status('fine_tune', level, phase, self._detail))

    def _fault(self, what: str, text: str) -> None:
        self.faults[what] += 1
        self.get_logger().warning(text, throttle_duration_sec=5.0)

    def _report(self):
        counts, session = self.joiner.counts, self.session
        current = session.store.current_version()
        values = {
            'phase': self._phase, **self._detail, 'current': current,
            'episodes': session.episode_count, 'steps_kept': session.step_count, 'rate_hz': f'{self.rate.rate:.2f}',
            'joined': counts.steps, 'lost': counts.lost, 'doubled': counts.doubled, 'reordered': counts.reordered,
            'mismatched': counts.mismatched, 'restarts': counts.restarts, 'pending': self.joiner.pending,
            'unseen': counts.unseen, 'left_out': self.left_out, 'gaps': self.assembler.gaps,
            'short': self.assembler.short, 'faults': dict(self.faults), **self.watch.values()}
        notes = []
        if self._phase in (FAILED, REFUSED):
            notes.append(f'last fine-tune {self._phase}: {self._detail.get("reason", "")}')
        if session.store.unwritten:
            notes.append(f'the disk does not know that model {current} is in force: a restarted trainer would not')
        notes += filter(None, [self.watch.note(current)])
        if self.faults:
            notes.append('replay messages or episodes were refused')
        if not counts.clean:
            notes.append('replay steps were lost or out of order')
        return (diagnostics.WARN, '; '.join(notes), values) if notes else (diagnostics.OK, self._phase, values)


def main(args: list[str] | None = None) -> int:
    """Run the trainer process."""
    return spin_node(TrainerNode, args)


if __name__ == '__main__':
    sys.exit(main())
