# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The worked example of docs/how-to/import-a-bag.md, taken from that very page, and the commands that it names."""

import json
import re
from pathlib import Path

import cv2
import foreign_bags as fb
import numpy as np
import pytest
import yaml

from fosp_core.cli import main
from fosp_core.contract import Contract
from fosp_core.data.cdr import blank
from fosp_core.data.definitions import DISTRIBUTIONS
from fosp_core.data.import_spec import COMBINE, EPISODES, MODES, PICKS
from fosp_core.data.sources import read_dataset

PAGE = (Path(__file__).parents[2] / 'docs' / 'how-to' / 'import-a-bag.md').read_text()
CONTRACT, RANGES = re.findall(r'```yaml\n(.*?)```', PAGE, re.S)


def recording(path, seconds=31.0):
    """What the page says `ros2 bag record` wrote, with pictures that tell their time."""
    rows = []
    for i in range(int(seconds * 30)):
        t = fb.START + round(i * 1e9 / 30)
        message = fb.stamped(blank(fb.TYPES['compressed']), t, 'camera_color_optical_frame')
        message.format = 'rgb8; jpeg compressed bgr8'
        message.data = np.frombuffer(cv2.imencode('.jpg', fb.grey(i // 30 * 8))[1].tobytes(), np.uint8)
        rows.append(['/camera/color/image_raw/compressed', 'compressed', t + 20_000_000, message])
    for i in range(int(seconds * 100)):
        t = fb.START + 10_000_000 * i
        rows.append(['/tcp_pose_broadcaster/pose', 'pose', t + 1_000_000, fb.pose((i / 100, 0, 0), t)])
        if i % 5 == 0:
            rows.append(['/forward_velocity_controller/commands', 'array', t + 2_000_000,
                         fb.data('array', [18.0, -9.0, 0.0, 1e9, 1e9, 1e9])])
            rows.append(['/contact', 'bool', t + 3_000_000, fb.data('bool', 900 <= i < 930)])
    return fb.write(path, sorted(rows, key=lambda r: r[2]), compression='storage')


@pytest.fixture(scope='module')
def example(tmp_path_factory):
    folder = tmp_path_factory.mktemp('howto')
    (folder / 'mine.yaml').write_text(CONTRACT)
    (recording(folder / 'demo1') / 'labels.yaml').write_text(RANGES)
    return folder


def test_the_example_says_what_the_page_says(example):
    contract = Contract.load(example / 'mine.yaml')
    first, second = read_dataset([example / 'demo1'], contract)
    assert (len(first), len(second)) == (125, 87) or (len(first), len(second)) == (126, 88)
    assert first.success and first.is_terminal[-1] and not second.success and first.meta['policy'] == 'teleop'
    np.testing.assert_allclose(contract.action.denormalise(first.action[:-1]),
                               np.broadcast_to(np.deg2rad([18.0, -9.0, 0.0]), (len(first) - 1, 3)), atol=1e-6)
    seconds = (first.stamp - fb.START) / 1e9
    np.testing.assert_allclose(first.vectors['ee_pose'][:, 0], seconds, atol=0.006)
    assert np.abs(first.images['image'][:, 0, 0, 0] - 8 * np.floor(seconds + 1e-6)).max() <= 1
    touched = seconds[np.flatnonzero(first.cost)]
    assert touched[0] == pytest.approx(9.0, abs=0.11) and touched[-1] == pytest.approx(9.3, abs=0.11)
    assert ((second.stamp[np.flatnonzero(second.cost)] - fb.START) / 1e9).round(1).tolist() == [
        28.1, 28.2, 28.3, 28.4, 28.5, 28.6]


def test_the_commands_of_the_page(example, capsys):
    bag, contract = str(example / 'demo1'), str(example / 'mine.yaml')
    assert main(['bag-info', bag, '--contract', contract]) == 0
    assert '930 messages at 30.0 Hz' in capsys.readouterr().out
    assert main(['pack', bag, '--contract', contract, '--out', str(example / 'ur'), '--json', '-']) == 0
    assert json.loads(capsys.readouterr().out)['episodes'] == 2


def test_the_page_names_every_key_and_choice():
    for word in (*COMBINE, *EPISODES, *MODES, *PICKS, *DISTRIBUTIONS, 'tolerance_s', 'latency_s', 'depth_range_m',
                 'hold_s', 'missing', 'clip', 'above', 'invert', 'point', 'child', 'frame', 'scale', 'offset', 'unit',
                 'clock'):
        assert re.search(rf'\b{word}\b', PAGE), word
    assert 'import' in yaml.safe_load(CONTRACT)
