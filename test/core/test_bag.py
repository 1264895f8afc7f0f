# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bags: bit for bit there and back, readable by rclpy, and each way of being wrong refused in one line.

Lessons.md 23 and 24: one mapping for recording and running, no rosbag2_py needed, drops reported.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
import yaml
from rosbags.rosbag2 import Reader, StoragePlugin, Writer

from fosp_core.cli import main
from fosp_core.contract import CameraSpec, VectorSpec
from fosp_core.data import bag, messages
from fosp_core.data.bag import BagWriter, ImportReport, read_episodes
from fosp_core.data.joiner import Label, StepJoiner
from fosp_core.errors import ContractError, DataError, FospError


def write(path, contract, episodes, **kwargs):
    with BagWriter(path, contract, **kwargs) as writer:
        for episode in episodes:
            writer.add(episode)
    return path


def label_of(episode, t):
    return Label(episode.reward[t], episode.cost[t], episode.is_first[t], episode.is_last[t], episode.is_terminal[t],
                 episode.step[t])


def records(contract, episode, namespace='/fosp'):
    """List the messages of an episode as [topic, type, stamp, rosbags message], to be changed and written raw."""
    out = []
    for t in range(len(episode)):
        values = {**{k: v[t] for k, v in episode.images.items()}, **{k: v[t] for k, v in episode.vectors.items()},
                  'action': episode.action[t], 'label': label_of(episode, t)}
        for kind, msgtype in messages.types(contract).items():
            stamp = int(episode.stamp[t])
            message = messages.fill(contract, kind, bag.blank(msgtype), stamp, values[kind])
            out.append([f'{namespace}/{messages.topic(kind)}', msgtype, stamp, message])
    return out


def write_raw(path, rows, storage=StoragePlugin.MCAP):
    """Write a bag as another recorder would: no sidecar, no checks."""
    with Writer(path, version=9, storage_plugin=storage) as writer:
        connections = {}
        for topic, msgtype, stamp, message in rows:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, msgtype, typestore=bag.typestore())
            writer.write(connections[topic], stamp, bag.typestore().serialize_cdr(message, msgtype))
    return path


@pytest.fixture(scope='module')
def tiny(contract):
    """A contract whose bags are small enough to be cut and damaged many times."""
    return dataclasses.replace(contract, name='tiny', cameras=(
        CameraSpec('image', 'image', 4, 6), CameraSpec('wrist', 'image_wrist', 3, 5, 'mono8')), vectors=(
        *contract.vectors, VectorSpec('joints', 'joint_states', 'sensor_msgs/msg/JointState',
                                      ('position[0]', 'position[2]', 'velocity.1'), 'rad', 'base')))


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
@pytest.mark.parametrize('namespace', ['fosp', '', '/robot/left/'])
def test_round_trip_is_bit_for_bit(tmp_path, contract, make_episodes, same, storage, namespace):
    episodes = make_episodes([5, 12, 2], policy='safe', note='Schaf "é"')
    path = write(tmp_path / 'bag', contract, episodes, storage=storage, namespace=namespace)
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


def test_extreme_numbers_survive(tmp_path, contract, make_episode, same):
    episode = make_episode(6)
    tiny = np.finfo(np.float32).smallest_subnormal
    episode.action[:3] = [[0.0, -0.0, 1.0], [-1.0, tiny, -tiny], [1 / 3, np.nextafter(np.float32(1), 0), -0.1]]
    episode.vectors['ee_pose'][:2] = [[-0.0, tiny, np.finfo(np.float32).max], [1e-30, -1e30, 0.1]]
    episode.reward[:3], episode.cost[:3] = [-0.0, tiny, -3e38], [tiny, 0.1, 3e38]
    episode.step += 2 ** 31 - 7
    path = write(tmp_path / 'bag', contract, [episode])
    same(episode, next(iter(read_episodes(path, contract))))


def test_several_cameras_and_vectors(tmp_path, tiny, make_episode, same):
    episodes = [make_episode(5, contract=tiny), make_episode(4, 1, step=5, stamp=1_800_000_000 * 10 ** 9,
                                                             contract=tiny)]
    path = write(tmp_path / 'bag', tiny, episodes)
    for a, b in zip(episodes, read_episodes([path], tiny), strict=True):
        same(a, b)


