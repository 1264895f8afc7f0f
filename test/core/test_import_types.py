# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every type that a foreign bag may hold: pictures of each encoding, actions and poses by a declared conversion."""

import contextlib
import sqlite3

import cv2
import foreign_bags as fb
import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from fosp_core.contract import CameraSpec
from fosp_core.data import images
from fosp_core.data.bag import ImportReport, read_episodes
from fosp_core.data.cdr import blank, typestore
from fosp_core.errors import ContractError, DataError

RNG = np.random.default_rng(3)
RGB = cv2.resize(RNG.integers(0, 256, (4, 5, 3), np.uint8), (40, 32), interpolation=cv2.INTER_CUBIC)   # smooth
CAMERA = CameraSpec('image', 'image', 8, 8)


def commands(kind, make, seconds=2.0):
    """The scene with commands of another kind."""
    rows = [r for r in fb.scene(seconds) if r[0] != '/cmd']
    rows += [['/cmd', kind, fb.START + 100_000_000 * i + 5_000_000, make(i, fb.START + 100_000_000 * i + 5_000_000)]
             for i in range(int(seconds * 10))]
    return sorted(rows, key=lambda r: r[2])


def actions(tmp_path, rows, source, **action):
    contract = fb.contract({**fb.IMPORT, 'action': {'topic': '/cmd', **source}},
                           action={**fb.BASE['action'], **action})
    report = ImportReport()
    episodes = list(read_episodes(fb.write(tmp_path / 'bag', rows), contract, report=report))
    return contract.action.denormalise(episodes[0].action), report


def joints(i, t):
    message = fb.stamped(blank(fb.TYPES['joints']), t)
    message.name = ['elbow', 'base', 'wrist']
    message.velocity = np.array([i / 100, -0.25, i / 50])
    message.position = np.array([9.0, 9.0, 9.0])
    return message


def trajectory(i, t):
    message = fb.stamped(blank(fb.TYPES['trajectory']), t)
    message.joint_names = ['elbow', 'base']
    for k in range(2):
        point = blank('trajectory_msgs/msg/JointTrajectoryPoint')
        point.velocities = np.array([i / 100 + k, 0.125])
        message.points.append(point)
    return message


def plain(i, t):
    message = blank(fb.TYPES['plain_twist'])
    message.linear.x, message.angular.z = i / 100, 0.5
    return message


RAMP = np.arange(19) / 100


@pytest.mark.parametrize(('kind', 'make', 'source', 'expected'), [
    ('joints', joints, {'type': 'sensor_msgs/JointState', 'joints': ['elbow', 'base'], 'field': 'velocity'},
     [RAMP, -0.25]),
    ('joints', joints, {'type': 'sensor_msgs/JointState', 'fields': ['velocity[2]', 'velocity.0'], 'scale': 0.5},
     [RAMP, RAMP / 2]),
    ('trajectory', trajectory, {'type': 'trajectory_msgs/msg/JointTrajectory', 'joints': ['base', 'elbow'],
                                'field': 'velocities'}, [0.125, RAMP]),
    ('trajectory', trajectory, {'type': 'trajectory_msgs/msg/JointTrajectory', 'joints': ['base', 'elbow'],
                                'field': 'velocities', 'point': 'last', 'offset': [0, -1]}, [0.125, RAMP]),
    ('array', lambda i, t: fb.data('array', [i, 7.0, -100.0]),
     {'type': 'std_msgs/Float64MultiArray', 'index': [2, 0], 'unit': 'mm/s', 'scale': [1, 10]}, [-0.1, RAMP]),
    ('plain_twist', plain, {'type': 'geometry_msgs/Twist', 'fields': ['linear.x', 'angular.z'], 'unit': ['m/s', 'm/s']},
     [RAMP, 0.5]),
])
def test_actions_of_every_listed_type(tmp_path, kind, make, source, expected):
    found, _ = actions(tmp_path, commands(kind, make), source)
    for column, values in enumerate(expected):
        np.testing.assert_allclose(found[:19, column], np.broadcast_to(values, 19), atol=1e-7)


def test_degrees_become_radians(tmp_path):
    found, _ = actions(tmp_path, commands('array', lambda i, t: fb.data('array', [18.0, -9.0])), {
        'type': 'std_msgs/Float64MultiArray', 'index': [0, 1], 'unit': 'deg/s'}, unit='rad/s')
    np.testing.assert_allclose(found[0], [np.pi / 10, -np.pi / 20], rtol=1e-6)


