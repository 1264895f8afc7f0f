# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The demo's report: one HTML page that needs no network, and report.json beside it. No rclpy; used by `demo`."""

import dataclasses
import html
import math
from pathlib import Path

import numpy as np

from fosp_core.evaluate import charts, film
from fosp_core.evaluate.html_page import cell, document
from fosp_core.evaluate.statistics import rate_text
from fosp_core.io import atomic_write_bytes, write_json

ROW_KEYS = ('task', 'phase', 'n', 'sr', 'cv', 'sr_ci', 'cv_ci', 'interventions')


@dataclasses.dataclass
class Film:
    """One episode tick by tick: pictures uint8 (T, H, W, 3), risk (T,), level, reason words (T,), contacts (T,).

    altered: per tick the stage of the filter that altered the command, of reasons.STAGES, or empty.
    """

    title: str
    pictures: list
    risk: list
    level: float
    reasons: list
    altered: list
    cost: list
    period: float = 0.1


@dataclasses.dataclass
class Findings:
    """Everything that the page tells. Rates are fractions, latencies milliseconds from image to command_out."""

    rows: list
    latency_ms: list
    missed_deadlines: int
    bypassed_commands: int
    model: dict                                       # version, sha256, fine_tuned {version, sha256} or None
    wall_s: float
    paired: dict | None = None                        # McNemar of the last two rows: {'sr': ..., 'cv': ...}
    problems: list = dataclasses.field(default_factory=list)   # what makes the demo fail, one sentence each
    nodes: dict = dataclasses.field(default_factory=dict)      # name -> exit code
    reasons: dict = dataclasses.field(default_factory=dict)    # reason word -> decisions
    fine_tune: dict = dataclasses.field(default_factory=dict)  # job, steps, seconds, swap seconds
    trained_on: str = ''                              # which layouts the fine-tune learned from, one sentence
    machine: dict = dataclasses.field(default_factory=dict)
    card: str = ''
    film: Film | None = None


def percentiles(values: list) -> dict[str, float | None]:
    """Return p50 and p99 of the finite values, None without any."""
    sample = np.asarray(values, float)
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return {'p50': None, 'p99': None}
    return {'p50': float(np.percentile(sample, 50)), 'p99': float(np.percentile(sample, 99))}


def to_json(findings: Findings) -> dict:
    """Return what report.json holds."""
    return {'rows': [{k: row[k] for k in ROW_KEYS} for row in findings.rows],
            'latency_ms': percentiles(findings.latency_ms), 'missed_deadlines': int(findings.missed_deadlines),
            'bypassed_commands': int(findings.bypassed_commands), 'model': findings.model,
            'wall_s': float(findings.wall_s)}


def text_table(findings: Findings) -> str:
    """Return the table that the demo prints."""
    lines = [f'{"task":10s} {"phase":8s} {"n":>3s}  {"SR [95 % Wilson]":>22s}  {"CV [95 % Wilson]":>22s}  '
             'interventions']
    lines += [f'{r["task"]:10s} {r["phase"]:8s} {r["n"]:3d}  {rate_text(r["sr"], r["sr_ci"]):>22s}  '
              f'{rate_text(r["cv"], r["cv_ci"]):>22s}  {r["interventions"]:5d}' for r in findings.rows]
    latency = percentiles(findings.latency_ms)
    if latency['p50'] is not None:
        lines.append(f'image to command_out: p50 {latency["p50"]:.1f} ms, p99 {latency["p99"]:.1f} ms over '
                     f'{len(findings.latency_ms)} decisions; missed deadlines: {findings.missed_deadlines}')
    if findings.paired:
        lines.append(f'paired on the same layouts: {_paired(findings.paired)}')
    if findings.trained_on:
        lines.append(f'fine-tuned on {findings.trained_on}')
    lines.append(f'commands that bypassed the filter: {findings.bypassed_commands}; '
                 f'{findings.wall_s:.0f} s in all')
    lines += [f'PROBLEM: {p}' for p in findings.problems]
    return '\n'.join(lines)


def _paired(paired: dict) -> str:
    sr, cv = paired['sr'], paired['cv']
    return (f'success gained on {sr["gained"]}, lost on {sr["lost"]} (exact McNemar p = {sr["p_value"]:.2g}); '
            f'violation gained on {cv["gained"]}, lost on {cv["lost"]} (p = {cv["p_value"]:.2g})')


def _rates_table(rows: list) -> str:
    head = ''.join(f'<th scope="col">{h}</th>' for h in ('task', 'phase', 'n', 'interventions', 'SR [95 %]',
                                                        'CV [95 %]'))
    body = ''.join('<tr>' + cell('', r['task']) + cell('', r['phase']) + cell('n', str(r['n']))
                   + cell('interventions', str(r['interventions'])) + cell('SR', rate_text(r['sr'], r['sr_ci']))
                   + cell('CV', rate_text(r['cv'], r['cv_ci'])) + '</tr>' for r in rows)
    return f'<table class="rates"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _tiles(findings: Findings) -> str:
    latency = percentiles(findings.latency_ms)
    tiles = []
    if len(findings.rows) >= 2:
        before, after = findings.rows[-2], findings.rows[-1]
        tiles += [(f'{before["sr"]:.0%} → {after["sr"]:.0%}', f'success on {after["task"]}, before and after', ''),
                  (f'{before["cv"]:.0%} → {after["cv"]:.0%}', f'violations on {after["task"]}, before and after', '')]
    if latency['p50'] is not None:
        tiles.append((f'{latency["p50"]:.1f} / {latency["p99"]:.1f} ms', 'image to command, p50 / p99', ''))
    tiles += [(str(findings.missed_deadlines), 'missed deadlines', ''),
              (str(findings.bypassed_commands), 'commands past the filter',
               'bad' if findings.bypassed_commands else 'good')]
    return '<div class="tiles">' + ''.join(
        f'<div class="tile"><b class="{kind}">{html.escape(value)}</b><span>{html.escape(text)}</span></div>'
        for value, text, kind in tiles) + '</div>'


