# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bad bags are refused in one line that names file, topic and stamp, with exit code 2; nothing is half-written."""

import dataclasses
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from fosp_core.cli import main
from fosp_core.data import bag
from fosp_core.data.bag import BagWriter, read_episodes
from fosp_core.errors import ContractError, DataError, FospError


def refused(path, contract, capsys, *words):
    """Assert that importer and command line refuse the bag in one line that holds all the words; return the line."""
    with pytest.raises(FospError) as error:
        list(read_episodes([path], contract))
    assert main(['bag-info', str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('error: ') and err.count('\n') == 1
    for text in (str(error.value), err):
        for word in (str(path), *words):
            assert word in text, (word, text)
    return err


def test_a_missing_bag(tmp_path, contract, capsys):
    refused(tmp_path / 'absent', contract, capsys, 'no such bag')


def test_a_folder_that_is_no_bag(tmp_path, contract, capsys):
    refused(tmp_path, contract, capsys, 'metadata.yaml is missing', 'rosbag2 folder')


def test_a_recording_that_was_not_closed(tmp_path, contract, capsys, make_episode, write_bag):
    path = write_bag(tmp_path / 'bag', contract, [make_episode(4)])
    (path / 'metadata.yaml').unlink()
    refused(path, contract, capsys, 'metadata.yaml is missing', 'bag.mcap')


@pytest.mark.parametrize('text', ['', '[', 'a: 1', '- 1', '\x00\xff', 'rosbag2_bagfile_information: {version: 9}'])
def test_garbage_metadata(tmp_path, contract, capsys, make_episode, text, write_bag):
    path = write_bag(tmp_path / 'bag', contract, [make_episode(4)])
    (path / 'metadata.yaml').write_bytes(text.encode('latin-1'))
    refused(path, contract, capsys)


def test_garbage_sidecar(tmp_path, contract, capsys, make_episode, write_bag):
    path = write_bag(tmp_path / 'bag', contract, [make_episode(4)])
    (path / 'episodes.yaml').write_text('episodes: [1, 2]')
    refused(path, contract, capsys, 'episodes.yaml')


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
@pytest.mark.parametrize('part', [0.0, 0.0001, 0.001, 0.02, 0.3, 0.7, 0.95, 0.999, 0.9999])
def test_a_truncated_bag(tmp_path, contract, capsys, make_episode, storage, part, write_bag):
    path = write_bag(tmp_path / 'bag', contract, [make_episode(20)], storage=storage)
    file = next(p for p in path.iterdir() if p.suffix in ('.mcap', '.db3'))
    os.truncate(file, int(part * file.stat().st_size))
    refused(path, contract, capsys)


def test_every_cut_of_a_small_bag_is_refused(tmp_path, tiny, make_episode, write_bag):
    path = write_bag(tmp_path / 'bag', tiny, [make_episode(3, contract=tiny)])
    data = (path / 'bag.mcap').read_bytes()
    cuts = sorted({*range(0, 60), *range(60, len(data), 797), *range(len(data) - 400, len(data), 13)})
    for cut in cuts:
        (path / 'bag.mcap').write_bytes(data[:cut])
        with pytest.raises(DataError) as error:
            list(read_episodes(path, tiny))
        assert str(path) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_a_damaged_bag_never_ends_in_a_traceback(tmp_path, tiny, make_episode, storage, write_bag):
    """Flipped bytes may go unseen in a pixel, but never raise anything but one line, nor make a wrong episode."""
    path = write_bag(tmp_path / 'bag', tiny, [make_episode(3, contract=tiny)], storage=storage)
    file = next(p for p in path.iterdir() if p.suffix in ('.mcap', '.db3'))
    data = np.frombuffer(file.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    refusals = 0
    for _ in range(80):
        damaged = data.copy()
        at = rng.integers(0, len(data), rng.integers(1, 9))
        damaged[at] = rng.integers(0, 256, len(at))
        file.write_bytes(damaged.tobytes())
        try:
            for episode in read_episodes(path, tiny):
                episode.validate(tiny)
        except (DataError, ContractError) as error:
            refusals += 1
            assert str(path) in str(error) and '\n' not in str(error)
    assert refusals > 10


def test_fewer_messages_than_the_bag_says(tmp_path, contract, capsys, make_episode, write_bag):
    path = write_bag(tmp_path / 'bag', contract, [make_episode(6)])
    text = (path / 'metadata.yaml').read_text()
    (path / 'metadata.yaml').write_text(text.replace('message_count: 6', 'message_count: 8'))
    refused(path, contract, capsys, '-2 messages', '/fosp/replay/')


def test_bytes_after_the_end_of_a_message(contract):
    raw = bytes(bag.typestore().serialize_cdr(bag.blank('sensor_msgs/msg/JointState'), 'sensor_msgs/msg/JointState'))
    assert bag.deserialise(raw + 8 * b'x', 'sensor_msgs/msg/JointState').effort.size == 0
    for bad in (raw + 80 * b'x', raw[:-1], b'', b'abcd', b'\7' + raw[1:]):
        with pytest.raises(Exception):  # noqa: B017 - the importer turns any of them into its one line
            bag.deserialise(bad, 'sensor_msgs/msg/JointState')


def test_missing_topics_are_named_with_what_there_is(tmp_path, contract, capsys, make_episode, records, write_raw):
    rows = [r for r in records(contract, make_episode(4)) if not r[0].endswith(('action', 'ee_pose'))]
    path = write_raw(tmp_path / 'bag', rows)
    line = refused(path, contract, capsys, 'no topic', '/fosp/replay/ee_pose', '/fosp/replay/action')
    missing, has = line.split('the bag has')
    assert '/fosp/replay/image' in has and '/fosp/replay/label' in has and 'image' not in missing


def test_a_bag_of_something_else(tmp_path, contract, capsys, make_episode, records, write_raw):
    rows = [['/camera/colour', *r[1:]] for r in records(contract, make_episode(4)) if r[0].endswith('image')]
    refused(write_raw(tmp_path / 'bag', rows), contract, capsys, '/replay/image', 'the bag has /camera/colour')


def test_a_topic_of_another_type(tmp_path, contract, capsys, make_episode, records, write_raw):
    rows = records(contract, make_episode(4))
    rows = [['/fosp/replay/action', *r[1:]] if r[0].endswith('label') else r for r in rows
            if not r[0].endswith('action')] + [r for r in rows if r[0].endswith('label')]
    refused(write_raw(tmp_path / 'bag', rows), contract, capsys, '/fosp/replay/action', 'sensor_msgs/msg/Joy',
            'expected geometry_msgs/msg/TwistStamped')


def change(suffix, edit):
    def apply(rows):
        row = [r for r in rows if r[0].endswith(suffix)][2]
        edit(row[3])
        return row[2]
    return apply


def assign(name, value):
    def edit(message):
        *parents, last = name.split('.')
        for part in parents:
            message = getattr(message, part)
        setattr(message, last, value)
    return edit


@pytest.mark.parametrize(('apply', 'topic', 'words'), [
    (change('image', assign('width', 32)), 'image', ['64x32', '64x64']),
    (change('image', assign('encoding', '16UC1')), 'image', ['16UC1', 'rgb8']),
    (change('image', assign('encoding', 'mono8')), 'image', ['mono8', 'rgb8']),
    (change('image', assign('step', 100)), 'image', ['100', '192']),
    (change('image', assign('data', np.zeros(5, np.uint8))), 'image', ['5 bytes', '12288']),
    (change('action', assign('twist.linear.y', np.nan)), 'action', ['twist.linear.y', 'nan']),
    (change('action', assign('twist.linear.y', 250.0)), 'action', ['250', '-0.25 to 0.25 m/s']),
    (change('ee_pose', assign('pose.position.z', np.inf)), 'ee_pose', ['pose.position.z', 'inf']),
    (change('label', assign('axes', np.float32([np.nan, 0]))), 'label', ['reward', 'nan']),
    (change('label', assign('axes', np.float32([0, -1]))), 'label', ['cost', '-1']),
    (change('label', assign('axes', np.float32([0]))), 'label', ['1 axes', 'reward, cost']),
    (change('label', assign('buttons', np.int32([0, 0, 0]))), 'label', ['3 buttons', 'step']),
])
def test_wrong_content_names_file_topic_and_stamp(tmp_path, contract, capsys, make_episode, apply, topic, words,
                                                  records, write_raw):
    rows = records(contract, make_episode(4))
    stamp = apply(rows)
    refused(write_raw(tmp_path / 'bag', rows), contract, capsys, f'/fosp/replay/{topic}', f'stamp {stamp}', *words)


def test_an_action_a_little_beyond_the_limit_is_clipped(tmp_path, contract, make_episode, records, write_raw):
    rows = records(contract, make_episode(4))
    change('action', assign('twist.linear.x', 0.2501))(rows)
    assert next(iter(read_episodes(write_raw(tmp_path / 'bag', rows), contract))).action[2, 0] == 1.0


def test_no_complete_step(tmp_path, contract, capsys, make_episode, records, write_raw):
    """Stamps that never agree, as from a recorder that stamps each topic on its own."""
    rows = records(contract, make_episode(6))
    for i, row in enumerate(rows):
        messages_stamp = row[3].header.stamp
        messages_stamp.nanosec += i
    refused(write_raw(tmp_path / 'bag', rows), contract, capsys, 'no complete episode', '0 steps', 'incomplete')


def test_a_wrong_field_of_the_contract_is_named(tmp_path, contract, make_episode, write_bag):
    path = write_bag(tmp_path / 'bag', contract, [make_episode(4)])
    vector = dataclasses.replace(contract.vectors[0], fields=('pose.position.w',) * 3)
    with pytest.raises(ContractError, match=r'pose\.position\.w'):
        list(read_episodes(path, dataclasses.replace(contract, vectors=(vector,))))


def test_a_writer_that_fails_leaves_nothing(tmp_path, contract, make_episode):
    with pytest.raises(RuntimeError), BagWriter(tmp_path / 'bag', contract) as writer:
        writer.add(make_episode(4))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match='no episode'), BagWriter(tmp_path / 'bag', contract):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_is_killed_leaves_no_bag(tmp_path, contract, make_episode):
    code = ('import os, signal, sys\n'
            'from fosp_core.contract import Contract\n'
            'from fosp_core.data.bag import BagWriter\n'
            'from fosp_core.data.store import load_episode\n'
            'from fosp_core.paths import config_file\n'
            'with BagWriter(sys.argv[1], Contract.load(config_file("contract_safereach.yaml"))) as writer:\n'
            '    writer.add(load_episode(sys.argv[2]))\n'
            '    os.kill(os.getpid(), signal.SIGKILL)\n')
    from fosp_core.data.store import save_episode
    save_episode(tmp_path / 'e.npz', make_episode(4))
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path / 'bag'), str(tmp_path / 'e.npz')], env=env)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / 'bag').exists()


