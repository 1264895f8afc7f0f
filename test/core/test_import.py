# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Foreign bags come in whatever they are stored as, resampled by stamp; what was lost is said and never bridged."""

import dataclasses
import resource

import foreign_bags as fb
import numpy as np
import pytest

from fosp_core.contract import Contract
from fosp_core.data.bag import ImportReport, read_episodes
from fosp_core.errors import DataError

C = fb.contract()


def load(path, contract=C, **kwargs):
    report = ImportReport()
    return list(read_episodes(path, contract, report=report, **kwargs)), report


def levels(episode):
    return episode.images['image'][:, 0, 0, 0].tolist()


STORAGES = {
    'mcap': lambda p, rows: fb.write(p, rows),
    'mcap, zstd chunks': lambda p, rows: fb.write(p, rows, compression='storage'),
    'mcap, zstd messages': lambda p, rows: fb.write(p, rows, compression='message'),
    'mcap, zstd file': lambda p, rows: fb.write(p, rows, compression='file'),
    'sqlite3': lambda p, rows: fb.write(p, rows, 'sqlite3'),
    'sqlite3, zstd messages': lambda p, rows: fb.write(p, rows, 'sqlite3', 'message'),
    'sqlite3, zstd file': lambda p, rows: fb.write(p, rows, 'sqlite3', 'file'),
    'sqlite3, no definitions': lambda p, rows: fb.strip_definitions(fb.write(p, rows, 'sqlite3', version=8)),
    'one mcap, lz4': lambda p, rows: fb.write_mcap(p.with_suffix('.mcap'), rows),
    'one mcap, zstd': lambda p, rows: fb.write_mcap(p.with_suffix('.mcap'), rows, 'ZSTD'),
    'one mcap, no chunks': lambda p, rows: fb.write_mcap(p.with_suffix('.mcap'), rows, 'NONE', chunked=False),
    'one mcap, no definitions': lambda p, rows: fb.write_mcap(p.with_suffix('.mcap'), rows, definitions=False),
    'one db3': lambda p, rows: next(fb.write(p, rows, 'sqlite3').glob('*.db3')),
    'split mcap': lambda p, rows: fb.split(p, rows),
    'split sqlite3': lambda p, rows: fb.split(p, rows, 'sqlite3'),
    'mcap, another QoS in metadata.yaml': lambda p, rows: fb.with_qos(fb.write(p, rows)),
    'sqlite3, another QoS': lambda p, rows: fb.with_qos(fb.write(p, rows, 'sqlite3', version=8)),
    'split mcap, another QoS': lambda p, rows: fb.with_qos(fb.split(p, rows)),
}


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
    episodes, _ = load(fb.write(tmp_path_factory.mktemp('reference') / 'bag', fb.scene()))
    return episodes


@pytest.mark.parametrize('storage', STORAGES)
def test_every_storage_gives_the_same_episodes(tmp_path, storage, reference, same):
    path = STORAGES[storage](tmp_path / 'bag', fb.scene())
    found, report = load(path)
    for a, b in zip(reference, found, strict=True):
        same(a, b)
    assert report.counts.clean and report.episodes == 1


def test_several_bags_at_once(tmp_path):
    paths = [fb.write(tmp_path / f'bag{i}', fb.scene(1.0)) for i in range(3)]
    found, report = load(paths)
    assert [len(e) for e in found] == [10, 10, 10] and report.episodes == 3
    assert len(report.topics) == 9


def test_thirty_hertz_become_ten_by_the_stamp(reference):
    episode, = reference
    assert levels(episode) == [3 * i for i in range(20)]
    assert (episode.stamp - fb.START).tolist() == [100_000_000 * i for i in range(20)]
    np.testing.assert_allclose(episode.vectors['ee_pose'][:, 0], np.arange(20) * 0.005, atol=1e-7)
    # The command is the first after the picture; the last one is never executed.
    np.testing.assert_allclose(episode.action[:-1, 0] * 0.5, np.arange(19) / 1000, atol=1e-7)
    assert not episode.action[-1].any() and episode.is_last[-1] and episode.is_first[0]
    assert not episode.is_terminal.any()


@pytest.mark.parametrize(('hz', 'rate'), [(10.0, 10.0), (9.93, 9.93), (10.08, 10.08), (25.0, 10.0), (60.0, 10.0),
                                          (12.0, 10.0)])
