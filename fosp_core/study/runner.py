# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Runs the jobs of a study, some side by side; what is there already is not made again.

A job's command, time and exit code are kept in `record/`, its output in `log/`. A study that is killed goes on where it
was: what a job makes appears whole or not at all, and `fosp pretrain` resumes from its own checkpoints.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fosp_core.errors import FospError
from fosp_core.io import write_json
from fosp_core.study.plan import Job


@dataclasses.dataclass
class Outcome:
    """How a study stands: names of the jobs done, failed (with the reason), and not tried for want of another."""

    done: list[str] = dataclasses.field(default_factory=list)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    waiting: list[str] = dataclasses.field(default_factory=list)


class Records:
    """The commands with which the things in a study's folder were made."""

    def __init__(self, out: Path):
        self.folder, self.log = out / 'record', out / 'log'

    def path(self, job: Job) -> Path:
        """Return the file of one job's record."""
        return self.folder / f'{job.name}.json'

    def done(self, job: Job) -> bool:
        """Return whether the job's result is there; FospError when it was made by another command."""
        if not job.makes.exists():
            return False
        try:
            record = json.loads(self.path(job).read_text())
        except FileNotFoundError:
            # Killed between the result and its record: the result is whole, and only this study writes here.
            self.write(job, 0, 0.0)
            return True
        except (OSError, ValueError) as error:
            raise FospError(f'{self.path(job)}: {error}') from None
        if record.get('argv') != list(job.argv):
            raise FospError(f'{job.makes}: was made by `fosp {" ".join(record.get("argv", []))}`, the plan now asks '
                            f'for `fosp {" ".join(job.argv)}`; choose another --out, or remove it')
        return True

    def write(self, job: Job, code: int, seconds: float) -> None:
        """Note how a job ended."""
        write_json(self.path(job), {'argv': list(job.argv), 'code': code, 'seconds': round(seconds, 1)})


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
        else:
            todo.append(job)
    done, running = set(outcome.done), {}
    try:
        while todo or running:
            for job in [j for j in todo if done.issuperset(j.needs)][:max(0, parallel - len(running))]:
                todo.remove(job)
                running[job.name] = job, *_start(job, records, threads)
            if not running:
                break       # what is left needs something that failed
            for name, (job, process, began) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                reason = _judge(job, process.returncode, records)
                records.write(job, process.returncode, time.monotonic() - began)
                if reason:
                    outcome.failed[name] = reason
                else:
                    done.add(name)
                    outcome.done.append(name)
                if finished:
                    finished(job, reason)
            time.sleep(0.05)
    finally:
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.wait()
    outcome.waiting = [j.name for j in todo]
    return outcome


def _start(job: Job, records: Records, threads: int) -> tuple[subprocess.Popen, float]:
    log = records.log / f'{job.name}.txt'
    log.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, 'OMP_NUM_THREADS': str(threads), 'MKL_NUM_THREADS': str(threads), 'OMP_WAIT_POLICY': 'PASSIVE'}
    with log.open('w') as file:
        return subprocess.Popen([sys.executable, '-m', 'fosp_core.cli', *job.argv], stdin=subprocess.DEVNULL,
                                stdout=file, stderr=subprocess.STDOUT, env=env), time.monotonic()


def _judge(job: Job, code: int, records: Records) -> str:
    """Return why a job failed, empty when it did not."""
    if code == 0 and job.makes.exists():
        return ''
    text = (records.log / f'{job.name}.txt').read_text(errors='replace').replace('\r', '\n')
    last = next((line for line in reversed(text.splitlines()) if line.strip()), 'no output')
    return f'exit code {code}: {last.removeprefix("error: ")}'
