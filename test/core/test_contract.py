# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The contract: actions that survive metres per second bit for bit, and errors that name the key."""

import dataclasses

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fosp_core.contract import ActionSpec, Contract
from fosp_core.errors import ContractError
from fosp_core.paths import config_file

UNIT = st.floats(-1.0, 1.0, width=32)


def spec(low, high):
    fields = tuple(f'f{i}' for i in range(len(low)))
    return ActionSpec('geometry_msgs/msg/TwistStamped', fields, tuple(low), tuple(high), 'm/s', 'base')


@settings(max_examples=500, deadline=None)
@given(st.lists(UNIT, min_size=3, max_size=3), st.floats(1e-3, 1e3))
def test_symmetric_limits_round_trip_bit_for_bit(action, limit):
    """What was executed is recorded in m/s; the policy must get back the very action that it chose."""
    action = np.array(action, np.float32)
    back = spec([-limit] * 3, [limit] * 3)
    assert back.normalise(back.denormalise(action)).tobytes() == action.tobytes()


def test_special_values_round_trip(contract):
    tiny = np.float32(1e-45)
    values = np.array([0.0, -0.0, 1.0, -1.0, tiny, -tiny, np.nextafter(np.float32(1), np.float32(0)), 1 / 3, -0.1],
                      np.float32).reshape(3, 3)
    command = contract.action.denormalise(values)
    assert command.dtype == np.float64
    assert contract.action.normalise(command).tobytes() == values.tobytes()


@settings(max_examples=300, deadline=None)
@given(st.lists(UNIT, min_size=2, max_size=2), st.floats(-5, 5), st.floats(0.01, 5))
def test_any_limits_round_trip_to_rounding(action, low, width):
    """Limits off zero (a gripper, 0 to 0.08 m) cannot hold the smallest actions: they come back to 1e-13."""
    action = np.array(action, np.float32)
    back = spec([low] * 2, [low + width] * 2)
    command = back.denormalise(action)
    assert (command >= low).all() and (command <= low + width).all()
    np.testing.assert_allclose(back.normalise(command), action, rtol=6e-8, atol=1e-12)


def test_ends_and_clipping(contract):
    action = contract.action
    np.testing.assert_array_equal(action.denormalise([-1, 0, 1]), [-0.25, 0.0, 0.25])
    np.testing.assert_array_equal(action.denormalise([-3, 0, 3]), [-0.25, 0.0, 0.25])
    np.testing.assert_array_equal(action.normalise([-9.0, 0.0, 9.0]), [-1, 0, 1])
    assert action.normalise(np.zeros((4, 5, 3))).shape == (4, 5, 3)


def test_the_hash_tells_contracts_apart(contract):
    other = dataclasses.replace(contract, rate_hz=20.0)
    assert contract.hash == Contract.from_dict(contract.to_dict()).hash != other.hash
    contract.require_same(contract.hash, 'bundle')
    with pytest.raises(ContractError) as error:
        contract.require_same(other.hash, 'bundle x')
    assert other.hash[:12] in str(error.value) and contract.hash[:12] in str(error.value)
    assert 'bundle x' in str(error.value)


def broken(**changes):
    data = yaml.safe_load(config_file('contract_safereach.yaml').read_text())
    for path, value in changes.items():
        *parents, last = path.split('__')
        node = data
        for key in parents:
            node = node[int(key) if key.isdigit() else key]
        if value is None:
            del node[last]
        else:
            node[last] = value
    return data


@pytest.mark.parametrize(('changes', 'names'), [
    ({'action': None}, 'action'),
    ({'rate_hz': None}, 'rate_hz'),
    ({'rate_hz': -1}, 'rate_hz'),
    ({'rate_hz': float('nan')}, 'rate_hz'),
    ({'schema': 7}, 'schema'),
    ({'cameras': []}, 'cameras'),
    ({'cameras__0__encoding': 'rgb9'}, 'rgb8'),
    ({'cameras__0__colour': 1}, 'colour'),
    ({'vectors__0__name': 'image'}, 'not unique'),
    ({'action__low': [-1.0]}, 'low and high have 1 and 3 entries'),
    ({'action__high': [-1.0, -1.0, -1.0]}, 'limits of twist.linear.x'),
    ({'action__high': [1.0, 1.0, float('inf')]}, 'finite'),
])
def test_a_wrong_contract_names_file_and_key(tmp_path, changes, names):
    path = tmp_path / 'contract.yaml'
    path.write_text(yaml.safe_dump(broken(**changes)))
    with pytest.raises(ContractError) as error:
        Contract.load(path)
    assert str(path) in str(error.value) and names in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('text', ['', '[]', 'a: [', '\x00'])
def test_no_contract_at_all_is_one_line(tmp_path, text):
    path = tmp_path / 'contract.yaml'
    path.write_text(text)
    with pytest.raises(ContractError, match=r'contract\.yaml'):
        Contract.load(path)
    with pytest.raises(ContractError, match='No such file'):
        Contract.load(tmp_path / 'absent.yaml')


def test_a_file_that_is_not_text_is_one_line(tmp_path):
    path = tmp_path / 'contract.yaml'
    path.write_bytes(b'name: \xff\xfe')
    with pytest.raises(ContractError, match='not UTF-8 text'):
        Contract.load(path)
