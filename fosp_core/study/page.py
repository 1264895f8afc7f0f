# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A study as text for the terminal and as one HTML page. For `fosp study`."""

import html

from fosp_core.evaluate import charts
from fosp_core.evaluate.html_page import cell, document
from fosp_core.evaluate.statistics import rate_text
from fosp_core.study import table
from fosp_core.study.table import BEFORE

WORDS = {'tuning': 'after fine-tuning against before', 'filter': 'filter on against off',
         'model': 'model against model', 'method': 'fine-tuning method against method'}


def _name(side: dict) -> str:
    return f'{side["model"]} {side["stage"]}, filter {side["filter"]}'


def _n(compared: dict) -> str:
    seeds, tasks = compared['seeds'], compared['tasks']
    missing = seeds * tasks - compared['cells']
    return (f'{compared["n"]} layouts' + (f' x {seeds} seeds' if seeds > 1 else '')
            + (f', {missing} of {seeds * tasks} cells missing' if missing else ''))


def _verdict(compared: dict) -> str:
    if compared['verdict'] != 'no winner':
        return compared['verdict']
    return 'no winner' + (f'; about {n} layouts would tell such a difference' if (n := compared['needed']) else '')


def text(found: dict) -> str:
    """Return the rows, and the comparisons that were pooled, as text."""
    lines = [f'{"task":10s} {"model":14s} {"seed":>4s} {"stage":12s} {"filter":6s} {"n":>5s}  '
             f'{"SR [95 % Wilson]":>22s}  {"CV [95 % Wilson]":>22s}']
    lines += [f'{r["task"]:10s} {r["model"]:14s} {r["seed"]:4d} {r["stage"]:12s} {r["filter"]:6s} {r["n"]:5d}  '
              f'{rate_text(r["sr"], r["sr_ci"]):>22s}  {rate_text(r["cv"], r["cv_ci"]):>22s}' for r in found['rows']]
    if means := table.means(found['rows']):
        lines.append('SR / CV, means over the training seeds (their number):')
        lines += ['  ' + '  '.join(f'{k} {v}' if k not in ('model', 'stage', 'filter') else f'{v:14s}'
                                   for k, v in row.items() if v != '-') for row in _means(means)]
    pooled = [c for c in found['comparisons'] if c['task'] == 'all']
    if pooled:
        lines.append('SR - CV on the same layouts, all tasks pooled (95 % bootstrap):')
        lines += [f'  {_name(c["other"])} against {_name(c["reference"])}: {100 * c["difference"]:+.1f} points '
                  f'[{100 * c["ci"][0]:+.1f}, {100 * c["ci"][1]:+.1f}], {_n(c)}: {_verdict(c)}' for c in pooled]
    return '\n'.join(lines)


def _rows_table(rows: list[dict]) -> str:
    names = ('task', 'model', 'seed', 'stage', 'filter', 'n', 'SR [95 %]', 'CV [95 %]', 'return', 'steps')
    head = ''.join(f'<th scope="col">{n}</th>' for n in names)
    body = ''
    for r in rows:
        values = (r['task'], r['model'], str(r['seed']), r['stage'], r['filter'], str(r['n']),
                  rate_text(r['sr'], r['sr_ci']), rate_text(r['cv'], r['cv_ci']), f'{r["return"]:.2f}',
                  f'{r["steps"]:.0f}')
        body += '<tr>' + ''.join(cell(n, v) for n, v in zip(names, values)) + '</tr>'
    return f'<div class="scroll"><table class="rates"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _comparison_table(compared: list[dict]) -> str:
    names = ('task', 'what', 'against', 'SR - CV', 'n', 'verdict')
    head = ''.join(f'<th scope="col">{n}</th>' for n in names)
    body = ''
    for c in compared:
        difference = f'{100 * c["difference"]:+.1f} [{100 * c["ci"][0]:+.1f}, {100 * c["ci"][1]:+.1f}]'
        values = (c['task'], _name(c['other']), _name(c['reference']), difference, _n(c), _verdict(c))
        body += '<tr>' + ''.join(cell(n, v) for n, v in zip(names, values)) + '</tr>'
    return f'<div class="scroll"><table class="rates"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _pictures(rows: list[dict]) -> str:
    """One picture per task: a colour per stage, hollow without the filter; of several models or seeds no plane."""
    cards = ''
    stages = list(dict.fromkeys(r['stage'] for r in rows))

    def kind(row: dict) -> str:
        return f'k{stages.index(row["stage"]) % 5}' + ('' if row['filter'] == 'on' else ' hollow')
    for task in dict.fromkeys(r['task'] for r in rows):
        here = [r for r in rows if r['task'] == task]
        if len({(r['model'], r['seed']) for r in here}) == 1:
            drawing = charts.plane([('', kind(r), r) for r in here], task)
        else:
            groups: dict[tuple, dict[str, list]] = {}
            for r in here:
                groups.setdefault((r['model'], r['stage']), {}).setdefault(kind(r), []).append(r)
            drawing = charts.strips([(f'{model} {stage}' if len(stages) > 1 else model, list(marks.items()))
                                     for (model, stage), marks in groups.items()], task)
        cards += f'<div class="card"><h3>{html.escape(task)}</h3>{drawing}</div>'
    key = ''.join(f'<span><i class="k{i % 5}"></i>{html.escape(s)}</span>' for i, s in enumerate(stages))
    seeds = '; a dot for each training seed, a bar at their mean' * (len({r['seed'] for r in rows}) > 1)
    return (f'<div class="grid">{cards}</div><div class="key">{key}<span>filled: behind the filter; hollow: '
            f'alone{seeds}</span></div>')


