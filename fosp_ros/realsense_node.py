# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A RealSense camera as `image` (and `depth`): a lifecycle node around `realsense_camera`. pyrealsense2 is optional.

It publishes at the control rate, every n-th frame of the camera: each picture of the contract's first camera is a tick.
When the camera falls silent nothing is published, the filter stops the arm, and the camera is reset.
"""

import sys
import time

from sensor_msgs.msg import Image

from fosp_core.data import images
from fosp_core.errors import FospError
from fosp_ros import diagnostics, qos, realsense_camera
from fosp_ros.lifecycle import ManagedNode, spin_node
from fosp_ros.messages import time_of
from fosp_ros.parameters import P
from fosp_ros.realsense_camera import Camera, Frame, Profile

PARAMETERS = (
    P('serial_number', 'string', '', 'Which camera. Empty: the only one that is connected.', read_only=True),
    P('width', 'int', 640, 'Width of the pictures; the nodes that read them resize by area.', unit='pixels', low=64,
      high=4096, read_only=True),
    P('height', 'int', 480, 'Height of the pictures.', unit='pixels', low=64, high=4096, read_only=True),
    P('fps', 'int', 30, 'Frames a second of the camera; it must offer width, height and fps together.', unit='Hz',
      low=1, high=300, read_only=True),
    P('publish_hz', 'double', 10.0, 'Pictures a second on the topic: the rate of the contract, since each picture of '
      'its first camera is a tick. fps must be a multiple. 0: every frame.', unit='Hz', low=0.0, high=300.0,
      read_only=True),
    P('encoding', 'string', 'rgb8', 'Encoding of the colour pictures.', choices=('rgb8', 'bgr8'), read_only=True),
    P('depth', 'bool', False, 'Publish `depth`, too: 16UC1 in millimetres, of the stamp and size of `image`.',
      read_only=True),
    P('align_depth', 'bool', True, 'Depth as seen by the colour camera.', read_only=True),
    P('frame_id', 'string', 'camera_color_optical_frame', 'Frame of the pictures.', read_only=True),
    P('frame_timeout_s', 'double', 0.5, 'How long a frame is waited for.', unit='s', low=0.02, high=5.0,
      read_only=True),
    P('reset_after', 'int', 4, 'Waits in a row that run out before the camera gets a hardware reset.', low=1, high=100,
      read_only=True),
    P('reset_wait_s', 'double', 5.0, 'How long a camera is left alone after a reset.', unit='s', low=0.1, high=60.0,
      read_only=True),
)
SILENT_S = 1.0      # a camera without a frame for so long is reported as an error


class RealsenseNode(ManagedNode):
    """Publishes what `Camera` delivers. `context`: where cameras are looked for; tests put a software device there."""

    NAME = 'realsense'
    PARAMETERS = PARAMETERS

    def __init__(self, name: str | None = None, context=None, **options):
        super().__init__(name, **options)
        self._devices = context
        self.camera: Camera | None = None

    def set_up(self) -> None:
        """Find the camera and its profile, then create the topics."""
        p = self.p
        rs = realsense_camera.load()
        every = round(p.fps / p.publish_hz) if p.publish_hz else 1
        if every < 1 or (p.publish_hz and abs(every * p.publish_hz - p.fps) > 1e-6 * p.fps):
            raise FospError(f'fps {p.fps} is no multiple of publish_hz {p.publish_hz:g}')
        profile = Profile(p.serial_number, p.width, p.height, p.fps, p.encoding, p.depth, p.align_depth,
                          p.frame_timeout_s, p.reset_after, p.reset_wait_s, every)
        self._devices = self._devices if self._devices is not None else rs.context()
        camera = Camera(rs, self._devices, profile, self._on_frame, self.get_logger().warning)
        camera.check()
        self.camera = camera
        self.rate, self._delay = diagnostics.RateCounter(), diagnostics.LatencyWindow()
        self.image = self.publish_on(Image, 'image', qos.IMAGE)
        self.depth = self.publish_on(Image, 'depth', qos.IMAGE) if p.depth else None
        diagnostics.Reporter(self, self._report, hardware_id=camera.serial)
        self.get_logger().info(f'camera {camera.serial} {camera.info}, {p.width}x{p.height} at {p.fps} frames/s, every '
                               f'{every}. is published')

    def start(self) -> None:
        """Begin to stream."""
        self._started = time.monotonic()
        self.camera.start()

    def stop(self) -> None:
        """End the stream; a library that hangs is left behind, its thread ends with the process."""
        if not self.camera.stop():
            self.get_logger().error('the camera library did not return; its thread is left behind')

    def tear_down(self) -> None:
        """Forget the camera."""
        camera, self.camera = self.camera, None
        if camera is not None:
            camera.stop()

    def _on_frame(self, frame: Frame) -> None:
        self.rate.tick()
        self._delay.add(1e-6 * (time.time_ns() - frame.stamp))
        # Depth first: the picture's arrival finds the rest of its tick already there.
        if self.depth is not None:
            self.depth.publish(self._message(frame.depth, '16UC1', frame.stamp))
        self.image.publish(self._message(frame.colour, self.p.encoding, frame.stamp))

    def _message(self, pixels, encoding: str, stamp: int) -> Image:
        message = Image(**images.from_array(pixels, encoding))
        message.header.stamp, message.header.frame_id = time_of(stamp), self.p.frame_id
        return message

    def _report(self):
        camera = self.camera
        counts = camera.counts
        values = {'serial_number': camera.serial, **camera.info, 'rate_hz': f'{self.rate.rate:.2f}',
                  'frames': counts.frames, 'published': counts.delivered, 'dropped': counts.dropped,
                  'timeouts': counts.timeouts, 'resets': counts.resets, 'stamped_by_arrival': counts.stamped_here,
                  'delay_p50_ms': f'{self._delay.percentile(50):.1f}',
                  'delay_p99_ms': f'{self._delay.percentile(99):.1f}', 'temperature_c': camera.temperature,
                  'last_error': counts.last_error}
        if self.active and min(self.rate.age, time.monotonic() - self._started) > SILENT_S:
            return diagnostics.ERROR, f'no frames; {counts.last_error or "waiting"}', values
        if counts.delivered and counts.stamped_here == counts.delivered:
            return diagnostics.WARN, "stamps are times of arrival: the camera's clock is not this computer's", values
        return diagnostics.OK, 'streaming', values


def main(args: list[str] | None = None) -> int:
    """Run the camera process."""
    return spin_node(RealsenseNode, args)


if __name__ == '__main__':
    sys.exit(main())
