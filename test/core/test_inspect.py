# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp inspect` as a command: table, JSON, picture sheet, exit code, and memory that does not grow with the data."""

import json
import tracemalloc

import cv2
import numpy as np
import pytest

from fosp_core import cli
from fosp_core.data.store import save_episode
from fosp_core.doctor import survey as module


@pytest.fixture
def folder(tmp_path, make_episodes):
    """Three episodes of noise in .npz: no finding but that their colours tell nothing."""
    episodes = make_episodes([24, 30, 26])
    episodes[1].cost[7:9] = 1
    for number, episode in enumerate(episodes):
        save_episode(tmp_path / 'd' / f'{number}.npz', episode)
    return tmp_path / 'd', episodes


def test_clean_data_is_0_and_a_table(folder, capsys):
    assert cli.main(['inspect', str(folder[0])]) == 0
    out = capsys.readouterr().out
    assert out.startswith('3 episodes, 80 records; length 24 to 30, median 26; 0 fragments, 0 without an end\n')
    assert 'SR 1.000, CV 0.333' in out and out.endswith('\nno findings\n')
    assert 'pose.position.x' in out and 'twist.linear.z' in out


def test_json_has_what_scripts_need_and_warnings_are_1(folder, capsys):
    path, episodes = folder
    episodes[1].cost[:] = 0
    save_episode(path / '1.npz', episodes[1])
    assert cli.main(['inspect', str(path), '--json', '-']) == 1
    result = json.loads(capsys.readouterr().out)
    assert (result['episodes'], result['steps']) == (3, 80)
    assert result['findings'] == [{'severity': 'warning', 'code': 'cost-never', 'where': str(path),
                                   'text': 'no cost in 3 episodes'}]
    assert result['cameras']['image']['frames'] == 80 and len(result['action']) == 3


def test_errors_are_2_and_the_report_is_printed_all_the_same(folder, capsys):
    path, episodes = folder
    episodes[2].reward[5] = np.nan
    save_episode(path / '2.npz', episodes[2])
    assert cli.main(['inspect', str(path)]) == 2
    assert f'error    not-finite: {path}: episode 2, step 5: key reward' in capsys.readouterr().out


def test_rewards_whose_sum_no_float32_holds_are_added_up(folder, capsys):
    """The sum was infinite, and the JSON a traceback."""
    path, episodes = folder
    for number, episode in enumerate(episodes):
        episode.reward[:], episode.cost[:] = 3e38, 3e38
        episode.reward[3] = -np.inf
        save_episode(path / f'{number}.npz', episode)
    assert cli.main(['inspect', str(path), '--json', '-']) == 2
    result = json.loads(capsys.readouterr().out)
    assert result['mean_cost'] == pytest.approx(3e38 * 80 / 3, rel=1e-5)
    assert result['mean_return'] == pytest.approx(3e38 * 77 / 3, rel=1e-5)


@pytest.mark.parametrize(('name', 'hint'), [('old.bag', True), ('notes.txt', False), ('bag', False)])
def test_a_file_that_is_no_bag_of_ros_2_is_named(tmp_path, capsys, name, hint):
    path = tmp_path / name
    path.write_bytes(b'#ROSBAG V2.0\n' + bytes(5000))
    assert cli.main(['inspect', str(path)]) == 2
    out = capsys.readouterr().out
    assert f'{path}: no bag of ROS 2: expected a folder of rosbag2, or a file .mcap or .db3' in out
    assert ('rosbags-convert' in out) == hint


def test_packs_are_looked_at_without_validation(folder, tmp_path, contract, capsys):
    from fosp_core.data.pack import write_pack
    path, episodes = folder
    write_pack(tmp_path / 'pack', contract, episodes)
    raw = np.load(tmp_path / 'pack' / 'reward.npy', mmap_mode='r+', allow_pickle=False)
    raw[30] = np.inf
    raw.flush()
    assert cli.main(['inspect', str(tmp_path / 'pack'), '--json', '-']) == 2
    finding, = json.loads(capsys.readouterr().out)['findings']
    assert (finding['code'], finding['where']) == ('not-finite', f'{tmp_path / "pack"}: episode 1, step 6')


def test_what_is_not_there_is_a_wrong_usage(folder, tmp_path, capsys):
    assert cli.main(['inspect', str(folder[0]), str(tmp_path / 'x')]) == 2
    assert capsys.readouterr() == ('', f'error: {tmp_path / "x"}: no such data set\n')
    assert cli.main(['inspect', str(folder[0]), '--reference', str(tmp_path / 'x')]) == 2
    assert capsys.readouterr().err == f'error: {tmp_path / "x"}: no such data set\n'


def test_sheet_shows_the_pictures_in_their_colours(folder, tmp_path, capsys):
    path, episodes = folder
    for episode in episodes:
        episode.images['image'][:] = [200, 20, 10]
    for number, episode in enumerate(episodes):
        save_episode(path / f'{number}.npz', episode)
    assert cli.main(['inspect', str(path), '--sheet', str(tmp_path / 's.png')]) == 1
    sheet = cv2.imread(str(tmp_path / 's.png'))
    red = (sheet == [10, 20, 200]).all(-1)      # OpenCV: blue first
    assert red.sum() == 3 * 8 * 128 * 128       # three episodes of eight pictures
    assert (sheet == [40, 40, 220]).all(-1).sum() == 134 ** 2 - 128 ** 2    # one of them at a cost
    assert (sheet == [60, 170, 60]).all(-1).sum() == 3 * (134 ** 2 - 128 ** 2)


def test_sheet_keeps_ten_episodes_of_many_and_those_with_findings(contract, make_episode):
    from fosp_core.doctor.sheet import Sheet
    sheet, episode = Sheet(contract), make_episode(4)
    for number in range(333):
        sheet.add(f'episode {number}', episode, [2] if number % 50 == 49 else [])
    kept = [int(where.split()[1]) for where, _ in sheet._kept]
    assert 5 < len(kept) <= 10 and kept[0] == 0 and kept[-1] > 250 and np.ptp(np.diff(kept)) <= 64
    assert [where for where, _ in sheet._marked] == [f'episode {n}: see record 2' for n in (49, 99, 149, 199)]


def test_sheet_shows_the_records_that_were_found(make_episode):
    from fosp_core.doctor.sheet import _spread
    episode = make_episode(80)
    assert _spread(episode, 8, []).tolist() == [0, 11, 23, 34, 45, 56, 68, 79]
    assert _spread(episode, 8, [13, 50, 13]).tolist() == [0, 13, 23, 34, 50, 56, 68, 79]
    episode.cost[61:] = 1
    assert _spread(episode, 8, []).tolist() == [0, 11, 23, 34, 45, 61, 68, 79]


def test_memory_does_not_grow_with_the_data(contract, make_episode, monkeypatch):
    def peak(count):
        monkeypatch.setattr(module, 'read_source', lambda *args, **kwargs: (make_episode(30, n) for n in range(count)))
        tracemalloc.start()
        module.survey(['d'], contract)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found
    peak(1)
    assert peak(40) < 1.1 * peak(4)
