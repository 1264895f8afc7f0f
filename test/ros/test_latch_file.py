# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The latch outlives cleanup and the death of the process, and only a reset ends it."""

import json
import subprocess
import sys
import threading
import time

import pytest
import rclpy
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from ros_rig import wait_for, within
from std_srvs.srv import SetBool, Trigger

from fosp_core.safety.reasons import Reason
from fosp_ros import latch_file
from fosp_ros.filter_parameters import latch_path
from fosp_ros.latch_file import LatchFile, memory_path
from fosp_ros.safety_filter_node import SafetyFilterNode


def gone(path):
    wait_for(lambda: not path.exists(), 3.0, f'the end of {path}')


def test_what_is_put_is_read_by_the_next_process_and_nothing_is_left_after_the_reset(tmp_path):
    path = tmp_path / 'deep' / 'latch.json'
    first = LatchFile(path, pytest.fail)
    assert first.read() == ((), False) and not path.parent.exists()
    first.put((Reason.ESTOP, Reason.WORKSPACE_MEASURED), True)
    first.close()
    assert json.loads(path.read_bytes())['latched'] == ['estop', 'workspace_measured']
    second = LatchFile(path, pytest.fail)
    assert second.read() == ((Reason.ESTOP, Reason.WORKSPACE_MEASURED), True)
    second.put((), False)
    gone(path)
    second.close()


@pytest.mark.parametrize('content', [b'', b'{"schema": 1}', b'{"schema": 2, "latched": [], "estop_service": false}',
                                     b'{"schema": 1, "latched": ["nonsense"], "estop_service": false}', b'\xff', b'[]'])
def test_a_file_that_cannot_be_understood_is_a_latched_fault_until_reset(tmp_path, content):
    path, lines = tmp_path / 'latch.json', []
    path.write_bytes(content)
    file = LatchFile(path, lines.append)
    assert file.read() == ((Reason.INTERNAL_FAULT,), False) and str(path) in lines[0]
    file.put((), False)
    gone(path)
    file.close()
    memory_path(path).write_bytes(content)
    file = LatchFile(path, lines.append)
    assert file.read() == ((Reason.INTERNAL_FAULT,), False) and str(memory_path(path)) in lines[1]
    file.put((), False)
    assert not memory_path(path).exists()
    file.close()


def test_a_disk_that_refuses_is_told_once_and_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr('fosp_ros.latch_file.RETRY_S', 0.02)
    (tmp_path / 'file').write_text('in the way')
    lines = []
    file = LatchFile(tmp_path / 'file' / 'latch.json', lines.append)
    file.put((Reason.ESTOP,), False)
    wait_for(lambda: file.error, 2.0, 'the error')
    time.sleep(0.1)
    assert len(lines) == 1
    (tmp_path / 'file').unlink()
    wait_for(lambda: not file.error and file.path.exists(), 2.0, 'the file')
    file.close()


@pytest.fixture
def slow_disk(monkeypatch):
    """A disk that neither takes nor removes anything until the event is set."""
    free, write = threading.Event(), latch_file._write

    def wait(*args):
        assert free.wait(10.0)
        write(*args)
    monkeypatch.setattr(latch_file, '_write', wait)
    yield free
    free.set()


def test_the_next_process_knows_what_a_slow_disk_does_not_know_yet(tmp_path, slow_disk):
    path = tmp_path / 'latch.json'
    first = LatchFile(path, pytest.fail)
    begin = time.monotonic()
    first.put((Reason.ESTOP,), True)
    assert time.monotonic() - begin < 0.5 and not path.exists()
    assert memory_path(path).stat().st_mode & 0o777 == 0o600
    second = LatchFile(path, pytest.fail)       # as after kill -9 of the first
    assert second.read() == ((Reason.ESTOP,), True)
    slow_disk.set()
    second.close()
    assert json.loads(path.read_bytes())['latched'] == ['estop']        # the second one saw to it
    assert not memory_path(path).exists()       # closed in good order: the disk has it
    first.close()


