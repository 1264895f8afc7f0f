# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Rows of a study from the files that its jobs made, and what may be said of them. Pure NumPy.

Two models are compared on the same layouts: per layout the score success - violation, the difference averaged over all
layouts (and training seeds, and tasks when pooled), with a bootstrap interval. Where it holds 0, no winner.

All seeds run on the same layouts, and what one seed does on them hangs together: layouts and seeds are each resampled
as a whole (Owen, Annals of Applied Statistics 1, 2007). Three seeds are few: their interval is rough.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fosp_core.errors import FospError
from fosp_core.evaluate.statistics import layouts_needed, mcnemar
from fosp_core.study.plan import Job

BEFORE = 'before'
FEWEST = 20     # layouts: with fewer a bootstrap interval means nothing


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FospError(f'{path}: {error}') from None


def evaluations(jobs: Sequence[Job]) -> list[dict]:
    """Return a row per evaluation that is done: job, model, seed, stage, task, filter, rates, intervals, command."""
    rows = []
    for job in jobs:
        if job.about.get('kind') != 'evaluate' or not job.makes.exists():
            continue
        result = _read(job.makes)
        (row,) = result['rows']
        model = result.get('model') or {}
        rows.append({**row, 'job': job.name, 'model': job.about['model'], 'seed': job.about['seed'],
                     'filter': job.about['filter'], 'stage': job.about['method'] or BEFORE,
                     'version': model.get('version'), 'sha256': model.get('sha256'),
                     'command': f'fosp {" ".join(job.argv)}'})
    return rows


def rollouts(jobs: Sequence[Job]) -> list[dict]:
    """Return a row per recorded fine-tuning phase: all its episodes count."""
    found = [(job, _read(job.about['json'])) for job in jobs
             if job.about.get('kind') == 'rollout' and job.about['json'].exists()]
    return [{**result['rows'][0], 'model': job.about['model'], 'seed': job.about['seed'],
             'command': f'fosp {" ".join(job.argv)}'} for job, result in found]


def tunes(jobs: Sequence[Job]) -> list[dict]:
    """Return a row per fine-tune: what the gates said."""
    found = [(job, _read(job.about['json'])) for job in jobs
             if job.about.get('kind') == 'tune' and job.about['json'].exists()]
    return [{'model': job.about['model'], 'seed': job.about['seed'], 'task': job.about['task'],
             'method': job.about['method'], 'refused': result['refused'], 'command': f'fosp {" ".join(job.argv)}'}
            for job, result in found]


def means(rows: Sequence[dict]) -> list[dict]:
    """Return SR and CV averaged over training seeds per model, stage and filter; empty when no cell has several.

    Each has `tasks`: task -> `sr`, `cv` and the number of `seeds`.
    """
    cells: dict[tuple, dict[str, list[dict]]] = {}
    for row in rows:
        cells.setdefault((row['model'], row['stage'], row['filter']), {}).setdefault(row['task'], []).append(row)
    if all(len(some) == 1 for tasks in cells.values() for some in tasks.values()):
        return []
    return [{'model': model, 'stage': stage, 'filter': switch,
             'tasks': {task: {**{k: sum(r[k] for r in some) / len(some) for k in ('sr', 'cv')}, 'seeds': len(some)}
                       for task, some in tasks.items()}} for (model, stage, switch), tasks in cells.items()]


def score(row: dict) -> np.ndarray:
    """Return success - violation of each layout (n,), in {-1, 0, 1}."""
    return np.asarray(row['outcomes']['success'], float) - np.asarray(row['outcomes']['violation'], float)


def versus(pairs: Sequence[tuple[dict, dict]]) -> dict:
    """Compare `other` with `reference` over pairs of rows (reference, other) on the same layouts.

    Returns
    -------
    dict
        `n` layouts, training `seeds` that ran on them, `tasks`, `cells` (pairs of task and seed that both have),
        `difference` of the mean score with `ci` (95 % bootstrap), `verdict` (better, worse, no winner, too few), and
        McNemar's exact test of successes `sr` and violations `cv`;
        its `p_value` is None for several seeds, whose outcomes on one layout are not independent. `needed`: the layouts
        in all tasks together that would tell such a difference (5 % level, 80 % power); None for several seeds, whose
        own chance more layouts do not take away.

    Raises
    ------
    FospError
        When two rows are not of the same layouts.

    """
    for a, b in pairs:
        if a['outcomes']['seed'] != b['outcomes']['seed'] or a['task'] != b['task']:
            raise FospError(f'{a["command"]} and {b["command"]}: not the same layouts, nothing to compare')
    gaps, tasks = _gaps(pairs)
    low, high = _interval(gaps, tasks)

    def both(key: str) -> dict:
        found = mcnemar(*(np.concatenate([np.asarray(p[i]['outcomes'][key], bool) for p in pairs]) for i in (0, 1)))
        return found if len(gaps) == 1 else {**found, 'p_value': None}
    verdict = 'better' if low > 0 else 'worse' if high < 0 else 'no winner'
    verdict = verdict if len(tasks) >= FEWEST else 'too few'
    return {'n': len(tasks), 'seeds': len(gaps), 'tasks': len(set(tasks)), 'cells': len(pairs),
            'difference': float(np.nanmean(gaps)), 'ci': [low, high], 'verdict': verdict, 'sr': both('success'),
            'cv': both('violation'), 'needed': _needed(gaps[0], tasks) if len(gaps) == 1 else None}


