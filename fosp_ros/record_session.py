# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The working part of `fosp record`: subscriptions, records, and the thread that writes them."""

import dataclasses
import functools
import queue
import threading
import time
from collections.abc import Callable

import numpy as np
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message

from fosp_core.contract import Contract
from fosp_core.data import live_bag
from fosp_core.data import messages as replay_messages
from fosp_core.errors import DataError, FospError
from fosp_ros import pictures
from fosp_ros.messages import replay_set
from fosp_ros.observing import EVENT, STAMPED, Observer
from fosp_ros.operator_labels import JoyButtons, Operator
from fosp_ros.record_topics import Topic
from fosp_ros.recording import Record, Recorder

DEPTH = 64              # a subscription holds this many messages while the machine is busy; pictures 8
QUEUE_BYTES = 256 << 20
SYNC_S = 0.5            # what a SIGKILL may cost


def _profile(reliable: bool, depth: int = DEPTH) -> QoSProfile:
    """Return what is requested: volatile, and best effort where every publisher must fit."""
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=depth, durability=DurabilityPolicy.VOLATILE,
                      reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT)


def _monotonic(wall: int) -> float:
    """Return the monotonic time (s) of a wall-clock time (ns) of the last seconds."""
    return time.monotonic() - 1e-9 * (time.time_ns() - wall)


