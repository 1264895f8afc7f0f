# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Messages as bytes (CDR) and as objects of rosbags, with the definitions of ROS 2 Jazzy. Anyone may import it."""

import numpy as np
from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_typestore

from fosp_core.errors import DataError

_TRAILING = 32          # bytes after the end of a message that are no sign of damage

_store = None


def typestore():
    """Message types of Jazzy; those used here have the same definitions (RIHS01) from Humble to Kilted."""
    global _store
    if _store is None:
        _store = get_typestore(Stores.ROS2_JAZZY)
    return _store


def blank(msgtype: str, store=None):
    """Return an empty rosbags message: numbers zero, strings and sequences empty, as rclpy's constructors do."""
    store = typestore() if store is None else store
    if msgtype not in store.fielddefs:
        raise DataError(f'message type {msgtype!r} is unknown, expected a standard type of ROS 2 Jazzy')

    def empty(kind, detail):
        if kind == Nodetype.NAME:
            return blank(detail, store)
        if kind == Nodetype.BASE:
            return {'string': '', 'bool': False}.get(detail[0], 0.0 if detail[0].startswith('float') else 0)
        (inner, inner_detail), length = detail
        length = length if kind == Nodetype.ARRAY else 0
        if inner == Nodetype.BASE and inner_detail[0] != 'string':
            return np.zeros(length, inner_detail[0].replace('octet', 'uint8'))
        return [empty(inner, inner_detail) for _ in range(length)]

    return store.types[msgtype](**{name: empty(*definition) for name, definition in store.fielddefs[msgtype][1]})


def deserialise(raw: bytes, msgtype: str, store=None):
    """Return the rosbags message in CDR bytes; raises anything on damaged ones.

    Unlike rosbags' own function it bears some bytes after the end: rclpy's serialize_message leaves them there when a
    message ends in empty sequences of doubles (JointState), and recorders in Python write what it returns. `store` are
    the definitions (default: those of Jazzy).
    """
    if len(raw) < 4 or bytes(raw[:2]) not in (b'\0\0', b'\0\1'):
        raise ValueError('no CDR header')
    store = typestore() if store is None else store
    definition = store.get_msgdef(msgtype)
    read = definition.deserialize_cdr_le if raw[1] else definition.deserialize_cdr_be
    # A view: a slice of bytes would copy the picture.
    message, end = read(memoryview(raw)[4:], 0, definition.cls, store)
    if end + 4 > len(raw) or end + 4 + _TRAILING < len(raw):
        raise ValueError(f'{len(raw)} bytes, expected {end + 4}')
    return message
