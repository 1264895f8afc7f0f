# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Damaged data sets of every kind under `fosp inspect`: findings and an exit code, never a traceback or a hang.

`FOSP_FUZZ=10000` runs a tenth of as many cases; without it a few dozen are run.
"""

import os

import fuzz_inspect
import pytest

CASES = int(os.environ.get('FOSP_FUZZ', '520')) // 10


@pytest.mark.timeout(max(300, CASES))
def test_data_sets_with_changed_bytes(tmp_path, tiny, make_episode, write_bag):
    pytest.importorskip('pyarrow')
    replay = write_bag(tmp_path / 'replay', tiny, [make_episode(3, contract=tiny)])
    (tmp_path / 'fuzz').mkdir()
    fuzz = fuzz_inspect.InspectFuzz(tmp_path / 'fuzz', replay, tiny)
    there = sorted(p.name for p in fuzz.folder.iterdir())
    for number in range(CASES):
        fuzz.case(number)
    print(f'{fuzz.codes} of {CASES}')
    # Both happen: a test that only ever meets one of them has lost its teeth.
    assert fuzz.codes[2] > CASES / 5 and fuzz.codes[0] + fuzz.codes[1] > CASES / 20
    assert sorted(p.name for p in fuzz.folder.iterdir()) == there


def test_the_judge_would_notice(tmp_path, tiny, make_episode, write_bag, monkeypatch):
    pytest.importorskip('pyarrow')
    fuzz = fuzz_inspect.InspectFuzz(tmp_path, write_bag(tmp_path / 'r', tiny, [make_episode(3, contract=tiny)]), tiny)

    def says(text, code=2):
        def main(_):
            print(text)
            return code
        return main

    def judge(main):
        monkeypatch.setattr(fuzz_inspect, 'main', main)
        fuzz.judge(0, tmp_path / 'x', tmp_path / 'c.yaml', None)
    finding = '{"severity": "error", "code": "c", "where": "%s", "text": "%s"}'
    judge(says('{"findings": [%s]}' % (finding % (tmp_path / 'x', 'cut'))))
    for text in ('{"findings": [%s]}' % (finding % ('/y', 'cut')), '{"findings": []}',
                 '{"findings": [%s]}' % (finding % (tmp_path / 'x', '')), '{"mean": Infinity, "findings": []}'):
        with pytest.raises(AssertionError):
            judge(says(text))
    with pytest.raises(ValueError, match='Expecting'):
        judge(says(''))
    monkeypatch.setattr(fuzz_inspect, 'LIMIT_S', 0.05)
    with pytest.raises(fuzz_inspect.Hang):
        judge(lambda _: [0 for _ in iter(int, 1)])
