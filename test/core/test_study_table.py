# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a study says: verdicts, means, the page, and outcomes that were kept, on made-up rows."""

import json
import random

import pytest
import yaml

from fosp_core.cli import main
from fosp_core.errors import FospError
from fosp_core.evaluate.statistics import summary_row
from fosp_core.study import outcomes, page, table

PLAN = {'data': {'mix': {'episodes': 9, 'seed': 0}}, 'models': {'a': {'data': ['mix']}},
        'adapt': {'tasks': ['unseen1'], 'methods': ['fosp', 'direct']},
        'evaluate': {'tasks': ['standard', 'unseen1'], 'episodes': 3, 'filter': ['on', 'off']}}


def row(model, stage, switch, success, violation, task='unseen1', seed=0):
    return {**summary_row(task, 'model', success, violation, 0), 'model': model, 'seed': seed, 'stage': stage,
            'filter': switch, 'return': 1.0, 'steps': 9.0, 'command': 'fosp evaluate', 'version': 'v1', 'sha256': 'abc',
            'job': f'evaluate/{model}-s{seed}/{"" if stage == "before" else f"{task}-{stage}/"}{task}-{switch}',
            'outcomes': {'seed': list(range(len(success))), 'success': success, 'violation': violation}}


def test_verdicts_by_hand():
    n = 40
    before = row('a', 'before', 'off', [1] * 20 + [0] * 20, [0] * 40)
    same = row('a', 'same', 'off', [0, 1] * 20, [0] * 40)          # 10 gained, 10 lost
    better = row('a', 'fosp', 'off', [1] * 36 + [0] * 4, [0] * 40)
    violates = row('a', 'wild', 'off', [1] * 20 + [0] * 20, [1] * 16 + [0] * 24)
    found = table.versus([(before, better)])
    assert found['n'] == n and found['difference'] == pytest.approx(16 / 40) and found['verdict'] == 'better'
    assert found['sr']['gained'] == 16 and found['sr']['lost'] == 0
    # The interval of a mean of 40 values 0 and 1 with mean .4: about .4 -+ 1.96 sqrt(.24 / 40)
    assert found['ci'] == pytest.approx([0.25, 0.55], abs=0.03)
    nothing = table.versus([(before, same)])
    assert nothing['verdict'] == 'no winner' and nothing['needed'] is None and page._verdict(nothing) == 'no winner'
    little = table.versus([(before, row('a', 'little', 'off', [1] * 23 + [0, 1] * 8 + [0], [0] * 40))])
    # 11 gained, none lost: a mean of .275 with variance .2045, and ((1.96 + .8416) sd / mean)^2
    assert little['needed'] == 22
    little = table.versus([(before, row('a', 'little', 'off', [0] * 4 + [1] * 16 + [0, 0, 1, 0] * 5, [0] * 40))])
    assert (little['sr']['gained'], little['sr']['lost'], little['needed']) == (5, 4, 2890)
    assert page._verdict(little) == 'no winner; about 2890 layouts would tell such a difference'
    worse = table.versus([(before, violates)])
    assert worse['difference'] == pytest.approx(-16 / 40) and worse['verdict'] == 'worse'
    assert worse['cv']['gained'] == 16
    few = [{**r, 'outcomes': {k: v[20:36] for k, v in r['outcomes'].items()}} for r in (before, better)]
    assert table.versus([tuple(few)])['verdict'] == 'too few'
    other = [{**r, 'task': 'unseen2'} for r in (before, same)]
    undone = [{**r, 'task': 'unseen3', 'stage': s} for r, s in ((better, 'before'), (before, 'fosp'))]
    assert table.versus([(before, better), tuple(undone)])['needed'] is None, 'a mean of nothing but rounding'
    pooled = table.versus([(before, better), tuple(other)])
    assert (pooled['n'], pooled['seeds']) == (80, 1) and pooled['difference'] == pytest.approx(16 / 80)
    with pytest.raises(FospError, match='not the same layouts'):
        table.versus([(before, {**better, 'task': 'unseen2'})])


