# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Sections of the page about a model, each as HTML from what was measured. For `fosp report`."""

import base64
import html
from collections.abc import Sequence

import numpy as np

from fosp_core.evaluate import charts, comparison, film
from fosp_core.evaluate.html_page import cell
from fosp_core.evaluate.statistics import MEANS, mean_text, rate_text
from fosp_core.safety.reasons import STAGES

AGAINST = ('Difference in points on the same layouts with its 95 % interval (Tango), and the exact test of McNemar. '
           'Where p is not below 0.05 there is no winner, as everywhere where the interval holds 0; beside it the '
           'layouts that would tell a difference like the one seen (5 % level, 80 % power).')
CURVES = ('model/loss', 'model/picture', 'model/kl', 'reach/loss', 'critic/target_reward', 'actor/loss')
INTERVALS = 'SR: share of episodes that reach the goal. CV: share with any contact. Brackets and crosses: 95 % Wilson.'
FILMS = ('What the camera saw, run again for this page; below it the risk of the command that was sent, and the '
         f'calibrated level. {film.FRAMES}')
CAUSES = ('Interventions: commands that the risk changed; beside them those that surprise, limits and stops altered. '
          'Unwarned: episodes with a contact before which the risk had changed nothing.')
PER_EPISODE = ('Per episode, with 95 % bootstrap intervals; of episodes that are all alike there is none. Cost: steps '
               'in contact. Time to goal: of the episodes that arrived.')
DOTS = ('Each dot: the decisions of one tenth of predicted risk, and how many of them were followed by a contact '
        'within {horizon} steps; bars are 95 % Wilson intervals over steps, which are not independent. On the line, '
        'the estimate means what it says.')
STRIPS = ('Every third record from left to right: the truth, the prediction, their difference. Five records are seen, '
          'so the first two columns are reconstructions; then only the recorded actions are known.')


def card(body: str, heading: str = '') -> str:
    """Return a box; `heading` is escaped, `body` is HTML."""
    return f'<div class="card">{f"<h3>{html.escape(heading)}</h3>" if heading else ""}{body}</div>'


def _count(row: dict, key: str) -> str:
    return '-' if row.get(key) is None else str(row[key])


def results(evaluations: Sequence[dict]) -> str:
    """Return table, SR-CV planes and latencies of results of `fosp evaluate`."""
    rows = [(r, result) for result in evaluations for r in result['rows']]
    names = ('task', 'policy', 'through', 'n', 'SR [95 %]', 'CV [95 %]', 'interventions', *STAGES[1:], 'unwarned')
    body = ''
    for r, result in rows:
        values = (r['task'], r['phase'], result['through'], str(r['n']), rate_text(r['sr'], r['sr_ci']),
                  rate_text(r['cv'], r['cv_ci']), str(r['interventions']),
                  *(str((r.get('altered') or {}).get(stage, '-')) for stage in STAGES[1:]),
                  _count(r, 'contacts_unwarned'))
        body += '<tr>' + ''.join(cell(n, v) for n, v in zip(names, values)) + '</tr>'
    head = ''.join(f'<th scope="col">{n}</th>' for n in names)
    phases = list(dict.fromkeys(r['phase'] for r, _ in rows))
    planes = ''
    for task in dict.fromkeys(r['task'] for r, _ in rows):
        points = [('', f'k{phases.index(r["phase"]) % 5}', r) for r, _ in rows if r['task'] == task]
        planes += card(charts.plane(points, task), task)
    key = ''.join(f'<span><i class="k{i % 5}"></i>{html.escape(p)}</span>' for i, p in enumerate(phases))
    table = f'<table class="rates"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return (f'<h2>Results</h2><div class="scroll">{table}</div><div class="grid">{planes}</div>'
            f'<div class="key">{key}</div><p class="dim">{INTERVALS} {CAUSES}</p>'
            f'{means(rows)}{against(evaluations)}{made_by(evaluations)}{latency(evaluations)}')


def means(rows: Sequence[tuple[dict, dict]]) -> str:
    """Return the table of means, each with its interval, of (row, result) pairs."""
    names = ('task', 'policy', 'through', 'n', *MEANS.values())
    head = ''.join(f'<th scope="col">{n}</th>' for n in names)
    body = ''
    for r, result in rows:
        values = (r['task'], r['phase'], result['through'], str(r['n']), *(mean_text(r, key) for key in MEANS))
        body += '<tr>' + ''.join(cell(n, v) for n, v in zip(names, values)) + '</tr>'
    return (f'<h3>Means</h3><div class="scroll"><table class="rates"><thead><tr>{head}</tr></thead>'
            f'<tbody>{body}</tbody></table></div><p class="dim">{PER_EPISODE}</p>')


