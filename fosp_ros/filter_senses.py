# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the safety filter knows of its inputs: ages, faults, joints, position. No rclpy; the filter node imports it.

Every message passes through here before anything else happens with it, so that a bad one is a fault with a reason and
never an exception.
"""

import collections
import math
import re
import time
import zlib

import numpy as np

from fosp_core.contract import Contract
from fosp_core.data import images
from fosp_core.data.messages import get_field, get_node, stamp_ns
from fosp_core.errors import DataError, FospError
from fosp_core.safety.filter import FilterInputs
from fosp_core.safety.freshness import FrozenMeasurement, FrozenPicture, Source
from fosp_core.safety.limits import FilterLimits, Situation
from fosp_core.safety.reasons import Reason
from fosp_ros.observing import Observation, Observer

BORDER_S = 1.0  # between two beginnings: neither episodes nor pauses are that short, and each makes the filter forget
RATE_WINDOW, RATE_LEAST = 20, 0.7   # pictures whose mean interval must be at least this part of the period
PAUSE_S = 1.0   # between two pictures: after it the recurrent state, the path and the last pose mean nothing any more
HEARD = 128     # poses between two ticks that are looked at, the newest: a driver at 1 kHz sends 100
_UNREADABLE = (AttributeError, IndexError, TypeError, ValueError)


def _list_lengths(fields: tuple[str, ...]) -> dict[str, int]:
    """Return how long each list must be that the fields of a command index (`velocity[0]`, `velocity.1`)."""
    lengths: dict[str, int] = {}
    for field in fields:
        found = re.fullmatch(r'(.+?)[.\[](\d+)\]?', field)
        if found:
            lengths[found[1]] = max(lengths.get(found[1], 0), int(found[2]) + 1)
    return lengths


def _require_motion(contract: Contract, name: str | None) -> None:
    """Raise FospError unless the command is the velocity of the position that it is held against."""
    action, vector = contract.action, next((v for v in contract.vectors if v.name == name), None)
    if vector is None:
        return
    axes = tuple(tuple(field.rpartition('.')[2] for field in spec.fields[:action.size]) for spec in (vector, action))
    named = all(axis in ('x', 'y', 'z') for axis in (*axes[0], *axes[1]))
    units, moved = ({unit.strip() for unit in spec.unit.split(',')} for spec in (action, vector))
    if vector.frame != action.frame or not units <= {f'{unit}/s' for unit in moved} or (named and axes[0] != axes[1]):
        raise FospError(f'parameter position_vector: vector {name!r} of contract {contract.name!r} ({vector.unit}, '
                        f'frame {vector.frame}, {", ".join(vector.fields)}) is not the position that the action '
                        f'({action.unit}, frame {action.frame}, {", ".join(action.fields)}) moves: expected one in its '
                        'frame and of its unit times seconds, entry by entry; or none, and workspace_low and '
                        'workspace_high empty')


class Senses:
    """Ages, faults and measurements of one activation of the filter.

    Parameters
    ----------
    contract, limits
        What is in force.
    position_vector : str
        Vector of the contract whose first entries are the position in the frame of the command.
    warn : callable
        Gets one line per faulty message.

    """

    def __init__(self, contract: Contract, limits: FilterLimits, position_vector: str, warn):
        self._contract, self._limits, self._warn = contract, limits, warn
        self._vector = next((v.name for v in contract.vectors
                             if v.name == position_vector and v.size >= limits.size), None)
        if limits.box_low and self._vector is None:
            raise FospError(f'parameter position_vector: contract {contract.name!r} has no vector {position_vector!r} '
                            f'of {limits.size} entries for the workspace box')
        _require_motion(contract, self._vector)
        # Where the sender's clock is at fault: what it is when it jumps to and fro, and when it is not believed.
        self._clocks = {**{c.name: (Reason.CAMERA_INVALID, Reason.CAMERA_STALE) for c in contract.cameras},
                        **{v.name: (Reason.POSE_INVALID, Reason.POSE_STALE) for v in contract.vectors},
                        **({'joints': (Reason.JOINTS_INVALID, Reason.JOINTS_STALE)} if limits.joint_names else {})}
        self.sources = {name: Source(contract.period) for name in ('command', *self._clocks)}
        self._frozen = {c.name: FrozenPicture(limits.frozen_distance) for c in contract.cameras}
        self._faults: dict[Reason, float] = {}      # fault -> when it was last seen
        self._joints: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
        self._still = {name: FrozenMeasurement(limits.frozen_distance) for name in ('pose', 'joints')}
        self._position: np.ndarray | None = None    # of the newest observation that was believed
        self._measured: np.ndarray | None = None    # the newest there is
        self._heard: collections.deque[tuple[int, np.ndarray]] = collections.deque(maxlen=HEARD)    # since a tick
        self._arrival = -np.inf
        self._borders = {True: -np.inf, False: -np.inf}     # when the filter last began anew: by label, by stamps
        self._stamp: int | None = None
        self._dropped, self._alone = 0, None    # pictures without companions, and since when there is nothing else
        self._forms: dict[str, tuple] = {}      # camera -> size (height, width) and encoding of its first picture
        self._rates = {c.name: collections.deque(maxlen=RATE_WINDOW) for c in contract.cameras}     # stamps, s
        self._answered: collections.deque[int] = collections.deque(maxlen=8)    # stamps of the newest proposals
        self._lengths = _list_lengths(contract.action.fields)

    # -- messages -----------------------------------------------------------------------------------------------------
    def picture(self, spec, message, now: float) -> np.ndarray | None:
        """Return the pixels of the contract's size, or None with a fault noted."""
        # A larger one is resized, but one that changes is a camera in another mode: not what the model was calibrated
        # on. A smaller one holds less than the model was made for, and blown up it looks as good as any.
        form = message.height, message.width, message.encoding
        if form[0] < spec.height or form[1] < spec.width:
            self.fault(Reason.CAMERA_INVALID, f'{spec.topic}: picture of {form[0]}x{form[1]}, expected at least '
                                              f'{spec.height}x{spec.width}', now)
            return None
        known = self._forms.get(spec.name, form)
        if form[2] != known[2] or form[:2] not in (known[:2], (spec.height, spec.width)):
            self.fault(Reason.CAMERA_INVALID, f'{spec.topic}: picture of {form[0]}x{form[1]} {form[2]} after '
                                              f'{known[0]}x{known[1]} {known[2]}', now)
            return None
        if spec.shape[2] == 3 and images.ENCODINGS.get(message.encoding, ('', 3))[1] < 3:
            self.fault(Reason.CAMERA_INVALID, f'{spec.topic}: encoding {message.encoding}, expected a colour picture',
                       now)
            return None
        if len(message.data) > message.step * message.height:
            self.fault(Reason.CAMERA_INVALID, f'{spec.topic}: {len(message.data)} bytes, expected at most '
                                              f'{message.height} rows of {message.step}', now)
            return None
        try:
            pixels = images.to_camera(message.encoding, message.height, message.width, message.step,
                                      message.is_bigendian, message.data, spec)
        except DataError as error:
            self.fault(Reason.CAMERA_INVALID, str(error), now)
            return None
        self._forms[spec.name] = form
        if not self._arrived(spec.name, message, now):
            return None
        self._rate(spec, message, now)
        return pixels

    def _rate(self, spec, message, now: float) -> None:
        """A model whose step is a period must not be stepped three times in one."""
        stamps, stamp = self._rates[spec.name], stamp_ns(message) * 1e-9
        if stamps and not 0.0 < stamp - stamps[-1] < PAUSE_S:
            stamps.clear()
        stamps.append(stamp)
        mean = (stamps[-1] - stamps[0]) / (len(stamps) - 1) if len(stamps) == RATE_WINDOW else self._contract.period
        if mean < RATE_LEAST * self._contract.period:
            self.fault(Reason.CAMERA_INVALID, f'{spec.topic}: a picture every {mean:.3f} s, expected one every '
                                              f'{self._contract.period:g} s', now)

    def vector(self, spec, message, now: float) -> np.ndarray | None:
        """Return the vector, or None with a fault noted when any of it is no finite number."""
        try:
            values = np.array([get_field(message, field) for field in spec.fields])
        except _UNREADABLE as error:
            self.fault(Reason.POSE_INVALID, f'{spec.topic}: {error}', now)
            return None
        if not np.isfinite(values).all():
            self.fault(Reason.POSE_INVALID, f'{spec.topic}: {values} is not finite', now)
            return None
        frame = message.header.frame_id
        if spec.name == self._vector and frame and frame != spec.frame:
            self.fault(Reason.POSE_INVALID, f'{spec.topic}: frame {frame!r}, expected {spec.frame!r}', now)
            return None
        if not self._arrived(spec.name, message, now):
            return None
        if spec.name == self._vector:
            self._measured = values[:self._limits.size].astype(np.float64)
            self._heard.append((stamp_ns(message), self._measured))
        return values.astype(np.float32)

    def joints(self, message, now: float) -> None:
        """Take position and velocity of the guarded joints, whatever order they come in."""
        names = self._limits.joint_names
        if not names:
            return
        at = {name: k for k, name in enumerate(message.name)}
        try:
            position, velocity = (np.array([field[at[name]] for name in names], np.float64)
                                  for field in (message.position, message.velocity))
        except (KeyError, IndexError):
            self.fault(Reason.JOINTS_INVALID, f'joint_states: holds {", ".join(message.name)}; expected position and '
                                              f'velocity of {", ".join(names)}', now)
            return
        if not (np.isfinite(position).all() and np.isfinite(velocity).all()):
            self.fault(Reason.JOINTS_INVALID, 'joint_states: not finite', now)
            return
        if self._arrived('joints', message, now):
            self._joints = position, velocity

    def command(self, message, now: float) -> list[float]:
        """Return the proposed command as it is; all NaN when a field cannot be read or a list has another length."""
        try:
            values = [get_field(message, field) for field in self._contract.action.fields]
            long = any(len(get_node(message, path)) != length for path, length in self._lengths.items())
        except _UNREADABLE:
            long = True
        stamp = stamp_ns(message)
        if stamp in self._answered:
            self.fault(Reason.COMMAND_CONFLICT, f'command_in: a second command for the picture of stamp {stamp}', now)
        self._answered.append(stamp)
        self._arrived('command', message, now)
        frame = message.header.frame_id
        if frame and frame != self._contract.action.frame:
            self._warn(f'command_invalid: command_in: frame {frame!r}, expected {self._contract.action.frame!r}')
            long = True
        return [float('nan')] * self._limits.size if long else values

    def fault(self, reason: Reason, text: str, now: float) -> None:
        """Note a fault: it counts for as long as an input may be old."""
        self._faults[reason] = now
        self._warn(f'{reason.word}: {text}')

    def unpaired(self, observer: Observer, now: float) -> None:
        """Look whether the observer goes on dropping pictures, to which nothing of their time is known."""
        count, before = observer.unpaired.total(), self._dropped
        self._dropped = count
        if count == before:
            return
        self._alone = now if self._alone is None else self._alone
        if now - self._alone >= self._limits.staleness:
            name, ahead = observer.skew
            which = 'none has come' if ahead is None else f'the nearest is {abs(ahead) * 1e-9:.3f} s ' + (
                'older' if ahead > 0 else 'newer')
            self.fault(self._clocks[name][1], f'{name}: no picture is paired with one: {which}, expected within '
                                              'pairing_tolerance_s; compare the clocks of the senders', now)

    def forget(self) -> None:
        """Somebody has looked and called reset: the pose of now is right, and messages take the way they take now."""
        self._position = None
        self._heard.clear()
        for source in self.sources.values():
            source.forget()

    def _arrived(self, name: str, message, now: float) -> bool:
        """Note a message; False for one that is no newer than what is known, which nothing may be done with."""
        source = self.sources[name]
        doubted, good = source.doubted, source.arrived(stamp_ns(message) * 1e-9, now)
        if source.doubted > doubted and name in self._clocks:
            jumps, stale = self._clocks[name]
            if source.unsteady(now):
                self._warn(f'{jumps.word}: {name}: stamps jump to and fro by seconds: two publishers, or a bag that is '
                           'played onto live topics')
            else:
                self._warn(f'{stale.word}: {name}: stamp {stamp_ns(message)} cannot be of the clock of those before: '
                           'not used until the next one confirms it')
        return good

    # -- one tick -----------------------------------------------------------------------------------------------------
    def begins(self, observation: Observation) -> bool:
        """Return whether the recurrent state must begin anew: first of an episode, or after a pause."""
        return observation.label.is_first or self._stamp is None \
            or not 0 < observation.stamp - self._stamp < PAUSE_S * 1e9

    def watch(self, observation: Observation, last: np.ndarray, begins: bool) -> tuple[Reason, ...]:
        """Compare an observation with the one before it: frozen pictures and jumping poses.

        last : the command (A,) that was sent in between, m/s.
        """
        faults, size = [], self._limits.size
        first = observation.label.is_first
        if first or (begins and self._stamp is not None):   # each makes the filter forget: by label, or by stamps
            if observation.arrived - self._borders[first] < BORDER_S:
                faults.append(Reason.LABEL_INVALID)
            self._borders[first] = observation.arrived
        way = last * self._limits.period
        position = None if self._vector is None else observation.arrays[self._vector][:size].astype(np.float64)
        if begins:
            for frozen in (*self._frozen.values(), *self._still.values()):
                frozen.reset()
        jumped = position is not None and self._position is not None and not first \
            and np.linalg.norm(position - self._position - way) - self._way_since(observation, begins) \
            > self._limits.max_jump
        if jumped:
            # What it was before goes on being believed: a pose that stays shifted must not be taken for the new truth.
            position = self._position + way
        if jumped | (position is not None and self._stray(observation.stamp, position, begins)):
            faults.append(Reason.POSE_JUMP)
        for camera in self._contract.cameras:
            digest = zlib.crc32(observation.arrays[camera.name]).to_bytes(4, 'little')
            if self._frozen[camera.name].update(digest, position, float(np.linalg.norm(way))):
                faults.append(Reason.CAMERA_FROZEN)
        for name, values in (('pose', self._measured), ('joints', self._joints[0])):
            if values is not None and self._still[name].update(values, float(np.linalg.norm(way))):
                faults.append(Reason.POSE_FROZEN)
        self._position, self._stamp, self._alone = position, observation.stamp, None
        self._arrival = observation.arrived
        return tuple(faults)

    def _stray(self, stamp: int, position: np.ndarray, begins: bool) -> bool:
        """Return whether any pose since the last tick lies where the arm that is believed in cannot have been.

        A picture is paired with one pose alone, and the limits are measured at the newest: a second publisher's may be
        all but the paired ones. `stamp` (ns), `position` (m): those of this tick.
        """
        known = [(stamp, position)]
        if begins:      # what came before may be of another episode
            heard = [entry for entry in self._heard if entry[0] >= stamp]
        else:
            heard = self._heard
            known += [(self._stamp, self._position)] if self._position is not None else []
        far = [math.dist(at, where) - self._limits.max_speed * min(1e-9 * abs(when - then), PAUSE_S)
               for then, where in known for when, at in heard]
        self._heard.clear()
        return max(far, default=0.0) > self._limits.max_jump

    def _way_since(self, observation: Observation, begins: bool) -> float:
        """Return how far (m) the arm can have gone since the last tick beyond what one period of the command says."""
        if begins:      # a pause, or stamps of another clock: only arrivals tell
            return self._limits.max_speed * (observation.arrived - self._arrival)
        return self._limits.max_speed * max(1e-9 * (observation.stamp - self._stamp) - self._limits.period, 0.0)

    @property
    def doubted(self) -> dict[str, int]:
        """Messages of each source whose stamps no delay explains and that none confirmed at once."""
        return {name: source.doubted for name, source in self.sources.items() if source.doubted}

    @property
    def situation(self) -> Situation:
        """What is measured now."""
        age = 0.0 if self._measured is None else self.sources[self._vector].age(time.monotonic())
        return Situation(self._measured, *self._joints, age)

    def ages(self, now: float) -> dict[str, float]:
        """Age of the oldest member of each kind of source, s."""
        # Pictures and vectors are paired by stamp, so one clock made both, and it shows at least the newest of them: a
        # camera that was late from the first picture on is found out by the pose.
        clock = max(self.sources[name].clock(now) for name in self._contract.observation_names)
        ages = {'camera': max(max(self.sources[c.name].age(now), self.sources[c.name].behind(clock))
                              for c in self._contract.cameras),
                'command': self.sources['command'].age(now)}
        if self._contract.vectors:
            ages['pose'] = max(self.sources[v.name].age(now) for v in self._contract.vectors)
        if self._limits.joint_names:
            ages['joints'] = self.sources['joints'].age(now)
        return ages

    def oldest(self, now: float) -> float:
        """Age of the oldest measurement of the arm (pose, joints), s; 0 when nothing is measured."""
        return max((age for kind, age in self.ages(now).items() if kind in ('pose', 'joints')), default=0.0)

    def inputs(self, now: float | None = None, faults: tuple[Reason, ...] = (), **values) -> FilterInputs:
        """Return the inputs of a decision at `now`; `values` are the further fields of FilterInputs."""
        now = time.monotonic() if now is None else now
        recent = tuple(reason for reason, seen in self._faults.items() if now - seen <= self._limits.staleness)
        clocks = tuple(jumps for name, (jumps, _) in self._clocks.items() if self.sources[name].unsteady(now))
        return FilterInputs(**{'proposal': None, **values}, ages=self.ages(now), situation=self.situation,
                            faults=(*faults, *recent, *clocks))