def test_other_camera_rates_keep_the_control_rate_and_never_repeat_a_picture(tmp_path, hz, rate):
    found, report = load(fb.write(tmp_path / 'bag', fb.scene(8.0, camera_hz=hz, command_hz=50.0)))
    episode, = found
    assert report.gaps == 0 and len(set(episode.stamp.tolist())) == len(episode)
    mean = 1e9 * (len(episode) - 1) / (episode.stamp[-1] - episode.stamp[0])
    assert mean == pytest.approx(rate, rel=0.02)


def test_jitter_of_the_camera_costs_nothing(tmp_path):
    rng = np.random.default_rng(0)
    rows = fb.scene(6.0, command_hz=50.0)
    for row in rows:
        if row[1] == 'image':
            fb.stamped(row[3], row[2] - 3_000_000 + int(rng.integers(-8_000_000, 8_000_000)))
    found, report = load(fb.write(tmp_path / 'bag', rows))
    assert len(found) == 1 and abs(len(found[0]) - 60) <= 1 and report.gaps == 0


def test_one_lost_picture_of_thirty_hertz_is_reported_and_bridged_by_its_neighbour(tmp_path):
    rows = [r for r in fb.scene() if not (r[1] == 'image' and r[3].data[0] == 30)]
    found, report = load(fb.write(tmp_path / 'bag', rows))
    assert len(found) == 1 and len(found[0]) == 20
    counts = next(c for n, c in report.topics.items() if '/cam' in n)
    assert counts.lost == 1 and report.counts.lost == 1 and counts.longest_gap_s == pytest.approx(0.0667, abs=1e-3)


@pytest.mark.parametrize(('topic', 'name'), [('/cam/image_raw', 'image'), ('/arm/pose', 'ee_pose'), ('/cmd', 'action')])
def test_no_episode_crosses_a_gap(tmp_path, topic, name, caplog):
    """A hole of half a second in any topic cuts: the pieces never hold two records that are not neighbours."""
    rows = [r for r in fb.scene(3.0) if not (r[0] == topic and 1.0 <= (r[2] - fb.START) * 1e-9 < 1.5)]
    found, report = load(fb.write(tmp_path / 'bag', rows))
    assert len(found) == 2 and report.gaps == 1
    assert all(e.meta['gap'] for e in found) and not found[0].is_last.any() and found[1].is_last[-1]
    for episode in found:
        assert np.diff(episode.stamp).max() < 150_000_000
    assert found[1].stamp[0] - found[0].stamp[-1] > 400_000_000
    counts = next(c for n, c in report.topics.items() if f'({name})' in n)
    assert counts.longest_gap_s > 0.5 and (name == 'image' or counts.missing >= 4)
    assert name in caplog.text and '1 gaps' in caplog.text


def test_the_tolerance_is_kept(tmp_path):
    """Poses 30 ms off are taken with 40 ms and refused with 20 ms."""
    rows = fb.scene(2.0, pose_hz=10.0)
    for row in rows:
        if row[1] == 'pose':
            fb.stamped(row[3], row[2] - 3_000_000 + 30_000_000, 'base')
    path = fb.write(tmp_path / 'bag', rows)
    assert len(load(path, fb.contract({**fb.IMPORT, 'tolerance_s': 0.04}))[0][0]) == 20
    with pytest.raises(DataError, match=r'no complete episode.*/arm/pose.*20 records dropped.*nearest was \+0\.030 s'):
        load(path, fb.contract({**fb.IMPORT, 'tolerance_s': 0.02}))
    own = {**fb.IMPORT, 'tolerance_s': 0.02,
           'vectors': {'ee_pose': {'topic': '/arm/pose', 'tolerance_s': 0.04}}}
    assert len(load(path, fb.contract(own))[0][0]) == 20


