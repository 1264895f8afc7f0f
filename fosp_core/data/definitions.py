# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which definition a topic's bytes are read by: that embedded in the bag, else that of a ROS 2 distribution."""

import functools

from rosbags.interfaces import Connection, MessageDefinitionFormat, Nodetype
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore

from fosp_core.errors import DataError

DISTRIBUTIONS = {'foxy': Stores.ROS2_FOXY, 'galactic': Stores.ROS2_GALACTIC, 'humble': Stores.ROS2_HUMBLE,
                 'iron': Stores.ROS2_IRON, 'jazzy': Stores.ROS2_JAZZY, 'kilted': Stores.ROS2_KILTED}
DEFAULT = 'jazzy'
_MAX_ARRAY = 4096       # entries of a fixed array: rosbags writes a line of code for each
_MAX_TEXT = 1 << 20     # characters of a definition
_IDL_RULE = '=' * 80 + '\n'


class Definitions:
    """Message definitions of one bag.

    Parameters
    ----------
    where
        The bag, for errors.
    distribution
        Where definitions that are not in the bag come from: what the contract names, else what the bag says of itself,
        else Jazzy.

    """

    def __init__(self, where: str, distribution: str | None):
        name = distribution or DEFAULT
        if name not in DISTRIBUTIONS:
            raise DataError(f'{where}: distribution {name!r}, expected one of {", ".join(DISTRIBUTIONS)}')
        self._where, self._name = where, name
        self._distribution = get_typestore(DISTRIBUTIONS[name])

    def store(self, connection: Connection):
        """Return the type store that knows this connection's type; raise DataError naming topic and type."""
        where, msgtype = f'{self._where}: {connection.topic}', connection.msgtype
        known = msgtype in self._distribution.fielddefs
        if connection.msgdef.format == MessageDefinitionFormat.NONE or not connection.msgdef.data.strip():
            if not known:
                raise DataError(f'{where}: the bag holds no definition of {msgtype}, nor has ROS 2 {self._name} one')
            return self._distribution
        if known and connection.digest and connection.digest == self._distribution.hash_rihs01(msgtype):
            return self._distribution       # the same, and need not be parsed
        try:
            return _parse(connection.msgdef.format, connection.msgdef.data, msgtype)
        except Exception as error:  # noqa: BLE001 - the text comes from the bag and can be anything
            raise DataError(f'{where}: the definition of {msgtype} in the bag cannot be read: '
                            f'{" ".join(str(error).split()) or type(error).__name__}') from None


@functools.lru_cache(maxsize=64)
def _parse(layout: MessageDefinitionFormat, text: str, msgtype: str):
    if len(text) > _MAX_TEXT:
        raise ValueError(f'{len(text)} characters')
    types: dict = {}
    if layout == MessageDefinitionFormat.MSG:
        types.update(get_types_from_msg(text, msgtype))
    elif text.startswith(f'{_IDL_RULE}IDL: '):
        for part in text.split(_IDL_RULE)[1:]:
            types.update(get_types_from_idl(part.split('\n', 1)[1]))
    else:
        types.update(get_types_from_idl(text))
    for name, (_, fields) in types.items():
        for field, (kind, detail) in fields:
            if kind == Nodetype.ARRAY and detail[1] > _MAX_ARRAY:
                raise ValueError(f'{name}.{field} is an array of {detail[1]} entries, expected at most {_MAX_ARRAY}')
    store = get_typestore(Stores.EMPTY)
    store.register(types)
    store.get_msgdef(msgtype)       # compiles it, and so finds what is missing or goes in circles
    return store


def has_header(store, msgtype: str) -> bool:
    """True when messages begin with a std_msgs/Header, whose stamp then stands at a fixed place."""
    fields = store.fielddefs[msgtype][1]
    return bool(fields) and fields[0] == ('header', (Nodetype.NAME, 'std_msgs/msg/Header'))
