# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Tables of docs/explanation/results.md against the outcomes kept beside it: prevents a slip of the pen."""

from pathlib import Path

import pytest

from fosp_core.study import table
from fosp_core.study.cli import kept_rows, plan_file, tables
from fosp_core.study.plan import Plan

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'explanation' / 'results.md'
KEPT = sorted((PAGE.parent / 'outcomes').glob('*.csv'))
LABELS = {'fosp': 'FOSP', 'bc': 'behaviour cloning', 'safedreamer': 'SafeDreamer-style'}     # else `name`
TABLES = {'off': '| alone |', 'on': '| behind the filter |'}


def rows_of(file):
    plan = Plan.load(plan_file(file.stem))
    return plan, kept_rows(plan, [file], file.stem)


def cells(start, page):
    """Return the cells after `start` of every table row that begins so."""
    return [[c.strip().strip('*') for c in line.removeprefix(start).split('|')[:-1]]
            for line in page.splitlines() if line.startswith(start)]


def rate(row, key):
    return f'{100 * row[key]:.1f} [{100 * row[f"{key}_ci"][0]:.1f}, {100 * row[f"{key}_ci"][1]:.1f}]'


@pytest.mark.parametrize('name', ['shipped', 'beyond'])
def test_each_row_that_was_kept_of_a_study_of_one_model_is_on_the_page(name):
    (file,) = [f for f in KEPT if f.stem == name]
    plan, rows = rows_of(file)
    assert len(rows) == sum(job.name.startswith('evaluate/') for job in plan.jobs(PAGE))
    page = PAGE.read_text()
    compared = tables(plan, rows)['comparisons']
    found = {}
    for row in rows:
        found.setdefault((row['task'], row['stage']), {})[row['filter']] = row
    for (task, stage), both in found.items():
        wanted = [rate(both[f], key) for f in ('off', 'on') for key in ('sr', 'cv')]
        written = cells(f'| {task} | {stage} |', page) + cells(f'| {task} | {stage} (refused) |', page)
        assert wanted in written, f'{file.name}: {task} {stage}: {wanted}, the page has {written}'
    pooled = [c for c in compared if c['task'] == 'all' and c['kind'] in ('tuning', 'method')]
    for side in pooled if name == 'shipped' else ():
        words = f'{100 * side["difference"]:+.1f} [{100 * side["ci"][0]:+.1f}, {100 * side["ci"][1]:+.1f}]'
        start = f'| {side["other"]["stage"]} | {side["reference"]["stage"]} |'
        index = 1 if side['other']['filter'] == 'on' else 0
        assert any(row[index] == f'{words} {side["verdict"]}' for row in cells(start, page)), f'{start}: {words}'


def test_means_over_seeds_are_those_that_were_kept():
    """Of the models of which all seeds were kept; in the tables alone and behind the filter, column by column."""
    (file,) = [f for f in KEPT if f.stem == 'full']
    plan, rows = rows_of(file)
    page, looked = PAGE.read_text(), 0
    page = page[page.index('## 600 episodes'):]
    for mean in table.means(rows):
        if any(cell['seeds'] < 3 for cell in mean['tasks'].values()):
            continue
        label = LABELS.get(mean['model'], f'`{mean["model"]}`')
        stage = {'before': 'before', 'own': 'after'}.get(mean['stage'], f'after `{mean["stage"]}`')
        wanted = [f'{100 * c["sr"]:.1f} / {100 * c["cv"]:.1f}' if (c := mean['tasks'].get(t)) else ''
                  for t in plan.evaluate['tasks']]
        heading = TABLES[mean['filter']]
        here = [part.split('\n\n')[0] for part in page.split('\n\n' + heading)[1:]]
        written = [r for part in here for start in (f'| {label} {stage} |', f'| {label}: {stage} |')
                   for r in cells(start, part)]
        assert wanted in [r[:4] for r in written], f'{label} {stage}, {heading}: {wanted}, the page has {written}'
        looked += 1
    assert looked >= 2