def test_memory_and_disk_add_up_and_a_reset_that_the_disk_does_not_know_yet_is_none(tmp_path, slow_disk):
    path = tmp_path / 'latch.json'
    entry = {'schema': 1, 'latched': ['out_of_distribution'], 'estop_service': True}
    path.write_text(json.dumps(entry))
    memory_path(path).write_text(json.dumps({**entry, 'latched': ['estop'], 'estop_service': False}))
    file = LatchFile(path, pytest.fail)
    assert file.read() == ((Reason.ESTOP, Reason.OUT_OF_DISTRIBUTION), True)
    file.put((), False)
    assert not memory_path(path).exists()       # the disk is slow: it still has the old one
    assert LatchFile(path, pytest.fail).read() == ((Reason.OUT_OF_DISTRIBUTION,), True)
    slow_disk.set()
    gone(path)
    file.close()


def test_a_process_that_dies_right_after_it_latched_has_kept_it(tmp_path):
    path = tmp_path / 'latch.json'
    child = subprocess.run([sys.executable, '-c', f"""
import os, pathlib, signal, time
from fosp_core.safety.reasons import Reason
from fosp_ros import latch_file
latch_file.atomic_write_bytes = lambda *a: time.sleep(60)
latch_file.LatchFile(pathlib.Path({str(path)!r}), print).put((Reason.ESTOP,), True)
os.kill(os.getpid(), signal.SIGKILL)"""], check=False)
    assert child.returncode == -9 and not path.exists()
    file = LatchFile(path, pytest.fail)
    assert file.read() == ((Reason.ESTOP,), True)
    file.put((), False)
    file.close()
    assert not memory_path(path).exists()


def test_a_memory_that_refuses_is_told_and_the_disk_has_it_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(latch_file, 'MEMORY', tmp_path / 'nowhere')
    lines = []
    file = LatchFile(tmp_path / 'latch.json', lines.append)
    file.put((Reason.ESTOP,), False)
    wait_for(file.path.exists, 2.0, 'the file')
    assert 'nowhere' in file.error and len(lines) == 1
    file.close()


def test_what_the_disk_refused_stays_in_memory(tmp_path):
    (tmp_path / 'file').write_text('in the way')
    file = LatchFile(tmp_path / 'file' / 'latch.json', [].append)
    file.put((Reason.ESTOP,), False)
    wait_for(lambda: file.error, 2.0, 'the error')
    file.close()
    assert memory_path(file.path).exists()
    memory_path(file.path).unlink()


def test_off_keeps_nothing():
    file = LatchFile(None, pytest.fail)
    file.put((Reason.ESTOP,), True)
    file.close()
    assert file.read() == ((), False)


@pytest.fixture
def filters(rig, toy, tmp_path):
    """Make a filter on one latch file: fed with nothing, so that it stands still anyway. Levels: those of the toy."""
    from filter_cell import recalibrated
    calibration = {'schema': 1, 'reachability': {'level': 0.5, 'alpha': 0.1, 'n': 50}, 'data_hash': 'test',
                   'surprise': {'level_slow': 5.0, 'level_stop': 9.0, 'alpha': 0.1, 'n': 50}}
    model = recalibrated(toy, tmp_path / 'b', calibration).path

    def build(**more):
        values = {'model': str(model), 'latch_file': str(tmp_path / 'latch.json'), 'audit': False, 'incidents': False}
        return rig.add(SafetyFilterNode(namespace='fosp', parameter_overrides=[
            Parameter(k, value=v) for k, v in {**values, **more}.items()]))
    return build


def press(node, pressed):
    return node._on_estop_service(SetBool.Request(data=pressed), SetBool.Response())


def reset(node):
    return node._on_reset(Trigger.Request(), Trigger.Response())


def test_cleanup_and_configure_clear_neither_press_nor_latch(filters):
    node = filters()
    assert node.bring_up()
    press(node, True)
    for trigger in (node.trigger_deactivate, node.trigger_cleanup, node.trigger_configure, node.trigger_activate):
        within(node, trigger)
    assert node.active and node.state.latched == (Reason.ESTOP,)
    assert 'estop' in reset(node).message and not reset(node).success      # still pressed
    press(node, False)
    assert node.state.latched == (Reason.ESTOP,) and reset(node).success and not node.state.latched