class BagThread:
    """Writes to a LiveBag from a bounded queue, so that a slow disk never delays a callback."""

    def __init__(self, bag: live_bag.LiveBag):
        self.bag, self.error = bag, None
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._bytes, self._lock, self._mark = 0, threading.Lock(), None
        self._thread = threading.Thread(target=self._run, name='bag', daemon=True)
        self._thread.start()

    def write(self, topic: str, received: int, data: bytes) -> bool:
        """Hand over a message; False when the disk is so far behind that it was dropped."""
        with self._lock:
            if self._bytes + len(data) > QUEUE_BYTES:
                return False
            self._bytes += len(data)
        self._queue.put((topic, received, data))
        return True

    def call(self, work: Callable[[live_bag.LiveBag], None]) -> None:
        """Do something with the bag after all that was handed over before."""
        self._queue.put(work)

    def close(self) -> None:
        """Write what is waiting, then end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        synced = time.monotonic()
        try:
            while True:
                try:
                    item = self._queue.get(timeout=SYNC_S)
                except queue.Empty:
                    item = ()
                if item is None:
                    self.bag.sync()
                    return
                if isinstance(item, tuple) and item:
                    self.bag.write(*item)
                    with self._lock:
                        self._bytes -= len(item[2])
                elif item:
                    item(self.bag)
                if time.monotonic() - synced > SYNC_S:
                    self.bag.sync()
                    synced = time.monotonic()
        except Exception as error:  # noqa: BLE001 - a full disk, mostly: the main thread must hear of it
            self.error = f'{self.bag.folder}: {getattr(error, "strerror", None) or repr(error)}'


class Session:
    """One recording: subscribes, pairs, labels, writes. A context manager; an error keeps the finished episodes."""

    def __init__(self, contract: Contract, args, names: dict[str, str], buttons: dict[str, int],
                 say: Callable[[str], None]):
        self.contract, self.args, self._say = contract, args, say
        self.ready = False
        if pictures.bridge().refusal:
            say(f'warning: {pictures.bridge().refusal}')
        for kind in replay_messages.types(contract).values():
            live_bag.definition(kind)
        self.node = Node('fosp_record', namespace=args.namespace, enable_rosout=False)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        stamped = args.label == 'topic'
        self.observer = Observer(contract, args.tolerance, 0.01, STAMPED if stamped else EVENT)
        self.recorder = Recorder(2 * contract.period, continuous=stamped)
        self.operator = None if stamped else Operator(self._begin_episode, self._discard)
        self._joy = JoyButtons(self.operator, buttons) if args.label == 'joy' else None
        self._open: list[int] = []      # stamps of the running episode: first, last, steps
        self._before = 0                # step counter at its beginning
        self._newest = ''               # what became of the episode begun last: running, kept, or gone
        self.episodes = self.steps = self.discarded = 0
        self._thread: BagThread | None = None
        self._finished = False
        make = functools.partial(Topic, self.node)
        # The label before the poses before the pictures: an executor serves them in the order of their creation.
        self.topics: list[Topic] = []
        if 'label' in names:
            self.topics.append(make('label', names['label'], replay_messages.LABEL_TYPE,
                                    _profile('label' not in args.best_effort), self._on_label, speaks=stamped))
        self.topics.append(make('command', names['command'], contract.action.type,
                                _profile('command' not in args.best_effort), self._on_command, speaks=False,
                                frame=contract.action.frame))
        for vector in contract.vectors:
            self.topics.append(make(vector.name, names[vector.name], vector.type, _profile(False),
                                    functools.partial(self._on_vector, vector), frame=vector.frame))
        for camera in contract.cameras:
            self.topics.append(make(camera.name, names[camera.name], replay_messages.IMAGE_TYPE, _profile(False, 8),
                                    functools.partial(self._on_image, camera)))
        if len({t.topic for t in self.topics}) < len(self.topics):
            raise FospError(f'one topic is named twice: {", ".join(sorted(t.topic for t in self.topics))}')

    def __enter__(self) -> 'Session':
        return self

    def __exit__(self, exc_type, *_) -> None:
        self._executor.shutdown(timeout_sec=1.0)
        self.node.destroy_node()
        if self._thread is not None and not self._finished:
            self._thread.close()
            if not self.episodes:
                self._thread.bag.abandon()
            elif self._thread.error:
                self._say(f'what was recorded before is in {self.folder}')
            else:
                self._thread.bag.finish()
                self._say(f'what was recorded before is in {self.args.out}')

    # -- the loop -----------------------------------------------------------------------------------------------------
    @property
    def folder(self):
        """Where the bag lies until it is finished."""
        return self._thread.bag.folder

    @property
    def full(self) -> bool:
        """True when the wanted number of episodes is there."""
        return bool(self.args.episodes) and self.episodes >= self.args.episodes

    def spin(self) -> None:
        """Serve what has arrived."""
        self._executor.spin_once(timeout_sec=0.005 if self.observer.pending else 0.05)
        self._tick()
        if self._thread is not None and self._thread.error:
            raise FospError(self._thread.error)

    def problems(self, now: float) -> list[str]:
        """Return a line for each topic that is not as it must be."""
        found = [line for topic in self.topics if (line := topic.problem(now))]
        stamps = {t.name: t.pace.stamp for t in self.topics if t.speaks and t.pace.stamp is not None}
        first = self.contract.cameras[0].name
        for topic in self.topics:
            if not self.ready and topic.speaks and not topic.pace.count and not found:
                found.append(f'{topic.topic} ({topic.name}): waiting for the first message')
            apart = (stamps[topic.name] - stamps[first]) * 1e-9 if {topic.name, first} <= stamps.keys() else 0.0
            if abs(apart) > max(1.0, 4 * self.args.tolerance):
                found.append(f'{topic.topic} ({topic.name}): stamps are {apart:+.1f} s from those of {first}: clocks '
                             'that are not synchronised, or another time base')
        return found

    def begin(self) -> None:
        """Everything is there: make the bag."""
        prefix = self.node.get_namespace().rstrip('/')
        types = replay_messages.types(self.contract)
        self._replay = {kind: f'{prefix}/{replay_messages.topic(kind)}' for kind in types}
        kinds = [(self._replay[kind], name) for kind, name in types.items()]
        raw = [] if self.args.no_raw else [(t.topic, t.kind) for t in self.topics]
        self._thread = BagThread(live_bag.LiveBag(self.args.out, self.contract, kinds + raw))
        self.observer.clear()
        self.observer.unpaired.clear()
        self.observer.overtaken = 0
        self.ready = True
        if self.args.label == 'none':
            self.word('start')

    def word(self, word: str) -> None:
        """Take a word of the operator."""
        if self.ready and self.operator is not None and (text := self.operator.word(word)):
            self._say(f'{text} ({self.episodes} episodes so far)')

    def finish(self) -> dict:
        """Close the running episode and the bag; return the figures."""
        if self._thread is not None:
            if self.operator is not None:
                for record in self.recorder.end():
                    self._write(record)
            elif self._open:
                self._close_episode(cut=True)   # not seen to its end: it has no `is_last`
            self._thread.close()
            if self._thread.error:
                raise FospError(self._thread.error)
            self._finished = True
            if self.steps:
                self._thread.bag.finish()
            else:
                self._thread.bag.abandon()
        now = time.monotonic()
        return {'bag': str(self.args.out), 'episodes': self.episodes, 'steps': self.steps,
                'discarded': self.discarded, 'unpaired': dict(self.observer.unpaired),
                'topics': [{'topic': t.topic, 'name': t.name, 'messages': t.pace.count,
                            'rate_hz': round(t.pace.rate(now), 2), 'gaps': t.pace.gaps, 'lost': t.lost,
                            'dropped': t.dropped} for t in self.topics]}

    def line(self, now: float) -> str:
        """Return rates and losses of the moment."""
        parts = [f'{t.name} {t.pace.rate(now):.1f} Hz' + (f', {n} lost' if (n := t.pace.gaps + t.dropped) else '')
                 for t in self.topics]
        running = f', running {self._open[2]} steps' if self._open else ''
        unpaired = sum(self.observer.unpaired.values())
        return (f'{"; ".join(parts)} | {self.episodes} episodes, {self.steps} steps{running}'
                + (f', {unpaired} pictures without {", ".join(self.observer.unpaired)}' if unpaired else ''))

    def table(self) -> list[str]:
        """Return the closing table."""
        width = max(len(t.topic) for t in self.topics)
        return [f'{"topic":<{width}}  messages  gaps in stamps  lost in transport  dropped before the disk'] + [
            f'{t.topic:<{width}}  {t.pace.count:>8}  {t.pace.gaps:>14}  {t.lost:>17}  {t.dropped:>23}'
            for t in self.topics]

    # -- what arrives -------------------------------------------------------------------------------------------------
    def _keep(self, topic: Topic, data: bytes, at: int) -> None:
        if self.ready and not self.args.no_raw and (self.operator is None or self.operator.recording):
            topic.dropped += not self._thread.write(topic.topic, at, data)

    def _on_label(self, topic: Topic, data: bytes, message, at: int) -> None:
        self._keep(topic, data, at)
        if self._joy is None:
            self.observer.put_label(replay_messages.stamp_ns(message), message.axes, message.buttons)
            self._tick()
            return
        # A button that hangs while we wait must not begin an episode.
        for text in self._joy.put(message.buttons, act=self.ready):
            self._say(f'{text} ({self.episodes} episodes so far)')

    def _on_vector(self, spec, topic: Topic, data: bytes, message, at: int) -> None:
        self._keep(topic, data, at)
        try:
            values = np.array([replay_messages.get_field(message, f) for f in spec.fields], np.float32)
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            topic.fault = f'no {", ".join(spec.fields)} in it ({error})'
            return
        if not np.isfinite(values).all():
            topic.fault = f'not finite: {", ".join(map(str, values))}'
            return
        self.observer.put(spec.name, replay_messages.stamp_ns(message), values, message, _monotonic(at))
        self._tick()

    def _on_image(self, spec, topic: Topic, data: bytes, message, at: int) -> None:
        self._keep(topic, data, at)
        try:
            pixels = pictures.to_camera(message, spec, 'picture')
        except DataError as error:
            topic.fault = str(error)
            return
        self.observer.put(spec.name, replay_messages.stamp_ns(message), pixels, message, _monotonic(at))
        self._tick()

    def _on_command(self, topic: Topic, data: bytes, message, at: int) -> None:
        self._keep(topic, data, at)
        action = self.contract.action
        try:
            values = [replay_messages.get_field(message, field) for field in action.fields]
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            topic.fault = f'no {", ".join(action.fields)} in it ({error})'
            self._spoilt(f'{topic.topic}: {topic.fault}')
            return
        for field, value, low, high in zip(action.fields, values, action.low, action.high, strict=True):
            if not low - 0.01 * (high - low) <= value <= high + 0.01 * (high - low):
                topic.fault = f'{field} is {value:g}, expected {low:g} to {high:g} {action.unit} as the contract says'
                self._spoilt(f'{topic.topic}: {topic.fault}')
                return
        self.recorder.command(message, action.normalise(values), _monotonic(at), replay_messages.stamp_ns(message))

    def _spoilt(self, why: str) -> None:
        """An episode with such a command cannot be imported: say so now, not after a day of recording."""
        if not self._open:
            return
        if self.operator is None:
            self._cut_off()
            raise FospError(f'{why}; the running episode cannot be used')
        self._say(f'warning: {why}')
        self.word('discard')

    # -- records ------------------------------------------------------------------------------------------------------
    def _begin_episode(self) -> None:
        self._before, self._newest = self.recorder.step, 'running'
        self._thread.call(self._set_mark)

    def _set_mark(self, bag: live_bag.LiveBag) -> None:
        self._mark = bag.mark()

    def _discard(self) -> None:
        if not self._newest:
            return
        if self._newest == 'kept':
            self.steps -= self._last_steps
            self.episodes -= 1
        self.discarded += 1
        self._cut_off()

    def _cut_off(self) -> None:
        """Remove the episode begun last, and count its steps anew."""
        self._newest, self._open = '', []
        self.recorder.interrupt(self._before)
        self._thread.call(lambda bag: bag.rewind(self._mark))

    def _tick(self) -> None:
        observation = self.observer.take(time.monotonic())
        if observation is None or not self.ready:
            return
        if self.operator is not None:
            observation = dataclasses.replace(observation, label=self.operator.take())
        for record in self.recorder.observe(observation, time.monotonic()):
            self._write(record)

    def _write(self, record: Record) -> None:
        observation = record.observation
        received = time.time_ns()
        if observation.label.is_first or not self._open:
            self._open = [observation.stamp, observation.stamp, 0]
            if self.operator is None:
                self._before = record.step
                self._thread.call(self._set_mark)
        for kind, message in replay_set(self.contract, record).items():
            if not self._thread.write(self._replay[kind], received, serialize_message(message)):
                self.topics[0].dropped += 1
        self._open[1] = observation.stamp
        self._open[2] += 1
        if observation.label.is_last:
            self._close_episode()

    def _close_episode(self, **more) -> None:
        first, last, steps = self._open
        if steps < 2:
            self._cut_off()     # one record is no episode
            return
        self._open, self._newest, self._last_steps = [], 'kept', steps
        self.episodes += 1
        self.steps += steps
        meta = {'policy': 'recorded' if self.operator is None else 'operator', 'labels': self.args.label, **more}
        self._thread.call(lambda bag: bag.episode(first, last, steps, meta))
