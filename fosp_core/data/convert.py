# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Messages of foreign topics to what a record holds, by the conversions that the contract's import section declares.

`reader(...)` returns a function (raw bytes, where) -> value; every error names `where` (file, topic and stamp). No ROS.
"""

from collections.abc import Callable

import numpy as np

from fosp_core.contract import CameraSpec, Contract
from fosp_core.data import images, messages
from fosp_core.data.cdr import deserialise
from fosp_core.data.import_report import TopicCounts
from fosp_core.data.import_spec import (
    ANY_FRAME,
    COMPRESSED,
    JOINT_FIELDS,
    TF,
    TRAJECTORY,
    ActionSource,
    CameraSource,
    LabelSource,
    SignalSource,
    ValueSource,
)
from fosp_core.errors import ContractError, DataError

Reader = Callable[[bytes, str], object]


def message(raw: bytes, msgtype: str, store, where: str):
    """Deserialise; raise DataError naming `where`."""
    try:
        return deserialise(raw, msgtype, store)
    except Exception as error:  # noqa: BLE001 - damaged bytes can make the parser raise anything
        raise DataError(f'{where}: not a {msgtype}: {" ".join(str(error).split()) or type(error).__name__}') from None


def camera(source: CameraSource, spec: CameraSpec, store) -> Reader:
    """Reader of pictures: uint8 (height, width, channels) of the contract."""
    depth = source.depth_range_m or images.DEPTH_RANGE_M

    def read(raw, where):
        m = message(raw, source.type, store, where)
        if source.type == COMPRESSED:
            return images.from_compressed(m.format, m.data, spec, where, depth)
        return images.to_camera(m.encoding, m.height, m.width, m.step, m.is_bigendian, m.data, spec, where, depth)
    return read


def vector(source: ValueSource, store) -> Reader:
    """Reader of numbers in the contract's unit: float32 (n,)."""
    values = _values(source)

    def read(raw, where):
        return values(message(raw, source.type, store, where), where).astype(np.float32)
    return read


def transform(source: ValueSource, store) -> Callable[[bytes, str], tuple | None]:
    """Reader of TFMessage: (stamp message, float32 (n,)) of the wanted transform, or None when it is not in there."""
    values = _values(source)

    def read(raw, where):
        for entry in message(raw, TF, store, where).transforms:
            if entry.child_frame_id.lstrip('/') == source.child.lstrip('/'):
                return entry.header.stamp, values(entry, where).astype(np.float32)
        return None
    return read


def action(source: ActionSource, contract: Contract, store, counts: TopicCounts) -> Reader:
    """Reader of executed commands: float32 (A,) in [-1, 1]."""
    values, spec = _values(source), contract.action
    names = source.fields or source.joints or tuple(f'{source.field}[{i}]' for i in source.index)

    def read(raw, where):
        found = values(message(raw, source.type, store, where), where)
        if source.clip:
            counts.clipped += bool((found < spec.low).any() or (found > spec.high).any())
            return spec.normalise(found)
        return messages.executed(contract, found, where, names)
    return read


def label(source: LabelSource, store) -> Reader:
    """Reader of Joy: (reward, cost, is_first, is_last, is_terminal); short lists are filled with zeros."""
    def read(raw, where):
        m = message(raw, source.type, store, where)
        reward, cost = [*map(float, m.axes[:2]), 0.0, 0.0][:2] if len(m.axes) < 2 else map(float, m.axes[:2])
        if not np.isfinite(reward):
            raise DataError(f'{where}: reward (axes[0]) is {reward}, expected a finite number')
        if not (np.isfinite(cost) and cost >= 0.0):
            raise DataError(f'{where}: cost (axes[1]) is {cost}, expected a finite number of 0 or more')
        flags = [*map(bool, m.buttons[:3]), False, False, False][:3]
        return reward, cost, *flags
    return read


def signal(source: SignalSource, store, negative: bool) -> Reader:
    """Reader of one number; `negative` says whether it may be below zero (a reward may, a cost may not)."""
    def read(raw, where):
        value = _number(message(raw, source.type, store, where), source.field, where, source.type)
        if source.above is not None:
            value = float(value > source.above)
        if source.invert:
            value = float(not value)
        value *= source.scale
        if not abs(value) <= messages.LARGEST:
            raise DataError(f'{where}: field {source.field} gives {value:g}, expected a finite number')
        if value < 0 and not negative:
            raise DataError(f'{where}: field {source.field} gives {value:g}, expected 0 or more')
        return value
    return read


def _number(node, path: str, where: str, msgtype: str) -> float:
    try:
        value = messages.get_field(node, path)
    except IndexError:
        raise DataError(f'{where}: field {path} is beyond the end of its list') from None
    except (AttributeError, TypeError, ValueError):
        raise ContractError(f'{where}: field {path} is no number of {msgtype}') from None
    if not abs(value) <= messages.LARGEST:
        raise DataError(f'{where}: field {path} is {value}, expected a finite number')
    return value


def _values(source: ValueSource) -> Callable[[object, str], np.ndarray]:
    """Return a function message -> float64 (n,), scaled; it checks the frame."""
    scale, offset = np.array(source.scale), np.array(source.offset)
    plain = bool((scale == 1.0).all() and (offset == 0.0).all())
    frame = source.frame.lstrip('/')

    def raw_values(m, where):
        if source.joints:
            return _by_joint(source, m, where)
        if source.index:
            return np.array([_number(m, f'{source.field}[{i}]', where, source.type) for i in source.index])
        return np.array([_number(m, path, where, source.type) for path in source.fields])

    def read(m, where):
        if frame != ANY_FRAME:
            found = getattr(getattr(m, 'header', None), 'frame_id', '').lstrip('/')
            if found and found != frame:
                raise DataError(f'{where}: frame_id is {found!r}, expected {frame!r}; name it with the key frame when '
                                f'it is the same, or {ANY_FRAME}')
        values = raw_values(m, where)
        if plain:
            return values
        values = values * scale + offset
        if not (np.abs(values) <= messages.LARGEST).all():
            raise DataError(f'{where}: {values.tolist()} after scale and offset, expected finite numbers')
        return values
    return read


def _by_joint(source: ValueSource, m, where: str) -> np.ndarray:
    names = list(m.joint_names if source.type == TRAJECTORY else m.name)
    node = m
    if source.type == TRAJECTORY:
        try:
            node = m.points[source.point]
        except IndexError:
            raise DataError(f'{where}: a trajectory of {len(m.points)} points has no point {source.point}') from None
    series = getattr(node, source.field)
    values = np.empty(len(source.joints))
    for i, joint in enumerate(source.joints):
        if joint not in names:
            raise DataError(f'{where}: no joint {joint}, the message has {", ".join(names) or "none"}')
        if names.index(joint) >= len(series):
            raise DataError(f'{where}: list {source.field} has {len(series)} entries for {len(names)} joints; it may '
                            f'be another of {", ".join(JOINT_FIELDS[source.type])} that is filled')
        values[i] = series[names.index(joint)]
        if not abs(values[i]) <= messages.LARGEST:
            raise DataError(f'{where}: {source.field} of joint {joint} is {values[i]}, expected a finite number')
    return values
