# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the readers and writers of other projects' data sets share: clock, actions, rewards, names, errors."""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from fosp_core.contract import Contract
from fosp_core.data.episode import Episode
from fosp_core.errors import ContractError, DataError
from fosp_core.formats.detect import Options

EPISODE_GAP_NS = 2_000_000_000
CONTRACT_KEYS = ('fosp_contract_hash', 'fosp_contract')


class Clock:
    """Stamps and counters for data that has none: one period apart, two seconds between episodes."""

    def __init__(self, contract: Contract):
        self._period, self._stamp, self._step = round(contract.period * 1e9), 0, 0

    def next(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return stamps (ns) and counters of the next `count` records, int64."""
        ticks = np.arange(count, dtype=np.int64)
        stamps, steps = self._stamp + self._period * ticks, self._step + ticks
        self._stamp, self._step = int(stamps[-1]) + EPISODE_GAP_NS, self._step + count
        return stamps, steps


def line(error: Exception) -> str:
    """Return an error as one line."""
    return ' '.join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def damage(where: str) -> Iterator[None]:
    """Turn whatever a library raises on a damaged file into one DataError that names the place."""
    try:
        yield
    except (DataError, ContractError):
        raise
    except Exception as error:  # noqa: BLE001 - a damaged file can make the parser raise anything
        raise DataError(f'{where}: cannot be read (truncated or damaged?): {line(error)}') from None


def same_contract(contract: Contract, found_hash: str | None, found: str | dict | None, where: str) -> None:
    """Raise ContractError when the data set names a contract, and it is another one."""
    if found_hash is not None:
        if isinstance(found_hash, bytes):
            found_hash = found_hash.decode('ascii', 'replace')
        with damage(f'{where}: key {CONTRACT_KEYS[1]}'):
            other = json.loads(found) if isinstance(found, (str, bytes)) else found
        contract.require_same(str(found_hash), where, other)


def checked(path: Path, contract: Contract, episodes: Iterable[Episode]) -> Iterator[Episode]:
    """Yield the episodes that are to be written, validated; raise DataError when there is none."""
    number = -1
    for number, episode in enumerate(episodes):
        episode.validate(contract, f'{path}: episode {number}')
        yield episode
    if number < 0:
        raise DataError(f'{path}: no episode to write')


def number_array(values, shape: tuple[int, ...], where: str, kind=np.float32) -> np.ndarray:
    """Return `values` as an array of `kind`; raise DataError when they are no numbers or not of `shape`."""
    try:
        array = np.asarray(values)
        if array.dtype.kind not in 'biuf':
            raise ValueError(f'{array.dtype}')
    except ValueError as error:
        raise DataError(f'{where}: expected numbers, found {line(error)}') from None
    if array.shape != shape:
        # Transitions are often written as a column.
        if array.size == int(np.prod(shape)) and array.ndim == len(shape) + 1 and array.shape[-1] == 1:
            array = array[..., 0]
        else:
            raise DataError(f'{where}: shape {array.shape}, expected {shape}')
    return np.ascontiguousarray(array, kind)


def pictures(values: np.ndarray, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Return uint8 pictures of `shape`; a grey picture may lack its last axis."""
    values = np.asarray(values)
    if values.shape + (1,) == shape:
        values = values[..., None]
    if values.shape != shape or values.dtype != np.uint8:
        raise DataError(f'{where}: {values.dtype} {values.shape}, expected uint8 {shape}')
    return np.ascontiguousarray(values)


def to_action(values: np.ndarray, unit: str, contract: Contract, where: str) -> np.ndarray:
    """Return normalised actions, float32 (n, size), from `normalised` or `unit` ones.

    Raises
    ------
    DataError
        When a command leaves the contract's limits by more than rounding: it would be clipped in silence.

    """
    if unit == 'normalised':
        return np.asarray(values, np.float32)
    low, high = np.asarray(contract.action.low), np.asarray(contract.action.high)
    slack = 1e-6 * (high - low)
    bad = (values < low - slack) | (values > high + slack)
    if bad.any():
        t, d = (int(i) for i in np.argwhere(bad)[0])
        raise DataError(f'{where}: action {contract.action.fields[d]} is {values[t, d]:g} at record {t}, expected '
                        f'{low[d]:g} to {high[d]:g} {contract.action.unit}')
    return contract.action.normalise(values)


def missing(key: str, options: Options, count: int, where: str) -> np.ndarray:
    """Return zeros for a reward or cost that the data set lacks, if that was asked for; else raise DataError."""
    if key not in options.zero:
        raise DataError(f'{where} (to take it as zero: fosp import --zero {key})')
    return np.zeros(count, np.float32)


def part(key: str) -> tuple[str, slice]:
    """Split `KEY[a:b]` into key and slice of the last axis; a plain KEY means all of it."""
    found = re.fullmatch(r'(.+)\[(\d*):(\d*)\]', key)
    if not found:
        return key, slice(None)
    name, start, stop = found.groups()
    return name, slice(int(start) if start else None, int(stop) if stop else None)


def meta_text(meta: dict) -> str:
    """Meta of an episode as JSON."""
    return json.dumps(meta, default=lambda value: value.item())


def meta_of(text, where: str) -> dict:
    """Meta from JSON; raise DataError when it is none."""
    try:
        meta = json.loads(text)
        if not isinstance(meta, dict):
            raise ValueError('no mapping')
    except (ValueError, TypeError) as error:
        raise DataError(f'{where}: no JSON mapping: {line(error)}') from None
    return meta
