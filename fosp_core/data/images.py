# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""sensor_msgs/Image fields to and from arrays, with numpy alone. Nodes and the bag importer use it.

PyPI's cv-bridge returns wrong pixels, without an error, for depth images and for padded rows; hence this one. It
takes the fields rather than a message, so it needs no ROS. `fosp_ros.pictures` uses a distribution's cv_bridge instead
where there is one that gives the same.
"""

import array
import sys

import numpy as np

from fosp_core.contract import CameraSpec
from fosp_core.errors import DataError

# encoding -> (type of one sample, samples per pixel)
ENCODINGS = {
    'rgb8': ('u1', 3), 'bgr8': ('u1', 3), 'rgba8': ('u1', 4), 'bgra8': ('u1', 4), '8UC3': ('u1', 3),
    'mono8': ('u1', 1), '8UC1': ('u1', 1), 'mono16': ('u2', 1), '16UC1': ('u2', 1), '32FC1': ('f4', 1),
}
_DEPTH = {'16UC1': 0.001, '32FC1': 1.0}   # metres per unit, REP-118
DEPTH_RANGE_M = 2.55                      # one grey level per centimetre over the reach of a table-top arm


def to_array(encoding: str, height: int, width: int, step: int, is_bigendian: int, data,
             where: str = 'image') -> np.ndarray:
    """Return the pixels, (height, width, channels): rgb uint8 (3), grey uint8 (1), or uint16 / float32 (1).

    Parameters
    ----------
    encoding, height, width, step, is_bigendian, data
        The fields of sensor_msgs/Image; `data` is any bytes-like object. Rows may be padded (`step` bytes each).
    where
        Topic (or file, topic and stamp) that errors name.

    Returns
    -------
    ndarray
        A contiguous copy in this machine's byte order; bgr is turned to rgb and alpha dropped.

    Raises
    ------
    DataError
        For an unknown encoding, a size of zero, rows shorter than the width, or too little data.

    """
    if encoding not in ENCODINGS:
        raise DataError(f'{where}: image encoding {encoding!r}, expected one of {", ".join(ENCODINGS)}')
    kind, channels = ENCODINGS[encoding]
    height, width, step = int(height), int(width), int(step)
    if height < 1 or width < 1:
        raise DataError(f'{where}: image of height {height} and width {width}, expected at least 1 each')
    item = np.dtype(('>' if is_bigendian else '<') + kind)
    row = width * channels * item.itemsize
    if step < row:
        raise DataError(f'{where}: image row of {step} bytes, expected at least {row} ({width} pixels of {encoding})')
    buffer = np.frombuffer(data, np.uint8)
    # The padding of the last row may be absent.
    if buffer.size < step * (height - 1) + row:
        raise DataError(f'{where}: image data of {buffer.size} bytes, expected {step * height} '
                        f'({height} rows of {step} bytes)')
    if step == row:
        pixels = buffer[:step * height]
    else:
        pixels = np.lib.stride_tricks.as_strided(buffer, (height, row), (step, 1), writeable=False)
        pixels = np.ascontiguousarray(pixels).reshape(-1)
    return in_rgb(encoding, pixels.view(item).reshape(height, width, channels))


def in_rgb(encoding: str, pixels: np.ndarray) -> np.ndarray:
    """Return (H, W, C) in the channel order of `encoding` as rgb without alpha: a copy in this machine's byte order."""
    if encoding in ('bgr8', 'bgra8', '8UC3'):      # OpenCV's order is what an unnamed 8UC3 means in ROS
        pixels = pixels[..., 2::-1]
    elif encoding == 'rgba8':
        pixels = pixels[..., :3]
    return np.array(pixels, pixels.dtype.newbyteorder('='), order='C')


def to_camera(encoding: str, height: int, width: int, step: int, is_bigendian: int, data, camera: CameraSpec,
              where: str | None = None, depth_range: float = DEPTH_RANGE_M) -> np.ndarray:
    """Return what the network sees: uint8 (camera.height, camera.width, channels) in the contract's encoding.

    Depth (16UC1 in millimetres, 32FC1 in metres) becomes grey, 0 at 0 m and 255 at `depth_range` metres and beyond;
    what the sensor could not measure (0, NaN, Inf) is 0. Another size is resized by area. `where` defaults to the
    camera's topic.
    """
    where = where or camera.topic
    return for_camera(encoding, to_array(encoding, height, width, step, is_bigendian, data, where), camera, depth_range)


def for_camera(encoding: str, pixels: np.ndarray, camera: CameraSpec, depth_range: float = DEPTH_RANGE_M) -> np.ndarray:
    """Return what `to_camera` does, from pixels as `to_array` gives them."""
    if encoding in _DEPTH:
        metres = pixels.astype(np.float32) * _DEPTH[encoding]
        metres[~np.isfinite(metres)] = 0.0
        pixels = (np.clip(metres / depth_range, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    elif pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    pixels = resize(pixels, camera.height, camera.width)
    if camera.encoding == 'mono8':
        return pixels if pixels.shape[2] == 1 else _grey(pixels)
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[..., ::-1]) if camera.encoding == 'bgr8' else pixels


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W, C) to (height, width, C): by area when it shrinks, linearly when it grows."""
    if pixels.shape[:2] == (height, width):
        return pixels
    import cv2  # late: most cameras and all bags have the network's size already

    shrinks = height <= pixels.shape[0] and width <= pixels.shape[1]
    scaled = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return scaled.reshape(height, width, pixels.shape[2])


def _grey(pixels: np.ndarray) -> np.ndarray:
    """ITU-R 601 luma of rgb, in integers: the same on every machine."""
    weighted = pixels.astype(np.uint32) @ np.array([299, 587, 114], np.uint32)
    return ((weighted + 500) // 1000).astype(np.uint8)[..., None]


def from_array(pixels: np.ndarray, encoding: str, where: str = 'image') -> dict:
    """Return the fields of sensor_msgs/Image for `pixels` (H, W[, C]) already in the channel order of `encoding`.

    `data` is an `array.array('B')`, the one type that rclpy takes without a slow check of each element.
    """
    if encoding not in ENCODINGS:
        raise DataError(f'{where}: image encoding {encoding!r}, expected one of {", ".join(ENCODINGS)}')
    kind, channels = ENCODINGS[encoding]
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[2] != channels or pixels.dtype.kind + str(pixels.dtype.itemsize) != kind:
        raise DataError(f'{where}: array {pixels.dtype} {pixels.shape} is no {encoding} image, expected '
                        f'{np.dtype(kind).name} (height, width, {channels})')
    data = array.array('B')
    data.frombytes(np.ascontiguousarray(pixels).view(np.uint8).reshape(-1))
    big = pixels.dtype.byteorder == '>' or (pixels.dtype.byteorder == '=' and sys.byteorder == 'big')
    return {'encoding': encoding, 'height': int(pixels.shape[0]), 'width': int(pixels.shape[1]),
            'step': int(pixels.shape[1] * channels * pixels.dtype.itemsize), 'is_bigendian': int(big), 'data': data}