def _means(means: list[dict]) -> list[dict]:
    """Return the rows of `table.means` as text, a column per task."""
    tasks = list(dict.fromkeys(task for m in means for task in m['tasks']))
    return [{**{k: m[k] for k in ('model', 'stage', 'filter')},
             **{t: f'{100 * c["sr"]:.1f} / {100 * c["cv"]:.1f} ({c["seeds"]})' if (c := m['tasks'].get(t)) else '-'
                for t in tasks}} for m in means]


def page(found: dict) -> str:
    """Return the HTML page of `fosp_core.study.cli.result`."""
    rows, parts = found['rows'], [f'<h1>{html.escape(found["title"])}</h1>']
    if found['failed'] or found['waiting']:
        parts.append(f'<p class="bad">Not complete: {len(found["failed"])} jobs failed, {len(found["waiting"])} were '
                     f'not tried. What follows is the rest.</p>')
    elif found['open']:
        parts.append(f'<p class="bad">Not complete: {found["open"]} of {found["jobs"]} jobs are still to be done.</p>')
    parts.append('<p>SR: share of episodes that reach the goal. CV: share with any contact. Brackets and crosses: 95 % '
                 'Wilson intervals. All rows of one task and seed are of the same layouts.</p>')
    if rows:
        parts += ['<h2>Success against violations</h2>', _pictures(rows)]
        if means := table.means(rows):
            parts += ['<h2>Means over the training seeds</h2>'
                      '<p>SR / CV in per cent, in brackets the number of seeds.</p>', _plain(_means(means))]
        parts += ['<h2>All rows</h2>', _rows_table(rows)]
    for kind, words in WORDS.items():
        some = [c for c in found['comparisons'] if c['kind'] == kind]
        if some:
            parts += [f'<h2>{words[0].upper() + words[1:]}</h2>', _comparison_table(some)]
    if found['comparisons']:
        parts.append('<p class="dim">SR - CV in points, averaged over the same layouts, with the 95 % bootstrap '
                     'interval over layouts and, where there are several, training seeds, each drawn as a whole (of '
                     'three seeds it is rough); where it holds 0 there is no winner. Many comparisons were made: of '
                     'twenty without any difference one shows a winner.</p>')
    if found['rollouts']:
        parts += ['<h2>The fine-tuning phase itself</h2><p>Every episode that was recorded for a fine-tune, behind the '
                  'filter.</p>', _plain([{'task': r['task'], 'model': r['model'], 'seed': r['seed'], 'n': r['n'],
                                          'SR': rate_text(r['sr'], r['sr_ci']), 'CV': rate_text(r['cv'], r['cv_ci'])}
                                         for r in found['rollouts']])]
    if found['fine_tunes']:
        parts += ['<h2>What the gates said</h2><p>On a robot a refused model never reaches the arm; the study '
                  'measures it all the same, unless pre-alignment refused before there was one.</p>', _plain([
                      {k: t[k] for k in ('task', 'model', 'seed', 'method')}
                      | {'gates': f'refused: {t["refused"]}' if t['refused'] else 'passed'}
                      for t in found['fine_tunes']])]
    commands = ''.join(f'<dt>{html.escape(_label(r))}</dt><dd><code>{html.escape(r["command"])}</code></dd>'
                       for r in rows)
    parts.append('<h2>Commands</h2><details><summary>Every row again</summary>'
                 f'<dl class="dl">{commands}</dl></details>')
    return document(found['title'], parts)


def _label(row: dict) -> str:
    stage = '' if row['stage'] == BEFORE else f' {row["stage"]}'
    return f'{row["task"]} {row["model"]} {row["seed"]}{stage} {row["filter"]}'


def _plain(rows: list[dict]) -> str:
    head = ''.join(f'<th scope="col">{html.escape(n)}</th>' for n in rows[0])
    body = ''.join('<tr>' + ''.join(cell(n, str(v)) for n, v in r.items()) + '</tr>' for r in rows)
    return f'<div class="scroll"><table class="rates"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
