# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Charts of the reports as inline SVG: text that scales, colours from the style sheet of `html_page`. Pure NumPy.

Every chart is 360 units wide, so that its labels stay readable on a telephone. Colours are CSS classes: the page turns
them with the reader's light or dark scheme.
"""

import html
import math
from collections.abc import Sequence

import numpy as np

from fosp_core.evaluate.html_page import STYLE

WIDTH = 360
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 24, 34


def _svg(height: int, title: str, body: str) -> str:
    return (f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(title, quote=True)}">'
            f'{body}</svg>')


def _text(x: float, y: float, text: str, anchor: str = 'middle', kind: str = 'tick') -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _line(x0: float, y0: float, x1: float, y1: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>'


def standalone(drawing: str) -> str:
    """Return a chart as a file of its own, with the style sheet of the page."""
    return drawing.replace('<svg ', '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
        '>', f'><style>{STYLE}svg{{background:var(--paper)}}</style>', 1) + '\n'


def nice_ticks(high: float, count: int = 4) -> list[float]:
    """Return about `count` round numbers from 0 to at least `high`."""
    if not (math.isfinite(high) and high > 0):
        return [0.0, 1.0]
    raw = high / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    return [step * i for i in range(math.ceil(high / step - 1e-9) + 1)]


def _frame(height: int, ticks: Sequence[float], label: str, form: str = '{:g}') -> tuple[str, object]:
    """Return horizontal grid lines with their labels, and the function value -> y."""
    low, high = TOP, height - BOTTOM
    top = ticks[-1] or 1.0

    def y(value: float) -> float:
        return high - (high - low) * min(max(value / top, 0.0), 1.0)
    body = ''.join(_line(LEFT, y(t), WIDTH - RIGHT, y(t), 'grid') + _text(LEFT - 5, y(t) + 3.5, form.format(t), 'end')
                   for t in ticks)
    return body + _text(2, 9, label, 'start', 'axis'), y


def rate_bars(rows: Sequence[dict]) -> str:
    """Draw SR and CV of each row as bars with their Wilson intervals; rows as in report.json."""
    height = 230
    body, y = _frame(height, [0, 0.25, 0.5, 0.75, 1.0], 'share of episodes', '{:.0%}')
    space = (WIDTH - LEFT - RIGHT) / max(len(rows), 1)
    bar = min(34.0, space / 3.2)
    for i, row in enumerate(rows):
        middle = LEFT + space * (i + 0.5)
        for kind, side in (('sr', -1), ('cv', 1)):
            x = middle + side * (bar / 2 + 2)
            low, high = row[f'{kind}_ci']
            body += (f'<rect class="{kind}" x="{x - bar / 2:.1f}" y="{y(row[kind]):.1f}" width="{bar:.1f}" '
                     f'height="{max(height - BOTTOM - y(row[kind]), 0.8):.1f}"/>')
            body += _line(x, y(low), x, y(high), 'whisker') + _line(x - 4, y(low), x + 4, y(low), 'whisker') \
                + _line(x - 4, y(high), x + 4, y(high), 'whisker')
        body += _text(middle, height - 20, row['task'], kind='axis') + _text(middle, height - 7, row['phase'])
    text = '; '.join(f'{r["task"]} {r["phase"]}: SR {r["sr"]:.0%}, CV {r["cv"]:.0%}' for r in rows)
    return _svg(height, f'Success and violation rates. {text}', body)


def histogram(values: Sequence[float], marks: dict[str, float], unit: str, bins: int = 36) -> str:
    """Draw how often each value occurs; `marks` name -> value are drawn as vertical lines."""
    height = 190
    sample = np.asarray(values, float)
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return '<p class="none">Nothing was measured.</p>'
    right = float(max(np.quantile(sample, 0.995) * 1.1, max(marks.values(), default=0.0) * 1.1, 1.0))
    counts, edges = np.histogram(np.minimum(sample, right), bins, (0.0, right))
    body, y = _frame(height, nice_ticks(float(counts.max())), 'decisions')

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / right
    for count, a, b in zip(counts, edges, edges[1:]):
        if count:
            body += (f'<rect class="sr" x="{x(a):.1f}" y="{y(count):.1f}" width="{max(x(b) - x(a) - 0.6, 0.5):.1f}" '
                     f'height="{height - BOTTOM - y(count):.1f}"/>')
    for tick in nice_ticks(right, 5):
        if tick <= right:
            body += _text(x(tick), height - BOTTOM + 13, f'{tick:g}')
    for i, (name, value) in enumerate(marks.items()):
        body += _line(x(value), TOP + 8, x(value), height - BOTTOM, 'mark')
        end = x(value) > WIDTH - 70
        side, anchor = (-4, 'end') if end else (4, 'start')
        body += _text(x(value) + side, TOP + 12 + 13 * i, f'{name} {value:.1f}', anchor)
    body += _text((LEFT + WIDTH) / 2, height - 5, unit, kind='axis')
    return _svg(height, ', '.join(f'{k} {v:.1f} {unit}' for k, v in marks.items()), body)


def _path(points: Sequence[tuple[float, float]], kind: str) -> str:
    """Polyline that breaks at NaN."""
    command, pen = [], False
    for px, py in points:
        if not (math.isfinite(px) and math.isfinite(py)):
            pen = False
            continue
        command.append(f'{"L" if pen else "M"}{px:.1f} {py:.1f}')
        pen = True
    return f'<path class="{kind}" d="{" ".join(command)}"/>' if command else ''


def risk_over_time(seconds: Sequence[float], risk: Sequence[float], level: float, changed: Sequence[bool],
                   cost: Sequence[bool]) -> str:
    """Draw one episode: the risk that the filter saw (T,), its level, commands that it changed, and contacts."""
    height = 190
    body, y = _frame(height, [0, 0.25, 0.5, 0.75, 1.0], 'risk')
    last = max(seconds[-1] if len(seconds) else 1.0, 0.1)

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / last
    step = (WIDTH - LEFT - RIGHT) / max(len(seconds), 1)
    for t, touched in zip(seconds, cost):
        if touched:
            body += (f'<rect class="touch" x="{x(t) - step / 2:.1f}" y="{TOP}" width="{step:.1f}" '
                     f'height="{height - BOTTOM - TOP}"/>')
    if math.isfinite(level):
        body += _line(LEFT, y(level), WIDTH - RIGHT, y(level), 'mark') \
            + _text(WIDTH - RIGHT, y(level) - 4, f'level {level:.3g}', 'end')
    body += _path([(x(t), y(r) if math.isfinite(r) else math.nan) for t, r in zip(seconds, risk)], 'line-cv')
    for t, r, c in zip(seconds, risk, changed):
        if c:
            body += f'<circle class="changed" cx="{x(t):.1f}" cy="{y(r if math.isfinite(r) else 0.0):.1f}" r="3"/>'
    for tick in nice_ticks(last, 5):
        if tick <= last * 1.001:
            body += _text(x(tick), height - BOTTOM + 13, f'{tick:g}')
    body += _text((LEFT + WIDTH) / 2, height - 5, 'seconds', kind='axis')
    return _svg(height, f'Risk over one episode, level {level:.3g}; changed commands: {sum(map(bool, changed))}', body)


def share_bars(counts: dict[str, int]) -> str:
    """Draw how often each reason was given, most frequent first, as horizontal bars on a logarithmic scale."""
    items = sorted(((k, v) for k, v in counts.items() if v > 0), key=lambda kv: -kv[1])[:12]
    if not items:
        return '<p class="none">No decision was seen.</p>'
    height, left = 20 * len(items) + 8, 130
    top = math.log10(items[0][1]) + 0.3
    body = ''
    for i, (name, count) in enumerate(items):
        y = 4 + 20 * i
        width = max((WIDTH - left - 56) * (math.log10(count) + 0.3) / top, 2.0)
        body += _text(left - 6, y + 12.5, name, 'end', 'axis') \
            + f'<rect class="{"sr" if name == "ok" else "cv"}" x="{left}" y="{y}" width="{width:.1f}" height="15"/>' \
            + _text(left + width + 5, y + 12, f'{count}', 'start')
    return _svg(height, ', '.join(f'{k} {v}' for k, v in items), body)


def plane(points: Sequence[tuple[str, str, dict]], title: str = 'Success against violations') -> str:
    """Draw rows in the SR-CV plane with the crosses of their Wilson intervals; the upper left corner is best.

    Parameters
    ----------
    points
        Label (empty for none), CSS class of the mark, and a row with `sr`, `cv`, `sr_ci`, `cv_ci`.

    """
    height = 300
    high = max([0.1, *(min(1.0, p[2]['cv_ci'][1]) for p in points)])
    ticks = nice_ticks(high)
    right = min(ticks[-1], 1.0)
    # Good policies crowd at the top: the axis begins below the lowest of them, and says so by its labels.
    low = math.floor(10 * min([0.9, *(p[2]['sr_ci'][0] for p in points)])) / 10
    step = 0.1 if low >= 0.5 else 0.2 if low >= 0.2 else 0.25
    low = max(0.0, 1.0 - step * math.ceil((1.0 - low) / step - 1e-9))
    body = _text(2, 9, 'SR', 'start', 'axis')

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(value / right, 0.0), 1.0)

    def y(value: float) -> float:
        return TOP + (height - BOTTOM - TOP) * min(max((1.0 - value) / (1.0 - low), 0.0), 1.0)
    for i in range(round((1.0 - low) / step) + 1):
        share = 1.0 - step * i
        body += _line(LEFT, y(share), WIDTH - RIGHT, y(share), 'grid') \
            + _text(LEFT - 5, y(share) + 3.5, f'{share:.0%}', 'end')
    for tick in ticks:
        if tick <= right * 1.001:
            body += _text(x(tick), height - BOTTOM + 13, f'{100 * tick:.3g}%',
                          'end' if tick >= right * 0.999 else 'middle')
    for label, kind, row in points:
        px, py = x(row['cv']), y(row['sr'])
        body += _line(x(row['cv_ci'][0]), py, x(row['cv_ci'][1]), py, f'arm {kind}') \
            + _line(px, y(row['sr_ci'][0]), px, y(row['sr_ci'][1]), f'arm {kind}') \
            + f'<circle class="dot {kind}" cx="{px:.1f}" cy="{py:.1f}" r="4"/>'
        if label:
            end = px > WIDTH - 90
            body += _text(px + (-7 if end else 7), py - 6, label, 'end' if end else 'start')
    body += _text((LEFT + WIDTH) / 2, height - 5, 'CV', kind='axis')
    text = '; '.join(f'{label}: SR {row["sr"]:.0%}, CV {row["cv"]:.0%}' for label, _, row in points)
    return _svg(height, f'{title}. {text}', body)


def strips(groups: Sequence[tuple[str, Sequence[tuple[str, Sequence[dict]]]]], title: str) -> str:
    """Draw SR and CV side by side, a line of marks per group: where many rows would crowd in the plane.

    Parameters
    ----------
    groups
        Label, and per mark its CSS class and rows with `sr` and `cv`: a small dot for each, a bar at their mean.

    """
    left, gap, row_height = 136, 26, 22
    width = (WIDTH - left - RIGHT - gap) / 2
    height = TOP + row_height * len(groups) + 18
    body = ''
    for key, start in (('sr', left), ('cv', left + width + gap)):
        body += _text(start, 9, key.upper(), 'start', 'axis')
        for share in (0.0, 0.5, 1.0):
            at = start + width * share
            body += _line(at, TOP - 6, at, height - 16, 'grid') \
                + _text(at, height - 4, f'{share:.0%}' if share else '0')
        for i, (_, marks) in enumerate(groups):
            for j, (kind, rows) in enumerate(marks):
                y = TOP + row_height * (i + 0.5) + 7 * (j - (len(marks) - 1) / 2)
                for row in rows:
                    body += f'<circle class="dot {kind}" cx="{start + width * row[key]:.1f}" cy="{y:.1f}" r="2.6"/>'
                mean = start + width * sum(row[key] for row in rows) / len(rows)
                body += f'<line class="mean {kind}" x1="{mean:.1f}" y1="{y - 5:.1f}" x2="{mean:.1f}" y2="{y + 5:.1f}"/>'
    for i, (label, _) in enumerate(groups):
        body += _text(left - 8, TOP + row_height * (i + 0.5) + 4, label, 'end', 'axis')
    text = '; '.join(f'{label}: ' + ', '.join(f'SR {np.mean([r["sr"] for r in rows]):.0%}, CV '
                                              f'{np.mean([r["cv"] for r in rows]):.0%}' for _, rows in marks)
                     for label, marks in groups)
    return _svg(height, f'{title}. {text}', body)


def reliability(rows: Sequence[dict], level: float) -> str:
    """Draw observed against predicted risk with Wilson intervals, the diagonal and the level; rows of `reliability`."""
    height = 300
    body, y = _frame(height, [0, 0.25, 0.5, 0.75, 1.0], 'violation within the horizon', '{:.0%}')

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value
    body += _line(x(0), y(0), x(1), y(1), 'whisker') + _line(x(level), y(0), x(level), TOP, 'mark') \
        + _text(x(level) + 4, TOP + 10, f'level {level:.3g}', 'start')
    for row in rows:
        body += _line(x(row['predicted']), y(row['ci'][0]), x(row['predicted']), y(row['ci'][1]), 'arm k1') \
            + f'<circle class="dot k1" cx="{x(row["predicted"]):.1f}" cy="{y(row["observed"]):.1f}" r="4"/>' \
            + _text(x(row['predicted']), height - BOTTOM - 4, str(row['n']))
    for tick in (0, 0.25, 0.5, 0.75, 1.0):
        body += _text(x(tick), height - BOTTOM + 13, f'{tick:.0%}', 'end' if tick == 1 else 'middle')
    body += _text((LEFT + WIDTH) / 2, height - 5, 'predicted risk (above: decisions)', kind='axis')
    text = '; '.join(f'{r["predicted"]:.2f}: {r["observed"]:.2f} of {r["n"]}' for r in rows)
    return _svg(height, f'Observed against predicted risk. {text}', body)


def curve(steps: Sequence[float], values: Sequence[float], name: str) -> str:
    """Draw one curve of a training run, (n,) against (n,), on a linear axis from the smallest to the largest value."""
    height = 150
    x_values, y_values = np.asarray(steps, float), np.asarray(values, float)
    good = np.isfinite(y_values)
    if good.sum() < 2:
        return '<p class="none">Too few points.</p>'
    x_values, y_values = x_values[good], y_values[good]
    low, high = float(y_values.min()), float(y_values.max())
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return LEFT + 12 + (WIDTH - LEFT - 12 - RIGHT) * (value - x_values[0]) / max(x_values[-1] - x_values[0], 1e-9)

    def y(value: float) -> float:
        return height - BOTTOM - (height - BOTTOM - TOP) * (value - low) / span
    body = _text(2, 9, name, 'start', 'axis')
    for value in (low, high):
        body += _line(LEFT + 12, y(value), WIDTH - RIGHT, y(value), 'grid') \
            + _text(LEFT + 8, y(value) + 3.5, f'{value:.0f}' if abs(value) >= 1000 else f'{value:.3g}', 'end')
    body += _path([(x(a), y(b)) for a, b in zip(x_values, y_values)], 'line-sr')
    body += _text(x(x_values[0]), height - BOTTOM + 13, f'{x_values[0]:g}', 'start') \
        + _text(x(x_values[-1]), height - BOTTOM + 13, f'{x_values[-1]:g}', 'end')
    return _svg(height, f'{name}: from {y_values[0]:.3g} to {y_values[-1]:.3g}', body)
