# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Is an input new? By arrival, by stamp and by content: a fresh stamp is no proof of a fresh picture. Pure.

`now` is always the monotonic clock of this machine. Stamps are only ever compared with each other, so that neither a
wall clock that is set nor a sender with another clock matters.
"""

import collections
import math

import numpy as np

STEP = 5.0      # s: stamps that go back by so much, or outrun the arrivals by it, are a clock being set
STEADY = 10.0   # s between two such steps: nearer ones are two senders of one topic
DRIFT = 1e-4    # s/s that two clocks may run apart: more slowly than this no lateness is forgiven
DIGESTS = 16    # pictures remembered: a driver that goes round in a ring of buffers repeats itself too


class Source:
    """Ages of one input.

    Parameters
    ----------
    ahead
        Seconds by which a message may be quicker than all before it without another one that confirms it.

    """

    def __init__(self, ahead: float = 0.1) -> None:
        self._ahead = ahead
        self._arrival = -math.inf
        self._stamp: float | None = None
        self._delay = 0.0
        self._base: tuple[float, float] | None = None   # stamp and arrival that lags are reckoned from
        self._least = 0.0       # lag: the quickest transport
        self._doubted: tuple[float, float] | None = None    # stamp and arrival of a message that none has confirmed
        self._stepped = self._unsteady = -math.inf          # when the last step came; until when they are too many
        self.count = 0
        self.repeated = 0       # messages whose stamp did not advance
        self.clock_steps = 0    # times the sender's clock was set
        self.doubted = 0        # messages that no second one confirmed at once

    def arrived(self, stamp: float, now: float) -> bool:
        """Note a message with header stamp `stamp` (s); False when it proves nothing: repeated, or in doubt.

        No delay makes stamps go back or outrun what arrives. So such a message is held for a clock that was set, once
        the next one says the same; one alone changes nothing, or it would make all the true ones look late.
        """
        if self._stamp is not None and stamp == self._stamp:
            self.repeated += 1
            return False
        gap = now - self._arrival
        early = self._early(stamp, now)
        back = self._stamp is not None and stamp < self._stamp
        if back and stamp - self._stamp - gap >= -STEP:
            self.repeated += 1      # out of order: older than what is known
            return False
        step = back or early > STEP
        if step or early > self._ahead:
            if not self._confirmed(stamp, now):
                self._doubt(stamp, now, step)
                return False
            if step:
                self._base = None
                self.clock_steps += 1
        self._doubted = None
        if self._base is None:
            self._base, self._least = (stamp, now), 0.0
        lag = (now - self._base[1]) - (stamp - self._base[0])
        self._least = min(self._least + DRIFT * gap, lag)
        self._delay = lag - self._least
        self._stamp, self._arrival = stamp, now
        self.count += 1
        return True

    def _early(self, stamp: float, now: float) -> float:
        """Seconds by which a message is quicker than the quickest one before it."""
        if self._base is None:
            return 0.0
        return self._least + DRIFT * (now - self._arrival) - (now - self._base[1]) + stamp - self._base[0]

    def _confirmed(self, stamp: float, now: float) -> bool:
        """Return whether a message follows the one in doubt."""
        if self._doubted is None or stamp <= self._doubted[0]:
            return False
        return abs(stamp - self._doubted[0] - (now - self._doubted[1])) <= STEP

    def _doubt(self, stamp: float, now: float, step: bool) -> None:
        self._doubted = stamp, now
        self.doubted += 1
        if step:
            if now - self._stepped < STEADY:
                self._unsteady = now + STEADY
            self._stepped = now

    def unsteady(self, now: float) -> bool:
        """Return whether stamps have just jumped to and fro: two senders, of which one has another clock."""
        return now < self._unsteady

    def age(self, now: float) -> float:
        """Seconds since the newest message was made, as far as can be known; infinite before the first."""
        return now - self._arrival + self._delay

    def forget(self) -> None:
        """Take the next message's way here for the quickest: somebody has looked."""
        self._base = self._doubted = None
        self._stepped = self._unsteady = -math.inf

    def clock(self, now: float) -> float:
        """Return what the sender's clock shows at least (s), by the newest stamp; -inf before the first message."""
        return -math.inf if self._stamp is None else self._stamp + now - self._arrival

    def behind(self, clock: float) -> float:
        """Seconds that the newest stamp lies behind `clock` (s) of the same machine; infinite before the first."""
        return math.inf if self._stamp is None else clock - self._stamp


class FrozenMeasurement:
    """Finds a measurement that repeats itself, to the last digit and with new stamps, while the arm is commanded."""

    def __init__(self, distance: float) -> None:
        self._distance = distance
        self.reset()

    def reset(self) -> None:
        """Forget all."""
        self._values: np.ndarray | None = None
        self._commanded = 0.0

    def update(self, values: np.ndarray, commanded: float) -> bool:
        """Take one measurement (N,) and the way commanded since the last one (m); True beyond thrice `distance`."""
        if self._values is None or not np.array_equal(values, self._values):
            self._values, self._commanded = values.copy(), 0.0
            return False
        self._commanded += commanded
        return self._commanded > 3 * self._distance


class FrozenPicture:
    """Finds a camera that repeats its pictures with new stamps while the arm moves."""

    def __init__(self, distance: float) -> None:
        self._distance = distance
        self.reset()

    def reset(self) -> None:
        """Forget all: a new episode may begin with any picture."""
        self._digests: collections.deque[bytes] = collections.deque(maxlen=DIGESTS)
        self._position: np.ndarray | None = None
        self._moved = self._commanded = 0.0

    def update(self, digest: bytes, position: np.ndarray | None, commanded: float) -> bool:
        """Take one picture's digest, the measured position (m) and the way commanded since the last one (m).

        Returns True when the picture stood still while the arm was measured to move by `distance`, or while neither
        picture nor measurement changed in the least over three times that way of commands.
        """
        if digest not in self._digests:
            self._digests.append(digest)
            self._moved = self._commanded = 0.0
            self._position = None if position is None else position.copy()
            return False
        if position is not None and self._position is not None:
            self._moved = max(self._moved, float(np.linalg.norm(position - self._position)))
        elif position is not None:
            self._position = position.copy()
        self._commanded += commanded
        still = self._moved == 0.0
        return self._moved > self._distance or (still and self._commanded > 3 * self._distance)
