# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bags come back bit for bit, from any namespace and any recorder, and what was lost on the way is told.

Lessons.md 23 and 24: one mapping for recording and running, no rosbag2_py needed, drops reported.
"""

import os
import tracemalloc

import numpy as np
import pytest
import yaml
from rosbags.rosbag2 import Reader

from fosp_core.data import messages
from fosp_core.data.bag import ImportReport, read_episodes
from fosp_core.errors import DataError


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
@pytest.mark.parametrize('namespace', ['fosp', '', '/robot/left/'])
def test_round_trip_is_bit_for_bit(tmp_path, contract, make_episodes, same, storage, namespace, write_bag):
    episodes = make_episodes([5, 12, 2], policy='safe', note='Schaf "é"')
    path = write_bag(tmp_path / 'bag', contract, episodes, storage=storage, namespace=namespace)
    report = ImportReport()
    back = list(read_episodes([path], contract, report=report))
    assert len(back) == 3
    for a, b in zip(episodes, back):
        same(a, b)
    assert report.counts.clean and (report.counts.steps, report.episodes, report.gaps) == (19, 3, 0)
    topics = {f'{"/" + namespace.strip("/") if namespace else ""}/replay/{k}'
              for k in ('image', 'ee_pose', 'action', 'label')}
    with Reader(path) as reader:
        assert {c.topic for c in reader.connections} == topics
        assert all(c.msgdef.data and c.digest.startswith('RIHS01_') for c in reader.connections)


def test_extreme_numbers_survive(tmp_path, contract, make_episode, same, write_bag):
    episode = make_episode(6)
    tiny = np.finfo(np.float32).smallest_subnormal
    episode.action[:3] = [[0.0, -0.0, 1.0], [-1.0, tiny, -tiny], [1 / 3, np.nextafter(np.float32(1), 0), -0.1]]
    episode.vectors['ee_pose'][:2] = [[-0.0, tiny, np.finfo(np.float32).max], [1e-30, -1e30, 0.1]]
    episode.reward[:3], episode.cost[:3] = [-0.0, tiny, -3e38], [tiny, 0.1, 3e38]
    episode.step += 2 ** 31 - 7
    path = write_bag(tmp_path / 'bag', contract, [episode])
    same(episode, next(iter(read_episodes(path, contract))))


def test_several_cameras_and_vectors(tmp_path, tiny, make_episode, same, write_bag):
    episodes = [make_episode(5, contract=tiny), make_episode(4, 1, step=5, stamp=1_800_000_000 * 10 ** 9,
                                                             contract=tiny)]
    path = write_bag(tmp_path / 'bag', tiny, episodes)
    for a, b in zip(episodes, read_episodes([path], tiny), strict=True):
        same(a, b)


def test_several_bags_and_a_report_of_all(tmp_path, contract, make_episodes, write_bag):
    paths = [write_bag(tmp_path / f'bag{i}', contract, make_episodes([4, 4], seed=i)) for i in range(2)]
    report = ImportReport()
    assert len(list(read_episodes(paths, contract, report=report))) == 4
    assert (report.counts.steps, report.episodes) == (16, 4)


def test_metadata_is_what_ros2_bag_info_reads(tmp_path, contract, make_episode, write_bag):
    """The keys that rosbag2 of Jazzy decodes for version 9; the file must be found under its final name."""
    path = write_bag(tmp_path / 'bag', contract, [make_episode(5)])
    info = yaml.safe_load((path / 'metadata.yaml').read_text())['rosbag2_bagfile_information']
    assert info['version'] == 9 and info['storage_identifier'] == 'mcap' and info['message_count'] == 20
    assert info['relative_file_paths'] == ['bag.mcap'] and (path / 'bag.mcap').is_file()
    assert [f['path'] for f in info['files']] == ['bag.mcap']
    assert {'nanoseconds'} == set(info['duration']) and info['starting_time']['nanoseconds_since_epoch'] > 10 ** 18
    for topic in info['topics_with_message_count']:
        assert topic['message_count'] == 5
        assert set(topic['topic_metadata']) == {'name', 'type', 'serialization_format', 'offered_qos_profiles',
                                                'type_description_hash'}
    assert sorted(p.name for p in path.iterdir()) == ['bag.mcap', 'episodes.yaml', 'metadata.yaml']


def test_a_bag_of_another_recorder_needs_no_sidecar(tmp_path, contract, make_episode, same, records, write_raw):
    episode = make_episode(6)
    path = write_raw(tmp_path / 'bag', records(contract, episode, '/arm'))
    back = list(read_episodes(path, contract))
    assert len(back) == 1 and back[0].meta == {}
    same(episode, back[0], meta=False)
    same(episode, next(iter(read_episodes(path / 'bag.mcap', contract))), meta=False)


def test_bgr_and_padded_rows_are_the_same_pixels(tmp_path, contract, make_episode, records, write_raw):
    episode = make_episode(4)
    rows = records(contract, episode)
    for row in (r for r in rows if r[1] == messages.IMAGE_TYPE):
        image = row[3]
        pixels = image.data.reshape(64, 64, 3)[..., ::-1]
        padded = np.full((64, 200), 7, np.uint8)
        padded[:, :192] = pixels.reshape(64, 192)
        image.encoding, image.step, image.data = 'bgr8', 200, padded.reshape(-1)
    back = next(iter(read_episodes(write_raw(tmp_path / 'bag', rows), contract)))
    np.testing.assert_array_equal(back.images['image'], episode.images['image'])


def test_losses_are_reported_and_split_the_episode(tmp_path, contract, make_episode, caplog, records, write_raw):
    episode = make_episode(30, policy='safe')
    lost = int(episode.stamp[11])
    rows = [r for r in records(contract, episode) if not (r[2] == lost and r[0].endswith('image'))]
    path = write_raw(tmp_path / 'bag', rows)
    report = ImportReport()
    back = list(read_episodes(path, contract, report=report))
    assert [list(e.step) for e in back] == [list(range(11)), list(range(12, 30))]
    assert report.counts.lost == 1 and report.gaps == 1
    assert '1 steps lost' in caplog.text and str(path) in caplog.text


def test_a_loss_near_the_end_costs_no_more_than_itself(tmp_path, contract, make_episode, records, write_raw):
    episode = make_episode(12)
    rows = [r for r in records(contract, episode) if r[2] != episode.stamp[8]]
    back = list(read_episodes(write_raw(tmp_path / 'bag', rows), contract))
    assert [list(e.step) for e in back] == [list(range(8)), [9, 10, 11]]


def test_fragments_keep_the_meta_of_their_episode(tmp_path, contract, make_episode, write_bag, records, write_raw):
    episode = make_episode(30, policy='safe')
    path = write_bag(tmp_path / 'bag', contract, [episode])
    rows = [r for r in records(contract, episode) if r[2] != episode.stamp[11]]
    other = write_raw(tmp_path / 'other', rows)
    os.rename(path / 'episodes.yaml', other / 'episodes.yaml')
    assert [e.meta for e in read_episodes(other, contract)] == 2 * [{'seed': 0, 'policy': 'safe', 'gap': True}]


def test_two_namespaces_must_be_told_apart(tmp_path, contract, make_episode, same, records, write_raw):
    left, right = make_episode(4, 0), make_episode(4, 1)
    rows = records(contract, left, '/left') + records(contract, right, '/right')
    path = write_raw(tmp_path / 'bag', sorted(rows, key=lambda r: r[2]))
    with pytest.raises(DataError, match=r'2 namespaces, /left, /right'):
        list(read_episodes(path, contract))
    same(left, next(iter(read_episodes(path, contract, namespace='left'))), meta=False)
    same(right, next(iter(read_episodes(path, contract, namespace='/right/'))), meta=False)
    with pytest.raises(DataError, match=r'/middle/replay/image'):
        list(read_episodes(path, contract, namespace='middle'))


def test_other_topics_do_not_disturb(tmp_path, contract, make_episode, same, records, write_raw):
    """A bag of the whole robot holds live topics, and half a set of replay topics of another robot."""
    episode = make_episode(4)
    rows = records(contract, episode)
    for row in records(contract, make_episode(4, 1)):
        kind = row[0].rsplit('/', 1)[1]
        rows.append([f'/fosp/{kind}', *row[1:]])
        if kind == 'image':
            rows.append(['/other/replay/image', *row[1:]])
    path = write_raw(tmp_path / 'bag', rows)
    same(episode, next(iter(read_episodes(path, contract))), meta=False)


def test_reading_streams(tmp_path, contract, make_episodes, write_bag):
    """A day of recording does not fit into memory."""
    path = write_bag(tmp_path / 'bag', contract, make_episodes([20] * 40))
    size = (path / 'bag.mcap').stat().st_size
    assert size > 9_000_000
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_episodes(path, contract)) == 40
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.5 * size
