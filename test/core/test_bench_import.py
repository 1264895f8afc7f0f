# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp bench import` from the command to its JSON, on a bag of a few pictures."""

import json

import pytest

from fosp_core import cli
from fosp_core.data import bench_import


@pytest.mark.parametrize(('options', 'steps'), [(('--gigabytes', '0.01'), 4),
                                                (('--gigabytes', '0.002', '--every-frame', '--compressed'), 5)])
def test_the_figures_come_from_one_run(capsys, options, steps):
    assert cli.main(['bench', 'import', *options, '--rounds', '1', '--json', '-']) == 0
    found = json.loads(capsys.readouterr().out)
    assert found['steps'] >= steps and found['messages'] > 20 * steps and found['rounds'] == 1
    assert found['compressed'] == ('--compressed' in options)
    assert 0.3 < found['bag_bytes'] / (1e9 * float(options[1])) < 3
    assert found['ratio'] == pytest.approx(found['mb_per_s'] / found['rosbags_mb_per_s'])
    assert 20e6 < found['peak_memory_bytes'] < 500e6 and found['cpu_ratio'] > 0


def test_only_pictures_that_become_records_are_decoded(tmp_path, monkeypatch):
    cv2, decoded = pytest.importorskip('cv2'), []
    bench_import.make_bag(tmp_path / 'bag', 0.004, 30.0, compressed=True)
    decode = cv2.imdecode
    monkeypatch.setattr(cv2, 'imdecode', lambda *a: decoded.append(1) or decode(*a))
    found = bench_import.one_pass('import', tmp_path / 'bag', True)
    assert len(decoded) == found['n'] > 10


def test_bad_usage_is_one_line(capsys, tmp_path):
    (tmp_path / 'bag').mkdir()
    for options, text in ((['--gigabytes', '0'], '--gigabytes must be'), (['--rounds', '0'], '--rounds 1 or more'),
                          (['--gigabytes', '0.01', '--out', str(tmp_path)], 'exists already')):
        assert cli.main(['bench', 'import', *options]) == 2
        assert text in capsys.readouterr().err
