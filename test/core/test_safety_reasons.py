# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Reasons: unique words, sensible effects, and a documentation that says the same and names tests that exist."""

import re
from pathlib import Path

from fosp_core.safety.reasons import BY_WORD, ERROR, Effect, Reason, markdown, most_restrictive

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / 'docs' / 'safety.md').read_text()


def test_words_are_unique_and_ranked_in_order():
    assert len(BY_WORD) == len(Reason) and all(re.fullmatch(r'[a-z_]+', word) for word in BY_WORD)
    assert [r.rank for r in Reason] == list(range(len(Reason)))
    assert all(r.text.endswith('.') and r.advice.endswith('.') for r in Reason)


def test_latches_are_stops_and_errors_and_rank_above_all_that_is_not():
    latching = [r for r in Reason if r.latching]
    assert all(r.effect is Effect.STOP and r.level == ERROR and 'safety_filter/reset' in r.advice for r in latching)
    order = [Effect.STOP, Effect.HOLD, Effect.ALTER, Effect.PASS]
    effects = [order.index(r.effect) for r in Reason]
    assert effects == sorted(effects), 'a weaker effect ranks above a stronger one'
    assert max(r.rank for r in latching) < min(r.rank for r in Reason if not r.latching)


def test_the_most_restrictive_wins():
    assert most_restrictive([]) is Reason.PASS
    assert most_restrictive([Reason.LIMIT_SPEED, Reason.CAMERA_STALE, Reason.LATE_HOLD]) is Reason.CAMERA_STALE
    assert most_restrictive([Reason.CAMERA_STALE, Reason.ESTOP]) is Reason.ESTOP


def test_only_the_learned_risk_counts_as_an_intervention():
    assert {r.word for r in Reason if r.learned} == {w for w in BY_WORD if w.startswith('risk_')}


def test_the_documented_table_is_the_generated_one():
    assert markdown() in DOCS, 'docs/safety.md: put in the output of `python -m fosp_core.safety.reasons`'


def test_every_test_and_reason_that_the_argument_names_exists():
    sources = '\n'.join(path.read_text() for path in ROOT.glob('test/**/*.py'))
    argument = DOCS.split('## Hazard, rule, test')[1].split('## Times')[0]
    for name in re.findall(r'`(test_\w+)`', argument):
        assert f'def {name}(' in sources, f'docs/safety.md names {name}, which is not there'
    for row in argument.splitlines():
        cells = row.split('|')
        if len(cells) > 4:
            for word in re.findall(r'`([a-z_]+)`', cells[3]):
                assert word in BY_WORD, f'docs/safety.md names the reason {word}, which is not there'
