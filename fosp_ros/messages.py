# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Small ROS-side helpers around messages: types by name, stamps, copies. Nodes import it."""

import functools
import importlib
from typing import Any

from builtin_interfaces.msg import Time

from fosp_core.contract import Contract
from fosp_core.data import messages as replay_messages
from fosp_core.data.joiner import ACTION, LABEL, Label
from fosp_core.errors import ContractError


@functools.cache
def message_class(name: str) -> type:
    """Return the class of a type such as `geometry_msgs/msg/PoseStamped`; raise ContractError when it is not there."""
    try:
        package, folder, kind = name.split('/')
        return getattr(importlib.import_module(f'{package}.{folder}'), kind)
    except (ValueError, ImportError, AttributeError):
        raise ContractError(f'message type {name!r} is not installed; expected e.g. geometry_msgs/msg/PoseStamped'
                            ) from None


def stamped_class(name: str, where: str) -> type:
    """Return the class of a type that `where` uses; raise ContractError when no header tells its age."""
    kind = message_class(name)
    if 'header' not in kind.get_fields_and_field_types():
        raise ContractError(f'{where}: message type {name} has no header, expected a stamped one')
    return kind


def type_name(kind: type) -> str:
    """Return the name of a message class, such as `geometry_msgs/msg/PoseStamped`."""
    package, folder = kind.__module__.split('.')[:2]
    return f'{package}/{folder}/{kind.__name__}'


def time_of(stamp_ns: int) -> Time:
    """Return the Time message of integer nanoseconds."""
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    return Time(sec=int(seconds), nanosec=int(nanoseconds))


def restamped(message: Any, stamp_ns: int, frame: str | None = None) -> Any:
    """Return a message with the same content under another stamp; the content itself is shared, not copied."""
    copy = type(message)()
    for field in message.get_fields_and_field_types():
        if field != 'header':
            setattr(copy, field, getattr(message, field))
    copy.header.stamp = time_of(stamp_ns)
    copy.header.frame_id = message.header.frame_id if frame is None else frame
    return copy


def replay_set(contract: Contract, record, policy: str = '') -> dict[str, Any]:
    """Return the replay messages of one `recording.Record` by kind.

    The learner publishes them and `fosp record` writes them. A picture that has the network's size and encoding
    already is passed on as it came.
    """
    observation, made = record.observation, {}
    for camera in contract.cameras:
        source = observation.messages[camera.name]
        fits = (source.height, source.width, source.encoding) == (camera.height, camera.width, camera.encoding)
        made[camera.name] = restamped(source, observation.stamp) if fits else replay_messages.fill(
            contract, camera.name, type(source)(), observation.stamp, observation.arrays[camera.name])
    for vector in contract.vectors:
        made[vector.name] = restamped(observation.messages[vector.name], observation.stamp)
    if record.command is None:
        command = message_class(contract.action.type)()
        command.header.stamp, command.header.frame_id = time_of(observation.stamp), contract.action.frame
    else:
        command = restamped(record.command, observation.stamp)
    made[ACTION] = command
    label = Label(*observation.label, step=record.step, policy=policy)
    made[LABEL] = replay_messages.fill(contract, LABEL, message_class(replay_messages.LABEL_TYPE)(),
                                       observation.stamp, label)
    return made
