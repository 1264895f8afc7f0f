# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every number of the configuration has a range beside its default: what is absurd is one line, never a traceback."""

import dataclasses
import typing

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fosp_core.config import Config
from fosp_core.contract import Contract
from fosp_core.errors import FospError
from fosp_core.paths import config_file
from fosp_core.train.bench_step import random_replay
from fosp_core.train.learner import Learner

CONTRACT = Contract.load(config_file('contract_safereach.yaml'))
SECTIONS = {k: v for k, v in typing.get_type_hints(Config).items() if dataclasses.is_dataclass(v)}
KEYS = [f'{section}.{field.name}' for section, cls in SECTIONS.items() for field in dataclasses.fields(cls)]
# Numbers at and beyond every end, other kinds, and what YAML makes of odd text.
VALUES = ['0', '-1', '1', '2', '3', '0.5', '-1e-3', '1e-30', '1e30', '1e400', '.nan', '.inf', '-.inf', '2000000000',
          '99999999999999999999', 'abc', '""', 'null', 'true', '[]', '[1, 1, 1, 1]', '[0, 1, 1, 1]', '[1, 2]',
          '[true, 1, 1, 1]', '{}', '2020-99-99', '[', '0x', '!!python/name:os.system', "'1'", '1:60', '\x00']
REPLAY = random_replay(CONTRACT, 100)


def test_every_number_has_a_range_that_holds_its_default():
    for section, cls in SECTIONS.items():
        kinds = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            numbers = kinds[field.name] in (int, float) or typing.get_origin(kinds[field.name]) is tuple
            assert ('interval' in field.metadata) == numbers, f'{section}.{field.name}'
            if kinds[field.name] is str and field.name != 'precision':      # which `execution.check` knows
                assert field.metadata['choices'], f'{section}.{field.name}'
    assert Config.from_dict(Config().to_dict()) == Config()


@pytest.mark.parametrize(('override', 'message'), [
    ('behaviour.lr=.nan', 'behaviour: key lr is nan, expected 0 to 1'),
    ('world_model.lr=-1e-3', 'world_model: key lr is -0.001, expected 0 to 1'),
    ('alignment.lr=.inf', 'alignment: key lr is inf, expected 0 to 1'),
    ('network.bins=1', 'network: key bins is 1, expected 2 to 65536'),
    ('network.units=0', 'network: key units is 0, expected 1 to 65536'),
    ('network.units=999999999999', 'network: key units is 999999999999, expected 1 to 65536'),
    ('network.cnn_multipliers=[1, 2]', 'network: key cnn_multipliers has 2 entries, expected 4'),
    ('network.cnn_multipliers=[1, 2, 0, 4]', 'network: key cnn_multipliers is (1, 2, 0, 4), expected 1 to 64'),
    ('network.cnn_multipliers=[1, 2, 4, true]', 'expected a list of whole numbers'),
    ('behaviour.weight_clip=0', 'behaviour: key weight_clip is 0.0, expected more than 0'),
    ('behaviour.discount=0', 'behaviour: key discount is 0.0, expected more than 0 to 1'),
    ('behaviour.reach_dropout=1', 'behaviour: key reach_dropout is 1.0, expected 0 to less than 1'),
    ('behaviour.feasible_gate=.nan', 'behaviour: key feasible_gate is nan, expected a finite number'),
    ('behaviour.beta_cost=-1', 'behaviour: key beta_cost is -1.0, expected at least 0'),
    ('constraint.pid_delay=0', 'constraint: key pid_delay is 0, expected 1 to 1000000'),
    ('train.online_fraction=7', 'train: key online_fraction is 7.0, expected 0 to 1'),
    ('train.online_fraction=true', 'train: key online_fraction is True, expected float'),
    ('train.seed=-3', 'train: key seed is -3, expected 0 to 4294967295'),
    ('name=[1]', 'key name is [1], expected str'),
    ('train.steps=2020-99-99', "--set train.steps=2020-99-99: '2020-99-99' is not YAML")])
def test_an_absurd_value_names_key_value_and_range(override, message):
    with pytest.raises(FospError) as error:
        Config.load('debug', [override])
    assert message in str(error.value) and '\n' not in str(error.value)


def test_a_preset_that_is_no_text_is_named(tmp_path):
    file = tmp_path / 'p.yaml'
    for content in (b'\xff\xfe\x00', b'train: {steps: 2020-99-99}'):
        file.write_bytes(content)
        with pytest.raises(FospError, match=r'p\.yaml: not YAML'):
            Config.load(file)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(key=st.sampled_from([k for k in KEYS if k != 'train.compile']), value=st.sampled_from(VALUES),
       kind=st.sampled_from(['alm', 'pid', 'apid']))
@example('constraint.penalty_init', '1e-30', 'alm')
@example('world_model.lr', '1', 'alm')
@example('network.unimix', '1e-30', 'alm')
def test_any_single_override_learns_or_is_refused(key, value, kind):
    """Offline, an episode, online: finite numbers come out, or one FospError."""
    try:
        config = Config.load('debug', [f'constraint.kind={kind}', f'{key}={value}'])
        assert yaml.safe_load(yaml.safe_dump(config.to_dict()['train'])) == config.to_dict()['train']
        learner = Learner(CONTRACT, config)
        learner.update(REPLAY.sample(2, 4, learner.rng))
        learner.begin_online()
        learner.end_episode(3.0)
        learner.update(REPLAY.sample(2, 4, learner.rng))
    except FospError as error:
        assert '\n' not in str(error)
