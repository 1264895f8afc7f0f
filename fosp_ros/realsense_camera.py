# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A RealSense camera in a thread of its own: bounded waits, hardware reset, an end that nothing can delay. No ROS.

The library is passed in, and so is its context: a `software_device` takes the place of the hardware in the tests.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fosp_core.errors import FospError

MISSING = ('the realsense camera needs the Python module pyrealsense2 and the library libusb: '
           "pip install 'fosp_ros[realsense]' and apt-get install libusb-1.0-0")
STAMP_LIMIT_S = 1.0     # a frame's own time further from ours than this is no time of ours
POLL_S = 0.05


def load():
    """Import pyrealsense2; raise FospError with what to install."""
    try:
        import pyrealsense2
    except ImportError as error:
        raise FospError(f'{MISSING} ({error})') from None
    if not hasattr(pyrealsense2, 'pipeline'):
        raise FospError(f'{MISSING} (the module found at {getattr(pyrealsense2, "__path__", "?")} is another one)')
    return pyrealsense2


@dataclasses.dataclass(frozen=True)
class Profile:
    """What is asked of the camera; sizes in pixels, times in seconds."""

    serial: str = ''
    width: int = 640
    height: int = 480
    fps: int = 30
    encoding: str = 'rgb8'
    depth: bool = False
    align: bool = True
    timeout: float = 0.5
    timeouts: int = 4
    reset_wait: float = 5.0
    every: int = 3


@dataclasses.dataclass
class Counts:
    """What has happened so far.

    dropped: frames that the camera counted and we did not get; stamped_here: frames whose own time could not be used.
    """

    frames: int = 0
    delivered: int = 0
    dropped: int = 0
    timeouts: int = 0
    resets: int = 0
    stamped_here: int = 0
    last_error: str = ''


@dataclasses.dataclass(frozen=True)
class Frame:
    """One picture: colour uint8 (H, W, 3), depth uint16 (H, W) in millimetres or None, time of exposure in ns."""

    stamp: int
    number: int
    colour: np.ndarray
    depth: np.ndarray | None


def stamp_of(milliseconds: float, is_ours: bool, now: int) -> tuple[int, bool]:
    """Return a frame's stamp (ns), and whether it is the frame's own.

    RealSense stamps in the computer's clock (domains global time: the exposure, by a fit of the two clocks, and system
    time: the arrival) or in the camera's (hardware clock), which nothing else in the graph knows; then, and when the
    fit is off by more than a second, `now` stands in.
    """
    stamp = round(milliseconds * 1e6) if is_ours else 0
    good = is_ours and abs(now - stamp) < STAMP_LIMIT_S * 1e9
    return (stamp, True) if good else (now, False)


