# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Runs the jobs of a study, some side by side; what is there already is not made again.

A job's command, the models that it read, time and exit code are kept in `record/`, its output in `log/`. A study that
is killed goes on where it was: what a job makes appears whole or not at all, and `fosp pretrain` resumes from its own
checkpoints. Several processes may work in one folder: a job is run by the one that holds its lock.
"""

import dataclasses
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from fosp_core.deploy.bundle import Bundle
from fosp_core.errors import FospError
from fosp_core.io import write_json
from fosp_core.study.plan import Job


@dataclasses.dataclass
class Outcome:
    """How a study stands: names of the jobs done, failed (with the reason), and not tried for want of another.

    `refused`: fine-tunes that ended in a refusal and left no model, with the reason: a result, that would come again.
    """

    done: list[str] = dataclasses.field(default_factory=list)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    refused: dict[str, str] = dataclasses.field(default_factory=dict)
    waiting: list[str] = dataclasses.field(default_factory=list)


class Records:
    """The commands, and the models, with which the things in a study's folder were made."""

    def __init__(self, out: Path):
        self.folder, self.log = out / 'record', out / 'log'
        self._known: dict[str, str] = {}    # bundle -> its sha256 when it was first looked at

    def path(self, job: Job) -> Path:
        """Return the file of one job's record."""
        return self.folder / f'{job.name}.json'

    def done(self, job: Job) -> bool:
        """Return whether the job's result is there; FospError: by another command or of another model."""
        if not job.makes.exists():
            return False
        try:
            record = json.loads(self.path(job).read_text())
        except FileNotFoundError:
            # The result is whole, and only this study writes here.
            record = {'argv': list(job.argv)}
            self.write(job, 0, 0.0, self.bundles(job) | _stated(job))
        except (OSError, ValueError) as error:
            raise FospError(f'{self.path(job)}: {error}') from None
        if record.get('argv') != list(job.argv):
            raise FospError(f'{job.makes}: was made by `fosp {" ".join(record.get("argv", []))}`, the plan now asks '
                            f'for `fosp {" ".join(job.argv)}`; choose another --out, or remove it')
        for path, sha256 in self.bundles(job).items():
            made = (record.get('bundles') or _stated(job)).get(path, sha256)
            if made != sha256:
                raise FospError(f'{job.makes}: was made with model {made[:12]}, {path} is now {sha256[:12]}; choose '
                                'another --out, or remove it')
        return True

    def refused(self, job: Job) -> str:
        """Return why the job's command refused to make a model; empty when it did not, or was another command."""
        try:
            summary, record = (json.loads(Path(p).read_text()) for p in (job.about['json'], self.path(job)))
        except (KeyError, OSError, ValueError):
            return ''
        here = isinstance(summary, dict) and not job.makes.exists() and record.get('argv') == list(job.argv)
        return str(summary.get('refused') or '') if here else ''

    def bundles(self, job: Job, anew: bool = False) -> dict[str, str]:
        """Return the sha256 of the bundles that a job reads and that are there; `anew`: looked at again, and compared.

        Raises
        ------
        FospError
            When one has changed since this study looked at it first: half of the rows would be of another model.

        """
        found = {}
        for path in map(str, job.reads):
            if anew or path not in self._known:
                try:
                    sha256 = Bundle.open(path).sha256
                except FospError:       # not made yet, or none: the command says so
                    continue
                if sha256 != self._known.setdefault(path, sha256):
                    raise FospError(f'{path}: changed from model {self._known[path][:12]} to {sha256[:12]} while the '
                                    'study was running')
            found[path] = self._known[path]
        return found

    def lock(self, job: Job) -> IO | None:
        """Return the open file that is this process's hold on a job; None when another process has it."""
        path = self.path(job).with_suffix('.lock')
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open('w')
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    def write(self, job: Job, code: int | None, seconds: float, bundles: dict[str, str]) -> None:
        """Note with which models a job began (`code` is then None), and how it ended."""
        write_json(self.path(job), {'argv': list(job.argv), 'code': code, 'seconds': round(seconds, 1),
                                    'bundles': bundles})


