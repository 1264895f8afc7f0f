# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Audit and incidents beside the control path: bounded, dropped rather than waited for, and no reason to stop."""

import types

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from sensor_msgs.msg import Image, JointState

from fosp_core.contract import Contract
from fosp_core.data.bag import read_episodes
from fosp_core.paths import config_file
from fosp_core.safety.audit import AuditFiles, read_entries
from fosp_core.safety.filter import FilterState
from fosp_core.safety.limits import Situation
from fosp_core.safety.reasons import Reason
from fosp_ros import filter_parameters, incidents
from fosp_ros.audit_writer import AuditWriter
from fosp_ros.filter_witness import Witness
from fosp_ros.incidents import IncidentRecorder, Ring
from fosp_ros.observing import Observation, TickLabel

CONTRACT = Contract.load(config_file('contract_safereach.yaml'))


def entry(k):
    return lambda: {'k': 'event', 't': float(k), 'mono': float(k), 'name': str(k)}


def test_a_full_queue_drops_and_says_so(tmp_path):
    writer = AuditWriter(AuditFiles(tmp_path, 1 << 20, 1 << 20, dict), pytest.fail, capacity=10, period=0.01)
    for k in range(25):     # nobody writes yet
        writer.put(entry(k))
    assert writer.dropped == 15
    writer.start()
    writer.stop()
    entries = list(read_entries(tmp_path))
    assert [e['name'] for e in entries if e['k'] == 'event'] == [str(k) for k in range(10)] and writer.written == 10
    assert [e['n'] for e in entries if e['k'] == 'dropped'] == [15]


def test_a_disk_that_refuses_is_told_once_and_recovers(tmp_path):
    blocked, lines = tmp_path / 'audit', []
    blocked.write_text('')
    writer = AuditWriter(AuditFiles(blocked, 1 << 20, 1 << 20, dict), lines.append)
    for k in range(2):
        writer.put(entry(k))
        writer._drain()
    assert len(lines) == 1 and 'the filter goes on without it' in lines[0] and writer.error and writer.dropped == 2
    blocked.unlink()
    writer.put(entry(2))
    writer.put(lambda: 1 / 0)       # a fault of ours costs lines, never the thread
    writer._drain()
    assert 'ZeroDivisionError' in writer.error
    writer.put(entry(3))
    writer._drain()
    assert not writer.error
    writer.put(entry(4))
    writer._drain()
    assert [e['name'] for e in read_entries(blocked) if e['k'] == 'event'] == ['3', '4']
    assert [e['n'] for e in read_entries(blocked) if e['k'] == 'dropped'] == [4]


def test_pictures_are_bounded_by_bytes_and_floods_are_thinned(monkeypatch):
    ring = Ring(100, size=10_000)
    for _ in range(50):
        ring.add(Image(data=bytes(3000)))
    assert len(ring.since(0.0)) == 3
    now = [0.0]
    monkeypatch.setattr(incidents.time, 'monotonic', lambda: now[0])
    ring = Ring(20)
    for _ in range(1000):       # 1 kHz
        now[0] += 0.001
        ring.add(JointState())
    assert len(ring.since(0.0)) == 20 and len(ring.since(0.93)) == 9


def observation(k, stamp=None):
    return Observation(stamp or 10**18 + k * 10**8, {'image': np.full((64, 64, 3), k, np.uint8),
                                                     'ee_pose': np.zeros(3, np.float32)}, {},
                       TickLabel(is_first=k == 0), incidents.time.monotonic(), 0)


@pytest.fixture
def recorder(tmp_path):
    lines = []
    made = IncidentRecorder(CONTRACT, tmp_path / 'incidents', 10.0, 10.0, 3, 1 << 20, '/fosp', True, lines.append)
    made.lines = lines
    yield made
    made.stop()
    for process, *_ in made._writers:
        process.wait(60)
        process.stderr.close()


def test_a_stop_with_a_cause_is_an_incident_and_others_are_not(recorder):
    seen = []
    for reason in (Reason.STARTING, Reason.IDLE, Reason.COMMAND_STALE, Reason.RELEASING, Reason.PASS, Reason.IDLE,
                   Reason.POSE_STALE, Reason.RISK_HOLD, Reason.LATE_HOLD, Reason.CAMERA_STALE, Reason.POSE_STALE,
                   Reason.RELEASING, Reason.CAMERA_STALE):
        recorder.reason(reason)
        seen.append(recorder._pending and recorder._pending[0])
    assert seen == [None] * 9 + [Reason.CAMERA_STALE] * 4 and recorder.skipped == 0
    for reason in (Reason.PASS, Reason.POSE_JUMP):
        recorder.reason(reason)
    assert recorder._pending[0] is Reason.CAMERA_STALE and recorder.skipped == 1    # within ten seconds of the first
    recorder.reason(Reason.ESTOP)           # a latching cause tells more than the one that went before
    assert recorder._pending[0] is Reason.ESTOP and recorder.skipped == 2
    for reason in (Reason.PASS, Reason.WORKSPACE_MEASURED):
        recorder.reason(reason)             # two of them: the first one
    assert recorder._pending[0] is Reason.ESTOP and recorder.skipped == 3


def test_an_estop_shortly_after_a_trivial_stop_has_a_bag_of_its_own(recorder):
    for reason in (Reason.PASS, Reason.REPEATED_LATE):
        recorder.reason(reason)
    recorder._told = recorder._pending      # that one is told
    for reason in (Reason.RELEASING, Reason.PASS, Reason.POSE_JUMP, Reason.PASS):
        recorder.reason(reason)
    assert recorder._pending is recorder._told and recorder.skipped == 1
    recorder.reason(Reason.ESTOP)
    assert recorder._pending[0] is Reason.ESTOP


