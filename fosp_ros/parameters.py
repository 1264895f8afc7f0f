# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Node parameters from one frozen table: declaration, validation, YAML check and the documentation table.

Each node holds a tuple of `P`. From it come the ROS declaration with descriptors, the reasons with which a wrong value
is refused, the reference page and the test of `config/*.yaml`. Nodes import it; only `declare` touches rclpy.
"""

import dataclasses
import difflib
import math
import types
from collections.abc import Iterable, Sequence
from typing import Any

from fosp_core.errors import FospError

TYPES = {'bool': bool, 'int': int, 'double': float, 'string': str,
         'int_array': int, 'double_array': float, 'string_array': str}
# Parameters that rclpy itself declares for every node, in one distribution or another.
BUILTIN = ('use_sim_time', 'start_type_description_service')


@dataclasses.dataclass(frozen=True)
class P:
    """One parameter: `low` and `high` bound a number or every entry of an array; `choices` bounds a string."""

    name: str
    type: str
    default: Any
    text: str
    unit: str = ''
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    read_only: bool = False

    def __post_init__(self):
        if self.type not in TYPES:
            raise ValueError(f'parameter {self.name}: type {self.type!r} is not one of {", ".join(TYPES)}')
        reason = refuse(self, self.default)
        if reason:
            raise ValueError(f'default of {reason}')

    @property
    def is_array(self) -> bool:
        """True for the array types."""
        return self.type.endswith('_array')

    @property
    def range_text(self) -> str:
        """The allowed values in words; empty when anything of the type will do."""
        if self.choices:
            return ', '.join(self.choices)
        if self.low is None and self.high is None:
            return ''
        whole = self.type.startswith('int')
        low, high = (end if bound is None else str(int(bound)) if whole else f'{bound:g}'
                     for end, bound in (('-inf', self.low), ('inf', self.high)))
        return f'{low} to {high}'


def refuse(p: P, value: Any) -> str | None:
    """Return why `value` cannot be the value of `p`, in one sentence, or None when it can."""
    entries = list(value) if p.is_array and isinstance(value, Iterable) and not isinstance(value, str) else [value]
    if p.is_array and entries and entries[0] is value:
        return f'parameter {p.name}: {value!r} is not a list'
    kind = TYPES[p.type]
    for entry in entries:
        good = isinstance(entry, kind) and (kind is bool or not isinstance(entry, bool))
        if kind is float and isinstance(entry, int) and not isinstance(entry, bool):
            good = True
        if not good:
            return f'parameter {p.name}: {entry!r} is not of type {p.type}'
        if kind is float and not math.isfinite(entry):
            return f'parameter {p.name}: {entry!r} is not finite'
        if p.choices and entry not in p.choices:
            return f'parameter {p.name}: {entry!r} is not one of {", ".join(p.choices)}'
        if (p.low is not None and entry < p.low) or (p.high is not None and entry > p.high):
            return f'parameter {p.name}: {entry!r} is outside {p.range_text}{" " + p.unit if p.unit else ""}'
    return None


def coerce(p: P, value: Any) -> Any:
    """Return `value` in the type of `p` (an int becomes a float where a double is meant); raise FospError if bad."""
    reason = refuse(p, value)
    if reason:
        raise FospError(reason)
    kind = TYPES[p.type]
    return [kind(v) for v in value] if p.is_array else kind(value)


def parse(p: P, text: str) -> Any:
    """Read `text` from a command line as the value of `p`; raise FospError naming parameter and type."""
    def one(word: str) -> Any:
        word = word.strip()
        try:
            if TYPES[p.type] is bool:
                return {'true': True, 'false': False, '1': True, '0': False}[word.lower()]
            return TYPES[p.type](word)
        except (KeyError, ValueError):
            raise FospError(f'parameter {p.name}: {word!r} is not of type {p.type}') from None
    if not p.is_array:
        return coerce(p, one(text))
    body = text.strip().removeprefix('[').removesuffix(']')
    return coerce(p, [one(w) for w in body.split(',')] if body.strip() else [])


def find(table: Sequence[P], name: str, where: str) -> P:
    """Return the row called `name`; raise FospError with the nearest known name."""
    for p in table:
        if p.name == name:
            return p
    near = difflib.get_close_matches(name, [p.name for p in table], 1)
    raise FospError(f'{where}: no parameter {name!r}' + (f'; did you mean {near[0]!r}?' if near else
                                                        f'; known: {", ".join(p.name for p in table)}'))


def check_values(table: Sequence[P], values: dict[str, Any], where: str, complete: bool = False) -> dict[str, Any]:
    """Check a mapping such as `ros__parameters` of a YAML file against the table and return it coerced.

    Raises FospError naming the parameter for an unknown or wrong one, and with `complete` for a missing one.
    """
    known = {}
    for name, value in values.items():
        if name in BUILTIN:
            continue
        try:
            known[name] = coerce(find(table, name, where), value)
        except FospError as error:
            raise FospError(str(error) if str(error).startswith(where) else f'{where}: {error}') from None
    missing = [p.name for p in table if p.name not in known]
    if complete and missing:
        raise FospError(f'{where}: parameter {missing[0]} is missing')
    return known


def declare(node, table: Sequence[P]) -> types.SimpleNamespace:
    """Declare every row on `node` and install the validation; return the live values as attributes.

    An override of the wrong type or of an unknown name raises FospError: a misspelt limit must not be ignored.
    Later changes of parameters that are not read-only show up in the returned namespace.
    """
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
    from rclpy.parameter import Parameter

    kinds = {'bool': Parameter.Type.BOOL, 'int': Parameter.Type.INTEGER, 'double': Parameter.Type.DOUBLE,
             'string': Parameter.Type.STRING, 'int_array': Parameter.Type.INTEGER_ARRAY,
             'double_array': Parameter.Type.DOUBLE_ARRAY, 'string_array': Parameter.Type.STRING_ARRAY}
    rows = {p.name: p for p in table}
    where = f'node {node.get_name()}'
    overrides = getattr(node, '_parameter_overrides', {})
    for name in overrides:
        if name not in rows and name not in BUILTIN and not name.startswith('qos_overrides.'):
            find(table, name, where)
    live = types.SimpleNamespace()
    for p in table:
        limits = {}
        if p.low is not None or p.high is not None:
            if p.type == 'int':
                low = -2**63 if p.low is None else int(p.low)
                high = 2**63 - 1 if p.high is None else int(p.high)
                limits = {'integer_range': [IntegerRange(from_value=low, to_value=high, step=0)]}
            elif p.type == 'double':
                low = -1e308 if p.low is None else float(p.low)
                high = 1e308 if p.high is None else float(p.high)
                limits = {'floating_point_range': [FloatingPointRange(from_value=low, to_value=high, step=0.0)]}
        text = f'{p.text} [{p.unit}]' if p.unit else p.text
        descriptor = ParameterDescriptor(name=p.name, type=kinds[p.type].value, description=text,
                                         additional_constraints=p.range_text, read_only=p.read_only, **limits)
        value = p.default
        if p.name in overrides:  # `-p rate:=10` arrives as an integer: meant as a double where the table says so
            found = overrides[p.name]
            # An empty list in a parameter file has no type: ROS reports it as not set.
            empty = p.is_array and found.type_ == Parameter.Type.NOT_SET
            try:
                value = coerce(p, [] if empty else found.value)
            except FospError as error:
                raise FospError(f'{where}: {error}') from None
        elif p.is_array or p.type == 'double':
            value = coerce(p, value)
        node.declare_parameter(p.name, Parameter(p.name, kinds[p.type], value).value, descriptor,
                               ignore_override=True)
        setattr(live, p.name, value)

    def validate(parameters) -> SetParametersResult:
        for parameter in parameters:
            p = rows.get(parameter.name)
            reason = refuse(p, parameter.value) if p else None
            if reason:
                return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    def store(parameters) -> None:
        for parameter in parameters:
            if parameter.name in rows:
                setattr(live, parameter.name, parameter.value)

    node.add_on_set_parameters_callback(validate)
    node.add_post_set_parameters_callback(store)
    return live


def markdown(title: str, table: Sequence[P]) -> str:
    """Return the reference table of one node."""
    def cell(value: Any) -> str:
        return str(value).replace('|', '\\|')
    lines = [f'### {title}', '', '| parameter | type | default | range | unit | fixed at start | meaning |',
             '|---|---|---|---|---|---|---|']
    for p in table:
        default = {True: 'true', False: 'false'}.get(p.default, p.default) if p.type == 'bool' else p.default
        shown = f'`{default}`' if default != '' else '(empty)'
        lines.append(f'| `{p.name}` | {p.type} | {cell(shown)} | {cell(p.range_text)} | {p.unit} | '
                     f'{"yes" if p.read_only else ""} | {cell(p.text)} |')
    return '\n'.join(lines) + '\n'