def run_jobs(jobs: Sequence[Job], out: Path, parallel: int = 1, finished: Callable[[Job, str], None] | None = None,
             threads: int = 1) -> Outcome:
    """Run all jobs that are not done, at most `parallel` at a time, each with `threads` computing threads.

    A job that fails leaves those that need it waiting; the others go on. `finished(job, reason)` is called after each,
    with an empty reason when it is done. On KeyboardInterrupt the running ones are ended.
    """
    records, outcome = Records(out), Outcome()
    todo = []
    for job in jobs:
        if records.done(job):
            outcome.done.append(job.name)
        elif reason := records.refused(job):
            outcome.refused[job.name] = reason
        else:
            todo.append(job)
    done, running = set(outcome.done), {}

    def ended(job: Job, reason: str) -> None:
        if not reason:
            done.add(job.name)
            outcome.done.append(job.name)
        if finished:
            finished(job, reason)
    try:
        while todo or running:
            todo, elsewhere = _without(todo, set(outcome.refused)), False     # there is nothing to measure
            for job in [j for j in todo if done.issuperset(j.needs)]:
                if len(running) >= parallel:
                    break
                if (hold := records.lock(job)) is None:
                    elsewhere = True
                    continue
                todo.remove(job)
                refused = records.refused(job)
                if refused or records.done(job):        # by another process since it was looked at
                    hold.close()
                    outcome.refused |= {job.name: refused} if refused else {}
                    ended(job, refused and f'refused: {refused}')
                    continue
                bundles = records.bundles(job, anew=True)
                records.write(job, None, 0.0, bundles)      # before the result: a kill between the two loses neither
                running[job.name] = job, bundles, hold, *_start(job, records, threads, hold)
            if not running and not elsewhere and not any(done.issuperset(j.needs) for j in todo):
                break       # what is left needs something that failed
            for name, (job, bundles, hold, process, began) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                reason = _judge(job, process.returncode, records)
                records.write(job, process.returncode, time.monotonic() - began, bundles)
                hold.close()
                if refused := reason and records.refused(job):
                    outcome.refused[name] = refused
                    reason = f'refused: {refused}'
                elif reason:
                    outcome.failed[name] = reason
                ended(job, reason)
            time.sleep(0.05)
    finally:
        for _, _, _, process, _ in running.values():
            process.terminate()
        for _, _, _, process, _ in running.values():
            process.wait()
    done = {job.name for job in jobs if records.done(job)}      # what failed here may have succeeded elsewhere
    outcome.failed = {name: reason for name, reason in outcome.failed.items() if name not in done}
    outcome.waiting = [j.name for j in _without(todo, set(outcome.refused)) if j.name not in done]
    return outcome


def _without(jobs: list[Job], missing: set[str]) -> list[Job]:
    """Return the jobs that need none of `missing`, nor one that does; each comes after what it needs."""
    left = []
    for job in jobs:
        if missing.isdisjoint(job.needs):
            left.append(job)
        else:
            missing = missing | {job.name}
    return left


def _stated(job: Job) -> dict[str, str]:
    """Return the model of which a result itself says that it is; for records of before they named it."""
    try:
        sha256 = json.loads(job.about['json'].read_text())['model']['sha256']
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {str(path): sha256 for path in job.reads}


def _start(job: Job, records: Records, threads: int, hold: IO) -> tuple[subprocess.Popen, float]:
    """Start a job's command, which holds the lock too: should this process be killed, nobody else begins it."""
    log = records.log / f'{job.name}.txt'
    log.parent.mkdir(parents=True, exist_ok=True)
    if 'json' in job.about:
        Path(job.about['json']).unlink(missing_ok=True)     # of another command: this one may end without a word
    env = {**os.environ, 'OMP_NUM_THREADS': str(threads), 'MKL_NUM_THREADS': str(threads), 'OMP_WAIT_POLICY': 'PASSIVE'}
    with log.open('w') as file:
        process = subprocess.Popen([sys.executable, '-m', 'fosp_core.cli', *job.argv], stdin=subprocess.DEVNULL,
                                   stdout=file, stderr=subprocess.STDOUT, env=env, pass_fds=(hold.fileno(),))
    return process, time.monotonic()


def _judge(job: Job, code: int, records: Records) -> str:
    """Return why a job failed, empty when it did not."""
    if code == 0 and job.makes.exists():
        return ''
    text = (records.log / f'{job.name}.txt').read_text(errors='replace').replace('\r', '\n')
    last = next((line for line in reversed(text.splitlines()) if line.strip()), 'no output')
    return f'exit code {code}: {last.removeprefix("error: ")}'
