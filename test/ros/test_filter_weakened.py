# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What guards less than it does by default is named, and nothing else is."""

import types

import numpy as np
import pytest

from fosp_core.contract import Contract
from fosp_core.deploy.bundle import Bundle
from fosp_core.errors import FospError
from fosp_core.paths import config_file, share_dir
from fosp_core.safety.limits import Situation, apply_limits
from fosp_core.safety.reasons import Reason
from fosp_ros.filter_parameters import JOINTS, PARAMETERS, idle, lax, limits_of, weakened

CONTRACT = Contract.load(config_file('contract_safereach.yaml'))
SOUND = {'level': 0.5, 'alpha': 0.2, 'n': 50, 'guaranteed': True}
OTHERS = [f'ur_joint{k}' for k in range(7)]
DEFAULT = {row.name: row.default for row in PARAMETERS}


def entry(name, index, value):
    return {name: [value if k == index else v for k, v in enumerate(DEFAULT[name])]}


@pytest.mark.parametrize(('change', 'names'), [
    ({}, []),
    ({'filter_enabled': False}, ['filter_enabled']),
    (entry('workspace_low', 2, 0.0), ['workspace_low']), (entry('workspace_low', 2, 0.1), []),
    (entry('workspace_high', 1, 0.46), ['workspace_high']), (entry('workspace_high', 1, 0.44), []),
    ({'workspace_low': [], 'workspace_high': []}, ['workspace_low']),
    ({'joint_names': [], 'joint_low': [], 'joint_high': [], 'joint_speed': []}, ['joint_names']),
    ({'joint_names': JOINTS[1:], **{k: DEFAULT[k][1:] for k in ('joint_low', 'joint_high', 'joint_speed')}},
     ['joint_names']),
    (entry('joint_low', 1, -1.8), ['joint_low']), (entry('joint_low', 1, -1.7), []),
    (entry('joint_high', 3, 0.0), ['joint_high']), (entry('joint_high', 3, -0.1), []),
    (entry('joint_speed', 6, 2.7), ['joint_speed']), (entry('joint_speed', 6, 2.5), []),
    ({k: DEFAULT[k][::-1] for k in ('joint_names', 'joint_low', 'joint_high', 'joint_speed')}, []),
    ({'joint_names': OTHERS, 'joint_speed': [9.0] * 7}, []),
    ({'pairing_tolerance_s': 0.06}, ['pairing_tolerance_s']), ({'pairing_tolerance_s': 0.04}, []),
    ({'max_speed': 1.0}, ['max_speed']), ({'latch_file': 'off'}, ['latch_file']),
])
def test_what_guards_less_than_the_default_is_named(change, names):
    assert weakened(types.SimpleNamespace(**{**DEFAULT, **change}), CONTRACT) == names


@pytest.mark.parametrize(('gate', 'change', 'names'), [
    ('reachability', {}, []), ('surprise', {}, []),
    ('reachability', {'level': 0.51}, ['reachability level 0.51']),
    ('reachability', {'level': float('nan')}, ['reachability level nan']),
    ('reachability', {'alpha': 0.21}, ['reachability alpha 0.21']),
    ('surprise', {'alpha': 0.99, 'n': 1}, ['surprise alpha 0.99']),
    ('surprise', {'guaranteed': False}, ['surprise not guaranteed']),
    ('reachability', {'n': 4, 'alpha': 0.2}, []), ('reachability', {'n': 3, 'alpha': 0.2},
                                                   ['reachability not guaranteed']),
])
def test_a_lax_calibration_is_named(gate, change, names):
    other = {'reachability': SOUND, 'surprise': SOUND}
    assert lax({**other, gate: {**SOUND, **change}}) == names


@pytest.mark.parametrize('guaranteed', [True, False])     # True: of a model that an older version has made
def test_a_calibration_that_was_made_for_another_model_is_named(guaranteed):
    values = {gate: SOUND | {'guaranteed': guaranteed} for gate in ('reachability', 'surprise')}
    assert lax(values | {'inherited_from': 'v0'}) == ['reachability level inherited from v0',
                                                      'surprise level inherited from v0']


def test_the_shipped_model_is_not_lax():
    assert lax(Bundle.open(share_dir() / 'models' / 'safereach', None, True).calibration) == []


@pytest.mark.parametrize(('change', 'names'), [
    ({}, []), ({'max_speed': 0.434}, ['max_speed']), ({'max_speed': 0.432}, []),
    ({'max_acceleration': 8.4}, ['max_acceleration']), ({'max_acceleration': 8.39}, []),
    ({'max_step': 0.114}, ['max_step']), ({'max_step': 0.113}, []),     # 0.42 m/s for 0.2 s and a deadline
    ({'max_speed': 0.2, 'max_acceleration': 4.0, 'max_step': 0.05}, ['max_acceleration']),
    ({'max_speed': 0.44, 'max_acceleration': 9.0}, ['max_speed', 'max_acceleration']),
])
def test_a_limit_that_can_never_act_is_named(change, names):
    assert idle(types.SimpleNamespace(**{**DEFAULT, **change}), CONTRACT) == names


def test_a_box_of_another_size_names_its_parameters():
    with pytest.raises(FospError, match='parameters workspace_low and workspace_high have 2 and 3 entries, expected 3'):
        limits_of(types.SimpleNamespace(**{**DEFAULT, 'workspace_low': [0.0, 0.0]}), CONTRACT)


def test_the_default_limits_act_within_the_range_of_the_contract():
    p = types.SimpleNamespace(**{**DEFAULT, 'joint_names': [], 'joint_low': [], 'joint_high': [], 'joint_speed': []})
    limits, corner = limits_of(p, CONTRACT), np.array(CONTRACT.action.high, float)
    assert limits.acts == 0.2       # two periods, in which the arm stops by itself; else until the watchdog's stop
    assert limits_of(types.SimpleNamespace(**{**vars(p), 'watchdog_s': 0.5}), CONTRACT).acts == 0.5
    middle = Situation((np.array(p.workspace_low) + p.workspace_high) / 2)
    assert apply_limits(corner, limits, middle, 0.9 * corner)[1] == (Reason.LIMIT_SPEED,)
    assert Reason.LIMIT_ACCELERATION in apply_limits(corner, limits, middle, -corner)[1]
    assert apply_limits(0.9 * corner, limits, middle, 0 * corner)[1] == ()