def test_several_bags_and_a_report_of_all(tmp_path, contract, make_episodes):
    paths = [write(tmp_path / f'bag{i}', contract, make_episodes([4, 4], seed=i)) for i in range(2)]
    report = ImportReport()
    assert len(list(read_episodes(paths, contract, report=report))) == 4
    assert (report.counts.steps, report.episodes) == (16, 4)


def test_metadata_is_what_ros2_bag_info_reads(tmp_path, contract, make_episode):
    """The keys that rosbag2 of Jazzy decodes for version 9; the file must be found under its final name."""
    path = write(tmp_path / 'bag', contract, [make_episode(5)])
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


def test_a_bag_of_another_recorder_needs_no_sidecar(tmp_path, contract, make_episode, same):
    episode = make_episode(6)
    path = write_raw(tmp_path / 'bag', records(contract, episode, '/arm'))
    back = list(read_episodes(path, contract))
    assert len(back) == 1 and back[0].meta == {}
    same(episode, back[0], meta=False)
    same(episode, next(iter(read_episodes(path / 'bag.mcap', contract))), meta=False)


def test_bgr_and_padded_rows_are_the_same_pixels(tmp_path, contract, make_episode):
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


def test_losses_are_reported_and_split_the_episode(tmp_path, contract, make_episode, caplog):
    episode = make_episode(30, policy='safe')
    lost = int(episode.stamp[11])
    rows = [r for r in records(contract, episode) if not (r[2] == lost and r[0].endswith('image'))]
    path = write_raw(tmp_path / 'bag', rows)
    report = ImportReport()
    back = list(read_episodes(path, contract, report=report))
    assert [list(e.step) for e in back] == [list(range(11)), list(range(12, 30))]
    assert report.counts.lost == 1 and report.gaps == 1
    assert '1 steps lost' in caplog.text and str(path) in caplog.text


def test_a_loss_near_the_end_costs_no_more_than_itself(tmp_path, contract, make_episode):
    episode = make_episode(12)
    rows = [r for r in records(contract, episode) if r[2] != episode.stamp[8]]
    back = list(read_episodes(write_raw(tmp_path / 'bag', rows), contract))
    assert [list(e.step) for e in back] == [list(range(8)), [9, 10, 11]]


def test_fragments_keep_the_meta_of_their_episode(tmp_path, contract, make_episode):
    episode = make_episode(30, policy='safe')
    path = write(tmp_path / 'bag', contract, [episode])
    rows = [r for r in records(contract, episode) if r[2] != episode.stamp[11]]
    other = write_raw(tmp_path / 'other', rows)
    os.rename(path / 'episodes.yaml', other / 'episodes.yaml')
    assert [e.meta for e in read_episodes(other, contract)] == 2 * [{'seed': 0, 'policy': 'safe', 'gap': True}]


def test_two_namespaces_must_be_told_apart(tmp_path, contract, make_episode, same):
    left, right = make_episode(4, 0), make_episode(4, 1)
    rows = records(contract, left, '/left') + records(contract, right, '/right')
    path = write_raw(tmp_path / 'bag', sorted(rows, key=lambda r: r[2]))
    with pytest.raises(DataError, match=r'2 namespaces, /left, /right'):
        list(read_episodes(path, contract))
    same(left, next(iter(read_episodes(path, contract, namespace='left'))), meta=False)
    same(right, next(iter(read_episodes(path, contract, namespace='/right/'))), meta=False)
    with pytest.raises(DataError, match=r'/middle/replay/image'):
        list(read_episodes(path, contract, namespace='middle'))


def test_other_topics_do_not_disturb(tmp_path, contract, make_episode, same):
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


def test_reading_streams(tmp_path, contract, make_episodes):
    """A day of recording does not fit into memory."""
    path = write(tmp_path / 'bag', contract, make_episodes([20] * 40))
    size = (path / 'bag.mcap').stat().st_size
    assert size > 9_000_000
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_episodes(path, contract)) == 40
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.5 * size