class Camera:
    """Delivers pictures from a thread until `stop`; looks for the camera again when it is gone.

    Parameters
    ----------
    rs : module
        pyrealsense2.
    context : rs.context
        Where devices are looked for.
    profile : Profile
        What is asked of the camera.
    deliver : callable
        Gets each Frame, in the thread.
    warn : callable
        Gets a line when something goes wrong.

    """

    def __init__(self, rs, context, profile: Profile, deliver: Callable[[Frame], None], warn: Callable[[str], None]):
        self._rs, self._context, self.profile = rs, context, profile
        self._deliver, self._warn = deliver, warn
        self.counts = Counts()
        self.info: dict[str, str] = {}
        self.serial = ''
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._device: Any = None
        self._units = 0.001
        self._number = self._block = -1
        self.temperature = ''       # degrees Celsius, where the camera tells
        self._asked = 0.0

    def check(self) -> None:
        """Raise FospError when the camera is not there, or does not know the profile."""
        device = self._find()
        wanted = [(self._rs.stream.color, getattr(self._rs.format, self.profile.encoding))]
        if self.profile.depth:
            wanted.append((self._rs.stream.depth, self._rs.format.z16))
        offered = [p.as_video_stream_profile() for s in device.query_sensors() for p in s.get_stream_profiles()
                   if p.is_video_stream_profile()]
        for stream, kind in wanted:
            of = {(p.width(), p.height(), p.fps()) for p in offered if (p.stream_type(), p.format()) == (stream, kind)}
            if (self.profile.width, self.profile.height, self.profile.fps) not in of:
                known = ', '.join('{}x{} at {}'.format(*row) for row in sorted(of)) or 'none of that kind'
                raise FospError(f'camera {self.serial}: no {stream.name} {kind.name} of {self.profile.width}x'
                                f'{self.profile.height} at {self.profile.fps} frames/s; it has: {known}')

    def start(self) -> None:
        """Begin to deliver."""
        self._end.clear()
        self._thread = threading.Thread(target=self._run, name='realsense', daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> bool:
        """Deliver nothing more; False when the library did not come back within `timeout` seconds."""
        self._end.set()
        thread, self._thread = self._thread, None
        if thread is None:
            return True
        thread.join(timeout)
        return not thread.is_alive()

    # -- the thread ---------------------------------------------------------------------------------------------------
    def _find(self):
        """Return the device: a start without one would block for 15 s."""
        rs, wanted = self._rs, self.profile.serial
        found = {d.get_info(rs.camera_info.serial_number): d for d in self._context.query_devices()
                 if d.supports(rs.camera_info.serial_number)}
        if wanted and wanted not in found:
            raise FospError(f'no RealSense camera with serial number {wanted}; connected: '
                            f'{", ".join(sorted(found)) or "none"}')
        if not found:
            raise FospError('no RealSense camera is connected')
        if len(found) > 1 and not wanted:
            raise FospError(f'{len(found)} RealSense cameras are connected, {", ".join(sorted(found))}: set '
                            'serial_number')
        self.serial = wanted or next(iter(found))
        self._device = device = found[self.serial]
        self.info = {name: device.get_info(key) for name, key in (
            ('model', rs.camera_info.name), ('firmware', rs.camera_info.firmware_version),
            ('usb', rs.camera_info.usb_type_descriptor)) if device.supports(key)}
        return device

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                if self._stream():
                    return
                self._reset()
            except (FospError, RuntimeError) as error:      # what the library raises for everything
                self._say(str(error))
                self._end.wait(min(1.0, self.profile.reset_wait))

    def _stream(self) -> bool:
        """Deliver until the end (True) or until too many waits in a row ran out (False)."""
        rs, wanted = self._rs, self.profile
        device = self._find()
        config, pipeline = rs.config(), rs.pipeline(self._context)
        config.enable_device(self.serial)
        config.enable_stream(rs.stream.color, wanted.width, wanted.height, getattr(rs.format, wanted.encoding),
                             wanted.fps)
        if wanted.depth:
            config.enable_stream(rs.stream.depth, wanted.width, wanted.height, rs.format.z16, wanted.fps)
        for sensor in device.query_sensors():
            if sensor.supports(rs.option.global_time_enabled):
                sensor.set_option(rs.option.global_time_enabled, 1.0)
            if sensor.supports(rs.option.depth_units):
                self._units = sensor.get_option(rs.option.depth_units)
        align = rs.align(rs.stream.color) if wanted.depth and wanted.align else None
        self._number = self._block = -1
        pipeline.start(config)
        try:
            late = 0
            while not self._end.is_set():
                came, frames = pipeline.try_wait_for_frames(max(1, round(1e3 * wanted.timeout)))
                if came:
                    late = 0
                    self._take(frames, align)
                    self._ask_temperature()
                    continue
                late += 1
                self.counts.timeouts += 1
                if late >= wanted.timeouts:
                    return False
            return True
        finally:
            with contextlib.suppress(RuntimeError):     # it may be gone
                pipeline.stop()

    def _take(self, frames, align) -> None:
        colour = frames.get_color_frame()
        if not colour or colour.get_frame_number() == self._number:
            return      # a set that repeats the picture of the set before
        number = colour.get_frame_number()
        self.counts.frames += 1
        if 0 <= self._number < number:
            self.counts.dropped += number - self._number - 1
        self._number = number
        if number // self.profile.every == self._block:
            return
        self._block = number // self.profile.every
        domains = self._rs.timestamp_domain
        stamp, own = stamp_of(colour.get_timestamp(), colour.get_frame_timestamp_domain() in (
            domains.global_time, domains.system_time), time.time_ns())
        self.counts.stamped_here += not own
        depth = None
        if self.profile.depth:
            found = (align.process(frames) if align else frames).get_depth_frame()
            if not found:
                return
            depth = np.asanyarray(found.get_data())
            if abs(self._units - 0.001) > 1e-9:     # 16UC1 means millimetres in ROS (REP-118)
                depth = np.clip(depth * (self._units * 1e3) + 0.5, 0, 65535).astype(np.uint16)
        if not self._end.is_set():
            self.counts.delivered += 1
            self._deliver(Frame(stamp, number, np.asanyarray(colour.get_data()), depth))

    def _ask_temperature(self) -> None:
        """In this thread: a control transfer to a camera that hangs may take seconds."""
        if time.monotonic() - self._asked < 1.0:
            return
        self._asked = time.monotonic()
        option = self._rs.option.asic_temperature
        with contextlib.suppress(RuntimeError):
            self.temperature = next((f'{s.get_option(option):.0f}' for s in self._device.query_sensors()
                                     if s.supports(option)), '')

    def _reset(self) -> None:
        """Reset the camera and give it time to come back."""
        self.counts.resets += 1
        self._say(f'camera {self.serial}: {self.profile.timeouts} times no frame within {self.profile.timeout:g} s; '
                  'hardware reset')
        with contextlib.suppress(RuntimeError):     # a virtual one cannot
            self._device.hardware_reset()
        self._end.wait(self.profile.reset_wait)

    def _say(self, text: str) -> None:
        if text != self.counts.last_error or self.counts.resets:
            self._warn(text)
        self.counts.last_error = text
