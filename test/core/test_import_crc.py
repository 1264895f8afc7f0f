# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Our bags carry checksums: no flipped byte of a message goes unseen (rosbags writes none)."""

import mcap.reader
import mcap.records
import mcap.stream_reader
import numpy as np
import pytest
from rosbags.rosbag2 import Reader

from fosp_core.data import mcap_crc
from fosp_core.data.bag import read_episodes
from fosp_core.errors import DataError


@pytest.fixture(scope='module')
def bag(tmp_path_factory, tiny, make_episodes, write_bag):
    return write_bag(tmp_path_factory.mktemp('crc') / 'bag', tiny, make_episodes([4, 3], contract=tiny))


def test_the_mcap_library_finds_all_three_checksums_right(bag):
    """Its reader raises on any that differs; none of ours is zero, which would mean `not given`."""
    with open(bag / 'bag.mcap', 'rb') as stream:
        records = list(mcap.stream_reader.StreamReader(stream, emit_chunks=True, validate_crcs=True).records)
    chunks = [r for r in records if isinstance(r, mcap.records.Chunk)]
    assert chunks and all(c.uncompressed_crc for c in chunks)
    assert next(r for r in records if isinstance(r, mcap.records.DataEnd)).data_section_crc
    assert records[-1].summary_crc
    with open(bag / 'bag.mcap', 'rb') as stream:
        assert sum(1 for _ in mcap.reader.make_reader(stream, validate_crcs=True).iter_messages()) == 7 * 6


def test_each_flipped_byte_of_a_chunk_or_of_the_index_is_seen(tmp_path, bag, tiny):
    file = bag / 'bag.mcap'
    data = file.read_bytes()
    with Reader(bag) as reader:
        chunk, = reader.storage.storages[0].chunks
    summary = int.from_bytes(data[-28:-20], 'little')
    inside = range(chunk.chunk_start_offset + 9 + 40, chunk.chunk_start_offset + chunk.chunk_length)
    index = range(summary, len(data))
    copy = tmp_path / 'bag.mcap'
    rng = np.random.default_rng(0)
    for at in [*rng.choice(inside, 150, replace=False), *rng.choice(index, 150, replace=False)]:
        damaged = bytearray(data)
        damaged[at] ^= 1 << rng.integers(8)
        copy.write_bytes(damaged)
        with pytest.raises(DataError, match=r'byte \d+') as error:
            list(read_episodes(copy, tiny))
        assert str(copy) in str(error.value) and '\n' not in str(error.value)


def test_what_cannot_be_sealed_is_left_alone(tmp_path):
    import foreign_bags as fb
    (tmp_path / 'text').write_bytes(b'hello')
    path = fb.write_mcap(tmp_path / 'a.mcap', fb.scene(0.5))
    before = path.read_bytes()
    for file in (tmp_path / 'text', path):
        with pytest.raises(DataError, match=r'byte \d+'):
            mcap_crc.seal(file)
    assert path.read_bytes() == before


def test_an_index_without_a_checksum_is_taken(tmp_path, bag, tiny):
    data = bytearray((bag / 'bag.mcap').read_bytes())
    data[-12:-8] = bytes(4)
    (tmp_path / 'bag.mcap').write_bytes(data)
    assert len(list(read_episodes(tmp_path / 'bag.mcap', tiny))) == 2
