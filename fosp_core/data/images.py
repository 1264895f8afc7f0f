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
_MAX_PIXELS = 1 << 26
_DEPTH_HEADER = 12                        # bytes before the PNG in image_transport's compressedDepth


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
    return in_rgb(encoding, _view(encoding, height, width, step, is_bigendian, data, where))


def _view(encoding, height, width, step, is_bigendian, data, where) -> np.ndarray:
    """Pixels as they lie in the message, (height, width, samples per pixel), without a copy if rows are not padded."""
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
    return pixels.view(item).reshape(height, width, channels)


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
    if ENCODINGS.get(encoding, ('',))[0] == 'u1':
        # Resized first: each channel is resized alone, and the small picture is cheaper to reorder.
        view = _view(encoding, height, width, step, is_bigendian, data, where)
        pixels = in_rgb(encoding, resize(view, camera.height, camera.width))
    else:
        pixels = to_array(encoding, height, width, step, is_bigendian, data, where)
    return for_camera(encoding, pixels, camera, depth_range)


def from_compressed(layout: str, data, camera: CameraSpec, where: str | None = None,
                    depth_range: float = DEPTH_RANGE_M) -> np.ndarray:
    """Return `to_camera` of a sensor_msgs/CompressedImage: `layout` is its field format, `data` a JPEG or PNG.

    `layout` is as image_transport writes it (`rgb8; jpeg compressed bgr8`, `16UC1; compressedDepth png`) or merely
    `jpeg`, `png`. Colours lie in OpenCV's order unless it says `compressed rgb8`.

    Raises
    ------
    DataError
        For a damaged or cut picture, one of more than 2**26 pixels, and depth of floats (its scale is lossy).

    """
    where = where or camera.topic
    original, _, how = layout.partition(';')
    buffer = np.frombuffer(data, np.uint8)
    if 'compressedDepth' in how:
        if original.strip() != '16UC1':
            raise DataError(f'{where}: image format {layout!r}, expected depth of 16UC1')
        buffer = buffer[_DEPTH_HEADER:]
    head = buffer[:32].tobytes()
    jpeg = head.startswith(b'\xff\xd8')
    if not jpeg and not head.startswith(b'\x89PNG\r\n\x1a\n'):
        raise DataError(f'{where}: image format {layout!r}, but the data begins with {head[:4].hex() or "nothing"}, '
                        f'expected a JPEG or PNG')
    # OpenCV fills what is missing of a JPEG with grey, and takes its word for the size of any picture.
    if jpeg and b'\xff\xd9' not in buffer[-64:].tobytes():
        raise DataError(f'{where}: the JPEG of {buffer.size} bytes has no end: cut')
    height, width = _jpeg_size(buffer) if jpeg else tuple(int.from_bytes(head[i:i + 4], 'big') for i in (20, 16))
    if not 0 < height * width <= _MAX_PIXELS:
        raise DataError(f'{where}: picture of {width} x {height} pixels, expected 1 to {_MAX_PIXELS}')
    import cv2  # late, as in `resize`
    try:
        pixels = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DataError(f'{where}: {layout!r} cannot be decoded: {" ".join(str(error).split())}') from None
    if pixels is None or pixels.shape[:2] != (height, width):
        raise DataError(f'{where}: {layout!r} of {buffer.size} bytes cannot be decoded: damaged')
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape[2] > 1:
        if pixels.dtype != np.uint8 or pixels.shape[2] not in (3, 4):
            raise DataError(f'{where}: {layout!r} holds {pixels.dtype} of {pixels.shape[2]} channels, expected 8 bits')
        pixels = resize(pixels, camera.height, camera.width)
        pixels = np.array(pixels[..., :3] if 'compressed rgb' in how else pixels[..., 2::-1], order='C')
        return for_camera('rgb8', pixels, camera, depth_range)
    if pixels.dtype == np.uint16:
        depth = original.strip() == '16UC1'
        return for_camera('16UC1' if depth else 'mono16', pixels, camera, depth_range)
    return for_camera('mono8', pixels, camera, depth_range)


def _jpeg_size(buffer: np.ndarray) -> tuple[int, int]:
    """Height and width in the first start-of-frame segment; (0, 0) when there is none."""
    data, at = buffer.tobytes(), 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5:at + 7], 'big'), int.from_bytes(data[at + 7:at + 9], 'big')
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2:at + 4], 'big')
    return 0, 0


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
    """Resize (H, W, C) to (height, width, C): by area when it shrinks, linearly when it grows.

    While a picture of bytes is more than four times too large in both directions it is halved first, which OpenCV does
    several times as fast as by other factors; against area alone that moves pixels by about one level.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    import cv2  # late: most cameras and all bags have the network's size already

    while (pixels.dtype == np.uint8 and pixels.shape[0] > 4 * height and pixels.shape[1] > 4 * width
           and not (pixels.shape[0] | pixels.shape[1]) & 1):
        half = cv2.resize(pixels, (pixels.shape[1] // 2, pixels.shape[0] // 2), interpolation=cv2.INTER_AREA)
        pixels = half.reshape(*half.shape[:2], pixels.shape[2])
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