@pytest.mark.parametrize('before', [(), ('trigger_configure', 'trigger_cleanup')])
def test_a_press_on_a_filter_that_is_not_configured_outlives_its_process(filters, before):
    node = filters()
    for trigger in before:
        within(node, getattr(node, trigger))
    press(node, True)
    again = filters()       # as after kill -9
    assert again.bring_up() and again.state.latched == (Reason.ESTOP,) and not reset(again).success
    press(again, False)
    assert reset(again).success


@pytest.mark.parametrize('configured', [False, True])
def test_a_press_latches_while_the_filter_is_not_active(filters, configured):
    node = filters()
    if configured:
        node.trigger_configure()
    node._press(topic=True)
    node._press(topic=False)
    if not configured:
        node.trigger_configure()
    node.trigger_activate()
    assert node.active and node.state.latched == (Reason.ESTOP,)
    assert reset(node).success


def test_the_stop_goes_out_first_then_the_latch_is_kept_then_it_is_told(filters, monkeypatch):
    node = filters()
    assert node.bring_up()
    order = []

    def watch(owner, name):
        original = getattr(owner, name)

        def noted(*values):
            order.append((owner, values))
            return original(*values)
        monkeypatch.setattr(owner, name, noted)
    watch(node.command_out, 'publish')
    watch(node.latch_file, 'put')
    watch(node.state_out, 'publish')
    with node._gate:        # the watchdog's stops wait
        order.clear()
        press(node, True)
        owners = [owner for owner, _ in order]
        kept = next(k for k, (owner, values) in enumerate(order) if owner is node.latch_file)
        assert order[kept][1] == ((Reason.ESTOP,), True)
        assert owners.index(node.command_out) < kept < owners.index(node.state_out)
        order.clear()
        node._internal_fault(RuntimeError('a test'))
        owners = [owner for owner, _ in order]
        assert owners.index(node.command_out) < owners.index(node.latch_file) < owners.index(node.state_out)


def test_a_stop_that_cannot_be_sent_is_a_latch_all_the_same(filters, monkeypatch, tmp_path):
    node = filters()
    assert node.bring_up()
    monkeypatch.setattr(node, '_send', lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        press(node, True)
    assert LatchFile(tmp_path / 'latch.json', pytest.fail).read() == ((Reason.ESTOP,), True)


def test_the_next_process_comes_up_latched_with_the_causes_of_the_last_one(filters, tmp_path):
    node = filters()
    assert node.bring_up()
    press(node, True)
    with node._gate:
        node._latch(Reason.WORKSPACE_MEASURED)
    wait_for(lambda: (tmp_path / 'latch.json').exists() and b'workspace' in (tmp_path / 'latch.json').read_bytes(), 2.0,
             'the file')
    again = filters()       # as after kill -9: the first one has not been asked for anything
    assert again.bring_up() and again.state.latched == (Reason.ESTOP, Reason.WORKSPACE_MEASURED)
    assert not reset(again).success
    press(again, False)
    assert reset(again).success
    gone(tmp_path / 'latch.json')
    third = filters()
    assert third.bring_up() and not third.state.latched


def test_off_is_weaker_and_says_so(filters):
    node = filters(latch_file='off')
    assert node.bring_up()
    press(node, True)
    status, text, values = node._report()
    assert 'latch_file' in values['weakened'] and values['latch_file'] == 'off'


def test_each_node_has_a_file_of_its_own(filters):
    node = filters(latch_file='')
    assert latch_path(node.p, '/cell/left/safety_filter').name == 'latch-cell.left.safety_filter.json'


def test_the_estop_is_heard_reliably_from_a_reliable_volatile_button_too(filters):
    filters()
    probe = rclpy.create_node('probe')
    try:
        wait_for(lambda: len(probe.get_subscriptions_info_by_topic('/fosp/estop')) >= 3, 5.0, 'three ears')
        ears = {(i.qos_profile.reliability, i.qos_profile.durability)
                for i in probe.get_subscriptions_info_by_topic('/fosp/estop')}
    finally:
        probe.destroy_node()
    assert ears == {(ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL),
                    (ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE),
                    (ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE)}