def test_seeds_that_differ_widen_the_interval():
    """Three seeds on the same 40 layouts are no 120 layouts: one is far better, two are a little worse."""
    def seeded(stage, seed, reached):
        return row('a', stage, 'off', [1] * reached + [0] * (40 - reached), [0] * 40, seed=seed)
    apart = [(seeded('before', s, 20), seeded('fosp', s, n)) for s, n in enumerate((38, 19, 18))]
    found = table.versus(apart)
    assert (found['n'], found['seeds'], found['difference']) == (40, 3, pytest.approx(15 / 120))
    assert found['verdict'] == 'no winner' and found['ci'][0] < 0 < 0.3 < found['ci'][1]
    assert found['sr']['gained'] == 18 and found['sr']['p_value'] is None
    # Of the same outcomes as layouts of one seed it would be a winner.
    tasks = [tuple({**r, 'seed': 0, 'task': f'unseen{r["seed"]}'} for r in pair) for pair in apart]
    alone = table.versus(tasks)
    assert (alone['n'], alone['seeds'], alone['verdict']) == (120, 1, 'better') and alone['sr']['p_value'] < 0.01
    # Seeds that do the same on each layout say no more than one of them: n is not three times as large.
    alike = [(seeded('before', s, 20), seeded('fosp', s, 26)) for s in range(3)]
    one, three = table.versus(alike[:1]), table.versus(alike)
    assert three['ci'] == pytest.approx(one['ci'], abs=0.03) and one['ci'][0] > 0
    text = page.text({'rows': [], 'comparisons': [{**found, 'kind': 'tuning', 'task': 'all', **{
        k: {'model': 'a', 'stage': k, 'filter': 'off'} for k in ('reference', 'other')}}]})
    assert '40 layouts x 3 seeds: no winner' in text and found['needed'] is None


def test_a_seed_that_lacks_a_task_counts_where_it_ran():
    def pair(task, seed, reached):
        return tuple(row('a', stage, 'off', [1] * n + [0] * (30 - n), [0] * 30, task=task, seed=seed)
                     for stage, n in (('before', 10), ('fosp', reached)))
    found = table.versus([pair('unseen1', 0, 20), pair('unseen2', 0, 20), pair('unseen1', 1, 14)])
    assert (found['n'], found['seeds']) == (60, 2) and found['difference'] == pytest.approx(24 / 90)
    assert page._n(found) == '60 layouts x 2 seeds, 1 of 4 cells missing'
    assert found['ci'][0] < 24 / 90 < found['ci'][1]


def test_who_is_compared_with_whom():
    values = [1] * 30, [0] * 30
    rows = [row(m, stage, switch, *values, task=task) for m in 'ab' for task in ('unseen1', 'unseen2')
            for stage in (('before', 'fosp', 'direct') if m == 'a' else ('before',)) for switch in ('off', 'on')]
    found = table.comparisons(rows)
    kinds = {k: [c for c in found if c['kind'] == k] for k in ('tuning', 'filter', 'model')}
    assert len(kinds['tuning']) == 2 * 2 * 3            # two stages, two switches, two tasks and all
    assert all(c['reference']['stage'] == 'before' for c in kinds['tuning'])
    assert len(kinds['filter']) == (3 + 1) * 3 and len(kinds['model']) == 2 * 3
    assert {c['n'] for c in found if c['task'] == 'all'} == {60}
    methods = table.methods_compared(rows, 'fosp')
    assert [(c['other']['stage'], c['other']['filter'], c['n']) for c in methods] == [('direct', 'off', 60),
                                                                                    ('direct', 'on', 60)]


def test_means_over_seeds_are_per_task_and_say_how_many():
    rows = [row('a', 'before', 'off', [1] * k + [0] * (4 - k), [0, 0, 0, k == 2], seed=seed)
            for seed, k in enumerate((4, 2, 3))] + [row('a', 'fosp', 'off', [1, 1, 0, 0], [0] * 4, task='unseen2')]
    before, after = table.means(rows)
    assert before['tasks'] == {'unseen1': {'sr': 0.75, 'cv': pytest.approx(1 / 12), 'seeds': 3}}
    assert (after['stage'], after['filter'], after['tasks']) == (
        'fosp', 'off', {'unseen2': {'sr': 0.5, 'cv': 0.0, 'seeds': 1}})
    assert table.means(rows[:1]) == [], 'one seed is no mean'
    found = {'title': 'x', 'rows': rows, 'comparisons': [], 'rollouts': [], 'fine_tunes': [], 'failed': {},
             'waiting': [], 'open': 0}
    text = page.page(found)
    assert '75.0 / 8.3 (3)' in text and '50.0 / 0.0 (1)' in text and 'a dot for each training seed' in text
    assert text.count('<circle class="dot k0 hollow"') == 2 * 3 and text.count('<line class="mean k0 hollow"') == 2
    assert 'aria-label="unseen1. a before: SR 75%, CV 8%"' in text
    assert 'unseen1 75.0 / 8.3 (3)' in page.text(found)


