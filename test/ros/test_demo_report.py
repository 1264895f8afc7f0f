# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The demo's page and JSON: prevents a report that needs a network, hides a fault or loses a figure (lesson 19)."""

import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from fosp_core.evaluate import charts
from fosp_core.evaluate import film as films
from fosp_core.evaluate.statistics import mcnemar, summary_row
from fosp_ros import report


@pytest.fixture
def findings():
    rng = np.random.default_rng(0)
    pictures = list(rng.integers(0, 256, (12, 64, 64, 3), np.uint8))
    risk = [math.nan, *np.linspace(0.1, 0.9, 11)]
    film = report.Film('unseen3 <b>', pictures, risk, 0.5, ['ok'] * 6 + ['risk_scaled'] * 6,
                       [''] * 5 + ['limits'] + ['risk'] * 6, [False] * 11 + [True])
    rows = [summary_row('standard', 'before', [True] * 3, [False] * 3, 4),
            summary_row('unseen3', 'before', [True, False, False], [True, False, True], 9),
            summary_row('unseen3', 'after', [True, True, False], [False] * 3, 1)]
    return report.Findings(
        rows, [5.0, 6.0, 7.0, 30.0], 2, 0, {'version': 'v1', 'sha256': 'ab' * 32, 'fine_tuned': None}, 12.5,
        paired={'sr': mcnemar([True, False, False], [True, True, False]), 'cv': mcnemar([True], [False])},
        nodes={'learner': 0}, reasons={'ok': 10, 'risk_scaled': 6}, machine={'machine': '2 cores'},
        card='# Card\n<script>alert(1)</script>', film=film)


def test_json_has_exactly_the_promised_keys(findings, tmp_path):
    report.write(tmp_path, findings)
    data = json.loads((tmp_path / 'report.json').read_text())
    assert set(data) == {'rows', 'latency_ms', 'missed_deadlines', 'bypassed_commands', 'model', 'wall_s'}
    assert [set(r) for r in data['rows']] == 3 * [
        {'task', 'phase', 'n', 'sr', 'cv', 'sr_ci', 'cv_ci', 'interventions'}]
    assert set(data['latency_ms']) == {'p50', 'p99'} and data['latency_ms']['p50'] == 6.5
    assert data['model']['version'] == 'v1' and data['model']['sha256'] == 'ab' * 32
    assert data['rows'][1]['sr'] == pytest.approx(1 / 3)
    assert (data['missed_deadlines'], data['bypassed_commands'], data['wall_s']) == (2, 0, 12.5)


def test_page_needs_nothing_from_outside(findings):
    page = report.page(findings)
    assert not re.findall(r'(?:src|href|url\()\s*=?\s*["\']?(?!data:)[a-z]*:?//', page)
    assert 'http://' not in page and 'https://' not in page and '@import' not in page
    assert 'src="data:image/webp;base64,' in page
    assert 'prefers-color-scheme:dark' in page and 'width=device-width' in page


def test_page_tells_everything_and_escapes_it(findings):
    findings.problems = ['node trainer ended (exit code 1): <boom>']
    findings.bypassed_commands = 13
    page = report.page(findings)
    assert '&lt;boom&gt;' in page and '<boom>' not in page
    assert '<script>' not in page and 'unseen3 &lt;b&gt;' in page
    assert 'every command passed the filter' not in page
    for text in ('33.3 % [6.1, 79.2]', '66.7 % [20.8, 93.9]', '6.5 / 29.3 ms', 'risk_scaled', '>13<',
                 'hardware emergency stop'):
        assert text in page, text
    findings.problems, findings.bypassed_commands = [], 0
    assert 'every command passed the filter' in report.page(findings)


def test_a_run_that_broke_off_still_has_a_page(tmp_path):
    broken = report.Findings([], [], 0, 0, {'version': 'v', 'sha256': 's', 'fine_tuned': None}, 1.0, problems=['dead'])
    report.write(tmp_path, broken)
    assert json.loads((tmp_path / 'report.json').read_text())['latency_ms'] == {'p50': None, 'p99': None}
    assert 'dead' in (tmp_path / 'report.html').read_text() and 'PROBLEM: dead' in report.text_table(broken)


def test_text_table_shows_intervals_in_per_cent(findings):
    lines = report.text_table(findings).splitlines()
    assert '100.0 % [43.9, 100.0]' in lines[1] and lines[1].split()[:3] == ['standard', 'before', '3']
    assert any('p50 6.5 ms' in line and 'missed deadlines: 2' in line for line in lines)


def test_film_is_an_endless_animation_of_every_tick(findings):
    from PIL import Image
    film = findings.film
    data = films.encode(film.pictures, film.risk, film.level, film.reasons, film.altered)
    movie = Image.open(io.BytesIO(data))
    assert (movie.format, movie.n_frames, movie.info['loop']) == ('WEBP', 12, 0)
    assert movie.size == (films.SIZE, films.SIZE + films.STRIP)
    for frame, colour, other in ((10, films.CHANGED, films.OTHER), (5, films.OTHER, films.CHANGED)):
        movie.seek(frame)   # risk, then a limit, altered this command: a frame around the picture says so
        corner = np.asarray(movie.convert('RGB'), int)[2, 2]
        assert np.abs(corner - colour).max() < 60 and np.abs(corner - other).max() > 60
    movie.seek(2)
    assert all(np.abs(np.asarray(movie.convert('RGB'), int)[2, 2] - c).max() > 60 for c in (films.CHANGED, films.OTHER))
    assert 'yellow frame: the risk changed' in report.page(findings) and 'a blue one' in report.page(findings)


@pytest.mark.parametrize('chart', [
    lambda: charts.rate_bars([summary_row('t<', 'p&', [True], [False])]),
    lambda: charts.histogram([1.0, 2.0, math.nan, 9.0], {'p50': 2.0, 'p99': 9.0}, 'ms'),
    lambda: charts.risk_over_time([0.0, 0.1, 0.2], [math.nan, 0.2, 0.4], 0.3, [False, False, True],
                                         [False, True, False]),
    lambda: charts.risk_over_time([], [], math.nan, [], []),
    lambda: charts.share_bars({'ok': 100, 'estop': 1}),
])
def test_charts_are_well_formed_and_hold_no_nan(chart):
    text = chart()
    root = ElementTree.fromstring(text)
    assert root.get('aria-label') and not re.search(r'="[^"]*\bnan\b', text.split('>', 1)[1])


def test_ticks_are_round_and_reach_the_top():
    assert charts.nice_ticks(37.0) == [0, 10, 20, 30, 40]
    assert charts.nice_ticks(0.0) == [0.0, 1.0]
    assert charts.nice_ticks(1.0)[-1] == 1.0
