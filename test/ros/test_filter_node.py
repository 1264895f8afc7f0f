# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The safety filter node in this process, with a scripted model: what no process of its own lets a test reach into.

Faults of messages, time and processes are in `test/faults`.
"""

import threading
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from filter_cell import Cell, recalibrated
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from std_msgs.msg import Bool, UInt8MultiArray
from std_srvs.srv import Trigger

from fosp_core.deploy.runtime import FilterOutput
from fosp_core.safety import filter as safety
from fosp_core.safety.reasons import BY_WORD, Effect, Reason
from fosp_ros import diagnostics, filter_report, qos
from fosp_ros.safety_filter_node import SafetyFilterNode

CALIBRATION = {'schema': 1, 'reachability': {'level': 0.5, 'alpha': 0.1, 'n': 50},
               'surprise': {'level_slow': 5.0, 'level_stop': 9.0, 'alpha': 0.1, 'n': 50}, 'data_hash': 'test'}


@pytest.fixture(scope='session')
def model(toy, tmp_path_factory):
    """A toy bundle that says that it is calibrated."""
    return recalibrated(toy, tmp_path_factory.mktemp('calibrated') / 'b', CALIBRATION).path


class Scripted:
    """A runtime that says what the test wants."""

    risk, surprise, delay = 0.1, 1.0, 0.0

    def __init__(self, bundle):
        self.steps, self.version = [], bundle.version

    def warm_up(self):
        pass

    def reset(self):
        pass

    def step(self, observation, previous, is_first, commands, commit=True):
        time.sleep(type(self).delay)
        if not np.isfinite(observation['ee_pose']).all():
            raise ValueError('ee_pose: not finite')
        self.steps.append((previous.copy(), is_first))
        risk = np.full(len(commands), type(self).risk, np.float32)
        risk[np.abs(commands).max(1) == 0] = 0.05       # standing still is safe
        return FilterOutput(risk, np.zeros(3, np.float32), 0.9, type(self).surprise)


class ScriptedFilter(SafetyFilterNode):
    make_runtime = Scripted


@pytest.fixture
def make(rig, model, tmp_path):
    """Start a cell and a filter; returns (rig, cell, node)."""
    Scripted.risk, Scripted.surprise, Scripted.delay = 0.1, 1.0, 0.0

    # An executor of its own: what the cell sees must not depend on what keeps the filter busy.
    executor, end = SingleThreadedExecutor(), threading.Event()

    def spin():
        while not end.is_set():
            executor.spin_once(timeout_sec=0.05)
    thread, cells = threading.Thread(target=spin, daemon=True), []

    def build(kind=ScriptedFilter, start=True, **parameters):
        cell = Cell()
        cells.append(cell)
        executor.add_node(cell)
        thread.start()
        overrides = {'model': str(model), 'release_s': 0.15, 'ramp_s': 0.15,
                     'latch_file': str(tmp_path / 'latch.json'), **parameters}
        node = kind(namespace='fosp', parameter_overrides=[Parameter(k, value=v) for k, v in overrides.items()])
        rig.add(node)
        assert node.bring_up(), node.failure
        rig.wait_for(lambda: all(p.get_subscription_count() for p in cell.out.values())
                     and cell.count_publishers('command_out') and cell.count_publishers('safety_filter/state'),
                     what='discovery')
        if start:
            time.sleep(0.3)
            cell.start()
        return rig, cell, node
    yield build
    for cell in cells:
        cell.bring_down()
    end.set()
    if thread.is_alive():
        thread.join(5.0)
    executor.shutdown()
    for cell in cells:
        cell.destroy_node()


def moving(rig, cell):
    """Wait until the proposal passes."""
    rig.wait_for(lambda: cell.reason == 'ok' and cell.sent and cell.sent[-1][2].any(), 5.0, 'motion')


def stops_within(rig, cell, since, seconds):
    """Return the delay of the first zero command after `since`, which must be followed by zeros alone."""
    rig.wait_for(lambda: [1 for t, _, v in cell.sent if t > since + seconds], 3.0, 'any command')
    time.sleep(0.3)
    after = [(t, v) for t, _, v in cell.sent if t > since]
    first = next(t for t, v in after if not v.any())
    assert not any(v.any() for t, v in after if t >= first), 'motion after the stop'
    assert first - since <= seconds, f'first stop after {first - since:.3f} s'
    return first - since


def call(rig, cell, name, request):
    future = cell.clients_of[name].call_async(request)
    rig.wait_for(future.done, 5.0, name)
    return future.result()


def test_stop_is_sent_from_the_first_moment_at_the_control_rate(make):
    rig, cell, _ = make(start=False)
    begin = time.monotonic()
    rig.wait_for(lambda: len(cell.sent) >= 8, 3.0, 'eight stops')
    assert not any(v.any() for _, _, v in cell.sent)
    times = np.diff([t for t, _, _ in cell.sent])
    assert 0.08 < np.median(times) < 0.12 and time.monotonic() - begin < 1.5
    assert cell.reason == 'idle' and cell.values()['effect'] == 'stop'
    assert cell.states[-1][1].level == diagnostics.WARN


def test_motion_begins_after_release_and_ramp_and_answers_each_stamp(make):
    rig, cell, node = make(release_s=0.3, ramp_s=0.5)
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
    assert set(values) >= {'risk', 'level', 'age_camera', 'age_pose', 'age_command', 'interventions', 'advice'}


def test_limits_hold_in_all_that_was_sent(make):
    rig, cell, _ = make(max_speed=0.2, max_acceleration=1.0)
    cell.command = [0.25, 0.25, 3.0]
    rig.wait_for(lambda: cell.reason == 'limit_range', 5.0, 'limit_range')
    time.sleep(0.6)
    cell.command = [-0.25, 0.25, 0.0]
    time.sleep(0.5)
    commands = np.array([v for _, _, v in cell.sent])
    assert commands.any() and np.linalg.norm(commands, axis=1).max() <= 0.2 + 1e-6
    assert np.abs(commands).max() <= 0.25
    assert 'limit_speed' in cell.values()['rules'] or 'limit_acceleration' in cell.values()['rules']


def test_the_box_stops_the_arm_at_its_wall(make):
    rig, cell, _ = make()
    cell.position, cell.command = np.array([0.58, 0.0, 0.2]), [0.2, 0.0, 0.0]
    rig.wait_for(lambda: cell.reason == 'limit_workspace' and cell.position[0] > 0.655, 5.0, 'the wall')
    time.sleep(0.5)
    assert cell.position[0] <= 0.66 + 1e-6


def test_a_risky_proposal_is_replaced_and_counted(make):
    rig, cell, _ = make()
    moving(rig, cell)
    Scripted.risk = 0.9
    rig.wait_for(lambda: cell.reason == 'risk_hold', 2.0, 'risk_hold')
    assert int(cell.values()['interventions']) >= 1 and float(cell.values()['risk_nominal']) == pytest.approx(0.9)
    assert not cell.sent[-1][2].any()
    Scripted.risk = 0.15         # within the level, beyond the part of it that an alert leaves
    lowered = time.monotonic()
    rig.wait_for(lambda: cell.reason == 'ok', 4.0, 'ok when the alert is over')
    assert time.monotonic() - lowered > 0.7


def test_switched_off_only_before_activation_and_loudly(make):
    rig, cell, node = make()
    moving(rig, cell)
    result = node.set_parameters([Parameter('filter_enabled', value=False)])[0]
    assert not result.successful and 'filter_enabled' in result.reason and node.p.filter_enabled
    assert node.trigger_deactivate() and not node.active
    assert node.set_parameters([Parameter('filter_enabled', value=False)])[0].successful
    node.trigger_activate()
    Scripted.risk = 0.9
    rig.wait_for(lambda: cell.reason == 'limits_only' and cell.sent[-1][2].any(), 4.0, 'limits_only')

    def warned():
        return [s for a in cell.reports for s in a.status if s.name == '/fosp/safety_filter'
                and s.message.startswith('weakened: filter_enabled') and s.level >= diagnostics.WARN]
    rig.wait_for(warned, 3.0, 'WARN')


def test_a_latch_survives_deactivation(make):
    rig, cell, node = make()
    moving(rig, cell)
    cell.estop.publish(Bool(data=True))
    rig.wait_for(lambda: cell.reason == 'estop', 2.0, 'estop')
    cell.estop.publish(Bool(data=False))
    time.sleep(0.2)
    node.trigger_deactivate()
    assert not cell.sent[-1][2].any()
    node.trigger_activate()
    time.sleep(0.8)
    assert cell.reason == 'estop' and not cell.sent[-1][2].any()


def test_a_jumping_pose_stops_but_not_at_the_start_of_an_episode(make):
    rig, cell, _ = make()
    moving(rig, cell)
    cell.first, cell.position = True, np.array([0.4, 0.3, 0.2])
    time.sleep(0.5)
    assert 'pose_jump' not in [m.message for _, m in cell.states]
    cell.position = np.array([0.6, -0.1, 0.2])
    rig.wait_for(lambda: 'pose_jump' in [m.message for _, m in cell.states], 2.0, 'pose_jump')


def test_surprise_slows_stops_and_latches(make):
    rig, cell, _ = make(latch_after_s=0.5)
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


@pytest.mark.parametrize(('settings', 'delay'), [({'deadline_s': 1.0}, 0.21),   # the watchdog's stop came first
                                                 ({'watchdog_s': 1.0}, 0.09)])   # too late, if not for the watchdog
def test_a_decision_that_comes_too_late_is_zero(make, settings, delay):
    rig, cell, node = make(**settings)
    moving(rig, cell)
    misses, since = node.deadline_misses, time.monotonic()
    Scripted.delay = delay
    rig.wait_for(lambda: node.deadline_misses >= misses + 3, 3.0, 'three late ticks')
    first = next(t for t, _, v in cell.sent if t > since and not v.any())
    assert first - since < 0.35 and not any(v.any() for t, _, v in cell.sent if t > first)


def test_an_exception_in_the_tick_latches_and_goes_on_stopping(make, monkeypatch):
    rig, cell, node = make()
    moving(rig, cell)
    monkeypatch.setattr(node.senses, 'watch', lambda *a: 1 / 0)
    rig.wait_for(lambda: cell.reason == 'internal_fault', 2.0, 'internal_fault')
    count = len(cell.sent)
    time.sleep(0.5)
    assert len(cell.sent) - count >= 4 and not any(v.any() for _, _, v in cell.sent[count:])


def test_even_a_broken_decision_cannot_silence_the_stop(make, monkeypatch):
    rig, cell, _ = make()
    moving(rig, cell)
    monkeypatch.setattr('fosp_core.safety.filter.decide', lambda *a: 1 / 0)
    since = time.monotonic()
    time.sleep(0.5)
    cell.off.add('image')       # from here on the watchdog alone is left
    time.sleep(0.7)
    late = [(t, v) for t, _, v in cell.sent if t > since + 0.2]
    assert not any(v.any() for _, v in late) and len([1 for t, _ in late if t > since + 0.7]) >= 4


def test_a_new_model_is_swapped_in_and_bad_ones_are_refused(make, model, tmp_path):
    rig, cell, node = make()
    moving(rig, cell)

    def publish(raw):
        message = UInt8MultiArray()
        message.data.frombytes(raw)
        cell.model.publish(message)
    good = recalibrated(model, tmp_path / 'good', CALIBRATION, 'second').to_bytes()
    bad = recalibrated(model, tmp_path / 'bad', {}, 'third').to_bytes()
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


def test_a_learner_that_stays_on_another_model_is_a_warning_and_nothing_more(make, monkeypatch):
    monkeypatch.setattr(filter_report, 'VERSIONS_S', 0.5)
    rig, cell, node = make()
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
    assert status.level == diagnostics.WARN and cell.reason == 'ok'
    until('calibrated', False)
    for _ in range(20):         # a learner of another cell
        assert 'the learner runs' not in say('third', '/other/learner')
        time.sleep(0.1)


@pytest.mark.parametrize(('change', 'words'), [
    ({'model': '/nowhere'}, 'no such bundle'), ({'workspace_low': [1.0, 1.0, 1.0]}, 'box_low'),
    ({'joint_low': [0.0]}, 'joint_low'), ({'position_vector': 'none'}, 'position_vector'),
    ({'contract': '/nowhere.yaml'}, '/nowhere.yaml')])
def test_what_is_not_fit_is_refused_at_configure(rig, model, change, words):
    node = rig.add(SafetyFilterNode(namespace='fosp', parameter_overrides=[
        Parameter(k, value=v) for k, v in {'model': str(model), **change}.items()]))
    assert not node.bring_up() and words in node.failure


def test_an_uncalibrated_model_is_refused_at_configure(rig, model, tmp_path):
    path = recalibrated(model, tmp_path / 'b', {'schema': 1}).path
    node = rig.add(SafetyFilterNode(namespace='fosp', parameter_overrides=[Parameter('model', value=str(path))]))
    assert not node.bring_up() and 'not calibrated' in node.failure


def test_with_the_real_runtime_every_state_is_known_and_stops_are_zero(make):
    rig, cell, node = make(kind=SafetyFilterNode)
    rig.wait_for(lambda: len([1 for _, m in cell.states if m.message != 'idle']) > 20, 6.0, 'twenty ticks')
    for _, message in cell.states:
        reason = BY_WORD[message.message]
        assert message.level == bytes([reason.level])
        sent = [float(v) for v in diagnostics.values_of(message)['sent'].split()]
        assert reason.effect not in (Effect.STOP, Effect.HOLD) or not any(sent)
    assert node.compute.percentile(50) < 30 and 'model_fault' not in {m.message for _, m in cell.states}


def fire(node):
    """Let the watchdog send its stop from a thread of its own, as it does; return when the stop is out."""
    def run():
        node.watchdog.fired += 1
        node._watchdog_fired()
    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.01)        # the gate is held by the caller: it waits there for 20 ms
    return thread


def test_a_stop_of_the_watchdog_while_the_tick_decides_is_not_overtaken(make, monkeypatch):
    rig, cell, node = make()
    moving(rig, cell)
    decide, done = safety.decide, []

    def interrupted(inputs, *rest):
        if not inputs.late and not done:
            done.append(len(node_log))
            fire(node)
        return decide(inputs, *rest)
    node_log, send = [], node._send

    def logged(command, stamp):
        node_log.append((command.copy(), stamp))
        return send(command, stamp)
    monkeypatch.setattr(node, '_send', logged)
    monkeypatch.setattr('fosp_core.safety.filter.decide', interrupted)
    rig.wait_for(lambda: done and len(node_log) >= done[0] + 2, 2.0, 'the answer')
    (stop, _), (answer, stamp) = node_log[done[0]:done[0] + 2]
    assert not stop.any() and stamp is not None and not answer.any()


def test_a_command_that_came_after_the_watchdogs_stop_is_what_the_arm_does(make, monkeypatch):
    rig, cell, node = make()
    moving(rig, cell)
    send, after = node._send, []

    def overtaken(command, stamp):
        if not command.any() or after:
            return send(command, stamp)
        thread = fire(node)
        number = send(command, stamp)
        after.append((thread, command.copy()))
        return number
    monkeypatch.setattr(node, '_send', overtaken)
    rig.wait_for(lambda: after, 2.0, 'the overtaken stop')
    after[0][0].join(1.0)
    assert node.state.last.any() and (node.state.last == after[0][1]).all()


def test_without_a_watchdog_nothing_moves(make):
    rig, cell, node = make()
    moving(rig, cell)
    node.watchdog.stop()
    rig.wait_for(lambda: cell.reason == 'internal_fault', 2.0, 'internal_fault')
    count = len(cell.sent)
    time.sleep(0.4)
    assert len(cell.sent) - count >= 3 and not any(v.any() for _, _, v in cell.sent[count:])


def test_a_decision_that_goes_on_failing_latches_each_reason_once(make, monkeypatch):
    rig, cell, node = make()
    moving(rig, cell)
    node._press(topic=True)
    monkeypatch.setattr('fosp_core.safety.filter.decide', lambda *a: 1 / 0)
    time.sleep(0.6)
    assert node.state.latched == (Reason.ESTOP, Reason.INTERNAL_FAULT)


def test_a_swap_that_fails_in_the_runtime_stops_and_the_process_goes_on(make, monkeypatch):
    rig, cell, node = make()
    moving(rig, cell)
    swap, tries = node.slot.swap, []

    def broken():
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError('onnxruntime: out of memory')
        return swap()
    since = time.monotonic()
    monkeypatch.setattr(node.slot, 'swap', broken)
    rig.wait_for(lambda: 'model_fault' in [m.message for t, m in cell.states if t > since], 2.0, 'model_fault')
    moving(rig, cell)


def test_a_reset_begins_the_recurrent_state_anew(make):
    rig, cell, node = make()
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
