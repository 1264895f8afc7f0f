# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the filter leaves of an incident becomes a bag that trains, and old ones make room."""

import json

import pytest

from fosp_core.data import bag, incident
from fosp_core.data.store import save_episode
from fosp_core.errors import DataError


@pytest.fixture
def spool(tmp_path, contract, make_episodes, records):
    """Return a function that leaves a spool folder as the filter does."""
    def make(name='s', keep=3):
        folder = tmp_path / name
        folder.mkdir()
        episodes = make_episodes([6, 8])
        for k, episode in enumerate(episodes):
            save_episode(folder / f'{k:03d}.npz', episode)
        with open(folder / incident.RAW, 'wb') as file:
            for topic, msgtype, stamp, message in records(contract, episodes[0], namespace=''):
                incident.write_raw(file, f'/arm/seen{topic}', msgtype, stamp,
                                   bytes(bag.typestore().serialize_cdr(message, msgtype)))
        about = {'contract': contract.to_dict(), 'namespace': '/arm', 'keep': keep}
        (folder / incident.ABOUT).write_text(json.dumps(about))
        return folder, episodes
    return make


def test_an_incident_comes_back_bit_for_bit_with_what_was_seen_beside_it(tmp_path, contract, spool, same):
    folder, episodes = spool()
    path = incident.make_bag(folder, tmp_path / 'out' / 'incident-1')
    for a, b in zip(episodes, bag.read_episodes(path, contract, 'arm'), strict=True):
        same(a, b)
    with bag.open_bag(path) as reader:
        count = {c.topic: c.msgcount for c in reader.connections}
    assert count['/arm/replay/image'] == 14 and count['/arm/seen/replay/image'] == 6
    assert not folder.exists()


def test_a_cut_off_end_is_left_out(tmp_path, contract, spool):
    folder, _ = spool()
    raw = folder / incident.RAW
    whole = len(list(incident.read_raw(raw)))
    raw.write_bytes(raw.read_bytes()[:-3])
    assert len(list(incident.read_raw(raw))) == whole - 1
    raw.write_bytes(raw.read_bytes() + b'\nnonsense\n')
    assert incident.make_bag(folder, tmp_path / 'b').is_dir()


def test_only_the_newest_incidents_stay(tmp_path, spool):
    out = tmp_path / 'out'
    (out / 'incident-0-notes').mkdir(parents=True)      # no bag: not ours to delete
    for k in range(4):
        folder, _ = spool(f's{k}', keep=2)
        assert incident.main([str(folder), str(out / f'incident-{k}')]) == 0
    assert sorted(p.name for p in out.iterdir()) == ['incident-0-notes', 'incident-2', 'incident-3']


def test_what_is_no_spool_and_what_cannot_be_written_is_refused(tmp_path, spool, capsys):
    with pytest.raises(DataError, match='not left by the safety filter'):
        incident.make_bag(tmp_path, tmp_path / 'b')
    folder, _ = spool()
    (tmp_path / 'taken').mkdir()
    assert incident.main([str(folder), str(tmp_path / 'taken')]) == 2
    assert 'exists already' in capsys.readouterr().err and folder.exists()     # nothing is lost


def test_a_bag_refuses_a_foreign_type_and_a_message_among_the_records(tmp_path, contract, make_episode):
    with bag.BagWriter(tmp_path / 'b', contract) as writer:
        writer.add(make_episode(4))
        with pytest.raises(DataError, match='my_msgs/msg/Odd'):
            writer.add_message('/odd', 'my_msgs/msg/Odd', 1, b'')
        with pytest.raises(DataError, match='holds the replay records'):
            writer.add_message('/fosp/replay/image', 'sensor_msgs/msg/Image', 1, b'')