def made_by(evaluations: Sequence[dict]) -> str:
    """Return the commands of the results that say theirs."""
    commands = dict.fromkeys(result['command'] for result in evaluations if result.get('command'))
    if not commands:
        return ''
    lines = ''.join(f'<li><code>{html.escape(command)}</code></li>' for command in commands)
    return f'<h3>Commands</h3><ul>{lines}</ul>'


def against(evaluations: Sequence[dict]) -> str:
    """Return the paired comparisons that the evaluations allow, those of the core first; empty without one."""
    inner = sorted(evaluations, key=lambda result: result['through'] != 'core')
    compared = comparison.comparisons([row for result in inner for row in result['rows']])
    if not compared:
        return ''
    names = ('task', 'policy', 'against', 'n', 'success', 'violations')
    head = ''.join(f'<th scope="col"{words}>{n}</th>' for n, words in zip(names, [''] * 4 + [' class="words"'] * 2))
    body = ''
    for c in compared:
        values = (c['task'], c['phase'], c['against'], str(c['n']), *(comparison.words(c, key) for key in ('sr', 'cv')))
        body += '<tr>' + ''.join(cell(n, v) for n, v in zip(names, values)) + '</tr>'
    return (f'<h3>On the same layouts</h3><div class="scroll"><table class="rates"><thead><tr>{head}</tr></thead>'
            f'<tbody>{body}</tbody></table></div><p class="dim">{AGAINST}</p>')


def latency(evaluations: Sequence[dict]) -> str:
    """Return the histogram of all runs through the graph; empty without one."""
    values = [v for result in evaluations for v in (result.get('graph') or {}).get('latencies_ms', ())]
    if not values:
        return ''
    marks = {name: float(np.percentile(values, q)) for name, q in (('p50', 50), ('p99', 99))}
    return f'<h2>From picture to command</h2>{card(charts.histogram(values, marks, "ms"))}'


def films(shown: Sequence[tuple[str, bytes]]) -> str:
    """Return the films, each a title and an animated WebP; empty without one."""
    if not shown:
        return ''
    cards = ''.join(card(film.image_tag(data, html.escape(title, True)), title) for title, data in shown)
    return f'<h2>Films</h2><p>{FILMS}</p><div class="grid">{cards}</div>'


def reliability(rows: Sequence[dict], judged: dict, level: float, alpha: float, horizon: int, episodes: int) -> str:
    """Return the diagram of `evaluate.reliability.reliability` and what `judge` says of the level."""
    missed, alarms = judged['missed'], judged['false_alarms']
    rate = 'none to judge by'
    if missed['rate'] is not None:
        rate = f'{missed["rate"]:.1%}, with 95 % confidence at most {missed["upper"]:.1%}'
    text = (f'{episodes} episodes that the model was not trained on. Violations that came unannounced: '
            f'{missed["count"]} of {missed["n"]} ({rate}; promised: at most {alpha:.0%}). Alarms on '
            f'{alarms["count"]} of {alarms["n"]} steps of episodes without a violation.')
    words = f'<p>{html.escape(text)}</p><p class="dim">{DOTS.format(horizon=horizon)}</p>'
    return (f'<h2>Does the risk mean what it says?</h2><div class="grid">{card(charts.reliability(rows, level))}'
            f'{card(words)}</div>')


def predictions(strips: Sequence[tuple[str, bytes]]) -> str:
    """Return open-loop predictions, each a title and a PNG; empty without one."""
    if not strips:
        return ''
    cards = ''.join(card(f'<img alt="{html.escape(title, True)}: truth, prediction, difference" '
                         f'src="data:image/png;base64,{base64.b64encode(data).decode()}">', title)
                    for title, data in strips)
    return f'<h2>What the world model expects</h2><p>{STRIPS}</p>{cards}'


def curves(lines: Sequence[dict]) -> str:
    """Return the learning curves of the lines of a metrics.jsonl."""
    cards = ''
    for key in CURVES:
        points = [(line['step'], line[key]) for line in lines if key in line]
        if points:
            cards += card(charts.curve(*zip(*points), key))
    return f'<h2>Learning curves</h2><div class="grid">{cards}</div>' if cards else ''
