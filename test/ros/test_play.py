# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp play`: what a real trainer process stores of a played bag is what the importer reads from it, bit for bit."""

import subprocess
import sys

import pytest
from ros_rig import wait_for

from fosp_core import cli
from fosp_core.data.bag import read_episodes
from fosp_core.data.store import load_episodes, save_episode

pytestmark = pytest.mark.usefixtures('kept_environment')


@pytest.fixture
def trainer(toy, tmp_path):
    """A trainer process in a namespace of its own; its folder of episodes."""
    log, work = tmp_path / 'log', tmp_path / 'work'
    with log.open('wb') as out:
        process = subprocess.Popen([
            sys.executable, '-m', 'fosp_ros.trainer_node', '--ros-args', '-r', '__ns:=/cell_7', '-p', f'model:={toy}',
            '-p', f'work_dir:={work}', '-p', 'require_calibration:=false'], stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: 'episodes' in log.read_text(), 30.0, 'the trainer')
        yield next(work.glob('sessions/*')) / 'episodes'
    finally:
        process.terminate()
        process.wait(15)


def play(*words):
    return cli.main(['play', *map(str, words), '--namespace', 'cell_7', '--rate', '20'])


def test_a_trainer_stores_a_played_bag_and_a_played_folder_bit_for_bit(
        trainer, tmp_path, contract, make_episodes, write_bag, same, capsys):
    episodes = make_episodes([12, 7, 9, 15])
    bag = write_bag(tmp_path / 'bag', contract, episodes[:2], storage='sqlite3', namespace='elsewhere')
    assert play(bag) == 0
    out = capsys.readouterr().out
    assert out.startswith(f'{bag}: 19 steps of 2 episodes, 76 messages in '), out
    wait_for(lambda: len(list(trainer.glob('*.npz'))) == 2, 10.0, 'two episodes')
    for stored, imported in zip(load_episodes(trainer, contract), read_episodes(bag, contract), strict=True):
        same(stored, imported, meta=False)
    (tmp_path / 'folder').mkdir()
    for i, episode in enumerate(episodes[2:]):
        save_episode(tmp_path / 'folder' / f'{i}.npz', episode)
    assert play(tmp_path / 'folder') == 0
    wait_for(lambda: len(list(trainer.glob('*.npz'))) == 4, 10.0, 'four episodes')
    for stored, episode in zip(load_episodes(trainer, contract), episodes, strict=True):
        same(stored, episode, meta=False)


def test_of_a_damaged_bag_nothing_is_played(trainer, tmp_path, contract, make_episodes, write_bag, records, write_raw,
                                            capsys):
    episodes = make_episodes([12, 7])
    cut = write_bag(tmp_path / 'bag', contract, episodes)
    file = next(cut.glob('*.mcap'))
    file.write_bytes(file.read_bytes()[:-file.stat().st_size // 4])
    rows = [row for episode in episodes for row in records(contract, episode)]
    next(row for row in reversed(rows) if row[0].endswith('ee_pose'))[3].pose.position.x = float('nan')
    late = write_raw(tmp_path / 'late', rows)       # sound until its very last pose
    for bag in (cut, late):
        assert play(bag) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(f'error: {bag}') and captured.err.count('\n') == 1 and not captured.out
    assert not list(trainer.glob('*.npz'))


def test_without_a_trainer_it_says_so(tmp_path, contract, make_episodes, write_bag, capsys):
    bag = write_bag(tmp_path / 'bag', contract, make_episodes([5]))
    assert cli.main(['play', str(bag), '--namespace', 'nobody', '--wait', '0.2']) == 2
    assert 'nobody listens to /nobody/replay/' in capsys.readouterr().err


@pytest.mark.parametrize('words', [('/nowhere',), ('.', '--rate', '0'), ('.', '--rate', 'nan')])
def test_bad_usage_is_one_line(words, capsys):
    assert cli.main(['play', *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith('error: ') and captured.err.count('\n') == 1