def _details(pairs: dict) -> str:
    return '<dl class="dl">' + ''.join(f'<dt>{html.escape(str(k))}</dt><dd>{html.escape(str(v))}</dd>'
                                       for k, v in pairs.items()) + '</dl>'


def _key(*entries: tuple[str, str]) -> str:
    return '<div class="key">' + ''.join(f'<span><i class="{kind}"></i>{html.escape(text)}</span>'
                                         for kind, text in entries) + '</div>'


def _film_section(shown: Film) -> str:
    data = film.encode(shown.pictures, shown.risk, shown.level, shown.reasons, shown.altered, shown.period)
    seconds = [i * shown.period for i in range(len(shown.risk))]
    alt = f'Film of one episode: {shown.title}'
    return ('<h2>One episode</h2><div class="grid"><div class="card">'
            f'<h3>{html.escape(shown.title)}</h3>{film.image_tag(data, html.escape(alt, quote=True))}'
            '<p class="dim">What the camera saw; below it the risk of the command that was sent. '
            f'{film.FRAMES}</p></div>'
            '<div class="card"><h3>Risk over time</h3>'
            + charts.risk_over_time(seconds, shown.risk, shown.level, [a == 'risk' for a in shown.altered], shown.cost)
            + _key(('cv', 'risk of the command that was sent'), ('mark', 'calibrated level'),
                   ('changed', 'the risk changed the command'), ('touch', 'contact')) + '</div></div>')


def page(findings: Findings) -> str:
    """Return the HTML page."""
    latency = percentiles(findings.latency_ms)
    marks = {k: v for k, v in latency.items() if v is not None}
    verdict = ('<p class="good">Every node lived, and every command passed the filter.</p>' if not findings.problems
               else ''.join(f'<p class="bad"><b>{html.escape(p)}</b></p>' for p in findings.problems))
    model = findings.model
    facts = {'model at start': f'{model["version"]} (sha256 {model["sha256"]})'}
    if model.get('fine_tuned'):
        facts['model after fine-tune'] = f'{model["fine_tuned"]["version"]} (sha256 {model["fine_tuned"]["sha256"]})'
    facts |= findings.fine_tune
    parts = [
        '<h1>SafeReach through the ROS 2 graph</h1>',
        '<p>A policy learned from recorded data runs on a simulated arm behind the safety filter: first on the scene '
        'it was trained on, then on one it has never seen (three obstacles), then again after the fine-tune '
        'service, which learned from other layouts of it.</p>', verdict, _tiles(findings),
        '<h2>Results</h2><div class="scroll">', _rates_table(findings.rows), '</div>',
        f'<p class="dim">Same layouts before and after: {html.escape(_paired(findings.paired))}.</p>'
        if findings.paired else '',
        f'<p class="dim">Fine-tuned on {html.escape(findings.trained_on)}.</p>' if findings.trained_on else '',
        '<p class="dim">SR: share of episodes that reach the goal. CV: share with any contact. Brackets and whiskers: '
        '95 % Wilson intervals; with so few episodes they are wide, and overlapping ones prove nothing.</p>',
        '<div class="grid"><div class="card"><h3>Success and violations</h3>', charts.rate_bars(findings.rows),
        _key(('sr', 'SR, success'), ('cv', 'CV, violation')), '</div>',
        '<div class="card"><h3>Latency: image out to command_out in</h3>',
        charts.histogram(findings.latency_ms, marks, 'ms'), '</div></div>',
        _film_section(findings.film) if findings.film else '',
        '<h2>The filter</h2><div class="grid"><div class="card"><h3>Reasons given</h3>',
        charts.share_bars(findings.reasons), '<p class="dim">Decisions by reason, logarithmic.</p></div>',
        '<div class="card"><h3>The run</h3>', _details(facts), '<h3 style="margin-top:1em">Machine and nodes</h3>',
        _details({**findings.machine, 'wall time': f'{findings.wall_s:.0f} s',
                  **{f'exit code of {k}': v for k, v in findings.nodes.items()}}), '</div></div>',
        f'<h2>Model card</h2><pre>{html.escape(findings.card.strip())}</pre>' if findings.card.strip() else '',
        '<p class="dim">Not a certified safety function: a real arm needs a hardware emergency stop.</p>']
    return document('fosp_ros: SafeReach demo', parts)


def write(folder: Path, findings: Findings) -> None:
    """Write report.html and report.json into `folder`, each whole or not at all."""
    folder = Path(folder)
    atomic_write_bytes(folder / 'report.html', page(findings).encode())
    write_json(folder / 'report.json', to_json(findings))


def finite(value: float) -> float:
    """Return the value, NaN when it is no number (a state message may carry any text)."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
