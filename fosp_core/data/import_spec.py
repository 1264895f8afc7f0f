# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The contract's `import` section: from which topics of a foreign bag the data comes. No ROS; anyone may import it.

It says where data comes from, not what it is: the contract's hash does not cover it, and a model trained on two robots'
bags with other topic names is of one contract. docs/how-to/import-a-bag.md explains each key.
"""

import dataclasses
import math
from typing import Any

from fosp_core.errors import ContractError

IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
JOY, TF = 'sensor_msgs/msg/Joy', 'tf2_msgs/msg/TFMessage'
JOINT_STATE, TRAJECTORY = 'sensor_msgs/msg/JointState', 'trajectory_msgs/msg/JointTrajectory'
JOINT_FIELDS = {JOINT_STATE: ('position', 'velocity', 'effort'),
                TRAJECTORY: ('positions', 'velocities', 'accelerations', 'effort')}
CLOCKS, PICKS, COMBINE, MODES = ('header', 'log'), ('next', 'hold', 'mean'), ('max', 'sum', 'last', 'hold'), \
    ('stamped', 'event')
EPISODES = ('label', 'ranges', 'bag')
ANY_FRAME = 'any'
_UNITS = {'m': ('m', 1.0), 'cm': ('m', 0.01), 'mm': ('m', 0.001), 'rad': ('rad', 1.0),
          'deg': ('rad', math.pi / 180), 'n': ('n', 1.0), 'nm': ('nm', 1.0), '1': ('1', 1.0)}


@dataclasses.dataclass(frozen=True)
class Source:
    """One topic. A relative name is looked for at the end of the bag's names. tolerance_s: None for the common one."""

    topic: str
    type: str
    clock: str = 'header'
    tolerance_s: float | None = None


@dataclasses.dataclass(frozen=True)
class CameraSource(Source):
    """Pictures; metres at which depth is white."""

    depth_range_m: float | None = None


@dataclasses.dataclass(frozen=True)
class ValueSource(Source):
    """Numbers: `fields` by path, or `joints` by name in the list `field`, or `index` into the list `field`.

    Each becomes value * scale + offset, in the contract's unit. `frame` is the frame_id that a message must have (any:
    not compared), `child` that of the transform in a TFMessage, `point` the point of a trajectory.
    """

    fields: tuple[str, ...] = ()
    joints: tuple[str, ...] = ()
    index: tuple[int, ...] = ()
    field: str = 'data'
    point: int = 0
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()
    frame: str = ANY_FRAME
    child: str = ''


@dataclasses.dataclass(frozen=True)
class ActionSource(ValueSource):
    """The executed command: which one of a period, for how long one stands (s), what none means, cut at the limits."""

    pick: str = 'next'
    hold_s: float = 0.5
    missing: str = 'gap'
    clip: bool = False


@dataclasses.dataclass(frozen=True)
class LabelSource(Source):
    """Joy: axes [reward, cost], buttons [is_first, is_last, is_terminal]; `event` counts rising edges."""

    mode: str = 'stamped'


@dataclasses.dataclass(frozen=True)
class SignalSource(Source):
    """A number or a Bool: value * scale, or scale where it is above `above`; `combine` is over one record's time."""

    field: str = 'data'
    scale: float = 1.0
    above: float | None = None
    invert: bool = False
    combine: str = 'max'


@dataclasses.dataclass(frozen=True)
class ImportSpec:
    """The whole section. tolerance_s: None for half a period; latency_s: how late a message may stand in the bag."""

    cameras: dict[str, CameraSource]
    vectors: dict[str, ValueSource]
    action: ActionSource
    label: LabelSource | None
    reward: tuple[SignalSource, ...]
    cost: tuple[SignalSource, ...]
    episodes: str | SignalSource
    ranges: str | None
    distribution: str | None
    tolerance_s: float | None
    latency_s: float

    def sources(self) -> list[Source]:
        """All topics that are read."""
        found = [*self.cameras.values(), *self.vectors.values(), self.action, *self.reward, *self.cost]
        found += [self.label] if self.label else []
        return found + ([self.episodes] if isinstance(self.episodes, SignalSource) else [])


