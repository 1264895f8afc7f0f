# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Image fields to pixels and back: no wrong pixel without an error (ros2.md 6: PyPI's cv-bridge has some).

Colours swapped between recording and running are a known accident (lessons.md 24).
"""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fosp_core.contract import CameraSpec
from fosp_core.data import images
from fosp_core.errors import DataError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), np.uint8)
SAMPLES = {
    'rgb8': RGB, 'bgr8': RGB, '8UC3': RGB, 'rgba8': RNG.integers(0, 256, (5, 7, 4), np.uint8),
    'bgra8': RNG.integers(0, 256, (5, 7, 4), np.uint8), 'mono8': RGB[..., :1], '8UC1': RGB[..., :1],
    'mono16': RNG.integers(0, 2 ** 16, (5, 7, 1), np.uint16), '16UC1': RNG.integers(0, 2 ** 16, (5, 7, 1), np.uint16),
    '32FC1': RNG.normal(size=(5, 7, 1)).astype(np.float32),
}


def expected(encoding):
    raw = SAMPLES[encoding]
    if encoding in ('bgr8', '8UC3', 'bgra8'):
        return np.stack([raw[..., 2], raw[..., 1], raw[..., 0]], -1)
    return raw[..., :3]


def pack(raw, pad=0, big=False):
    """Return (height, width, step, is_bigendian, data) with `pad` bytes of rubbish after each row."""
    h, w, _ = raw.shape
    rows = np.ascontiguousarray(raw.astype(raw.dtype.newbyteorder('>' if big else '<'))).view(np.uint8).reshape(h, -1)
    rows = np.concatenate([rows, np.full((h, pad), 0xAB, np.uint8)], 1)
    return h, w, rows.shape[1], int(big), rows.tobytes()


@pytest.mark.parametrize('encoding', images.ENCODINGS)
@pytest.mark.parametrize('pad', [0, 1, 3, 64])
@pytest.mark.parametrize('big', [False, True])
def test_every_encoding_padding_and_byte_order(encoding, pad, big):
    pixels = images.to_array(encoding, *pack(SAMPLES[encoding], pad, big))
    np.testing.assert_array_equal(pixels, expected(encoding))
    assert pixels.dtype == SAMPLES[encoding].dtype and pixels.dtype.isnative
    assert pixels.flags.c_contiguous and pixels.flags.writeable


@pytest.mark.parametrize('wrap', [bytes, bytearray, memoryview, lambda d: np.frombuffer(d, np.uint8),
                                  lambda d: __import__('array').array('B', d)])
def test_any_kind_of_buffer(wrap):
    """The same for rclpy (array.array), rosbags (ndarray) and raw bytes."""
    h, w, step, big, data = pack(RGB)
    np.testing.assert_array_equal(images.to_array('rgb8', h, w, step, big, wrap(data)), RGB)


def test_the_pixels_are_a_copy():
    """A view would change under the network when the middleware uses its buffer again."""
    h, w, step, big, data = pack(RGB)
    buffer = bytearray(data)
    pixels = images.to_array('rgb8', h, w, step, big, buffer)
    buffer[:] = bytes(len(buffer))
    np.testing.assert_array_equal(pixels, RGB)


def test_the_last_row_may_lack_its_padding():
    h, w, step, big, data = pack(RGB, pad=11)
    np.testing.assert_array_equal(images.to_array('rgb8', h, w, step, big, data[:-11]), RGB)
    with pytest.raises(DataError, match='image data of'):
        images.to_array('rgb8', h, w, step, big, data[:-12])


@pytest.mark.parametrize('encoding', images.ENCODINGS)
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2 ** 32 - 1))
def test_round_trip(encoding, height, width, seed):
    kind, channels = images.ENCODINGS[encoding]
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, channels * np.dtype(kind).itemsize), np.uint8).view(kind)
    fields = images.from_array(pixels, encoding)
    assert fields['step'] * height == len(fields['data']) and fields['is_bigendian'] == (sys.byteorder == 'big')
    back = images.to_array(**fields)
    order = [2, 1, 0] if encoding in ('bgr8', '8UC3', 'bgra8') else list(range(min(channels, 3)))
    assert back.tobytes() == np.ascontiguousarray(pixels[..., order]).tobytes()


@pytest.mark.parametrize(('fields', 'words'), [
    (('yuv422', 4, 4, 8, 0, bytes(32)), ['yuv422', 'rgb8']),
    (('rgb8', 0, 4, 12, 0, b''), ['height 0']),
    (('rgb8', 4, 0, 0, 0, b''), ['width 0']),
    (('rgb8', 4, 4, 11, 0, bytes(48)), ['11 bytes', '12']),
    (('16UC1', 4, 4, 4, 0, bytes(32)), ['4 bytes', '8']),
    (('rgb8', 4, 4, 12, 0, bytes(47)), ['47 bytes', '48']),
    (('rgb8', 4, 4, 12, 0, b''), ['0 bytes', '48']),
])
def test_errors_name_the_topic_and_what_was_expected(fields, words):
    with pytest.raises(DataError) as error:
        images.to_array(*fields, 'arm/image')
    for word in ('arm/image', *words):
        assert word in str(error.value)
    with pytest.raises(DataError, match='camera/top'):
        images.to_camera(*fields, CameraSpec('image', 'camera/top', 64, 64))


@pytest.mark.parametrize(('pixels', 'encoding'), [
    (RGB, 'mono8'), (RGB.astype(np.float32), 'rgb8'), (RGB[..., :1], '16UC1'), (RGB, 'yuv'), (RGB[0, 0], 'rgb8')])
def test_arrays_that_do_not_fit_their_encoding(pixels, encoding):
    with pytest.raises(DataError, match='arm/image'):
        images.from_array(pixels, encoding, 'arm/image')


def camera(encoding='rgb8', height=5, width=7):
    return CameraSpec('image', 'image', height, width, encoding)


def test_each_source_in_the_order_of_the_contract():
    bgr = np.ascontiguousarray(RGB[..., ::-1])
    np.testing.assert_array_equal(images.to_camera('bgr8', *pack(bgr), camera()), RGB)
    np.testing.assert_array_equal(images.to_camera('rgb8', *pack(RGB), camera()), RGB)
    np.testing.assert_array_equal(images.to_camera('rgb8', *pack(RGB), camera('bgr8')), bgr)
    grey = images.to_camera('rgb8', *pack(RGB), camera('mono8'))
    assert grey.shape == (5, 7, 1)
    np.testing.assert_allclose(grey[..., 0], RGB @ np.array([0.299, 0.587, 0.114]), atol=0.51)
    three = images.to_camera('mono8', *pack(grey), camera())
    np.testing.assert_array_equal(three, np.repeat(grey, 3, 2))
    for encoding in images.ENCODINGS:
        out = images.to_camera(encoding, *pack(SAMPLES[encoding]), camera())
        assert out.shape == (5, 7, 3) and out.dtype == np.uint8 and out.flags.c_contiguous


def test_depth_becomes_centimetres_of_grey():
    millimetres = np.array([[0, 10, 1000, 2550, 9000]], np.uint16)[..., None]
    metres = np.array([[np.nan, 0.01, 1.0, 2.55, np.inf]], np.float32)[..., None]
    spec = camera('mono8', 1, 5)
    np.testing.assert_array_equal(images.to_camera('16UC1', *pack(millimetres), spec)[0, :, 0], [0, 1, 100, 255, 255])
    np.testing.assert_array_equal(images.to_camera('32FC1', *pack(metres), spec)[0, :, 0], [0, 1, 100, 255, 0])
    near = images.to_camera('32FC1', *pack(metres), spec, depth_range=1.0)
    np.testing.assert_array_equal(near[0, :, 0], [0, 3, 255, 255, 0])


def test_resizing_by_area_keeps_the_mean_and_the_channels():
    big = RNG.integers(0, 256, (48, 64, 3), np.uint8)
    small = images.to_camera('rgb8', *pack(big), camera(height=12, width=16))
    np.testing.assert_allclose(small, big.reshape(12, 4, 16, 4, 3).mean((1, 3)), atol=0.51)
    grey = images.to_camera('mono8', *pack(big[..., :1]), camera('mono8', 12, 16))
    assert grey.shape == (12, 16, 1)
    np.testing.assert_array_equal(grey[..., 0], small[..., 0])
    assert images.to_camera('rgb8', *pack(RGB), camera(height=64, width=64)).shape == (64, 64, 3)


def test_frames_of_the_right_size_need_no_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv2', None)
    np.testing.assert_array_equal(images.to_camera('rgb8', *pack(RGB), camera()), RGB)