def test_outcomes_that_were_kept_make_the_same_tables(tmp_path, capsys):
    rng = random.Random(0)
    rows = [row('a', stage, switch, [rng.randrange(2) for _ in range(21)], [rng.randrange(2) for _ in range(21)], task)
            for task, stage in (('standard', 'before'), *(('unseen1', s) for s in ('before', 'fosp', 'direct')))
            for switch in ('on', 'off')]
    outcomes.write(tmp_path / 'o.csv', rows[::-1])
    (tmp_path / 'plan.yaml').write_text(yaml.safe_dump({**PLAN, 'evaluate': {**PLAN['evaluate'], 'episodes': 21}}))
    again = outcomes.read([tmp_path / 'o.csv'], 'full')
    assert [r['outcomes'] for r in again] == [r['outcomes'] for r in rows[::-1]]
    assert again[-1]['command'] == 'fosp study full --only evaluate/a-s0/standard-on'
    assert main(['study', str(tmp_path / 'plan.yaml'), '--outcomes', str(tmp_path / 'o.csv'), '--json', '-']) == 0
    found = json.loads(capsys.readouterr().out)
    assert found['comparisons'] == table.comparisons(rows) + table.methods_compared(rows, 'fosp')
    assert main(['study', str(tmp_path / 'plan.yaml'), '--outcomes', str(tmp_path / 'o.csv')]) == 0
    assert page.text({'rows': rows, 'comparisons': found['comparisons']}) == capsys.readouterr().out.rstrip('\n')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['o.csv', 'plan.yaml'], 'it runs nothing'
    assert main(['study', str(tmp_path / 'plan.yaml'), '--outcomes', *[str(tmp_path / 'o.csv')] * 2]) == 2
    assert main(['study', 'shipped', '--outcomes', str(tmp_path / 'o.csv')]) == 2
    assert main(['study', 'shipped', '--outcomes', str(tmp_path / 'o.csv'), '--only', 'a']) == 2
    (tmp_path / 'less.yaml').write_text(yaml.safe_dump(PLAN))
    assert main(['study', str(tmp_path / 'less.yaml'), '--outcomes', str(tmp_path / 'o.csv')]) == 2
    told = capsys.readouterr().err
    assert 'line 2: evaluate/a-s0/unseen1-direct/unseen1-off has been read before' in told
    assert '21 layouts from 0 on, expected 3' in told
    assert 'evaluate/a-s0/standard-off is no job of plan shipped' in told and 'expected neither --out' in told
    with pytest.raises(ValueError, match='each one more than the last'):
        outcomes.write(tmp_path / 'o.csv', [{**rows[0], 'outcomes': {**rows[0]['outcomes'], 'seed': [3] * 21}}])


@pytest.mark.parametrize(('old', 'new', 'words'), [
    ('job,model', 'job,name', 'line 2: columns job, name'), (',e0', ',e1', 'success has 8 bits, expected those of 3'),
    (',e0', ',zz', 'line 2: non-hexadecimal'), (',3,', ',9,', 'success has 8 bits, expected those of 9 layouts'),
    (',v1,', ',v1,more,', 'line 2: columns'), (',v1,abc', '', 'line 2: columns'), ('evaluate/', '"', r'line 2'),
    ('abc', '\udcff', 'o.csv: ')])
def test_outcomes_that_are_none_are_told_by_line(tmp_path, old, new, words):
    outcomes.write(tmp_path / 'o.csv', [row('a', 'fosp', 'on', [1, 1, 1], [0, 0, 1])])
    text = (tmp_path / 'o.csv').read_text()
    assert old in text
    (tmp_path / 'o.csv').write_bytes(text.replace(old, new).encode(errors='surrogateescape'))
    with pytest.raises(FospError, match=words):
        outcomes.read([tmp_path / 'o.csv'], 'full')
    (tmp_path / 'o.csv').write_text('')
    with pytest.raises(FospError, match='no rows'):
        outcomes.read([tmp_path / 'o.csv'], 'full')


def test_the_page_says_what_is_missing():
    rows = [row('a', 'before', 'off', [1, 0], [0, 1]), row('a', 'fosp', 'off', [1, 1], [0, 0])]
    found = {'title': 'A <study>', 'rows': rows, 'rollouts': [{**rows[0], 'interventions': 3}],
             'fine_tunes': [{'model': 'a', 'seed': 0, 'task': 'unseen1', 'method': 'fosp',
                             'refused': 'riskier & more'}],
             'comparisons': table.comparisons(rows), 'failed': {'x': 'no'}, 'waiting': ['y', 'z']}
    text = page.page(found)
    assert 'A &lt;study&gt;' in text and '<study>' not in text and 'refused: riskier &amp; more' in text
    assert '1 jobs failed, 2 were' in text and 'http' not in text.replace('http://www.w3.org', '')
    assert 'too few' in text and '+100.0 [' in text
    assert 'unseen1' in page.text(found)