@pytest.mark.parametrize(('pick', 'at', 'expected'), [('next', 2, 0.1), ('hold', 1, 0.09), ('mean', 2, 0.12)])
def test_which_command_of_a_period_is_the_action(tmp_path, pick, at, expected):
    rows = [r for r in fb.scene() if r[0] != '/cmd']
    for i in range(100):
        t = fb.START + 20_000_000 * i + 1_000_000
        rows.append(['/cmd', 'twist', t, fb.twist((i / 100 if i < 50 else 0.5, 0), t)])
    found, _ = actions(tmp_path, sorted(rows, key=lambda r: r[2]), {'pick': pick})
    # The picture of 0.2 s and command 10 at 0.201 s; the very first picture has no command before it to hold.
    assert found[at, 0] == pytest.approx(expected, abs=1e-6)


def test_silence_of_the_commands_is_a_gap_or_by_declaration_no_motion(tmp_path):
    rows = [r for r in fb.scene(3.0) if r[0] != '/cmd' or not 1.0 < (r[2] - fb.START) / 1e9 < 1.5]
    found, report = actions(tmp_path, rows, {'missing': 'zero'})
    assert report.episodes == 1 and report.gaps == 0
    assert not found[11:13].any() and found[9, 0] == pytest.approx(0.009)


def test_too_large_actions_are_refused_or_by_declaration_cut_and_counted(tmp_path):
    rows = commands('twist', lambda i, t: fb.twist((0.02 * i, 40.0 * (i == 7)), t))
    path = fb.write(tmp_path / 'bag', rows)
    contract = fb.contract(fb.IMPORT)
    with pytest.raises(DataError, match=rf'/cmd, stamp {fb.START + 705_000_000}: field twist.linear.y is 40, expected '
                                        r'-0.5 to 0.5 m/s'):
        list(read_episodes(path, contract))
    cut = fb.contract({**fb.IMPORT, 'action': {'topic': '/cmd', 'clip': True}})
    report = ImportReport()
    episode = next(read_episodes(path, cut, report=report))
    list(read_episodes(path, cut, report=report))
    assert episode.action[7, 1] == 1.0
    assert next(c for n, c in report.topics.items() if '/cmd' in n).clipped == 1


@pytest.mark.parametrize('encoding', images.ENCODINGS)
@pytest.mark.parametrize('pad', [0, 5])
def test_every_encoding_as_before_with_one_copy_less(encoding, pad):
    """Resizing before reordering gives the very pixels that reordering before resizing gives."""
    kind, channels = images.ENCODINGS[encoding]
    pixels = (RNG.random((33, 47, channels)) * (3 if kind == 'f4' else 250)).astype(kind)
    raw = np.ascontiguousarray(pixels).view(np.uint8).reshape(33, -1)
    rows = np.concatenate([raw, np.zeros((33, pad), np.uint8)], 1)
    fields = (encoding, 33, 47, rows.shape[1], 0, rows.tobytes())
    for size, out in (((16, 16), 'rgb8'), ((16, 16), 'bgr8'), ((33, 47), 'mono8'), ((64, 64), 'rgb8')):
        camera = CameraSpec('c', 'c', *size, out)
        slow = images.for_camera(encoding, images.to_array(*fields), camera, 2.0)
        np.testing.assert_array_equal(images.to_camera(*fields, camera, depth_range=2.0), slow)


def encoded(extension, pixels, *flags):
    return np.frombuffer(cv2.imencode(extension, pixels, flags)[1].tobytes(), np.uint8)


def test_compressed_pictures_are_the_same_as_raw_ones():
    raw = images.to_camera('rgb8', 32, 40, 120, 0, RGB.tobytes(), CAMERA)
    bgr = RGB[..., ::-1]
    exact = images.from_compressed('rgb8; png compressed bgr8', encoded('.png', bgr), CAMERA)
    np.testing.assert_array_equal(exact, raw)
    np.testing.assert_array_equal(images.from_compressed('png', encoded('.png', bgr), CAMERA), raw)
    rgb = images.from_compressed('rgb8; png compressed rgb8', encoded('.png', RGB), CAMERA)
    np.testing.assert_array_equal(rgb, raw)
    for layout in ('jpeg', 'rgb8; jpeg compressed bgr8', 'bgr8; jpeg compressed bgr8'):
        lossy = images.from_compressed(layout, encoded('.jpg', bgr, cv2.IMWRITE_JPEG_QUALITY, 98), CAMERA)
        assert np.abs(lossy.astype(int) - raw).mean() < 3
    grey = images.from_compressed('mono8; jpeg compressed ', encoded('.jpg', RGB[..., 1]), CAMERA)
    assert grey.shape == (8, 8, 3) and np.abs(grey[..., 0].astype(int) - raw[..., 1]).mean() < 3
    alpha = np.dstack([bgr, np.full((32, 40), 9, np.uint8)])
    np.testing.assert_array_equal(images.from_compressed('bgra8; png compressed bgra8', encoded('.png', alpha), CAMERA),
                                  raw)


