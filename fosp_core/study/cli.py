# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp study`: data, models, fine-tunes and evaluations by a plan, resumable; a table and a page at the end."""

import argparse
import sys
from pathlib import Path

from fosp_core.errors import FospError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `fosp study`."""
    parser.add_argument('plan', metavar='PLAN',
                        help='YAML file, or the name of one in config/: shipped, beyond, methods, full')
    parser.add_argument('--out', type=Path, help='folder (default: out/study_PLAN); goes on with what is there')
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='commands side by side (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=1, help='computing threads of each (default: %(default)s)')
    parser.add_argument('--only', metavar='TEXT', help='only jobs whose name holds TEXT, and what they need')
    parser.add_argument('--list', action='store_true', help='print the commands and whether each is done; run nothing')
    parser.add_argument('--outcomes', type=Path, nargs='+', metavar='CSV',
                        help='print the tables of an outcomes.csv, or several, kept of runs of the plan; run nothing')
    parser.add_argument('--json', metavar='PATH', help='write the result; - for standard output alone')


def plan_file(name: str) -> Path:
    """Return the path of a plan that is a file, or the name of one in config/."""
    if Path(name).is_file():
        return Path(name)
    from fosp_core.paths import share_dir
    path = share_dir() / 'config' / f'study_{name}.yaml'
    if not path.is_file():
        raise FospError(f'{name}: no such plan, neither a file nor {path}')
    return path


def chosen(jobs: list, text: str | None) -> list:
    """Return the jobs whose name holds `text`, and all that they need, in order."""
    if text is None:
        return jobs
    wanted = {j.name for j in jobs if text in j.name}
    if not wanted:
        raise FospError(f'--only {text!r}: no job of that name')
    for job in reversed(jobs):
        if job.name in wanted:
            wanted.update(job.needs)
    return [j for j in jobs if j.name in wanted]


def kept_rows(plan, paths: list[Path], name: str) -> list[dict]:
    """Return the rows of outcomes.csv files in the order of the plan; FospError for one that the plan does not make."""
    from fosp_core.study import outcomes
    rows = {row['job']: row for row in outcomes.read(paths, name)}
    order = [job.name for job in plan.jobs(Path(name))]
    files = ', '.join(map(str, paths))
    if strange := set(rows).difference(order):
        raise FospError(f'{files}: {min(strange)} is no job of plan {name}')
    first = next(iter(rows.values()))['outcomes']['seed'][0]
    for job, row in rows.items():
        if (row['n'], row['outcomes']['seed'][0]) != (plan.evaluate['episodes'], first):
            raise FospError(f'{files}: {job}: {row["n"]} layouts from {row["outcomes"]["seed"][0]} on, expected '
                            f'{plan.evaluate["episodes"]}, as plan {name} has, from {first} on, as the first row')
    return [rows[job] for job in order if job in rows]


def tables(plan, rows: list[dict]) -> dict:
    """Return the rows of a study, with their means and all comparisons."""
    from fosp_core.study import table
    compared = table.comparisons(rows) + (table.methods_compared(rows, plan.adapt['methods'][0]) if plan.adapt else [])
    return {'title': plan.title, 'rows': rows, 'means': table.means(rows), 'comparisons': compared}


def result(plan, jobs: list, outcome, done: int, to_do: int) -> dict:
    """Return the study as it stands: all rows that are there, whatever this run was asked for."""
    from fosp_core.study import table
    return {**tables(plan, table.evaluations(jobs)), 'rollouts': table.rollouts(jobs),
            'fine_tunes': table.tunes(jobs), 'jobs': len(jobs), 'done': done, 'open': to_do,
            'failed': outcome.failed, 'refused': outcome.refused, 'waiting': outcome.waiting}


def run(args: argparse.Namespace) -> int:
    """Run what is missing; exit code 1 when a job failed."""
    from tqdm import tqdm

    from fosp_core.io import atomic_write_bytes, write_json
    from fosp_core.study import outcomes, page
    from fosp_core.study.plan import Plan
    from fosp_core.study.runner import Records, run_jobs
    from fosp_core.train.options import at_least
    at_least('--jobs', args.jobs, 1)
    at_least('--threads', args.threads, 1)
    path = plan_file(args.plan)
    plan = Plan.load(path)
    if args.outcomes:
        if args.out or args.only or args.list:
            raise FospError('--outcomes prints what was kept and looks into no folder: expected neither --out, --only '
                            'nor --list')
        kept = tables(plan, kept_rows(plan, args.outcomes, args.plan))
        if args.json:
            write_json(args.json, kept)
        if args.json != '-':
            print(page.text(kept))
        return 0
    out = args.out or Path('out') / path.stem
    every = plan.jobs(out)
    jobs = chosen(every, args.only)
    records = Records(out)
    if args.list:
        for job in jobs:
            print(f'{"done" if records.done(job) else "to do":5s}  fosp {" ".join(job.argv)}')
        return 0
    others = [job for job in every if job not in jobs]

    def missing() -> int:
        return sum(not records.done(job) and not records.refused(job) for job in others)
    missing()       # what was made by another command is told before hours of work, not after
    here = sum(records.done(job) for job in jobs)
    with tqdm(total=len(jobs), initial=here, unit='job', desc='study', file=sys.stderr) as bar:
        def finished(job, reason: str) -> None:
            bar.update(not reason)
            bar.write(f'{job.name}: {reason or "done"}', file=sys.stderr)
        outcome = run_jobs(jobs, out, args.jobs, finished, args.threads)
    found = result(plan, every, outcome, sum(records.done(job) for job in every), missing())
    write_json(out / 'study.json', found)
    outcomes.write(out / 'outcomes.csv', found['rows'])
    atomic_write_bytes(out / 'study.html', page.page(found).encode())
    if args.json:
        write_json(args.json, found)
    if args.json != '-':
        print(page.text(found))
        print(f'{out / "study.html"}')
    for name, reason in outcome.refused.items():
        print(f'refused, without a model to measure: {name}: {reason}', file=sys.stderr)
    for name, reason in outcome.failed.items():
        print(f'failed: {name}: {reason}; {records.log / name}.txt', file=sys.stderr)
    if outcome.waiting:
        print(f'not tried, for they need what failed: {", ".join(outcome.waiting)}', file=sys.stderr)
    return 1 if outcome.failed else 0