class _Section:
    """A mapping of YAML whose keys are taken one by one, each checked; what is left over is a mistake."""

    def __init__(self, data: Any, where: str):
        if not isinstance(data, dict):
            raise ContractError(f'{where}: expected a mapping, found {type(data).__name__}')
        self.data, self.where = dict(data), where

    def take(self, key: str, kind=None, default=None, among: tuple = ()):
        value = self.data.pop(key, None)
        if value is None:
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) < 1e15 else math.inf
        if kind is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            raise self.error(key, value, {str: 'text', float: 'a number', int: 'a whole number', bool: 'true or false',
                                          list: 'a list', dict: 'a mapping'}[kind])
        if isinstance(value, float) and not abs(value) < 1e15:
            raise self.error(key, value, 'a finite number')
        if among and value not in among:
            raise self.error(key, value, f'one of {", ".join(map(str, among))}')
        return value

    def need(self, key: str, kind, default=None):
        value = self.take(key, kind, default)
        if value is None:
            raise ContractError(f'{self.where}: key {key} is missing')
        return value

    def positive(self, key: str, default=None):
        value = self.take(key, float, default)
        if value is not None and not value > 0:
            raise self.error(key, value, 'a number above 0')
        return value

    def items(self, key: str, kind) -> tuple:
        values = self.take(key, list, [])
        for value in values:
            if not isinstance(value, kind) or isinstance(value, bool):
                raise self.error(key, value, f'a list of {"names" if kind is str else "whole numbers"}')
        return tuple(values)

    def numbers(self, key: str, n: int, default: float) -> tuple[float, ...]:
        """A number for all entries, or one for each."""
        value = self.data.pop(key, None)
        values = [default if value is None else value] * n if not isinstance(value, list) else value
        good = len(values) == n and all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e15
                                        for v in values)
        if not good:
            raise self.error(key, value, f'a number, or a list of {n}')
        return tuple(map(float, values))

    def error(self, key: str, value, expected: str) -> ContractError:
        return ContractError(f'{self.where}: key {key} is {value!r}, expected {expected}')

    def done(self) -> None:
        if self.data:
            raise ContractError(f'{self.where}: unknown key {", ".join(map(str, self.data))}')

    def source(self, topic=None, msgtype=None) -> dict:
        """Read the keys that every topic has."""
        return {'topic': self.need('topic', str, topic), 'type': _type(self.need('type', str, msgtype)),
                'clock': self.take('clock', str, None, CLOCKS), 'tolerance_s': self.positive('tolerance_s')}


def _type(name: str) -> str:
    """`sensor_msgs/Image` is what people write for `sensor_msgs/msg/Image`."""
    return name.replace('/', '/msg/') if name.count('/') == 1 else name


def parse(data: Any, contract, where: str) -> ImportSpec:
    """Return the section `import` of a contract file; raise ContractError naming the key."""
    where = f'{where}: import'
    top = _Section({} if data is None else data, where)
    clock = top.take('clock', str, 'header', CLOCKS)

    def entries(key: str, names: list[str]) -> dict[str, _Section]:
        given = top.take(key, dict, {})
        if unknown := [str(name) for name in given if name not in names]:
            raise ContractError(f'{where}.{key}: the contract has no {", ".join(unknown)}, it has '
                                f'{", ".join(names) or "none"}')
        return {name: _Section({} if given.get(name) is None else given[name], f'{where}.{key}.{name}')
                for name in names}

    cameras, vectors = {}, {}
    for name, section in entries('cameras', [c.name for c in contract.cameras]).items():
        camera = next(c for c in contract.cameras if c.name == name)
        common = _clocked(section.source(camera.topic, IMAGE), clock)
        if common['type'] not in (IMAGE, COMPRESSED):
            raise section.error('type', common['type'], f'{IMAGE} or {COMPRESSED}')
        cameras[name] = CameraSource(**common, depth_range_m=section.positive('depth_range_m'))
        section.done()
    for name, section in entries('vectors', [v.name for v in contract.vectors]).items():
        vector = next(v for v in contract.vectors if v.name == name)
        vectors[name] = ValueSource(**_values(section, vector, clock, vector.topic))
        section.done()
    if 'action' not in top.data:
        raise ContractError(f'{where}: key action is missing')
    section = _Section(top.data.pop('action'), f'{where}.action')
    action = ActionSource(pick=section.take('pick', str, 'next', PICKS), hold_s=section.positive('hold_s', 0.5),
                          missing=section.take('missing', str, 'gap', ('gap', 'zero')),
                          clip=section.take('clip', bool, False), **_values(section, contract.action, clock, None))
    section.done()
    label = top.data.pop('label', None)
    if label is not None:
        section = _Section(label, f'{where}.label')
        label = LabelSource(mode=section.take('mode', str, 'stamped', MODES),
                            **_clocked(section.source(contract.label_topic, JOY), clock))
        if label.type != JOY:
            raise section.error('type', label.type, JOY)
        section.done()
    signals = {key: tuple(_signal(entry, f'{where}.{key}', clock) for entry in _listed(top.data.pop(key, None)))
               for key in ('reward', 'cost')}
    ranges = top.take('ranges', str)
    episodes = top.data.pop('episodes', None)
    if isinstance(episodes, dict):
        episodes = _signal(episodes, f'{where}.episodes', clock)
    elif episodes is None:
        episodes = 'label' if label else 'ranges' if ranges else 'bag'
    elif episodes not in EPISODES or (episodes == 'label' and label is None) or (episodes == 'ranges' and not ranges):
        raise top.error('episodes', episodes, f'one of {", ".join(EPISODES)} (with what it names), or a topic')
    spec = ImportSpec(cameras, vectors, action, label, **signals, episodes=episodes, ranges=ranges,
                      distribution=top.take('distribution', str), tolerance_s=top.positive('tolerance_s'),
                      latency_s=top.positive('latency_s', 1.0))
    top.done()
    return spec