def test_compressed_depth():
    depth = np.full((32, 40), 1020, np.uint16)
    data = np.concatenate([np.zeros(12, np.uint8), encoded('.png', depth)])
    found = images.from_compressed('16UC1; compressedDepth png', data, CAMERA)
    assert (found == 102).all()
    assert (images.from_compressed('16UC1; png compressed ', encoded('.png', depth), CAMERA) == 102).all()
    with pytest.raises(DataError, match='expected depth of 16UC1'):
        images.from_compressed('32FC1; compressedDepth png', data, CAMERA)


@pytest.mark.parametrize(('data', 'words'), [
    (b'', 'begins with nothing'), (b'hello', '68656c6c'), (encoded('.jpg', RGB)[:-40].tobytes(), 'no end: cut'),
    (encoded('.png', RGB)[:90].tobytes(), 'damaged|cannot be decoded'), (b'\xff\xd8\xff\xd9', '0 x 0'),
    (encoded('.png', RGB).tobytes().replace((40).to_bytes(4, 'big'), (2 ** 30).to_bytes(4, 'big'), 1), '1073741824 x')])
def test_damaged_pictures_are_named(data, words):
    with pytest.raises(DataError, match=words) as error:
        images.from_compressed('jpeg', np.frombuffer(data, np.uint8), CAMERA, '/bag: /cam, stamp 5')
    assert str(error.value).startswith('/bag: /cam, stamp 5: ')


def test_a_bag_of_compressed_pictures(tmp_path):
    rows = fb.scene()
    for row in rows:
        if row[1] == 'image':
            message = fb.stamped(blank(fb.TYPES['compressed']), row[2] - 3_000_000)
            message.format, message.data = 'jpeg', encoded('.jpg', row[3].data.reshape(12, 16, 3))
            row[:] = ['/cam/image_raw/compressed', 'compressed', row[2], message]
    contract = fb.contract({**fb.IMPORT, 'cameras': {'image': {
        'topic': '/cam/image_raw/compressed', 'type': 'sensor_msgs/CompressedImage'}}})
    episode = next(read_episodes(fb.write(tmp_path / 'bag', rows), contract))
    assert np.abs(episode.images['image'][:, 0, 0, 0].astype(int) - 3 * np.arange(20)).max() <= 1


def test_poses_from_a_transform_and_from_a_bare_pose(tmp_path):
    def transforms(i, t):
        message = blank(fb.TYPES['tf'])
        for child, x in (('other', 5.0), ('hand', i / 1000)):
            entry = fb.stamped(blank('geometry_msgs/msg/TransformStamped'), t, 'base')
            entry.child_frame_id = child
            entry.transform.translation.x = x
            message.transforms.append(entry)
        return message

    rows = fb.scene()
    for row in rows:
        if row[1] == 'pose':
            row[:] = ['/tf', 'tf', row[2], transforms(round(row[3].pose.position.x * 1000), row[2] - 3_000_000)]
    source = {'topic': '/tf', 'type': 'tf2_msgs/TFMessage', 'child': 'hand', 'unit': 'm', 'fields': [
        f'transform.translation.{axis}' for axis in 'xyz']}
    contract = fb.contract({**fb.IMPORT, 'vectors': {'ee_pose': source}})
    path = fb.write(tmp_path / 'bag', rows)
    episode = next(read_episodes(path, contract))
    np.testing.assert_allclose(episode.vectors['ee_pose'][:, 0], np.arange(20) * 0.005, atol=1e-7)
    far = fb.contract({**fb.IMPORT, 'vectors': {'ee_pose': {**source, 'frame': 'world'}}})
    with pytest.raises(DataError, match=r"/tf, received at \d+: frame_id is 'base', expected 'world'"):
        list(read_episodes(path, far))
    with pytest.raises(ContractError, match='key child is None'):
        fb.contract({**fb.IMPORT, 'vectors': {'ee_pose': {k: v for k, v in source.items() if k != 'child'}}})


