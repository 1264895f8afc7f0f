# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What an operator says about an episode, by joystick or keyboard. Pure Python; `fosp record` uses it.

Five words: start, stop, success, cost, discard. They become the label of the next tick, and `Operator` keeps their
order: nothing is recorded outside of an episode, and a cost pressed for an instant is not lost between two ticks.
"""

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Mapping

from fosp_core.errors import FospError
from fosp_ros.tick_label import TickLabel

WORDS = ('start', 'stop', 'success', 'cost', 'discard')
KEYS = {' ': 'toggle', 's': 'toggle', 'g': 'success', 'c': 'cost', 'd': 'discard', 'q': 'quit'}
KEYS_TEXT = 'space or s: start, stop   g: goal reached, ends   c: cost (hold)   d: discard   q: quit'
# start and stop on one button: a SpaceMouse has but two.
BUTTONS = {'start': 0, 'stop': 0, 'success': 1, 'cost': 2, 'discard': 3}


class Operator:
    """Turns words into the label of each tick.

    Parameters
    ----------
    begin, discard : callable
        Called when an episode begins, before its first tick, and when the running or else the last one is discarded.

    """

    def __init__(self, begin: Callable[[], None], discard: Callable[[], None]):
        self._begin, self._discard = begin, discard
        self.recording = False      # from the word start to the tick that ends the episode
        self.held = False           # the cost button is down
        self._first = self._last = self._terminal = self._cost = False
        self._discardable = False

    def word(self, word: str) -> str:
        """Take one of WORDS or `toggle`; return what it did, for people, or an empty string."""
        if word == 'toggle':
            word = 'stop' if self.recording else 'start'
        if word == 'start' and not self.recording:
            self.recording = self._first = self._discardable = True
            self._last = self._terminal = self._cost = False
            self._begin()
            return 'episode begins'
        if word in ('stop', 'success') and self.recording and not self._last:
            self._last, self._terminal = True, word == 'success'
            return 'goal reached' if self._terminal else 'episode ends'
        if word == 'cost' and self.recording:
            new, self._cost = not self._cost, True
            return 'cost' if new else ''
        if word == 'discard' and self._discardable:
            self.recording = self._discardable = self._last = False
            self._discard()
            return 'episode discarded'
        return ''

    def take(self) -> TickLabel:
        """Return the label of the tick that is recorded now."""
        if not self.recording:
            return TickLabel()
        label = TickLabel(float(self._last and self._terminal), float(self._cost or self.held), self._first,
                          self._last and not self._first, self._last and self._terminal and not self._first)
        if label.is_last:
            self.recording = self._last = False
        elif self._first and self._last:
            label = label._replace(reward=0.0)      # one tick is no episode: the end waits for the next
        self._first = self._cost = False
        return label


class JoyButtons:
    """Buttons of a sensor_msgs/Joy to words, by their rising edges; `cost` acts for as long as it is held."""

    def __init__(self, operator: Operator, buttons: Mapping[str, int] = BUTTONS):
        self._operator, self._buttons = operator, dict(buttons)
        self._down: dict[int, bool] = {}

    def put(self, pressed, act: bool = True) -> list[str]:
        """Take the buttons of one message; return what they did. Not `act`: only note which are down."""
        said = []
        self._operator.held = bool(self._state(pressed, self._buttons['cost']))
        for index in sorted({i for i in self._buttons.values() if i >= 0}):
            down = self._state(pressed, index)
            if act and down and not self._down.get(index, False):
                words = [w for w in WORDS if self._buttons[w] == index]
                said.append(self._operator.word('toggle' if words[:2] == ['start', 'stop'] else words[0]))
            self._down[index] = down
        return [text for text in said if text]

    @staticmethod
    def _state(pressed, index: int) -> bool:
        return 0 <= index < len(pressed) and bool(pressed[index])


def parse_buttons(text: str) -> dict[str, int]:
    """Read `start=0,stop=0,cost=2`; what is not named keeps its default, -1 switches a word off."""
    buttons = dict(BUTTONS)
    for part in filter(None, text.split(',')):
        word, _, number = part.strip().partition('=')
        try:
            value = int(number)
        except ValueError:
            value = -2
        if word not in WORDS or not -1 <= value < 64:
            raise FospError(f'--buttons {part!r}: expected {", ".join(WORDS)} = a button of the Joy message, 0 to 63, '
                            'or -1 for none')
        buttons[word] = value
    used = [i for word, i in buttons.items() if i >= 0 and not (word == 'stop' and i == buttons['start'])]
    if len(set(used)) != len(used):
        raise FospError(f'--buttons {text!r}: one button cannot mean two things (start and stop may share one); '
                        f'in force: {", ".join(f"{w}={i}" for w, i in buttons.items())}')
    if buttons['start'] < 0:
        raise FospError(f'--buttons {text!r}: without start nothing is ever recorded')
    return buttons


class Keyboard:
    """Single keys from a terminal; the terminal is restored however this process ends.

    A child of its own watches a pipe: when this process dies, even by SIGKILL, it puts the terminal back. Make it
    before threads are started (it forks).
    """

    def __init__(self, fd: int | None = None):
        self._fd = sys.stdin.fileno() if fd is None else fd
        if not os.isatty(self._fd):
            raise FospError('--label keyboard: standard input is no terminal; use --label joy')
        self._saved = termios.tcgetattr(self._fd)
        read, self._pipe = os.pipe()
        self._guard = os.fork()
        if not self._guard:
            self._watch(read)
        os.close(read)
        self._old = {number: signal.signal(number, handler) for number, handler in (
            (signal.SIGTSTP, self._suspend), (signal.SIGCONT, self._resume))}
        tty.setcbreak(self._fd, termios.TCSANOW)

    def __enter__(self) -> 'Keyboard':
        return self

    def __exit__(self, *_) -> None:
        if self._pipe < 0:
            return
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._restore()
        os.close(self._pipe)
        self._pipe = -1
        os.waitpid(self._guard, 0)

    def words(self) -> list[str]:
        """Return the words of the keys that were pressed since the last call; does not wait."""
        keys = b''
        while select.select([self._fd], [], [], 0)[0]:
            more = os.read(self._fd, 64)
            if not more:
                return ['quit']     # the terminal is gone
            keys += more
        return [KEYS[k] for k in keys.decode('utf-8', 'replace').lower() if k in KEYS]

    def _watch(self, read: int) -> None:
        """In the child: wait for the end of the parent."""
        try:
            os.setsid()     # no key and no closing window may end it first
            os.close(self._pipe)
            os.read(read, 1)
            self._restore()
        finally:
            os._exit(0)

    def _restore(self) -> None:
        try:
            termios.tcsetattr(self._fd, termios.TCSANOW, self._saved)
        except termios.error:
            pass        # the window was closed: there is nothing to restore

    def _suspend(self, number, _frame) -> None:
        self._restore()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        signal.signal(number, self._suspend)

    def _resume(self, *_) -> None:
        try:
            tty.setcbreak(self._fd, termios.TCSANOW)
        except termios.error:
            pass
