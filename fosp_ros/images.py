# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""sensor_msgs/Image to and from arrays: the thin ROS side of `fosp_core.data.images`. Nodes import it.

`Image.data` is only ever assigned an `array.array('B')`: an ndarray, memoryview or list costs 24 to 140 ms at VGA.
"""

import array

import numpy as np
from sensor_msgs.msg import Image

from fosp_core.contract import CameraSpec
from fosp_core.data import images


def from_message(message: Image, camera: CameraSpec) -> np.ndarray:
    """Return uint8 (height, width, channels) of the contract's size; raise DataError naming the topic."""
    return images.to_camera(message.encoding, message.height, message.width, message.step, message.is_bigendian,
                            message.data, camera)


def to_message(pixels: np.ndarray, encoding: str, stamp, frame: str) -> Image:
    """Return an Image of uint8 `pixels` (height, width[, channels]) with `stamp` and `frame`."""
    pixels = np.ascontiguousarray(pixels, np.uint8)
    message = Image()
    message.header.stamp = stamp
    message.header.frame_id = frame
    message.height, message.width = int(pixels.shape[0]), int(pixels.shape[1])
    message.encoding = encoding
    message.step = int(pixels.strides[0])
    data = array.array('B')
    data.frombytes(pixels)
    message.data = data
    return message
