# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The RealSense node on librealsense's software device: pixels, stamps, losses, silence, reset, a prompt end."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node
from rclpy.parameter import Parameter
from ros_rig import within
from sensor_msgs.msg import Image

from fosp_core.data.images import to_array
from fosp_core.data.messages import stamp_ns
from fosp_core.errors import FospError
from fosp_ros import diagnostics, qos, realsense_camera
from fosp_ros.realsense_camera import stamp_of
from fosp_ros.realsense_node import RealsenseNode

SMALL = {'width': 96, 'height': 64, 'publish_hz': 0.0, 'frame_timeout_s': 0.1, 'reset_after': 3, 'reset_wait_s': 0.3}


def parameters(**values):
    return [Parameter(key, value=value) for key, value in {**SMALL, **values}.items()]


@pytest.fixture
def camera():
    pytest.importorskip('pyrealsense2', reason='pyrealsense2 is not installed, or libusb-1.0 is missing',
                        exc_type=ImportError)
    from software_camera import SoftwareCamera
    with SoftwareCamera() as device:
        yield device


class Viewer(Node):
    def __init__(self):
        super().__init__('viewer', namespace='cell')
        self.pictures, self.depths, self.reports = [], [], []
        self.create_subscription(Image, 'image', self.pictures.append, qos.ANY)
        self.create_subscription(Image, 'depth', self.depths.append, qos.ANY)
        self.create_subscription(DiagnosticArray, '/diagnostics', self.reports.append, qos.DIAGNOSTICS)

    def values(self):
        status = self.reports[-1].status[0]
        return status, diagnostics.values_of(status)


@pytest.fixture
def start(rig, camera):
    def make(**values):
        viewer = rig.add(Viewer())
        node = rig.add(RealsenseNode(context=camera.context, namespace='cell',
                                     parameter_overrides=parameters(**values)))
        assert node.bring_up(), node.failure
        return node, viewer
    return make


def pixels(message):
    return to_array(message.encoding, message.height, message.width, message.step, message.is_bigendian, message.data)


def test_pictures_and_depth_arrive_whole_with_the_time_of_their_exposure(rig, camera, start):
    node, viewer = start(depth=True, frame_id='wrist')
    rig.wait_for(lambda: len(viewer.pictures) > 8 and len(viewer.depths) > 8, 15.0, 'pictures and depth')
    depths = {stamp_ns(m): m for m in viewer.depths}
    for message in viewer.pictures[2:6]:
        assert (message.header.frame_id, message.encoding, pixels(message).shape) == ('wrist', 'rgb8', (64, 96, 3))
        number = int(pixels(message)[0, 0, 0])
        assert (pixels(message) == number).all()
        assert abs(time.time_ns() - stamp_ns(message)) < 20e9
        depth = pixels(depths[stamp_ns(message)])[..., 0]
        assert depths[stamp_ns(message)].encoding == '16UC1'
        assert ((depth[4:-4, 4:-4].astype(int) - 1000) % 256 == number).all()
    rig.wait_for(lambda: viewer.reports, 5.0, 'diagnostics')
    rig.wait_for(lambda: viewer.values()[0].level == DiagnosticStatus.OK, 5.0, 'an OK')
    status, values = viewer.values()
    assert status.hardware_id == 'SW1' and values['model'] == 'Software Camera' and values['stamped_by_arrival'] == '0'
    assert node.camera.counts.resets == 0