def _clocked(common: dict, clock: str) -> dict:
    return {**common, 'clock': common['clock'] or clock}


def _listed(value) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def _signal(data, where: str, clock: str) -> SignalSource:
    section = _Section(data, where)
    signal = SignalSource(**_clocked(section.source(), clock), field=section.take('field', str, 'data'),
                          scale=section.take('scale', float, 1.0), above=section.take('above', float),
                          invert=section.take('invert', bool, False),
                          combine=section.take('combine', str, 'max', COMBINE))
    section.done()
    return signal


def _values(section: _Section, spec, clock: str, topic: str | None) -> dict:
    """Read what `ValueSource` and `ActionSource` share; `spec` is the contract's VectorSpec or ActionSpec."""
    found = _clocked(section.source(topic, spec.type), clock)
    msgtype, n = found['type'], spec.size
    found['fields'], found['joints'] = section.items('fields', str), section.items('joints', str)
    found['index'] = section.items('index', int)
    ways = [key for key in ('fields', 'joints', 'index') if found[key]]
    if not ways and msgtype == spec.type:
        found['fields'], ways = spec.fields, ['fields']
    if len(ways) != 1:
        raise ContractError(f'{section.where}: expected one of the keys fields, joints and index, to say which numbers '
                            f'of {msgtype} are {", ".join(spec.fields)}')
    if len(found[ways[0]]) != n:
        raise section.error(ways[0], list(found[ways[0]]), f'{n} entries, for {", ".join(spec.fields)}')
    if any(i < 0 for i in found['index']):
        raise section.error('index', list(found['index']), 'no negative number')
    if ways == ['joints']:
        if msgtype not in JOINT_FIELDS:
            raise section.error('joints', list(found['joints']), f'a type with joint names: {", ".join(JOINT_FIELDS)}')
        found['field'] = section.take('field', str, None, JOINT_FIELDS[msgtype])
        if found['field'] is None:
            raise ContractError(f'{section.where}: key field is missing, one of {", ".join(JOINT_FIELDS[msgtype])}')
    else:
        found['field'] = section.take('field', str, 'data')
    point = section.data.pop('point', 'first')
    if point not in ('first', 'last') and (not isinstance(point, int) or isinstance(point, bool) or point < 0):
        raise section.error('point', point, 'first, last or a whole number')
    found['point'] = {'first': 0, 'last': -1}.get(point, point)
    unit = section.data.pop('unit', None)
    factors = [1.0] * n if unit is None else _factors(section, unit, spec.unit, n)
    found['scale'] = tuple(s * f for s, f in zip(section.numbers('scale', n, 1.0), factors))
    found['offset'] = section.numbers('offset', n, 0.0)
    found['child'] = section.take('child', str, '')
    if bool(found['child']) != (msgtype == TF):
        raise section.error('child', found['child'] or None, f'the child frame with {TF}, and only there')
    found['frame'] = section.take('frame', str, spec.frame)
    return found


def _factors(section: _Section, unit, target: str, n: int) -> list[float]:
    """What turns the bag's units into the contract's; both may be one for all entries or a list with commas."""
    def split(text) -> list[str]:
        parts = [str(p).strip() for p in (text if isinstance(text, list) else str(text).split(','))]
        return parts * n if len(parts) == 1 else parts

    factors = []
    here, there = split(unit), split(target)
    if len(here) != n or len(there) != n:
        raise section.error('unit', unit, f'a unit, or {n} of them')
    for a, b in zip(here, there):
        (top_a, _, below_a), (top_b, _, below_b) = a.lower().partition('/'), b.lower().partition('/')
        known = top_a in _UNITS and top_b in _UNITS and _UNITS[top_a][0] == _UNITS[top_b][0] and below_a == below_b
        if a != b and not known:
            raise section.error('unit', a, f'one that can be turned into {b}; use scale for others')
        factors.append(1.0 if a == b else _UNITS[top_a][1] / _UNITS[top_b][1])
    return factors
