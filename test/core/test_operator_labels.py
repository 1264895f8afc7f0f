# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""An operator's buttons and keys to labels: no cost between two ticks is lost, no hanging button begins an episode."""

import os
import pty
import signal
import termios
import time

import pytest

from fosp_core.errors import FospError
from fosp_ros.observing import TickLabel
from fosp_ros.operator_labels import BUTTONS, JoyButtons, Keyboard, Operator, parse_buttons

FIRST, LAST, GOAL = TickLabel(is_first=True), TickLabel(is_last=True), TickLabel(1.0, 0.0, False, True, True)


@pytest.fixture
def operator():
    calls = []
    operator = Operator(lambda: calls.append('begin'), lambda: calls.append('discard'))
    operator.calls = calls
    return operator


def test_an_episode_from_start_to_goal(operator):
    assert operator.take() == TickLabel()
    assert operator.word('toggle') == 'episode begins' and operator.recording
    assert operator.word('start') == ''
    assert [operator.take(), operator.take()] == [FIRST, TickLabel()]
    assert operator.word('cost') and not operator.word('cost')      # pressed twice within one tick: said once
    assert [operator.take(), operator.take()] == [TickLabel(cost=1.0), TickLabel()]
    operator.word('success')
    assert operator.take() == GOAL and not operator.recording
    assert operator.word('cost') == operator.word('stop') == operator.word('success') == ''
    assert operator.calls == ['begin']


def test_an_episode_has_two_ticks_at_least(operator):
    operator.word('start')
    operator.word('success')
    assert [operator.take(), operator.take()] == [FIRST, GOAL]


def test_stop_is_no_goal_and_discard_takes_the_last_one_too(operator):
    for word in ('toggle', None, 'toggle', None):
        last = operator.word(word) if word else operator.take()
    assert last == LAST
    assert operator.word('discard') == 'episode discarded' and operator.word('discard') == ''
    operator.word('start')
    operator.take()
    operator.word('stop')
    operator.word('discard')
    assert not operator.recording and operator.take() == TickLabel()
    operator.word('start')
    assert operator.take() == FIRST
    assert operator.calls == ['begin', 'discard', 'begin', 'discard', 'begin']


def test_joystick_buttons_act_by_their_edges_and_cost_while_held(operator):
    joy = JoyButtons(operator, parse_buttons('start=0,stop=0,success=1,cost=3,discard=2'))
    assert joy.put([1, 0, 0, 0], act=False) == joy.put([1, 0, 0, 0]) == [] and not operator.recording   # it hangs
    joy.put([0, 0, 0, 0])
    assert joy.put([1, 0, 0, 0]) == ['episode begins']
    assert joy.put([1, 0, 0, 1]) == ['cost']
    assert [operator.take().cost for _ in range(3)] == [1.0, 1.0, 1.0]
    joy.put([0, 0, 0, 0])
    assert operator.take().cost == 0.0
    joy.put([0, 0, 0, 1])
    joy.put([0, 0, 0, 0])                                               # up again before the tick
    assert operator.take().cost == 1.0
    assert joy.put([1]) == ['episode ends'] and operator.take() == LAST  # a SpaceMouse with fewer buttons


@pytest.mark.parametrize('text', ['go=1', 'start', 'start=x', 'cost=64', 'cost=0', 'start=-1', 'cost=3'])
def test_bad_buttons_are_named(text):
    with pytest.raises(FospError, match='--buttons'):
        parse_buttons(text)


def test_buttons_keep_their_defaults():
    assert parse_buttons('') == BUTTONS
    assert parse_buttons('discard=-1, cost=3')['discard'] == -1


@pytest.fixture
def terminal():
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


def test_keys_and_the_terminal_afterwards(terminal):
    master, slave = terminal
    before = termios.tcgetattr(slave)
    with Keyboard(slave) as keyboard:
        assert not termios.tcgetattr(slave)[3] & (termios.ICANON | termios.ECHO)
        assert keyboard.words() == []
        os.write(master, ' xcG\xc3\xa9d'.encode())
        end = time.monotonic() + 5
        words = []
        while len(words) < 4 and time.monotonic() < end:
            words += keyboard.words()
        assert words == ['toggle', 'cost', 'success', 'discard']
        with pytest.raises(ZeroDivisionError), Keyboard(slave):
            raise ZeroDivisionError
    assert termios.tcgetattr(slave) == before


@pytest.mark.parametrize('end', [signal.SIGKILL, signal.SIGTSTP])
def test_the_terminal_is_restored_whatever_ends_or_stops_the_process(terminal, end):
    _, slave = terminal
    before = termios.tcgetattr(slave)
    child = os.fork()
    if not child:
        try:
            os.setpgid(0, 0)
            Keyboard(slave)
            while True:
                time.sleep(0.02)
        finally:
            os._exit(1)

    def becomes(raw):
        limit = time.monotonic() + 10
        while bool(termios.tcgetattr(slave)[3] & termios.ECHO) == raw:
            assert time.monotonic() < limit, raw
            time.sleep(0.01)
    try:
        becomes(raw=True)
        os.kill(child, end)
        becomes(raw=False)
        assert termios.tcgetattr(slave) == before
        if end == signal.SIGTSTP:
            os.waitpid(child, os.WUNTRACED)
            os.kill(child, signal.SIGCONT)
            becomes(raw=True)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    becomes(raw=False)


def test_without_a_terminal_it_says_so():
    read, write = os.pipe()
    with pytest.raises(FospError, match='no terminal'):
        Keyboard(read)
    os.close(read)
    os.close(write)