def test_an_existing_bag_is_not_touched(tmp_path, contract, make_episode, write_bag):
    path = write_bag(tmp_path / 'bag', contract, [make_episode(4)])
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    with pytest.raises(FospError, match='exists already'):
        write_bag(path, contract, [make_episode(5)])
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before


def test_what_cannot_be_joined_again_is_not_written(tmp_path, contract, make_episode, write_bag):
    """Two episodes with the same stamps would come back as one muddle."""
    first = make_episode(6)
    for second in (make_episode(6, 1, step=6), make_episode(6, 1, stamp=int(first.stamp[-1]) + 1, step=5)):
        with pytest.raises(DataError, match='expected both above'):
            write_bag(tmp_path / 'bag', contract, [first, second])
    bad = make_episode(6)
    bad.action[2, 0] = np.nan
    with pytest.raises(DataError, match='action is not finite at step 2'):
        write_bag(tmp_path / 'bag', contract, [bad])
    with pytest.raises(DataError, match='within 0 to'):
        write_bag(tmp_path / 'bag', contract, [make_episode(6, step=2 ** 31 - 3)])
    with pytest.raises(DataError, match='storage'):
        BagWriter(tmp_path / 'bag', contract, storage='zip')
    assert list(tmp_path.iterdir()) == []


def test_messages_of_an_unknown_type_are_refused():
    with pytest.raises(DataError, match='my_msgs/msg/Thing'):
        bag.blank('my_msgs/msg/Thing')
