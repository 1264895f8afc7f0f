# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""sensor_msgs/Image to what the network sees, by a distribution's cv_bridge where it gives the same as our own.

Learner and recorder use it. The safety filter stays on `fosp_core.data.images`, which needs numpy alone. PyPI's package
of the same name corrupts depth and padded rows without an error: whatever `cv_bridge` is imported has to convert
pictures of every encoding first, and one that gets a pixel wrong is refused as a whole.
"""

import functools
import importlib
import sys
from typing import NamedTuple

import numpy as np
from sensor_msgs.msg import Image

from fosp_core.contract import CameraSpec
from fosp_core.data import images

_PADDING = 12       # bytes behind each row of the probe: whole pixels in every encoding, as cv_bridge assumes


class Bridge(NamedTuple):
    """What the imported cv_bridge is good for: (encoding, big-endian) pairs, and why it was refused, if it was."""

    convert: object = None
    sound: frozenset = frozenset()
    refusal: str = ''


def probe(encoding: str, big: bool) -> Image:
    """Return a small picture with padded rows, in which no two samples are alike."""
    kind, channels = images.ENCODINGS[encoding]
    item = np.dtype(kind).itemsize
    rows = np.arange(5 * 7 * channels * item, dtype=np.uint8).reshape(5, -1)
    pixels = rows.view(kind) if kind != 'f4' else (0.25 + np.arange(35, dtype='f4')).reshape(5, 7)
    if big != (sys.byteorder == 'big'):
        pixels = pixels.byteswap()
    rows = np.concatenate([pixels.view(np.uint8).reshape(5, -1), np.full((5, _PADDING), 0xAB, np.uint8)], 1)
    message = Image(height=5, width=7, encoding=encoding, is_bigendian=int(big), step=rows.shape[1])
    message.data.frombytes(rows.tobytes())
    return message


def examine(convert) -> Bridge:
    """Let `convert(message)` convert each encoding in both byte orders; return what it may be used for."""
    sound = set()
    for encoding in images.ENCODINGS:
        for big in (False, True):
            message = probe(encoding, big)
            try:
                found = images.in_rgb(encoding, _three(convert(message)))
            except Exception:  # noqa: BLE001 - an encoding that it does not know, or NumPy 2: then it is not used for it
                continue
            if not np.array_equal(found, _own(message)):
                return Bridge(refusal=f'the cv_bridge at {_place()} returns wrong pixels for {encoding}'
                              f'{", big-endian" if big else ""} with padded rows; it is not used (PyPI has such a '
                              'package: pip uninstall cv-bridge)')
            sound.add((encoding, big))
    return Bridge(convert, frozenset(sound))


@functools.cache
def bridge() -> Bridge:
    """Import and examine cv_bridge, once; one that is not there, or is built for another NumPy, is no bridge."""
    try:
        convert = importlib.import_module('cv_bridge').CvBridge().imgmsg_to_cv2
    except Exception:  # noqa: BLE001 - its compiled parts may fail in any way
        return Bridge()
    return examine(lambda message: convert(message, desired_encoding='passthrough'))


def to_camera(message: Image, camera: CameraSpec, where: str | None = None) -> np.ndarray:
    """Return what `images.to_camera` does for the fields of `message`, errors included."""
    encoding, found = message.encoding, bridge()
    if (encoding, bool(message.is_bigendian)) in found.sound:
        kind, channels = images.ENCODINGS[encoding]
        # cv_bridge takes rows of whole pixels for granted, and checks no size.
        if message.step % (channels * np.dtype(kind).itemsize) == 0 and message.height and message.width \
                and len(message.data) >= message.step * message.height:
            try:
                pixels = images.in_rgb(encoding, _three(found.convert(message)))
            except Exception:  # noqa: BLE001 - our own says in our words what is wrong
                pass
            else:
                return images.for_camera(encoding, pixels, camera)
    return images.to_camera(encoding, message.height, message.width, message.step, message.is_bigendian, message.data,
                            camera, where)


def _own(message: Image) -> np.ndarray:
    return images.to_array(message.encoding, message.height, message.width, message.step, message.is_bigendian,
                           message.data)


def _three(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _place() -> str:
    return getattr(sys.modules.get('cv_bridge'), '__file__', None) or 'an unknown place'
