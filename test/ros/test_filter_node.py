# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The safety filter node in this process, with a scripted model: what no process of its own lets a test reach into.

Faults of messages, time and processes are in `test/faults`.
"""

import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from filter_cell import recalibrated
from rclpy.parameter import Parameter
from ros_rig import within
from scripted_filter import CALIBRATION, Scripted, call, moving
from std_msgs.msg import Bool, UInt8MultiArray
from std_srvs.srv import Trigger

from fosp_core.safety.reasons import BY_WORD, Effect
from fosp_ros import diagnostics, filter_report, qos
from fosp_ros.safety_filter_node import SafetyFilterNode


def test_stop_is_sent_from_the_first_moment_at_the_control_rate(make_filter):
    rig, cell, _ = make_filter(start=False)
    begin = time.monotonic()
    rig.wait_for(lambda: len(cell.sent) >= 8, 3.0, 'eight stops')
    assert not any(v.any() for _, _, v in cell.sent)
    times = np.diff([t for t, _, _ in cell.sent])
    assert 0.08 < np.median(times) < 0.12 and time.monotonic() - begin < 1.5
    assert cell.reason == 'idle' and cell.values()['effect'] == 'stop'
    assert cell.states[-1][1].level == diagnostics.WARN


def test_motion_begins_after_release_and_ramp_and_answers_each_stamp(make_filter):
    rig, cell, node = make_filter(release_s=0.3, ramp_s=0.5)
    moving(rig, cell)
    words = [m.message for _, m in cell.states]
    assert words.index('releasing') < words.index('ramp') < words.index('ok')
    time.sleep(0.25)
    _, stamp, command = cell.sent[-1]
    assert stamp in cell.shown and (command == [0.1, 0, 0]).all()
    previous, _ = node.slot.runtime.steps[-1]
    np.testing.assert_allclose(previous, [0.4, 0, 0], atol=1e-6)    # the recurrent state gets what was really sent
    assert node.slot.runtime.steps[0][1] and not node.slot.runtime.steps[-1][1]
    values = cell.values()
    assert float(values['latency_ms']) < 50 and values['version'] == 'calibrated' and values['deadline_misses'] == '0'
    assert set(values) >= {'risk', 'level', 'age_camera', 'age_pose', 'age_command', 'interventions', 'altered',
                           'advice'}


def test_limits_hold_in_all_that_was_sent(make_filter):
    rig, cell, _ = make_filter(max_speed=0.2, max_acceleration=1.0)
    cell.command = [0.25, 0.25, 3.0]
    rig.wait_for(lambda: cell.reason == 'limit_range', 5.0, 'limit_range')
    time.sleep(0.6)
    cell.command = [-0.25, 0.25, 0.0]
    time.sleep(0.5)
    commands = np.array([v for _, _, v in cell.sent])
    assert commands.any() and np.linalg.norm(commands, axis=1).max() <= 0.2 + 1e-6
    assert np.abs(commands).max() <= 0.25
    assert 'limit_speed' in cell.values()['rules'] or 'limit_acceleration' in cell.values()['rules']


def test_the_box_stops_the_arm_at_its_wall(make_filter):
    rig, cell, _ = make_filter()
    cell.position, cell.command = np.array([0.55, 0.0, 0.2]), [0.2, 0.0, 0.0]
    rig.wait_for(lambda: cell.reason == 'limit_workspace' and cell.position[0] > 0.705, 8.0, 'the wall')
    time.sleep(0.5)
    assert cell.position[0] <= 0.71 + 1e-6


def test_a_risky_proposal_is_replaced_and_counted(make_filter):
    rig, cell, _ = make_filter()
    moving(rig, cell)
    Scripted.risk = 0.9
    rig.wait_for(lambda: cell.reason == 'risk_hold', 2.0, 'risk_hold')
    assert int(cell.values()['interventions']) >= 1 and float(cell.values()['risk_nominal']) == pytest.approx(0.9)
    assert not cell.sent[-1][2].any()
    Scripted.risk = 0.15         # within the level, beyond the part of it that an alert leaves
    lowered = time.monotonic()
    rig.wait_for(lambda: cell.reason == 'ok', 4.0, 'ok when the alert is over')
    assert time.monotonic() - lowered > 0.7


def test_switched_off_only_before_activation_and_loudly(make_filter):
    rig, cell, node = make_filter()
    moving(rig, cell)
    result = node.set_parameters([Parameter('filter_enabled', value=False)])[0]
    assert not result.successful and 'filter_enabled' in result.reason and node.p.filter_enabled
    assert within(node, node.trigger_deactivate) and not node.active
    assert node.set_parameters([Parameter('filter_enabled', value=False)])[0].successful
    node.trigger_activate()
    Scripted.risk = 0.9
    rig.wait_for(lambda: cell.reason == 'limits_only' and cell.sent[-1][2].any(), 4.0, 'limits_only')

    def warned():
        return [s for a in cell.reports for s in a.status if s.name == '/fosp/safety_filter'
                and s.message.startswith('weakened: filter_enabled') and s.level >= diagnostics.WARN]
    rig.wait_for(warned, 3.0, 'WARN')


def test_a_latch_survives_deactivation(make_filter):
    rig, cell, node = make_filter()
    moving(rig, cell)
    cell.estop.publish(Bool(data=True))
    rig.wait_for(lambda: cell.reason == 'estop', 2.0, 'estop')
    cell.estop.publish(Bool(data=False))
    time.sleep(0.2)
    within(node, node.trigger_deactivate)
    assert not cell.sent[-1][2].any()
    node.trigger_activate()
    time.sleep(0.8)
    assert cell.reason == 'estop' and not cell.sent[-1][2].any()


def test_a_jumping_pose_stops_but_not_at_the_start_of_an_episode(make_filter):
    rig, cell, _ = make_filter()
    moving(rig, cell)
    cell.first, cell.position = True, np.array([0.4, 0.3, 0.2])
    time.sleep(0.5)
    assert 'pose_jump' not in [m.message for _, m in cell.states]
    cell.position = np.array([0.6, -0.1, 0.2])
    rig.wait_for(lambda: 'pose_jump' in [m.message for _, m in cell.states], 2.0, 'pose_jump')


def test_surprise_slows_stops_and_latches(make_filter):
    rig, cell, _ = make_filter(latch_after_s=0.5)
    cell.patrol = True      # away from the walls, however long it takes
    moving(rig, cell)
    Scripted.surprise = 6.0
    rig.wait_for(lambda: cell.reason == 'surprise_slow', 2.0, 'surprise_slow')
    np.testing.assert_allclose(np.abs(cell.sent[-1][2]), [0.05, 0, 0])
    Scripted.surprise = 20.0
    rig.wait_for(lambda: cell.reason == 'out_of_distribution', 3.0, 'out_of_distribution')
    assert not call(rig, cell, 'reset', Trigger.Request()).success
    Scripted.surprise = 1.0
    time.sleep(0.3)
    assert call(rig, cell, 'reset', Trigger.Request()).success
    moving(rig, cell)


def test_a_new_model_is_swapped_in_and_bad_ones_are_refused(make_filter, filter_model, tmp_path):
    rig, cell, node = make_filter()
    moving(rig, cell)

    def publish(raw):
        message = UInt8MultiArray()
        message.data.frombytes(raw)
        cell.model.publish(message)
    good = recalibrated(filter_model, tmp_path / 'good', CALIBRATION, 'second').to_bytes()
    bad = recalibrated(filter_model, tmp_path / 'bad', {}, 'third').to_bytes()
    publish(good[:len(good) // 2])     # a short cut would take the archive's padding alone
    rig.wait_for(lambda: node.slot.refused == 1, 5.0, 'refusal')
    publish(bad)
    rig.wait_for(lambda: node.slot.refused == 2, 5.0, 'refusal')
    assert 'not calibrated' in node.slot.refusal and cell.reason == 'ok' and node.slot.version == 'calibrated'
    since = time.monotonic()
    publish(good)
    rig.wait_for(lambda: cell.values()['version'] == 'second', 5.0, 'swap')
    time.sleep(0.3)
    assert all(v.any() for t, _, v in cell.sent if t > since), 'the swap cost a tick'
    assert node.slot.runtime.version == 'second' and len(node.slot.runtime.steps) >= 2


def test_a_learner_that_stays_on_another_model_is_a_warning_and_nothing_more(make_filter, monkeypatch):
    monkeypatch.setattr(filter_report, 'VERSIONS_S', 0.5)
    rig, cell, node = make_filter()
    cell.patrol = True
    moving(rig, cell)
    out = cell.create_publisher(DiagnosticArray, '/diagnostics', qos.DIAGNOSTICS)

    def say(version, name='/fosp/learner'):
        out.publish(DiagnosticArray(status=[diagnostics.status(name, diagnostics.OK, 'running', {'version': version})]))
        return cell.report()[0].message if cell.report()[0] else ''

    def until(version, told):
        for _ in range(40):
            if ('the learner runs model second, the filter calibrated, for ' in say(version)) is told:
                return cell.report()[0]
            time.sleep(0.1)
        pytest.fail(f'{cell.report()[0].message} after four seconds of {version}')
    status = until('second', True)
    assert status.level == diagnostics.WARN
    rig.wait_for(lambda: cell.reason == 'versions_differ' and cell.sent[-1][2].any(), 2.5, 'motion all the same')
    assert cell.values()['rules'].split()[-1] == 'versions_differ'
    until('calibrated', False)
    rig.wait_for(lambda: cell.reason == 'ok', 2.0, 'ok when both are of one version')
    for _ in range(20):         # a learner of another cell
        assert 'the learner runs' not in say('third', '/other/learner')
        time.sleep(0.1)


@pytest.mark.parametrize(('change', 'words'), [
    ({'model': '/nowhere'}, 'no such bundle'), ({'workspace_low': [1.0, 1.0, 1.0]}, 'box_low'),
    ({'joint_low': [0.0]}, 'joint_low'), ({'position_vector': 'none'}, 'position_vector'),
    ({'contract': '/nowhere.yaml'}, '/nowhere.yaml')])
def test_what_is_not_fit_is_refused_at_configure(rig, filter_model, change, words):
    node = rig.add(SafetyFilterNode(namespace='fosp', parameter_overrides=[
        Parameter(k, value=v) for k, v in {'model': str(filter_model), **change}.items()]))
    assert not node.bring_up() and words in node.failure


def test_an_uncalibrated_model_is_refused_at_configure(rig, filter_model, tmp_path):
    path = recalibrated(filter_model, tmp_path / 'b', {'schema': 1}).path
    node = rig.add(SafetyFilterNode(namespace='fosp', parameter_overrides=[Parameter('model', value=str(path))]))
    assert not node.bring_up() and 'not calibrated' in node.failure


def test_with_the_real_runtime_every_state_is_known_and_stops_are_zero(make_filter):
    rig, cell, node = make_filter(kind=SafetyFilterNode)
    rig.wait_for(lambda: len([1 for _, m in cell.states if m.message != 'idle']) > 20, 6.0, 'twenty ticks')
    for _, message in cell.states:
        reason = BY_WORD[message.message]
        assert message.level == bytes([reason.level])
        sent = [float(v) for v in diagnostics.values_of(message)['sent'].split()]
        assert reason.effect not in (Effect.STOP, Effect.HOLD) or not any(sent)
    assert node.compute.percentile(50) < 30 and 'model_fault' not in {m.message for _, m in cell.states}


def test_a_reset_begins_the_recurrent_state_anew(make_filter):
    rig, cell, node = make_filter()
    moving(rig, cell)
    steps = node.slot.runtime.steps
    count = len(steps)
    assert call(rig, cell, 'reset', Trigger.Request()).success
    rig.wait_for(lambda: len(steps) >= count + 4, 2.0, 'four ticks')
    assert [is_first for _, is_first in steps[count:]].count(True) == 1
    assert len(node.slot._records) <= len(steps) - count and node.slot._records[0][2]
    cell.estop.publish(Bool(data=True))
    rig.wait_for(lambda: cell.reason == 'estop', 2.0, 'estop')
    count = len(steps)
    assert not call(rig, cell, 'reset', Trigger.Request()).success      # refused: nothing is forgotten
    rig.wait_for(lambda: len(steps) >= count + 4, 2.0, 'four ticks')
    assert not any(is_first for _, is_first in steps[count:])
