# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Damaged bags and messages: never a traceback, a hang or half a data set, and each error says where.

`FOSP_FUZZ=10000 pytest test/core/test_import_fuzz.py` runs as many cases as that; without it a few hundred are run.
"""

import os
import resource

import foreign_bags as fb
import fuzz_bags
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fosp_core.data import convert, images
from fosp_core.data.cdr import blank, typestore
from fosp_core.data.import_report import TopicCounts
from fosp_core.errors import FospError

CASES = int(os.environ.get('FOSP_FUZZ', '240'))
CONTRACT = fb.contract({**fb.IMPORT, 'action': {'topic': '/cmd', 'type': 'sensor_msgs/JointState',
                                                'joints': ['a', 'b'], 'field': 'velocity'},
                        'label': {'topic': '/label'}, 'reward': {'topic': '/r', 'type': 'std_msgs/Float32'}})
WHERE = '/bag: /topic, stamp 7'


@pytest.mark.timeout(max(300, CASES // 2))
def test_bags_with_changed_bytes(tmp_path, tiny, make_episode, write_bag):
    replay = write_bag(tmp_path / 'replay', tiny, [make_episode(3, contract=tiny)])
    fuzz = fuzz_bags.Fuzz(tmp_path / 'fuzz' if (tmp_path / 'fuzz').mkdir() is None else None, replay, tiny)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(CASES):
        fuzz.case(number)
    print(f'{fuzz.refused} refused, {fuzz.taken} taken of {CASES}')
    # Both happen: a test that only ever meets one of them has lost its teeth.
    assert fuzz.refused > CASES / 4 and fuzz.taken > CASES / 50
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
    assert [p.name for p in (tmp_path / 'fuzz').iterdir()] == ['base']


floats = st.floats(width=32)
texts = st.sampled_from(['', 'rgb8', 'bgr8', 'mono8', '16UC1', '32FC1', '8UC3', 'yuv422', 'jpeg', '\x00', 'ä' * 40])
sizes = st.integers(0, 40) | st.sampled_from([2 ** 31, 2 ** 32 - 1])


@st.composite
def image_messages(draw):
    m = blank(fb.TYPES['image'])
    m.encoding, m.is_bigendian = draw(texts), draw(st.integers(0, 255))
    m.height, m.width, m.step = draw(sizes), draw(sizes), draw(sizes)
    m.data = np.frombuffer(draw(st.binary(max_size=600)), np.uint8)
    return 'image', m


@st.composite
def compressed_messages(draw):
    m = blank(fb.TYPES['compressed'])
    m.format = draw(texts | st.sampled_from(['16UC1; compressedDepth png', 'rgb8; jpeg compressed bgr8']))
    head = draw(st.sampled_from([b'', b'\xff\xd8', b'\xff\xd8\xff\xc0\0\x11\x08\0\x10\0\x10', PNG[:8], PNG]))
    m.data = np.frombuffer(head + draw(st.binary(max_size=200)) + draw(st.sampled_from([b'', b'\xff\xd9'])), np.uint8)
    return 'compressed', m


PNG = b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x10\0\0\0\x10\x08\x02\0\0\0'


@st.composite
def joint_messages(draw):
    m = blank(fb.TYPES['joints'])
    m.name = draw(st.lists(st.sampled_from(['a', 'b', 'c', '']), max_size=4))
    for name in ('position', 'velocity', 'effort'):
        setattr(m, name, np.array(draw(st.lists(floats, max_size=4)), np.float64))
    return 'joints', m


@st.composite
def joy_messages(draw):
    m = blank(fb.TYPES['joy'])
    m.axes = np.array(draw(st.lists(floats, max_size=3)), np.float32)
    m.buttons = np.array(draw(st.lists(st.integers(-2 ** 31, 2 ** 31 - 1), max_size=4)), np.int32)
    return 'joy', m


@st.composite
def pose_messages(draw):
    m = fb.pose([draw(floats) for _ in range(3)], draw(st.integers(0, 2 ** 60)), draw(texts))
    return 'pose', m


def readers():
    spec, store = CONTRACT.imports, typestore()
    camera = CONTRACT.cameras[0]
    compressed = fb.contract({**fb.IMPORT, 'cameras': {'image': {'type': fb.TYPES['compressed']}}}).imports
    return {'image': convert.camera(spec.cameras['image'], camera, store),
            'compressed': convert.camera(compressed.cameras['image'], camera, store),
            'pose': convert.vector(spec.vectors['ee_pose'], store),
            'joints': convert.action(spec.action, CONTRACT, store, TopicCounts()),
            'joy': convert.label(spec.label, store), 'float': convert.signal(spec.reward[0], store, True)}


READERS = readers()


@settings(max_examples=max(150, CASES // 10), deadline=None, database=None, derandomize=True,
          suppress_health_check=list(HealthCheck))
@given(st.one_of(image_messages(), compressed_messages(), joint_messages(), joy_messages(), pose_messages()),
       st.none() | st.integers(0, 2 ** 32))
def test_messages_of_any_content(pair, seed):
    """Well-formed ones with mad content, and the same with bytes changed on top."""
    kind, message = pair
    raw = bytes(typestore().serialize_cdr(message, fb.TYPES[kind]))
    if seed is not None:
        raw = fuzz_bags.mutate(np.random.default_rng(seed), raw)
    try:
        value = READERS[kind](raw, WHERE)
    except FospError as error:
        assert str(error).startswith(WHERE) and '\n' not in str(error)
        return
    if kind in ('image', 'compressed'):
        assert value.shape == (8, 8, 3) and value.dtype == np.uint8
    else:
        assert np.isfinite(np.array(value, np.float64)).all()


def test_the_fuzzer_would_notice(tmp_path, tiny, make_episode, write_bag, monkeypatch):
    """A traceback, a hang, an error without a place and half a data set are each told apart from an orderly no."""
    (tmp_path / 'fuzz').mkdir()
    fuzz = fuzz_bags.Fuzz(tmp_path / 'fuzz', write_bag(tmp_path / 'r', tiny, [make_episode(3, contract=tiny)]), tiny)
    monkeypatch.setattr(fuzz_bags, 'LIMIT_S', 0.05)

    def fail(error):
        raise error

    def leave_half():
        (fuzz.folder / 'pack').mkdir()
        fail(FospError('/x: byte 3'))
    for run, raised in ((lambda: {}['key'], KeyError), (lambda: iter(int, 1).__length_hint__() if False else
                                                        [0 for _ in iter(int, 1)], fuzz_bags.Hang),
                        (lambda: fail(FospError('/x: something is wrong')), AssertionError),
                        (lambda: fail(FospError('byte 5')), AssertionError),
                        (lambda: fail(FospError('/x: byte 5\nand more')), AssertionError)):
        with pytest.raises(raised):
            fuzz._judge(0, run, '/x')
    monkeypatch.setattr(fuzz_bags, 'write_pack', lambda *_: leave_half())
    with pytest.raises(AssertionError, match='half'):
        fuzz._read(tmp_path, tiny, True)
    assert images.ENCODINGS