def test_a_pose_in_another_frame_is_refused_until_it_is_declared(tmp_path):
    rows = fb.scene()
    for row in rows:
        if row[1] == 'pose':
            row[3].header.frame_id = 'panda_link0'
    path = fb.write(tmp_path / 'bag', rows)
    with pytest.raises(DataError, match=r"/arm/pose, stamp \d+: frame_id is 'panda_link0', expected 'base'"):
        list(read_episodes(path, fb.contract()))
    for frame in ('panda_link0', 'any'):
        contract = fb.contract({**fb.IMPORT, 'vectors': {'ee_pose': {'topic': '/arm/pose', 'frame': frame}}})
        assert len(next(read_episodes(path, contract))) == 20


CUSTOM = 'std_msgs/Header header\nfloat32[4] velocities\nbool armed\n'


def test_a_custom_type_by_the_definition_in_the_bag(tmp_path):
    """A type that no distribution knows."""
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(get_types_from_msg(CUSTOM, 'my_robot/msg/Command'))
    make = store.types['my_robot/msg/Command']
    path = tmp_path / 'bag'
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        links = {}
        for row in fb.scene():
            msgtype = 'my_robot/msg/Command' if row[0] == '/cmd' else fb.TYPES[row[1]]
            message = row[3]
            if row[0] == '/cmd':
                v = np.float32([1, 2, message.twist.linear.x, -0.25])
                message = make(header=message.header, velocities=v, armed=True)
            if row[0] not in links:
                links[row[0]] = writer.add_connection(row[0], msgtype, typestore=store)
            writer.write(links[row[0]], row[2], store.serialize_cdr(message, msgtype))
    source = {'topic': '/cmd', 'type': 'my_robot/Command', 'fields': ['velocities[2]', 'velocities[3]']}
    contract = fb.contract({**fb.IMPORT, 'action': source})
    found = contract.action.denormalise(next(read_episodes(path, contract)).action)
    np.testing.assert_allclose(found[:19, 0], np.arange(19) / 1000, atol=1e-7)
    assert found[0, 1] == -0.25


def test_the_definition_in_the_bag_goes_before_the_distribution_s(tmp_path):
    """A fork of std_msgs with a field more: read by Jazzy's Bool, every contact would be false."""
    fork = get_typestore(Stores.EMPTY)
    fork.register(get_types_from_msg('bool valid\nbool data\n', 'std_msgs/msg/Bool'))
    path = tmp_path / 'bag'
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        links = {'/contact': writer.add_connection('/contact', 'std_msgs/msg/Bool', typestore=fork)}
        writer.write(links['/contact'], fb.START + 1_000_000_000, fork.serialize_cdr(
            fork.types['std_msgs/msg/Bool'](valid=False, data=True), 'std_msgs/msg/Bool'))
        for row in fb.scene():
            if row[0] not in links:
                links[row[0]] = writer.add_connection(row[0], fb.TYPES[row[1]], typestore=typestore())
            writer.write(links[row[0]], row[2], fb.raw(row))
    contract = fb.contract({**fb.IMPORT, 'cost': {'topic': '/contact', 'type': 'std_msgs/msg/Bool'}})
    assert np.flatnonzero(next(read_episodes(path, contract)).cost).tolist() == [10]


def test_a_type_that_nobody_defines_is_named(tmp_path, monkeypatch):
    path = fb.strip_definitions(fb.write(tmp_path / 'bag', fb.scene(), 'sqlite3', version=8))
    file, meta = next(path.glob('*.db3')), path / 'metadata.yaml'
    with contextlib.closing(sqlite3.connect(file)) as base:
        base.executescript("UPDATE topics SET type = 'my_robot/msg/Command' WHERE name = '/cmd'")
    meta.write_text(meta.read_text().replace('geometry_msgs/msg/TwistStamped', 'my_robot/msg/Command'))
    contract = fb.contract({**fb.IMPORT, 'action': {'topic': '/cmd', 'type': 'my_robot/Command', 'fields': ['a', 'b']}})
    with pytest.raises(DataError, match=r'/cmd: the bag holds no definition of my_robot/msg/Command, nor has ROS 2'):
        list(read_episodes(path, contract))


