# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A RealSense camera without hardware: librealsense's `software_device`, fed by a thread. As a program: a node with it.

The pipeline, its queues and its time-outs are the real ones; USB, exposure and clock fitting are not covered.
"""

import functools
import sys
import threading
import time

import numpy as np
import pyrealsense2 as rs

WIDTH, HEIGHT, FPS = 96, 64, 30


class SoftwareCamera:
    """Colour and depth streams of 96 x 64. Frame n is filled with n, its depth with 1000 + n units."""

    def __init__(self, serial='SW1', depth=True, units=0.001):
        self.serial, self.units = serial, units
        self.number, self.skip, self.silent = 0, 0, False
        self.domain = rs.timestamp_domain.global_time
        self.context, self._keep = rs.context(), []
        self._device = rs.software_device()
        self._device.register_info(rs.camera_info.serial_number, serial)
        self._device.register_info(rs.camera_info.name, 'Software Camera')
        self._streams = [self._add('RGB Camera', rs.stream.color, rs.format.rgb8, 3, 0)]
        if depth:
            self._streams.append(self._add('Stereo Module', rs.stream.depth, rs.format.z16, 2, 1))
            self._streams[1][0].add_read_only_option(rs.option.depth_units, units)
            self._streams[1][1].register_extrinsics_to(self._streams[0][1], self._same_place())
        self._device.create_matcher(rs.matchers.dlr_c)
        # The list handed to the callback must live, or the context forgets the device.
        self.context.set_devices_changed_callback(lambda info: self._keep.append(info.get_new_devices()))
        self._device.add_to(self.context)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._feed, daemon=True)

    def _add(self, name, stream, kind, bpp, index):
        sensor = self._device.add_sensor(name)
        intrinsics = rs.intrinsics()
        intrinsics.width, intrinsics.height, intrinsics.model = WIDTH, HEIGHT, rs.distortion.none
        intrinsics.fx = intrinsics.fy = 60.0
        intrinsics.ppx, intrinsics.ppy = WIDTH / 2, HEIGHT / 2
        video = rs.video_stream()
        video.type, video.uid, video.width, video.height = stream, index, WIDTH, HEIGHT
        video.fps, video.bpp, video.fmt, video.intrinsics = FPS, bpp, kind, intrinsics
        return sensor, sensor.add_video_stream(video, True).as_video_stream_profile(), bpp

    @staticmethod
    def _same_place():
        extrinsics = rs.extrinsics()
        extrinsics.rotation, extrinsics.translation = [1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0], [0.0, 0, 0]
        return extrinsics

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join(5.0)

    def _feed(self):
        while not self._end.wait(1.0 / FPS):
            self.number += 1 + self.skip
            self.skip = 0
            if self.silent:
                continue
            for sensor, profile, bpp in self._streams:
                frame = rs.software_video_frame()
                frame.pixels = np.full((HEIGHT, WIDTH, 3), self.number % 256, np.uint8) if bpp == 3 else \
                    np.full((HEIGHT, WIDTH), 1000 + self.number, np.uint16)
                frame.stride, frame.bpp, frame.profile = WIDTH * bpp, bpp, profile
                frame.timestamp, frame.domain, frame.frame_number = time.time() * 1e3, self.domain, self.number
                if bpp == 2:
                    frame.depth_units = self.units
                sensor.on_video_frame(frame)


if __name__ == '__main__':
    from fosp_ros.lifecycle import spin_node
    from fosp_ros.realsense_node import RealsenseNode
    with SoftwareCamera() as camera:
        timer = threading.Timer(float(sys.argv[1]), setattr, (camera, 'silent', True))
        timer.daemon = True
        timer.start()
        code = spin_node(functools.partial(RealsenseNode, context=camera.context), sys.argv[1:])
    sys.exit(code)
