# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Replay messages to the joiner's payloads and back, for rclpy and rosbags messages alike. No ROS import.

The trainer node and the bag importer both read with `payload`, the learner and the bag writer both fill with `fill`:
one mapping, so that a step is the same, bit for bit, live and from a bag.
"""

import array
import re
from typing import Any

import numpy as np

from fosp_core.contract import Contract
from fosp_core.data import images
from fosp_core.data.joiner import ACTION, LABEL, Label, kinds
from fosp_core.errors import ContractError, DataError

IMAGE_TYPE, LABEL_TYPE = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/Joy'
BUTTONS = ('is_first', 'is_last', 'is_terminal', 'step')
# Encodings that hold the network's pixels without loss, per encoding of the contract.
_LOSSLESS = {'rgb8': ('rgb8', 'bgr8'), 'bgr8': ('rgb8', 'bgr8'), 'mono8': ('mono8', '8UC1')}
# Executed commands beyond the limits by more than this part of their range are a mistake (of units, mostly).
_TOLERANCE = 0.01
LARGEST = float(np.finfo(np.float32).max)      # what a record can hold


def topic(kind: str) -> str:
    """Topic of a replay message, relative to the namespace."""
    return f'replay/{kind}'


def types(contract: Contract) -> dict[str, str]:
    """Message type of each kind of a step, as `geometry_msgs/msg/PoseStamped`."""
    found = {c.name: IMAGE_TYPE for c in contract.cameras} | {v.name: v.type for v in contract.vectors}
    found |= {ACTION: contract.action.type, LABEL: LABEL_TYPE}
    return {kind: found[kind] for kind in kinds(contract)}


def stamp_ns(message) -> int:
    """Header stamp in integer nanoseconds: a float of seconds would lose the last ones, and with them the join."""
    stamp = message.header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def payload(contract: Contract, kind: str, message, where: str | None = None) -> tuple[int, Any]:
    """Return stamp (ns) and content of one replay message, for `StepJoiner.push`.

    A camera gives uint8 (H, W, C), a vector float32 (n,), `action` float32 (A,) in [-1, 1], `label` a Label.

    Raises
    ------
    DataError
        Naming `where` (default: the topic), the stamp, what is wrong and what was expected.

    """
    stamp = stamp_ns(message)
    where = f'{where or topic(kind)}, stamp {stamp}'
    if kind == LABEL:
        return stamp, _label(message, where)
    if kind == ACTION:
        return stamp, _action(contract, message, where)
    for vector in contract.vectors:
        if vector.name == kind:
            return stamp, _values(message, vector.fields, where).astype(np.float32)
    camera = next(c for c in contract.cameras if c.name == kind)
    if (message.height, message.width) != (camera.height, camera.width):
        raise DataError(f'{where}: image is {message.height}x{message.width}, expected {camera.height}x{camera.width}')
    if message.encoding not in _LOSSLESS[camera.encoding]:
        raise DataError(f'{where}: image encoding is {message.encoding!r}, expected {camera.encoding!r}')
    return stamp, images.to_camera(message.encoding, message.height, message.width, message.step,
                                   message.is_bigendian, message.data, camera, where)


def fill(contract: Contract, kind: str, message, stamp: int, value):
    """Set the fields of an empty replay message from what `payload` returns; return the message.

    `message` is a fresh rclpy message or one of `bag.blank`; frames come from the contract.
    """
    message.header.stamp.sec, message.header.stamp.nanosec = (int(part) for part in divmod(stamp, 1_000_000_000))
    if kind == LABEL:
        message.header.frame_id = value.policy
        message.axes = _like(message.axes, 'f', (float(value.reward), float(value.cost)))
        message.buttons = _like(message.buttons, 'i', [int(getattr(value, name)) for name in BUTTONS])
        return message
    if kind == ACTION:
        message.header.frame_id = contract.action.frame
        for path, entry in zip(contract.action.fields, contract.action.denormalise(value)):
            set_field(message, path, float(entry))
        return message
    for vector in contract.vectors:
        if vector.name == kind:
            message.header.frame_id = vector.frame
            _unit_quaternion(message)
            for path, entry in zip(vector.fields, value):
                set_field(message, path, float(entry))
            return message
    camera = next(c for c in contract.cameras if c.name == kind)
    message.header.frame_id = camera.name
    for name, entry in images.from_array(value, camera.encoding, topic(kind)).items():
        if name == 'data' and isinstance(message.data, np.ndarray):
            entry = np.frombuffer(entry, np.uint8)
        setattr(message, name, entry)
    return message


def get_field(message, path: str) -> float:
    """Value at a dotted path; numbers and brackets index lists: `pose.position.x`, `position.3`, `position[3]`."""
    return float(get_node(message, path))


def get_node(message, path: str):
    """Whatever is at a dotted path: a number, a list or a message."""
    node = message
    for part in _parts(path):
        node = node[part] if isinstance(part, int) else getattr(node, part)
    return node


def set_field(message, path: str, value: float) -> None:
    """Set the number at a dotted path; a list that is too short grows with zeros."""
    *parents, last = _parts(path)
    owner, node, name = None, message, None
    for part in parents:
        owner, node, name = node, (node[part] if isinstance(part, int) else getattr(node, part)), part
    if not isinstance(last, int):
        setattr(node, last, value)
        return
    grown = np.zeros(max(len(node), last + 1), np.float64)
    grown[:len(node)] = node
    grown[last] = value
    setattr(owner, name, _like(node, 'd', grown.tolist()))


def _parts(path: str) -> list[str | int]:
    return [int(p) if p.isdigit() else p for p in re.split(r'[.\[\]]+', path.strip('[]')) if p]


def _like(old, code: str, values):
    """Return a sequence of the type that the message holds: numpy in rosbags, array.array in rclpy."""
    if isinstance(old, np.ndarray):
        return np.array(values, old.dtype)
    return array.array(getattr(old, 'typecode', code), values)


def _unit_quaternion(message) -> None:
    """Give an unset orientation w = 1: all zero is no rotation, and tools complain about it."""
    pose = getattr(message, 'pose', None)
    orientation = getattr(pose, 'orientation', None)
    if orientation is not None and not (orientation.x or orientation.y or orientation.z or orientation.w):
        orientation.w = 1.0


def _values(message, fields: tuple[str, ...], where: str) -> np.ndarray:
    """Read finite numbers, float64 (n,)."""
    values = np.empty(len(fields))
    for i, path in enumerate(fields):
        try:
            values[i] = get_field(message, path)
        except IndexError:
            raise DataError(f'{where}: field {path} is beyond the end of its list') from None
        except (AttributeError, TypeError, ValueError):
            raise ContractError(f'{where}: field {path} is no number of {type(message).__name__}') from None
        if not abs(values[i]) <= LARGEST:
            raise DataError(f'{where}: field {path} is {values[i]}, expected a finite number')
    return values


def _action(contract: Contract, message, where: str) -> np.ndarray:
    return executed(contract, _values(message, contract.action.fields, where), where)


def executed(contract: Contract, values: np.ndarray, where: str, names: tuple[str, ...] = ()) -> np.ndarray:
    """Return an executed command, in the contract's unit, as float32 in [-1, 1].

    Beyond the limits by a little it is cut; beyond that DataError, with the field's name (`names`: in the message).
    """
    action = contract.action
    for path, value, low, high in zip(names or action.fields, values, action.low, action.high):
        slack = _TOLERANCE * (high - low)
        if not low - slack <= value <= high + slack:
            raise DataError(f'{where}: field {path} is {value:g}, expected {low:g} to {high:g} {action.unit}')
    return action.normalise(values)


def _label(message, where: str) -> Label:
    axes, buttons = message.axes, message.buttons
    if len(axes) < 2 or len(buttons) < len(BUTTONS):
        raise DataError(f'{where}: {len(axes)} axes and {len(buttons)} buttons, expected axes [reward, cost] and '
                        f'buttons [{", ".join(BUTTONS)}]')
    reward, cost = float(axes[0]), float(axes[1])
    if not np.isfinite(reward):
        raise DataError(f'{where}: reward is {reward}, expected a finite number')
    if not (np.isfinite(cost) and cost >= 0.0):
        raise DataError(f'{where}: cost is {cost}, expected a finite number of 0 or more')
    return Label(reward, cost, bool(buttons[0]), bool(buttons[1]), bool(buttons[2]), int(buttons[3]),
                 str(message.header.frame_id))
