# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The filter node when its own parts fail: late decisions, exceptions, a watchdog that fires or is gone."""

import threading
import time

import pytest
from scripted_filter import Scripted, moving

from fosp_core.safety import filter as safety
from fosp_core.safety.reasons import Reason
from fosp_ros.watchdog import Watchdog


@pytest.mark.parametrize(('settings', 'delay'), [({'deadline_s': 1.0}, 0.21),   # the watchdog's stop came first
                                                 # too late, if not for the watchdog
                                                 ({'watchdog_s': 1.0, 'max_step': 0.5}, 0.09)])
def test_a_decision_that_comes_too_late_is_zero(make_filter, settings, delay):
    rig, cell, node = make_filter(**settings)
    moving(rig, cell)
    misses, since = node.deadline_misses, time.monotonic()
    Scripted.delay = delay
    rig.wait_for(lambda: node.deadline_misses >= misses + 3, 3.0, 'three late ticks')
    first = next(t for t, _, v in cell.sent if t > since and not v.any())
    assert first - since < 0.35 and not any(v.any() for t, _, v in cell.sent if t > first)


def test_an_exception_in_the_tick_latches_and_goes_on_stopping(make_filter, monkeypatch):
    rig, cell, node = make_filter()
    moving(rig, cell)
    monkeypatch.setattr(node.senses, 'watch', lambda *a: 1 / 0)
    rig.wait_for(lambda: cell.reason == 'internal_fault', 2.0, 'internal_fault')
    count = len(cell.sent)
    time.sleep(0.5)
    assert len(cell.sent) - count >= 4 and not any(v.any() for _, _, v in cell.sent[count:])


def test_even_a_broken_decision_cannot_silence_the_stop(make_filter, monkeypatch):
    rig, cell, _ = make_filter()
    moving(rig, cell)
    monkeypatch.setattr('fosp_core.safety.filter.decide', lambda *a: 1 / 0)
    since = time.monotonic()
    time.sleep(0.5)
    cell.off.add('image')       # from here on the watchdog alone is left
    time.sleep(0.7)
    late = [(t, v) for t, _, v in cell.sent if t > since + 0.2]
    assert not any(v.any() for _, v in late) and len([1 for t, _ in late if t > since + 0.7]) >= 4


def fire(node):
    """Let the watchdog send its stop from a thread of its own, as it does; return when the stop is out."""
    def run():
        node.watchdog.fired += 1
        node._watchdog_fired()
    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.01)        # the gate is held by the caller: it waits there for 20 ms
    return thread


def test_a_stop_of_the_watchdog_while_the_tick_decides_is_not_overtaken(make_filter, monkeypatch):
    rig, cell, node = make_filter()
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


def test_a_command_that_came_after_the_watchdogs_stop_is_what_the_arm_does(make_filter, monkeypatch):
    rig, cell, node = make_filter()
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


def test_without_a_watchdog_nothing_moves(make_filter):
    rig, cell, node = make_filter()
    moving(rig, cell)
    node.watchdog.stop()
    rig.wait_for(lambda: cell.reason == 'internal_fault', 2.0, 'internal_fault')
    count = len(cell.sent)
    time.sleep(0.4)
    assert len(cell.sent) - count >= 3 and not any(v.any() for _, _, v in cell.sent[count:])


def test_a_decision_that_goes_on_failing_latches_each_reason_once(make_filter, monkeypatch):
    rig, cell, node = make_filter()
    moving(rig, cell)
    node._press(topic=True)
    monkeypatch.setattr('fosp_core.safety.filter.decide', lambda *a: 1 / 0)
    time.sleep(0.6)
    assert node.state.latched == (Reason.ESTOP, Reason.INTERNAL_FAULT)


def test_a_swap_that_fails_in_the_runtime_stops_and_the_process_goes_on(make_filter, monkeypatch):
    rig, cell, node = make_filter()
    moving(rig, cell)
    swap, tries = node.slot.swap, []

    def broken(idle=False):
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError('onnxruntime: out of memory')
        return swap(idle)
    since = time.monotonic()
    monkeypatch.setattr(node.slot, 'swap', broken)
    rig.wait_for(lambda: 'model_fault' in [m.message for t, m in cell.states if t > since], 2.0, 'model_fault')
    moving(rig, cell)


def test_a_deadline_that_is_moved_forward_wakes_the_watchdog():
    fired = threading.Event()
    watchdog = Watchdog(60.0, 60.0, fired.set)
    watchdog.start()        # it says stop at once, and then sleeps
    assert fired.wait(5.0)
    fired.clear()
    time.sleep(0.05)
    watchdog.feed()
    time.sleep(0.05)
    watchdog.feed(time.monotonic() - 59.9)      # what was decided rests on an old measurement
    assert fired.wait(5.0)
    watchdog.stop()


def test_a_model_is_swapped_in_while_no_pictures_come(make_filter, monkeypatch):
    rig, cell, node = make_filter()
    moving(rig, cell)
    asked = []
    monkeypatch.setattr(node.slot, 'swap', lambda idle=False: asked.append(idle))
    rig.wait_for(lambda: asked, 2.0, 'a tick')
    assert not any(asked)
    cell.off.add('image')
    rig.wait_for(lambda: asked[-1], 5.0, 'a swap without a tick')