def test_messages_doubled_reordered_and_set_back(tmp_path):
    rows = fb.scene(3.0)
    pictures = [r for r in rows if r[1] == 'image']
    doubled = [*pictures[10][:2], pictures[10][2] + 1, pictures[10][3]]
    late = pictures[31][:]                      # stands behind its successor
    late[2] = pictures[32][2] + 1
    rows = sorted([r for r in rows if r is not pictures[31]] + [doubled, late], key=lambda r: r[2])
    found, report = load(fb.write(tmp_path / 'bag', rows))
    counts = next(c for n, c in report.topics.items() if '/cam' in n)
    assert (counts.doubled, counts.reordered, counts.restarts) == (1, 1, 0) and len(found) == 1
    # All clocks fall back by a minute: a new session, and a gap, but nothing is lost for good.
    for row in fb.scene(2.0):
        fb.stamped(row[3], int(row[2]) - 60_000_000_000, row[3].header.frame_id)
        rows.append([row[0], row[1], row[2] + 3_000_000_000, row[3]])
    found, report = load(fb.write(tmp_path / 'other', rows))
    assert report.counts.restarts == 3 and len(found) == 2 and report.gaps == 1
    assert len(found[0]) == 30 and len(found[1]) >= 12     # eight commands in a row are the proof


def test_messages_may_come_later_in_the_bag_than_their_stamp(tmp_path, same, reference):
    """Pictures take 0.4 s through a slow network; they are paired by stamp and not by arrival."""
    rows = fb.scene()
    for row in rows:
        row[2] += 400_000_000 * (row[1] == 'image')
    found, report = load(fb.write(tmp_path / 'bag', sorted(rows, key=lambda r: r[2])))
    same(reference[0], found[0])
    assert report.counts.clean


def test_no_stamp_means_the_time_of_receipt_and_is_said(tmp_path):
    rows = fb.scene(2.0, delay=0)
    for row in rows:
        if row[1] == 'image':
            fb.stamped(row[3], 0)
    path = fb.write(tmp_path / 'bag', rows)
    found, report = load(path)
    counts = next(c for n, c in report.topics.items() if '/cam' in n)
    assert counts.log_time == 60 and '60 without a stamp, taken at receipt' in counts.text()
    assert levels(found[0]) == [3 * i for i in range(20)]
    found, report = load(path, fb.contract({**fb.IMPORT, 'clock': 'log'}))
    assert all(c.log_time == c.messages for c in report.topics.values()) and len(found[0]) == 20


@pytest.mark.parametrize(('offset', 'refused'), [(-1_699_999_995.0, True), (20_000.0, True), (-2.5, True), (2.5, True),
                                                 (-0.5, False), (1.5, False)])
def test_topics_without_stamps_beside_another_clock_are_refused(tmp_path, offset, refused):
    """Headers in simulated time, contacts by receipt: the costs were dropped, or all came at once, without a word."""
    rows = [*fb.scene(3.0), ['/contact', 'bool', fb.START + 1_500_000_000, fb.data('bool', True)]]
    for row in rows[:-1]:
        fb.stamped(row[3], int(row[2]) - 3_000_000 + round(offset * 1e9), row[3].header.frame_id)
    path = fb.write(tmp_path / 'bag', sorted(rows, key=lambda r: r[2]))
    cost = {**fb.IMPORT, 'cost': {'topic': '/contact', 'type': 'std_msgs/msg/Bool'}}
    if refused:
        with pytest.raises(DataError, match=r'/cam/image_raw, stamp \d+: .* s from its stamp, but /contact without '
                                            r'stamps .* within 2 s .*clock: log'):
            load(path, fb.contract(cost))
    else:
        assert len(load(path, fb.contract(cost))[0]) == 1
    episode, = load(path, fb.contract({**cost, 'clock': 'log'}))[0]
    assert np.flatnonzero(episode.cost).tolist() == [15]
    assert not load(path)[0][0].cost.any()          # nothing goes by receipt: any clock will do


def test_two_cameras_are_paired_by_stamp(tmp_path):
    cameras = [*fb.BASE['cameras'], {'name': 'wrist', 'topic': 'wrist', 'height': 4, 'width': 4, 'encoding': 'mono8'}]
    contract = fb.contract({**fb.IMPORT, 'cameras': {'image': {'topic': '/cam/image_raw'},
                                                     'wrist': {'topic': '/wrist/image'}}}, cameras=cameras)
    rows = fb.scene()
    for i in range(40):                         # 20 Hz, 7 ms off
        t = fb.START + 50_000_000 * i + 7_000_000
        rows.append(['/wrist/image', 'image', t + 20_000_000, fb.picture(fb.grey(100 + i), t)])
    found, report = load(fb.write(tmp_path / 'bag', sorted(rows, key=lambda r: r[2])), contract)
    assert found[0].images['wrist'][:, 0, 0, 0].tolist() == [100 + 2 * i for i in range(20)]
    assert found[0].images['wrist'].shape == (20, 4, 4, 1) and report.counts.clean


