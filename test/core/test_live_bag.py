# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A recording survives the death of its recorder: cut at any byte it is a bag up to its last whole chunk."""

import logging

import pytest
from mcap.reader import make_reader

from fosp_core.data import bag, live_bag, messages
from fosp_core.data.live_bag import LiveBag, mend
from fosp_core.errors import DataError, FospError


def topics(contract):
    return [(f'/fosp/{messages.topic(kind)}', name) for kind, name in messages.types(contract).items()]


@pytest.fixture
def fill(records):
    """Return a function that writes an episode record by record, and syncs after every third."""
    def write(live, contract, episode):
        for i, (topic, msgtype, stamp, message) in enumerate(records(contract, episode)):
            live.write(topic, stamp, bytes(bag.typestore().serialize_cdr(message, msgtype)))
            if i % 12 == 11:
                live.sync()
    return write


def test_a_finished_recording_is_the_bag_of_its_episodes(tmp_path, contract, make_episodes, fill, same):
    episodes = make_episodes([9, 5])
    live = LiveBag(tmp_path / 'bag', contract, [*topics(contract), ('/fosp/image', 'sensor_msgs/msg/Image')])
    for episode in episodes:
        fill(live, contract, episode)
        live.episode(int(episode.stamp[0]), int(episode.stamp[-1]), len(episode), episode.meta)
    assert not (tmp_path / 'bag').exists() and (tmp_path / 'bag.recording').is_dir()
    live.finish()
    assert [p.name for p in tmp_path.iterdir()] == ['bag']
    for read, episode in zip(bag.read_episodes(tmp_path / 'bag', contract), episodes, strict=True):
        same(read, episode)
    # Another reader's opinion: index, chunk checksums and statistics.
    with open(tmp_path / 'bag' / 'bag.mcap', 'rb') as stream:
        reader = make_reader(stream, validate_crcs=True)
        assert reader.get_summary().statistics.message_count == 4 * 14
        stamps = [m.log_time for _, _, m in reader.iter_messages()]
        assert len(stamps) == 4 * 14 and stamps == sorted(stamps)
    with pytest.raises(FospError, match='exists already'):
        LiveBag(tmp_path / 'bag', contract, topics(contract))


def test_a_recording_cut_at_any_byte_is_a_bag_up_to_there(tmp_path, tiny, make_episode, fill, same, caplog):
    episode = make_episode(12, contract=tiny)
    live = LiveBag(tmp_path / 'bag', tiny, topics(tiny))
    fill(live, tiny, episode)
    live.sync()
    whole = (live.folder / 'bag.mcap').read_bytes()
    starts = [c.chunk_start_offset for c in live._index.chunks]
    live.abandon()
    ends = [*starts[1:], len(whole)]
    cut = tmp_path / 'cut.recording'
    cut.mkdir()
    sizes = sorted({*range(0, len(whole), 211), *(e + d for e in ends for d in (-1, 0, 1) if e + d <= len(whole))})
    for i, size in enumerate(sizes):
        (cut / 'metadata.yaml').unlink(missing_ok=True)
        (cut / 'bag.mcap').write_bytes(whole[:size] + b'\xaa' * (64 * (i % 2)))
        saved = 12 * sum(end <= size for end in ends)
        try:
            assert mend(cut) == saved or (saved == 0 and size < 40), size
        except DataError as error:
            assert saved == 0 and 'nothing in it' in str(error)
    (cut / 'metadata.yaml').unlink()
    (cut / 'bag.mcap').write_bytes(whole[:ends[-2] + 9])
    read, = bag.read_episodes(cut, tiny)
    assert len(read) == 12 * (len(ends) - 1) // len(topics(tiny)) and (read.stamp == episode.stamp[:len(read)]).all()
    assert 'did not close it; finished now' in next(r for r in caplog.records if r.levelno == logging.WARNING).message


def test_a_bit_that_fell_over_ends_the_saving_there(tmp_path, tiny, make_episode, fill):
    live = LiveBag(tmp_path / 'bag', tiny, topics(tiny))
    fill(live, tiny, make_episode(12, contract=tiny))
    live.sync()
    third = live._index.chunks[2].chunk_start_offset
    live.abandon()
    live = LiveBag(tmp_path / 'bag', tiny, topics(tiny))
    fill(live, tiny, make_episode(12, contract=tiny))
    live.sync()
    live_bag.os.pwrite(live._file, b'\xff', third + 60)
    live_bag.os.close(live._file)
    assert mend(live.folder) == 24
    assert mend(live.folder) is None


def test_a_running_recording_is_left_alone(tmp_path, tiny, make_episode, fill):
    live = LiveBag(tmp_path / 'bag', tiny, topics(tiny))
    fill(live, tiny, make_episode(5, contract=tiny))
    before = (live.folder / 'bag.mcap').read_bytes()
    with pytest.raises(DataError, match='is being recorded'):
        list(bag.read_episodes(live.folder, tiny))
    assert (live.folder / 'bag.mcap').read_bytes() == before
    with pytest.raises(FospError, match='left by a recorder'):
        LiveBag(tmp_path / 'bag', tiny, topics(tiny))
    live.abandon()
    assert not list(tmp_path.iterdir())


def test_a_discarded_episode_is_gone_from_the_disk(tmp_path, contract, make_episodes, fill, same):
    first, second, third = make_episodes([6, 8, 7])
    third.step = third.step - len(second)       # the counter goes on where the discarded one began
    live = LiveBag(tmp_path / 'bag', contract, topics(contract))
    for episode in (first, second, third):
        mark = live.mark()
        fill(live, contract, episode)
        live.episode(int(episode.stamp[0]), int(episode.stamp[-1]), len(episode), episode.meta)
        if episode is second:
            size = (live.folder / 'bag.mcap').stat().st_size
            live.rewind(mark)
            assert (live.folder / 'bag.mcap').stat().st_size == mark.size < size
    live.finish()
    report = bag.ImportReport()
    for read, episode in zip(bag.read_episodes(tmp_path / 'bag', contract, report=report), (first, third), strict=True):
        same(read, episode)
    assert report.counts.clean


def test_a_foreign_unfinished_bag_is_not_touched(tmp_path, tiny):
    folder = tmp_path / 'other'
    folder.mkdir()
    (folder / 'other.mcap').write_bytes(live_bag.MAGIC + b'\x01' + b'\0' * 30)
    before = (folder / 'other.mcap').read_bytes()
    with pytest.raises(DataError, match='metadata.yaml is missing'):
        list(bag.read_episodes(folder, tiny))
    assert (folder / 'other.mcap').read_bytes() == before and len(list(folder.iterdir())) == 1