def test_reading_is_fast(tmp_path, contract, make_episodes):
    """2,000 steps/s at least: an hour at 10 Hz in 18 s. Best of three, since the machine is shared."""
    path = write(tmp_path / 'bag', contract, make_episodes([80] * 5))
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        steps = sum(map(len, read_episodes(path, contract)))
        rates.append(steps / (time.perf_counter() - start))
    assert max(rates) > 2000


# --- one code path, live and from the bag -----------------------------------------------------------------------------

def ros_type(msgtype):
    pytest.importorskip('rclpy.serialization', reason='rclpy is not installed: no real messages to compare with')
    import importlib
    package, _, name = msgtype.split('/')
    return getattr(importlib.import_module(f'{package}.msg'), name)


def equal(a, b):
    if isinstance(a, Label):
        return np.array(a).tobytes() == np.array(b).tobytes()
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_rclpy_reads_our_bag_to_the_same_steps(tmp_path, tiny, make_episode):
    deserialize = pytest.importorskip('rclpy.serialization', reason='rclpy is not installed').deserialize_message
    types = {k: ros_type(t) for k, t in messages.types(tiny).items()}
    path = write(tmp_path / 'bag', tiny, [make_episode(4, contract=tiny)])
    offline = list(bag.read_messages(path, tiny))
    with Reader(path) as reader:
        raws = [(c.topic.rsplit('/', 1)[1], raw) for c, _, raw in reader.messages()]
    assert len(raws) == len(offline) == 4 * 6
    for (kind, raw), (same_kind, stamp, payload) in zip(raws, offline):
        live = deserialize(raw, types[kind])
        assert kind == same_kind
        live_stamp, live_payload = messages.payload(tiny, kind, live)
        assert live_stamp == stamp and equal(live_payload, payload)


def test_what_the_learner_publishes_is_what_the_writer_writes(tiny, make_episode):
    serialize = pytest.importorskip('rclpy.serialization', reason='rclpy is not installed').serialize_message
    episode = make_episode(5, contract=tiny)
    for topic, msgtype, stamp, written in records(tiny, episode):
        kind = topic.rsplit('/', 1)[1]
        _, payload = messages.payload(tiny, kind, written)
        live = messages.fill(tiny, kind, ros_type(msgtype)(), stamp, payload)
        back = bag.deserialise(serialize(live), msgtype)
        assert messages.stamp_ns(back) == stamp and equal(messages.payload(tiny, kind, back)[1], payload)
        assert back.header.frame_id == written.header.frame_id
        if kind == 'ee_pose':
            assert back.pose.orientation == written.pose.orientation and back.pose.orientation.w == 1.0


def test_live_and_imported_episodes_are_the_same(tmp_path, contract, make_episodes, same):
    """The promise of the design: the same steps, bit for bit, through the trainer's joiner and through the bag."""
    from fosp_core.data.joiner import EpisodeAssembler
    episodes = make_episodes([6, 9])
    joiner, assembler, live = StepJoiner(contract), EpisodeAssembler(contract), []
    for episode in episodes:
        for topic, msgtype, stamp, written in records(contract, episode):
            kind = topic.rsplit('/', 1)[1]
            value = messages.payload(contract, kind, written)[1]
            message = messages.fill(contract, kind, ros_type(msgtype)(), stamp, value)
            for step in joiner.push(kind, *messages.payload(contract, kind, message)):
                if (done := assembler.add(step)) is not None:
                    live.append(done)
    imported = list(read_episodes(write(tmp_path / 'bag', contract, episodes), contract))
    for a, b, c in zip(episodes, live, imported, strict=True):
        same(a, b, meta=False)
        same(a, c)