def test_the_hash_does_not_know_the_import_section():
    bare = {k: v for k, v in fb.BASE.items()}
    assert Contract.from_dict(bare).hash == C.hash == fb.contract({'action': {'topic': '/x', 'clip': True}}).hash
    assert Contract.from_dict(bare) == C and 'import' not in C.to_dict() and 'imports' not in C.to_dict()
    assert C.imports is not None and Contract.from_dict(C.to_dict()).imports is None
    assert dataclasses.replace(C, rate_hz=5.0).imports is C.imports


def test_replay_topics_go_the_fast_path_whatever_the_section_says(tmp_path, make_episode, write_bag, same):
    plain = Contract.from_dict(fb.BASE)
    episode = make_episode(9, contract=plain)
    path = write_bag(tmp_path / 'bag', plain, [episode])
    same(episode, load(path, C)[0][0])


def test_relative_names_are_found_in_any_namespace(tmp_path):
    rows = [[f'/robot1{r[0]}', *r[1:]] for r in fb.scene()]
    short = fb.contract({'cameras': {'image': {'topic': 'image_raw'}}, 'vectors': {'ee_pose': {'topic': 'arm/pose'}},
                         'action': {'topic': 'cmd'}})
    path = fb.write(tmp_path / 'bag', rows)
    assert len(load(path, short)[0][0]) == 20
    twice = fb.write(tmp_path / 'two', rows + [[f'/robot2{r[0]}', *r[1:]] for r in fb.scene()])
    with pytest.raises(DataError, match=r'2 topics end in image_raw; the bag has /robot1/cam/image_raw, /robot2'):
        load(twice, short)
    assert len(load(twice, short, namespace='robot2')[0][0]) == 20


def test_memory_does_not_grow_with_the_bag(tmp_path):
    """Six times the bag in the same memory: one episode at a time, pictures made small at once."""
    def rows(seconds):
        big = np.zeros((240, 320, 3), np.uint8)
        for row in fb.scene(seconds):
            yield [*row[:3], fb.picture(big, row[2] - 3_000_000) if row[1] == 'image' else row[3]]

    def peak(seconds):
        path = fb.write(tmp_path / str(seconds), list(rows(seconds)))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        steps = sum(len(e) for e in read_episodes(path, C))
        return steps, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, path

    peak(2.0)
    steps, grown, path = peak(12.0)
    size = sum(f.stat().st_size for f in path.iterdir())
    assert steps == 120 and size > 80e6
    assert grown * 1024 < 25e6


def test_a_further_camera_that_runs_on_alone_fills_no_memory(tmp_path, monkeypatch):
    """The leading camera fails for ten seconds: of the other's pictures four wait undecoded, and the old ones go."""
    from fosp_core.data import resample
    cameras = [*fb.BASE['cameras'], {'name': 'wrist', 'topic': 'wrist', 'height': 4, 'width': 4, 'encoding': 'mono8'}]
    contract = fb.contract({**fb.IMPORT, 'cameras': {'image': {'topic': '/cam/image_raw'},
                                                     'wrist': {'topic': '/wrist/image'}}}, cameras=cameras)
    rows = [r for r in fb.scene(14.0, pose_hz=20.0) if r[1] != 'image' or not 1 < (r[2] - fb.START) / 1e9 < 12]
    for i in range(280):
        t = fb.START + 50_000_000 * i
        rows.append(['/wrist/image', 'image', t + 20_000_000, fb.picture(fb.grey(i % 200), t)])
    most, raw, push = [0], [0], resample.Track.push

    def spy(track, sample):
        push(track, sample)
        most[0] = max(most[0], len(track.samples))
        raw[0] = max(raw[0], sum(s.raw is not None for s in track.samples) if track.name == 'wrist' else 0)
    monkeypatch.setattr(resample.Track, 'push', spy)
    found, report = load(fb.write(tmp_path / 'bag', sorted(rows, key=lambda r: r[2])), contract)
    assert len(found) == 2 and report.gaps == 1
    assert most[0] <= 80 and raw[0] <= 5     # of 220