def test_a_full_disk_leaves_no_folder_behind(recorder, monkeypatch):
    for k in range(5):
        recorder.observed(observation(k))
        recorder.sent([0.25, 0.0, 0.0])
    with monkeypatch.context() as patch:
        def full(*_):
            raise OSError(28, 'No space left on device')
        patch.setattr(incidents.incident, 'write_raw', full)
        recorder.ring('/fosp/joint_states', 'sensor_msgs/msg/JointState')(JointState())
        with pytest.raises(OSError, match='No space'):
            recorder._capture(Reason.ESTOP, incidents.time.monotonic(), 0.0)
    assert not list(recorder.folder.iterdir())
    recorder._namespace = 5         # and when it is the writer that fails
    recorder._capture(Reason.ESTOP, incidents.time.monotonic(), 0.0)
    recorder._writers[0][0].wait(60)
    recorder._collect()
    assert recorder.failed == 1 and not list(recorder.folder.iterdir())


def test_nothing_to_learn_from_and_an_end_of_all_topics_make_no_bag(recorder):
    recorder._capture(Reason.ESTOP, incidents.time.monotonic(), 0.0)
    assert recorder.skipped == 1
    for k in range(4):
        recorder.observed(observation(k))
    for reason in (Reason.PASS, Reason.CAMERA_STALE, Reason.IDLE):
        recorder.reason(reason)
    recorder._capture(*recorder._pending)
    assert recorder.skipped == 2 and not recorder.folder.exists()


def test_a_clock_that_was_set_back_leaves_the_newer_part(recorder):
    for k in range(6):
        recorder.observed(observation(k, None if k < 3 else 10**17 + k * 10**8))
        recorder.sent([0.05 * (k > 3), 0.0, 0.0])
    episodes = recorder._episodes(0.0)
    assert len(episodes) == 1 and len(episodes[0]) == 2 and episodes[0].images['image'][0, 0, 0, 0] == 3
    assert episodes[0].action[:, 0].tolist() == [0.0, np.float32(0.2)]


def test_what_the_writer_refuses_is_told_and_a_bag_is_counted(recorder, tmp_path, rig):
    image = recorder.ring('/fosp/image', 'sensor_msgs/msg/Image')
    for k in range(5):
        recorder.observed(observation(k))
        recorder.sent([0.25, 0.0, 0.0])
        image(Image(height=1, width=1, encoding='mono16', step=2, data=bytes(2)))     # refused by the filter, but seen
    recorder.start()
    recorder.reason(Reason.PASS)
    recorder.reason(Reason.CAMERA_INVALID)
    rig.wait_for(lambda: recorder.written or recorder.failed, 60.0, 'the bag')
    assert recorder.written == 1, recorder.lines
    episode = next(iter(read_episodes(recorder.last, CONTRACT)))
    assert len(episode) == 4 and episode.action.tolist() == [[1.0, 0.0, 0.0]] * 4
    assert episode.meta['reason'] == 'camera_invalid'
    recorder._last, recorder._namespace = -1e9, 5       # the process fails
    recorder.reason(Reason.PASS)
    recorder.reason(Reason.ESTOP)
    rig.wait_for(lambda: recorder.failed, 60.0, 'the failure')
    assert recorder.lines and 'the filter goes on without it' in recorder.lines[0]


def test_switched_off_nothing_is_kept(tmp_path):
    p = types.SimpleNamespace(**{row.name: row.default for row in filter_parameters.PARAMETERS})
    p.audit = p.incidents = False
    witness = Witness(p, CONTRACT, '/fosp', dict, pytest.fail)

    def callback(message):
        return message
    assert witness.overhear(Image, '/image', callback) is callback
    witness.start()
    witness.tick(Reason.PASS, FilterState.initial(3), {}, Situation(), 'v', 1.0, None, None)
    witness.observed(observation(0))
    witness.sent(np.zeros(3))
    witness.event('reset')
    witness.model_changed('v2')
    witness.stop()
    assert witness.values() == {'audit': 'off', 'incidents': 'off'} and not list(tmp_path.iterdir())


def test_a_tick_of_the_node_becomes_a_line_with_its_note(tmp_path):
    p = types.SimpleNamespace(**{row.name: row.default for row in filter_parameters.PARAMETERS})
    p.audit_dir, p.incidents = str(tmp_path), False
    witness = Witness(p, CONTRACT, '/fosp', lambda: {'level': 0.5}, pytest.fail)
    witness.start()
    witness.noted('camera_invalid: image encoding is mono16')
    situation = Situation(np.ones(3), np.zeros(7), np.zeros(7))
    witness.tick(Reason.CAMERA_INVALID, FilterState.initial(3), {'camera': float('inf')}, situation, 'v', 1.0, 7, [1.0])
    witness.tick(Reason.COMMAND_INVALID, FilterState.initial(3), {}, situation, 'v', 1.0, 7, [float('nan')])
    witness.model_changed('w')
    witness.stop()
    start, first, second, event, again = read_entries(tmp_path)
    assert first['note'] == 'camera_invalid: image encoding is mono16' and 'note' not in second
    assert first['position'] == [1.0, 1.0, 1.0] and first['ages'] == {'camera': None} and 'proposal' not in first
    assert second['proposal'] == '[nan]' and event['name'] == 'model' and again['k'] == 'start'
    assert start['level'] == again['level'] == 0.5 and witness.values()['audit_written'] == 4