def test_messages_pass_the_field_checks_of_rclpy(tmp_path):
    """ROS_PYTHON_CHECK_FIELDS=1 refuses numpy floats and lists of the wrong kind; users do switch it on."""
    pytest.importorskip('rclpy', reason='rclpy is not installed')
    code = ('import numpy as np\n'
            'from fosp_core.contract import Contract\n'
            'from fosp_core.paths import config_file\n'
            'from fosp_core.data import messages\n'
            'from fosp_core.data.joiner import Label\n'
            'from geometry_msgs.msg import PoseStamped, TwistStamped\n'
            'from sensor_msgs.msg import Image, Joy\n'
            'c = Contract.load(config_file("contract_safereach.yaml"))\n'
            'f = np.float32\n'
            'for kind, message, value in (\n'
            '        ("image", Image(), np.zeros((64, 64, 3), np.uint8)), ("ee_pose", PoseStamped(), f([1, 2, 3])),\n'
            '        ("action", TwistStamped(), f([1, 0, -1])),\n'
            '        ("label", Joy(), Label(f(1), f(0), np.bool_(1), np.bool_(0), np.bool_(0), np.int64(3)))):\n'
            '    messages.payload(c, kind, messages.fill(c, kind, message, 1_700_000_000_000_000_001, value))\n'
            'assert message._check_fields\n')
    env = {**os.environ, 'ROS_PYTHON_CHECK_FIELDS': '1', 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- bad input --------------------------------------------------------------------------------------------------------

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


def test_a_recording_that_was_not_closed(tmp_path, contract, capsys, make_episode):
    path = write(tmp_path / 'bag', contract, [make_episode(4)])
    (path / 'metadata.yaml').unlink()
    refused(path, contract, capsys, 'metadata.yaml is missing', 'bag.mcap')


@pytest.mark.parametrize('text', ['', '[', 'a: 1', '- 1', '\x00\xff', 'rosbag2_bagfile_information: {version: 9}'])
def test_garbage_metadata(tmp_path, contract, capsys, make_episode, text):
    path = write(tmp_path / 'bag', contract, [make_episode(4)])
    (path / 'metadata.yaml').write_bytes(text.encode('latin-1'))
    refused(path, contract, capsys)


def test_garbage_sidecar(tmp_path, contract, capsys, make_episode):
    path = write(tmp_path / 'bag', contract, [make_episode(4)])
    (path / 'episodes.yaml').write_text('episodes: [1, 2]')
    refused(path, contract, capsys, 'episodes.yaml')


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
@pytest.mark.parametrize('part', [0.0, 0.0001, 0.001, 0.02, 0.3, 0.7, 0.95, 0.999, 0.9999])
def test_a_truncated_bag(tmp_path, contract, capsys, make_episode, storage, part):
    path = write(tmp_path / 'bag', contract, [make_episode(20)], storage=storage)
    file = next(p for p in path.iterdir() if p.suffix in ('.mcap', '.db3'))
    os.truncate(file, int(part * file.stat().st_size))
    refused(path, contract, capsys)


def test_every_cut_of_a_small_bag_is_refused(tmp_path, tiny, make_episode):
    path = write(tmp_path / 'bag', tiny, [make_episode(3, contract=tiny)])
    data = (path / 'bag.mcap').read_bytes()
    cuts = sorted({*range(0, 60), *range(60, len(data), 797), *range(len(data) - 400, len(data), 13)})
    for cut in cuts:
        (path / 'bag.mcap').write_bytes(data[:cut])
        with pytest.raises(DataError) as error:
            list(read_episodes(path, tiny))
        assert str(path) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_a_damaged_bag_never_ends_in_a_traceback(tmp_path, tiny, make_episode, storage):
    """Flipped bytes may go unseen in a pixel, but never raise anything but one line, nor make a wrong episode."""
    path = write(tmp_path / 'bag', tiny, [make_episode(3, contract=tiny)], storage=storage)
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


def test_fewer_messages_than_the_bag_says(tmp_path, contract, capsys, make_episode):
    path = write(tmp_path / 'bag', contract, [make_episode(6)])
    text = (path / 'metadata.yaml').read_text()
    (path / 'metadata.yaml').write_text(text.replace('message_count: 6', 'message_count: 8'))
    refused(path, contract, capsys, '-2 messages', '/fosp/replay/')


def test_bytes_after_the_end_of_a_message(contract):
    raw = bytes(bag.typestore().serialize_cdr(bag.blank('sensor_msgs/msg/JointState'), 'sensor_msgs/msg/JointState'))
    assert bag.deserialise(raw + 8 * b'x', 'sensor_msgs/msg/JointState').effort.size == 0
    for bad in (raw + 80 * b'x', raw[:-1], b'', b'abcd', b'\7' + raw[1:]):
        with pytest.raises(Exception):  # noqa: B017 - the importer turns any of them into its one line
            bag.deserialise(bad, 'sensor_msgs/msg/JointState')


def test_missing_topics_are_named_with_what_there_is(tmp_path, contract, capsys, make_episode):
    rows = [r for r in records(contract, make_episode(4)) if not r[0].endswith(('action', 'ee_pose'))]
    path = write_raw(tmp_path / 'bag', rows)
    line = refused(path, contract, capsys, 'no topic', '/fosp/replay/ee_pose', '/fosp/replay/action')
    missing, has = line.split('the bag has')
    assert '/fosp/replay/image' in has and '/fosp/replay/label' in has and 'image' not in missing


def test_a_bag_of_something_else(tmp_path, contract, capsys, make_episode):
    rows = [['/camera/colour', *r[1:]] for r in records(contract, make_episode(4)) if r[0].endswith('image')]
    refused(write_raw(tmp_path / 'bag', rows), contract, capsys, '/replay/image', 'the bag has /camera/colour')


def test_a_topic_of_another_type(tmp_path, contract, capsys, make_episode):
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
def test_wrong_content_names_file_topic_and_stamp(tmp_path, contract, capsys, make_episode, apply, topic, words):
    rows = records(contract, make_episode(4))
    stamp = apply(rows)
    refused(write_raw(tmp_path / 'bag', rows), contract, capsys, f'/fosp/replay/{topic}', f'stamp {stamp}', *words)


def test_an_action_a_little_beyond_the_limit_is_clipped(tmp_path, contract, make_episode):
    rows = records(contract, make_episode(4))
    change('action', assign('twist.linear.x', 0.2501))(rows)
    assert next(iter(read_episodes(write_raw(tmp_path / 'bag', rows), contract))).action[2, 0] == 1.0


def test_no_complete_step(tmp_path, contract, capsys, make_episode):
    """Stamps that never agree, as from a recorder that stamps each topic on its own."""
    rows = records(contract, make_episode(6))
    for i, row in enumerate(rows):
        messages_stamp = row[3].header.stamp
        messages_stamp.nanosec += i
    refused(write_raw(tmp_path / 'bag', rows), contract, capsys, 'no complete episode', '0 steps', 'incomplete')


def test_a_wrong_field_of_the_contract_is_named(tmp_path, contract, make_episode):
    path = write(tmp_path / 'bag', contract, [make_episode(4)])
    vector = dataclasses.replace(contract.vectors[0], fields=('pose.position.w',) * 3)
    with pytest.raises(ContractError, match=r'pose\.position\.w'):
        list(read_episodes(path, dataclasses.replace(contract, vectors=(vector,))))


# --- nothing half-written ---------------------------------------------------------------------------------------------

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


def test_an_existing_bag_is_not_touched(tmp_path, contract, make_episode):
    path = write(tmp_path / 'bag', contract, [make_episode(4)])
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    with pytest.raises(FospError, match='exists already'):
        write(path, contract, [make_episode(5)])
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before


def test_what_cannot_be_joined_again_is_not_written(tmp_path, contract, make_episode):
    """Two episodes with the same stamps would come back as one muddle."""
    first = make_episode(6)
    for second in (make_episode(6, 1, step=6), make_episode(6, 1, stamp=int(first.stamp[-1]) + 1, step=5)):
        with pytest.raises(DataError, match='expected both above'):
            write(tmp_path / 'bag', contract, [first, second])
    bad = make_episode(6)
    bad.action[2, 0] = np.nan
    with pytest.raises(DataError, match='action is not finite at step 2'):
        write(tmp_path / 'bag', contract, [bad])
    with pytest.raises(DataError, match='within 0 to'):
        write(tmp_path / 'bag', contract, [make_episode(6, step=2 ** 31 - 3)])
    with pytest.raises(DataError, match='storage'):
        BagWriter(tmp_path / 'bag', contract, storage='zip')
    assert list(tmp_path.iterdir()) == []


def test_messages_of_an_unknown_type_are_refused():
    with pytest.raises(DataError, match='my_msgs/msg/Thing'):
        bag.blank('my_msgs/msg/Thing')