@pytest.mark.parametrize(('change', 'words'), [
    ({'cameras': {'front': {}}}, 'import.cameras: the contract has no front, it has image'),
    ({'cameras': {'image': {'type': 'std_msgs/Bool'}}}, 'import.cameras.image: key type'),
    ({'cameras': {'image': {'topic': 3}}}, 'import.cameras.image: key topic is 3, expected text'),
    ({'vectors': {'ee_pose': {'type': 'geometry_msgs/Pose'}}}, 'expected one of the keys fields, joints and index'),
    ({'vectors': {'ee_pose': {'fields': ['a']}}}, 'key fields is .* expected 3 entries'),
    ({'vectors': {'ee_pose': {'scale': 'big'}}}, 'key scale is .big., expected a number, or a list of 3'),
    ({'vectors': {'ee_pose': {'unit': 'deg'}}}, 'key unit is .deg., expected one that can be turned into m'),
    ({'action': {'topic': '/c', 'type': 'sensor_msgs/JointState', 'joints': ['a', 'b']}}, 'key field is missing'),
    ({'action': {'topic': '/c', 'joints': ['a', 'b'], 'field': 'velocity'}}, 'a type with joint names'),
    ({'action': {'topic': '/c', 'pick': 'best'}}, 'next, hold, mean'), ({'action': {}}, 'key topic is missing'),
    ({'tolerance_s': -1}, 'a number above 0'), ({'tolerance_s': True}, 'a number'), ({'clock': 'wall'}, 'header, log'),
    ({'camera': {}}, 'unknown key camera'), ({'distribution': 4}, 'text'),
    ({'action': {'topic': '/c', 'index': [0, -1], 'type': 'std_msgs/Float64MultiArray'}}, 'no negative number')])
def test_a_wrong_section_names_its_key(change, words):
    with pytest.raises(ContractError, match=words) as error:
        fb.contract({**fb.IMPORT, **change})
    assert str(error.value).startswith('c.yaml: import') and '\n' not in str(error.value)


@pytest.mark.parametrize(('edit', 'words'), [
    (lambda m: setattr(m, 'name', ['a', 'b', 'c']), 'no joint elbow, the message has a, b, c'),
    (lambda m: setattr(m, 'velocity', np.array([1.0])), 'list velocity has 1 entries for 3 joints'),
    (lambda m: setattr(m, 'velocity', np.array([np.nan] * 3)), 'velocity of joint elbow is nan')])
def test_joint_messages_that_do_not_fit_name_topic_and_stamp(tmp_path, edit, words):
    def make(i, t):
        message = joints(i, t)
        if i == 3:
            edit(message)
        return message
    with pytest.raises(DataError, match=rf'/cmd, stamp {fb.START + 305_000_000}: .*{words}'):
        actions(tmp_path, commands('joints', make), {'type': 'sensor_msgs/JointState', 'joints': ['elbow', 'base'],
                                                     'field': 'velocity'})


def test_a_topic_that_is_missing_or_of_another_type(tmp_path):
    path = fb.write(tmp_path / 'bag', fb.scene())
    with pytest.raises(DataError, match=r'no topic /camera; the bag has /arm/pose, /cam/image_raw, /cmd'):
        list(read_episodes(path, fb.contract({**fb.IMPORT, 'cameras': {'image': {'topic': '/camera'}}})))
    with pytest.raises(DataError, match=r'/arm/pose is of type geometry_msgs/msg/PoseStamped, expected sensor_msgs'):
        list(read_episodes(path, fb.contract({**fb.IMPORT, 'cameras': {'image': {'topic': '/arm/pose'}}})))
    with pytest.raises(DataError, match="distribution 'lunar', expected one of foxy"):
        list(read_episodes(path, fb.contract({**fb.IMPORT, 'distribution': 'lunar'})))
    assert typestore() is typestore()


def test_halving_first_stays_within_a_level_of_area_alone():
    big = cv2.resize(RNG.integers(0, 256, (24, 32, 3), np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
    away = np.abs(images.resize(big, 64, 64).astype(int) - cv2.resize(big, (64, 64), interpolation=cv2.INTER_AREA))
    assert away.mean() < 0.5 and away.max() <= 3
    odd = big[:-1]
    np.testing.assert_array_equal(images.resize(odd, 64, 64), cv2.resize(odd, (64, 64), interpolation=cv2.INTER_AREA))