def test_every_third_frame_is_a_tick_and_losses_are_counted(rig, camera, start):
    node, viewer = start(publish_hz=10.0)
    rig.wait_for(lambda: len(viewer.pictures) > 3, 15.0, 'pictures')
    camera.skip = 30
    seen = len(viewer.pictures)
    rig.wait_for(lambda: len(viewer.pictures) > seen + 3, 10.0, 'more pictures')
    counts = node.camera.counts
    assert counts.dropped >= 30 and counts.delivered < counts.frames / 2
    blocks = [int(pixels(m)[0, 0, 0]) // 3 for m in viewer.pictures]
    assert len(set(blocks)) == len(blocks)


def test_a_silent_camera_is_reset_and_taken_up_again(rig, camera, start):
    node, viewer = start()
    rig.wait_for(lambda: viewer.pictures, 15.0, 'pictures')
    camera.silent = True
    rig.wait_for(lambda: node.camera.counts.resets >= 2, 10.0, 'two resets')
    rig.wait_for(lambda: viewer.reports and viewer.values()[0].level == DiagnosticStatus.ERROR, 5.0, 'an error')
    assert 'hardware reset' in viewer.values()[1]['last_error']
    seen = len(viewer.pictures)
    began = time.monotonic()
    node.stop()             # in the midst of waits and resets
    assert time.monotonic() - began < 1.0
    node.start()
    camera.silent = False
    rig.wait_for(lambda: len(viewer.pictures) > seen + 5, 10.0, 'pictures after the reset')


def test_an_inactive_node_says_nothing_and_can_begin_again(rig, camera, start):
    node, viewer = start()
    rig.wait_for(lambda: viewer.pictures, 15.0, 'pictures')
    within(node, node.trigger_deactivate)
    time.sleep(0.2)
    seen = len(viewer.pictures)
    time.sleep(0.3)
    assert len(viewer.pictures) == seen
    node.trigger_activate()
    rig.wait_for(lambda: len(viewer.pictures) > seen, 10.0, 'pictures')
    within(node, node.trigger_deactivate)
    within(node, node.trigger_cleanup)
    assert node.camera is None


def test_a_camera_clock_is_no_time_of_ours(rig, camera, start):
    import pyrealsense2 as rs
    camera.domain = rs.timestamp_domain.hardware_clock
    node, viewer = start()
    rig.wait_for(lambda: viewer.reports and viewer.values()[1]['published'] > '5', 10.0, 'a report')
    assert viewer.values()[0].level == DiagnosticStatus.WARN and node.camera.counts.stamped_here > 5
    assert abs(stamp_ns(viewer.pictures[-1]) - time.time_ns()) < 20e9


@pytest.mark.parametrize(('values', 'text'), [
    ({'serial_number': '123'}, 'no RealSense camera with serial number 123; connected: SW1'),
    ({'width': 640}, 'camera SW1: no color rgb8 of 640x64 at 30 frames/s; it has: 96x64 at 30'),
    ({'encoding': 'bgr8'}, 'it has: none of that kind'), ({'publish_hz': 7.0}, 'no multiple of publish_hz 7')])
def test_what_the_camera_cannot_do_is_refused_at_configure(rig, camera, values, text):
    node = rig.add(RealsenseNode(context=camera.context, parameter_overrides=parameters(**values)))
    assert not node.bring_up() and text in node.failure


def test_without_a_camera_it_says_so_at_once(rig):
    rs = pytest.importorskip('pyrealsense2', reason='pyrealsense2 is not installed', exc_type=ImportError)
    if len(rs.context().query_devices()):
        pytest.skip('a camera is connected')
    began = time.monotonic()
    node = rig.add(RealsenseNode())
    assert not node.bring_up() and 'no RealSense camera is connected' in node.failure
    assert time.monotonic() - began < 5.0       # the library alone waits for 15 s


def test_without_the_library_it_says_what_to_install(rig, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyrealsense2', None)
    node = rig.add(RealsenseNode())
    assert not node.bring_up()
    assert "pip install 'fosp_ros[realsense]'" in node.failure and 'libusb-1.0-0' in node.failure
    with pytest.raises(FospError, match='another one'):
        monkeypatch.setitem(sys.modules, 'pyrealsense2', sys)
        realsense_camera.load()


def test_the_process_ends_at_once_while_its_camera_is_silent(rig, isolated):
    pytest.importorskip('pyrealsense2', reason='pyrealsense2 is not installed, or libusb-1.0 is missing',
                        exc_type=ImportError)
    viewer = rig.add(Viewer())
    arguments = [x for key, value in {**SMALL, 'frame_timeout_s': 1.0, 'reset_wait_s': 30.0, 'reset_after': 1}.items()
                 for x in ('-p', f'{key}:={value}')]
    process = subprocess.Popen([sys.executable, Path(__file__).parent.parent / 'software_camera.py', '4', '--ros-args',
                                '-r', '__ns:=/cell', *arguments], stderr=subprocess.PIPE, text=True)
    rig.wait_for(lambda: viewer.pictures, 60.0, 'pictures of the process')
    rig.wait_for(lambda: viewer.reports and int(viewer.values()[1]['resets']), 20.0, 'a reset')
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=15)
    assert process.returncode == 0 and 'by force' not in errors, errors
    assert time.monotonic() - began < 6.0


def test_stamps():
    now = 1_700_000_000_123_456_789
    assert stamp_of(now / 1e6 - 30.0, True, now)[1] and abs(stamp_of(now / 1e6 - 30.0, True, now)[0] - now + 3e7) < 1e3
    assert stamp_of(now / 1e6 - 5000.0, True, now) == (now, False)
    assert stamp_of(now / 1e6, False, now) == (now, False) == stamp_of(1234.5, True, now)
    assert np.isfinite(stamp_of(0.0, True, now)[0])