def _needed(gaps: np.ndarray, tasks: np.ndarray) -> int | None:
    """Return `layouts_needed` where each task keeps its share of them, so that what tasks differ in is no chance."""
    within = gaps.copy()
    for task in np.unique(tasks):
        within[tasks == task] += gaps.mean() - gaps[tasks == task].mean()
    return layouts_needed(within)


def _gaps(pairs: Sequence[tuple[dict, dict]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the differences (seeds, layouts), NaN where a seed did not run on a layout, and each layout's task."""
    layouts = list(dict.fromkeys((a['task'], seed) for a, _ in pairs for seed in a['outcomes']['seed']))
    column = {layout: i for i, layout in enumerate(layouts)}
    line = {seed: i for i, seed in enumerate(dict.fromkeys(a['seed'] for a, _ in pairs))}
    gaps = np.full((len(line), len(layouts)), np.nan)
    for a, b in pairs:
        gaps[line[a['seed']], [column[a['task'], seed] for seed in a['outcomes']['seed']]] = score(b) - score(a)
    return gaps, np.array([task for task, _ in layouts])


def _interval(gaps: np.ndarray, tasks: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean: seeds drawn anew, and layouts anew within each task; seeded."""
    if gaps.size == 1:
        return -math.inf, math.inf
    rng, there = np.random.default_rng(0), np.isfinite(gaps)
    count, weight = len(gaps), np.empty((draws, len(tasks)))
    for task in np.unique(tasks):
        here = tasks == task
        weight[:, here] = rng.multinomial(here.sum(), np.full(here.sum(), 1.0 / here.sum()), draws)
    seeds = rng.multinomial(count, np.full(count, 1.0 / count), draws)                  # (draws, seeds), times drawn
    total = ((seeds @ np.where(there, gaps, 0.0)) * weight).sum(1)
    low, high = np.quantile(total / np.maximum(((seeds @ there) * weight).sum(1), 1.0), [0.025, 0.975])
    return float(low), float(high)


def comparisons(rows: Sequence[dict]) -> list[dict]:
    """Return what can be said: each stage against `before`, filter on against off, each model against the first.

    Per task, and pooled over the tasks that both have (`task` is then `all`); seeds are pooled always.
    """
    index = {(r['model'], r['seed'], r['stage'], r['task'], r['filter']): r for r in rows}
    models, stages, tasks, filters, seeds = (list(dict.fromkeys(k[i] for k in index)) for i in (0, 2, 3, 4, 1))
    found = []

    def compare(kind: str, reference: dict, other: dict, over: Sequence[str]) -> None:
        """`reference`, `other`: model, stage and filter of the two sides."""
        pairs = {task: [(a, b) for seed in seeds for a, b in [[
            index.get((s['model'], seed, s['stage'], task, s['filter'])) for s in (reference, other)]] if a and b]
            for task in over}
        pairs = {task: p for task, p in pairs.items() if p}
        for task, some in [*pairs.items(), *([('all', [q for p in pairs.values() for q in p])] if len(pairs) > 1
                                             else [])]:
            found.append({'kind': kind, 'task': task, 'reference': reference, 'other': other, **versus(some)})

    for model in models:
        for switch in filters:
            here = {'model': model, 'filter': switch}
            for stage in stages:
                if stage != BEFORE:
                    compare('tuning', {**here, 'stage': BEFORE}, {**here, 'stage': stage}, tasks)
        if {'on', 'off'} <= set(filters):
            for stage in stages:
                compare('filter', {'model': model, 'stage': stage, 'filter': 'off'},
                        {'model': model, 'stage': stage, 'filter': 'on'}, tasks)
    for model in models[1:]:
        for switch in filters:
            for stage in stages:
                compare('model', {'model': models[0], 'stage': stage, 'filter': switch},
                        {'model': model, 'stage': stage, 'filter': switch}, tasks)
    return found


def methods_compared(rows: Sequence[dict], first: str) -> list[dict]:
    """Return each fine-tuning method against `first`, per model and filter, pooled over tasks and seeds."""
    index = {(r['model'], r['seed'], r['stage'], r['task'], r['filter']): r for r in rows}
    found = []
    for model, switch, stage in dict.fromkeys((r['model'], r['filter'], r['stage']) for r in rows):
        if stage in (BEFORE, first):
            continue
        pairs = [(index[model, seed, first, task, switch], r) for (m, seed, s, task, f), r in index.items()
                 if (m, s, f) == (model, stage, switch) and (model, seed, first, task, switch) in index]
        if pairs:
            sides = [{'model': model, 'stage': s, 'filter': switch} for s in (first, stage)]
            found.append({'kind': 'method', 'task': 'all', 'reference': sides[0], 'other': sides[1], **versus(pairs)})
    return found
