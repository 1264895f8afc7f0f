# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which of two policies is better on the same layouts, and how many layouts it would take to tell. Pure Python.

A layout on which both fare alike says nothing; the others are `gained` (the first one alone has it) or `lost`. No
winner: McNemar's exact test has p >= 0.05. That is so wherever the interval of the difference holds 0, and elsewhere
when few layouts differ.
"""

from collections.abc import Sequence

from fosp_core.evaluate.statistics import mcnemar, paired_interval, pairs_needed

BEHIND = '+filter'
CORNERS = ('safe', 'random')    # phases that stand in every table for comparison
NONE = 'no winner'


def rate(before: Sequence[bool], after: Sequence[bool], good: bool) -> dict:
    """Compare one rate of `after` with that of `before`, outcomes per layout; `good`: more is better.

    Returns
    -------
    dict
        What `mcnemar` returns, `ci` (of the difference), `verdict` (better, worse, no winner) and `needed`: the layouts
        that tell such a difference apart; None when as many are gained as lost.

    """
    found = mcnemar(before, after)
    verdict = NONE if found['p_value'] >= 0.05 else 'better' if (found['difference'] > 0) == good else 'worse'
    counts = found['gained'], found['lost'], len(before)
    return found | {'ci': list(paired_interval(*counts)), 'verdict': verdict, 'needed': pairs_needed(*counts)}


def compare(row: dict, against: dict) -> dict:
    """Compare a row of `fosp evaluate` with another one of the same layouts."""
    a, b = against['outcomes'], row['outcomes']
    return {'task': row['task'], 'phase': row['phase'], 'against': against['phase'], 'n': len(b['seed']),
            'sr': rate(a['success'], b['success'], True), 'cv': rate(a['violation'], b['violation'], False)}


def comparisons(rows: Sequence[dict]) -> list[dict]:
    """Return the comparisons that rows of one model allow: behind the filter against without, each against the corners.

    Rows of other layouts are not compared; of two rows of one policy on the same layouts the first one counts.
    """
    known = {}
    for row in rows:
        if 'outcomes' in row:
            known.setdefault((row['task'], tuple(row['outcomes']['seed']), row['phase']), row)
    found = []
    for task, seeds in dict.fromkeys(key[:2] for key in known):
        here = sorted((row for key, row in known.items() if key[:2] == (task, seeds)), key=lambda r: _rank(r['phase']))
        for i, row in enumerate(here):
            itself = row['phase'].removesuffix(BEHIND)
            found += [compare(row, other) for other in here[i + 1:] if other['phase'] == itself
                      or other['phase'] in CORNERS and (i == 0 or row['phase'] not in CORNERS)]
    return found


def _rank(phase: str) -> int:
    return 0 if phase.endswith(BEHIND) else 1 + (phase in CORNERS)


def words(compared: dict, key: str) -> str:
    """Return the verdict on one rate, `sr` or `cv`, in a line."""
    c = compared[key]
    if not c['gained'] + c['lost']:
        return f'{key.upper()}: the same on every layout; {NONE}'
    text = (f'{key.upper()} {100 * c["difference"]:+.1f} points [{100 * c["ci"][0]:+.1f}, {100 * c["ci"][1]:+.1f}], '
            f'gained on {c["gained"]}, lost on {c["lost"]}, p = {c["p_value"]:.2g}: {c["verdict"]}')
    if c['verdict'] != NONE:
        return text
    return text + (f'; about {c["needed"]} layouts would tell such a difference apart' if c['needed'] else
                   '; as many gained as lost: no n tells them apart')


def text(compared: Sequence[dict]) -> str:
    """Return the comparisons as text; empty without one."""
    lines = []
    for c in compared:
        lines.append(f'{c["task"]}: {c["phase"]} against {c["against"]} on the same {c["n"]} layouts')
        lines += [f'  {words(c, key)}' for key in ('sr', 'cv')]
    return '\n'.join(lines)
