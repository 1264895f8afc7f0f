# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A distribution's cv_bridge gives the network the same picture as our own conversion, or it is not used.

Where none is installed a bridge written here, sample by sample, stands in; a corrupt one, such as PyPI's, is refused.
"""

import struct
import sys
import types

import numpy as np
import pytest
from sensor_msgs.msg import Image

from fosp_core.contract import CameraSpec
from fosp_core.data import images
from fosp_core.errors import DataError
from fosp_ros import pictures

LETTERS = {'u1': 'B', 'u2': 'H', 'f4': 'f'}


class Reference:
    """What cv_bridge's documentation says `imgmsg_to_cv2(message, 'passthrough')` returns: the channels as they are."""

    def imgmsg_to_cv2(self, message, desired_encoding):
        assert desired_encoding == 'passthrough'
        kind, channels = images.ENCODINGS[message.encoding]
        size, data = np.dtype(kind).itemsize, bytes(message.data)
        out = np.zeros((message.height, message.width, channels), kind)
        for y in range(message.height):
            for x in range(message.width):
                for c in range(channels):
                    at = y * message.step + (x * channels + c) * size
                    order = '>' if message.is_bigendian else '<'
                    out[y, x, c] = struct.unpack_from(order + LETTERS[kind], data, at)[0]
        return out[..., 0] if channels == 1 else out


class IgnoresRows(Reference):
    """PyPI's fault: the padding of rows is taken for pixels."""

    def imgmsg_to_cv2(self, message, desired_encoding):
        kind, channels = images.ENCODINGS[message.encoding]
        flat = np.frombuffer(bytes(message.data), kind)[:message.height * message.width * channels]
        return flat.reshape(message.height, message.width, channels)


class SwapsDepth(Reference):
    """PyPI's other fault: 16-bit depth comes out with wrong values, and no error."""

    def imgmsg_to_cv2(self, message, desired_encoding):
        found = super().imgmsg_to_cv2(message, desired_encoding)
        return found.byteswap() if message.encoding == '16UC1' else found


class FailsOnNumpy2(Reference):
    """A distribution's bridge beside NumPy 2: an error for a foreign byte order."""

    def imgmsg_to_cv2(self, message, desired_encoding):
        if message.is_bigendian:
            raise AttributeError('newbyteorder')
        return super().imgmsg_to_cv2(message, desired_encoding)


@pytest.fixture
def install(monkeypatch):
    def put(cls):
        monkeypatch.setitem(sys.modules, 'cv_bridge', cls and types.SimpleNamespace(CvBridge=cls, __file__='/x/cv.py'))
        pictures.bridge.cache_clear()
        return pictures.bridge()
    yield put
    pictures.bridge.cache_clear()


def picture(encoding, height=24, width=32, pad=0, big=False, seed=0):
    kind, channels = images.ENCODINGS[encoding]
    rng = np.random.default_rng(seed)
    size = np.dtype(kind).itemsize
    pixels = rng.uniform(0, 3, (height, width * channels)).astype('f4') if kind == 'f4' else \
        rng.integers(0, 256, (height, width * channels * size), np.uint8).view(kind)
    rows = (pixels.byteswap() if big else pixels).view(np.uint8).reshape(height, -1)
    rows = np.concatenate([rows, np.full((height, pad), 7, np.uint8)], 1)
    message = Image(height=height, width=width, encoding=encoding, is_bigendian=int(big), step=rows.shape[1])
    message.data.frombytes(rows.tobytes())
    return message


def own(message, camera):
    return images.to_camera(message.encoding, message.height, message.width, message.step, message.is_bigendian,
                            message.data, camera)


def real_bridge():
    """The installed cv_bridge, if it is a sound one."""
    pictures.bridge.cache_clear()
    found = pictures.bridge()
    return found.convert is not None


@pytest.mark.parametrize('source', ['reference', 'installed'])
@pytest.mark.parametrize('encoding', images.ENCODINGS)
def test_every_encoding_gives_the_same_picture_with_and_without_cv_bridge(install, encoding, source):
    if source == 'installed':
        if not real_bridge():
            pytest.skip('no sound cv_bridge is installed: it comes with a ROS 2 distribution')
    else:
        assert (encoding, True) in install(Reference).sound and not pictures.bridge().refusal
    for camera in (CameraSpec('image', 'image', 12, 16), CameraSpec('image', 'image', 24, 32, 'bgr8'),
                   CameraSpec('image', 'image', 12, 16, 'mono8')):
        for pad in (0, 1, 5, 12):
            for big in (False, True):
                message = picture(encoding, pad=pad, big=big)
                np.testing.assert_array_equal(pictures.to_camera(message, camera), own(message, camera))


def test_the_bridge_is_really_asked(install, monkeypatch):
    asked = []

    class Counting(Reference):
        def imgmsg_to_cv2(self, message, desired_encoding):
            asked.append(message.encoding)
            return super().imgmsg_to_cv2(message, desired_encoding)
    install(Counting)
    asked.clear()
    camera = CameraSpec('image', 'image', 24, 32)
    pictures.to_camera(picture('rgb8'), camera)
    assert asked == ['rgb8']
    pictures.to_camera(picture('rgb8', pad=1), camera)      # rows of no whole pixels: cv_bridge would misread them
    assert asked == ['rgb8']


@pytest.mark.parametrize(('cls', 'word'), [(IgnoresRows, 'rgb8'), (SwapsDepth, '16UC1')])
def test_a_corrupt_bridge_is_refused_by_name(install, cls, word):
    found = install(cls)
    assert not found.sound and found.convert is None
    assert '/x/cv.py' in found.refusal and word in found.refusal and 'pip uninstall cv-bridge' in found.refusal
    message = picture('16UC1', pad=4)
    camera = CameraSpec('image', 'image', 24, 32, 'mono8')
    np.testing.assert_array_equal(pictures.to_camera(message, camera), own(message, camera))


def test_what_the_bridge_cannot_do_is_done_here(install):
    found = install(FailsOnNumpy2)
    assert not found.refusal and ('16UC1', False) in found.sound and ('16UC1', True) not in found.sound
    camera = CameraSpec('image', 'image', 24, 32, 'mono8')
    message = picture('16UC1', big=True)
    np.testing.assert_array_equal(pictures.to_camera(message, camera), own(message, camera))
    assert install(None) == pictures.Bridge()       # an import that fails is no bridge, and no fault


@pytest.mark.parametrize('cls', [Reference, None])
def test_errors_are_the_same_with_and_without(install, cls):
    install(cls)
    camera = CameraSpec('image', 'arm/image', 24, 32)
    for message, words in ((picture('rgb8'), 'image data of'), (Image(encoding='yuv422', height=1, width=1), 'yuv422'),
                           (Image(encoding='rgb8'), 'height 0')):
        if message.height > 1:
            message.data = message.data[:-1]
        with pytest.raises(DataError, match=words) as error:
            pictures.to_camera(message, camera)
        assert 'arm/image' in str(error.value)
