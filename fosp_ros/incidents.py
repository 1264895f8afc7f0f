# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Incident capture: on a stop with a cause, the last seconds as the filter saw them become a bag. The filter node
imports it.

The control path appends references to rings of bounded size. A thread serialises them and leaves the writing of the
bag to a process of low priority: the libraries for bags are heavy and would hold the interpreter of the control path.
"""

import collections
import datetime
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rclpy.serialization import serialize_message

from fosp_core.contract import Contract
from fosp_core.data import incident
from fosp_core.data.joiner import EpisodeAssembler, Label, Step
from fosp_core.data.store import save_episode
from fosp_core.safety.reasons import Effect, Reason
from fosp_ros.recording import Recorder

NO_CAUSE = (Reason.IDLE, Reason.STARTING, Reason.RELEASING, Reason.NOT_ACTIVE)
AFTER_S = 0.5       # of what follows the stop is kept too: it shows that the stop was sent
POLL_S = 0.2
THIN_S = 0.008      # small messages faster than this are thinned: joint states may come at 1 kHz
BREATH_S = 0.0005   # between two serialised messages, so that a tick never waits for this thread
WRITE_LIMIT_S = 120.0


def caused(reason: Reason | None) -> bool:
    """Return whether a reason is a stop that something caused."""
    return reason is not None and reason.effect is Effect.STOP and reason not in NO_CAUSE


class Ring:
    """The newest messages of one topic: bounded by number and, for pictures, by bytes. One thread appends pictures."""

    def __init__(self, count: int, size: int | None = None, thin: bool = True):
        self._items: collections.deque = collections.deque(maxlen=count)
        self._size, self._bytes, self._newest, self._thin = size, 0, -1e9, thin

    def add(self, message) -> None:
        """Keep a reference to a message that has arrived now."""
        now = time.monotonic()
        if self._size is None:
            if self._thin and now - self._newest < THIN_S:
                return
        else:
            self._bytes += len(message.data)
            while self._items and (self._bytes > self._size or len(self._items) == self._items.maxlen):
                self._bytes -= len(self._items.popleft()[2].data)
        self._newest = now
        self._items.append((now, time.time_ns(), message))

    def since(self, mono: float) -> list:
        """Return (monotonic s, wall ns, message) of those that came after `mono`."""
        return [item for item in self._items.copy() if item[0] >= mono]     # copy() is one step of the interpreter


class IncidentRecorder:
    """Remembers what passes, and writes it when a stop has a cause.

    Parameters
    ----------
    contract : Contract
        What a record holds.
    folder
        Where the bags go, `incident-<UTC>-<reason>` each.
    seconds, every : float
        How much is kept; the shortest time between two bags, but for a cause that latches.
    keep : int
        Bags that stay; the oldest ones are deleted.
    picture_bytes : int
        Pictures held in memory as they came, all cameras together.
    continuous : bool
        As in Recorder.
    warn : callable
        Gets one line when a bag could not be written.

    """

    def __init__(self, contract: Contract, folder: Path | str, seconds: float, every: float, keep: int,
                 picture_bytes: int, namespace: str, continuous: bool, warn: Callable[[str], None]):
        self._contract, self.folder = contract, Path(folder)
        self._seconds, self._every, self._keep, self._namespace = seconds, every, keep, namespace
        self._picture_bytes = picture_bytes // len(contract.cameras)
        self._warn = warn
        self._rings: dict[tuple[str, str], Ring] = {}
        self._recorder = Recorder(2 * contract.period, continuous)
        self._records: collections.deque = collections.deque(maxlen=round((seconds + AFTER_S) * 1.5 / contract.period))
        self._shown: Reason | None = None
        self._free = False      # nothing has stopped the arm since it was last allowed to move
        self._last = -1e9
        self._pending: tuple[Reason, float, float] | None = None    # reason, monotonic, wall clock
        self._told = None       # the last one that the thread has taken: so the two need no lock
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._writers: list[tuple[subprocess.Popen, Path, Path, float]] = []    # process, spool, bag, until when
        self.written = self.skipped = self.failed = 0
        self.last = ''      # the newest bag

    # -- on the control path ------------------------------------------------------------------------------------------
    def ring(self, topic: str, msgtype: str, thin: bool = True) -> Callable:
        """Return the function that takes the messages of a topic (full name); `thin` guards against a flood."""
        count = round((self._seconds + AFTER_S) / THIN_S)
        ring = Ring(count, self._picture_bytes if msgtype == 'sensor_msgs/msg/Image' else None, thin)
        self._rings[topic, msgtype] = ring
        return ring.add

    def sent(self, command) -> None:
        """Note what was sent to the arm: a command (A,) in the unit of the contract."""
        self._recorder.command(None, self._contract.action.normalise(command), time.monotonic())

    def observed(self, observation) -> None:
        """Note the observation of a tick."""
        self._records.extend(self._recorder.observe(observation, time.monotonic()))

    def reason(self, reason: Reason) -> None:
        """Note what was decided; when a cause ends motion, or a cause that latches appears, it is an incident.

        A cause before anything moved is none, e.g. the command that is missing until the learner is found.
        """
        before, self._shown = self._shown, reason
        free = self._free
        self._free = reason.effect in (Effect.PASS, Effect.ALTER) or (free and reason.effect is Effect.HOLD)
        if reason is before or not caused(reason) or not (free or reason.latching):
            return
        now, pending = time.monotonic(), None if self._pending is self._told else self._pending
        # A cause that latches is told whatever came shortly before, and takes the place of one that waits to be told.
        if (pending is not None and (pending[0].latching or not reason.latching)) \
                or (now - self._last < self._every and not reason.latching):
            self.skipped += 1
            return
        self.skipped += pending is not None
        self._last, self._pending = now, (reason, now, time.time())

    # -- the thread ---------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Begin to watch."""
        self._end.clear()
        self._thread = threading.Thread(target=self._run, name='incidents', daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Hand over what is pending; the process that writes it ends by itself. Returns after two seconds at most."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(2.0)
            self._thread = None

    def _run(self) -> None:
        while True:
            ended = self._end.wait(POLL_S)
            try:
                self._collect()
                pending = self._pending
                if pending is not self._told and (ended or time.monotonic() - pending[1] >= AFTER_S):
                    self._told = pending    # first: what comes meanwhile is told next
                    self._capture(*pending)
            except Exception as error:  # noqa: BLE001 - a full disk or a fault of ours: the filter goes on without it
                self._fail(f'{type(error).__name__}: {error}')
            if ended:
                return

    def _capture(self, reason: Reason, mono: float, wall: float) -> None:
        """Leave everything for the writer in a hidden folder beside the bag-to-be, and start it."""
        if self._shown is Reason.IDLE:      # everything fell silent: somebody ended the episodes
            self.skipped += 1
            return
        since = mono - self._seconds
        episodes = self._episodes(since)
        if not episodes:
            self.skipped += 1               # nothing to learn from, e.g. a camera that never came
            return
        name = f'incident-{datetime.datetime.fromtimestamp(wall, datetime.UTC):%Y%m%dT%H%M%S}-{reason.word}'
        spool = self.folder / f'.{name}.spool'
        spool.mkdir(parents=True)
        try:
            self._fill(spool, episodes, reason, since, wall)
            # A session of its own: the Ctrl-C that ends the filter must not end the writing of why.
            process = subprocess.Popen(
                [sys.executable, '-m', 'fosp_core.data.incident', str(spool), str(self.folder / name)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                start_new_session=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        except BaseException:
            shutil.rmtree(spool, ignore_errors=True)    # a full disk must not be filled further, try by try
            raise
        self._writers.append((process, spool, self.folder / name, time.monotonic() + WRITE_LIMIT_S))

    def _fill(self, spool: Path, episodes: list, reason: Reason, since: float, wall: float) -> None:
        for k, episode in enumerate(episodes):
            episode.meta |= {'policy': 'incident', 'reason': reason.word, 'stopped_at': wall}
            save_episode(spool / f'{k:03d}.npz', episode)
        with open(spool / incident.RAW, 'wb') as file:
            rows = [(item, key) for key, ring in self._rings.items() for item in ring.since(since)]
            for (_, stamp, message), (topic, msgtype) in sorted(rows, key=lambda row: row[0][1]):
                incident.write_raw(file, topic, msgtype, stamp, serialize_message(message))
                time.sleep(BREATH_S)
        about = {'contract': self._contract.to_dict(), 'namespace': self._namespace, 'keep': self._keep}
        (spool / incident.ABOUT).write_text(json.dumps(about))

    def _episodes(self, since: float) -> list:
        assembler, episodes, last = EpisodeAssembler(self._contract), [], None
        for record in self._records.copy():
            observation = record.observation
            if observation.arrived < since:
                continue
            if last is not None and (observation.stamp <= last[0] or record.step <= last[1]):
                assembler, episodes = EpisodeAssembler(self._contract), []  # a clock was set: a bag must rise
            last = observation.stamp, record.step
            action = record.action if record.action is not None else self._contract.action.normalise(
                [0.0] * self._contract.action.size)
            step = Step(observation.stamp, {c.name: observation.arrays[c.name] for c in self._contract.cameras},
                        {v.name: observation.arrays[v.name] for v in self._contract.vectors}, action,
                        Label(*observation.label, step=record.step))
            done = assembler.add(step)
            episodes += [done] if done is not None else []
        done = assembler.flush()
        return episodes + ([done] if done is not None else [])

    def _collect(self) -> None:
        """See which writers have ended."""
        for writer in list(self._writers):
            process, spool, bag, until = writer
            if process.poll() is None:
                if time.monotonic() > until:
                    process.kill()
                continue
            self._writers.remove(writer)
            error = process.stderr.read()
            process.stderr.close()
            if process.returncode:
                shutil.rmtree(spool, ignore_errors=True)
                self._fail((error.strip().splitlines() or [f'writer ended with {process.returncode}'])[-1])
            else:
                self.written, self.last = self.written + 1, str(bag)

    def _fail(self, text: str) -> None:
        self.failed += 1
        self._warn(f'incident: {text}; the filter goes on without it')
