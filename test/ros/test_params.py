# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Parameter tables: what is refused and with which words, and that config/*.yaml has every key and no other.

Guards against a misspelt limit that is silently ignored (lessons.md 4: a protection that is off by mistake).
"""

import importlib
import math

import pytest
import yaml
from rclpy.parameter import Parameter

from fosp_core.errors import FospError
from fosp_core.paths import config_file
from fosp_ros import graph
from fosp_ros.lifecycle import COMMON_PARAMETERS, ManagedNode
from fosp_ros.parameters import P, check_values, coerce, declare, find, markdown, parse, refuse

TABLE = (
    P('rate', 'double', 10.0, 'Rate.', unit='Hz', low=0.1, high=100.0),
    P('count', 'int', 3, 'Count.', low=0),
    P('on', 'bool', True, 'Switch.'),
    P('mode', 'string', 'a', 'Mode.', choices=('a', 'b'), read_only=True),
    P('box', 'double_array', [0.0, 1.0], 'Box.', low=-2.0, high=2.0),
    P('names', 'string_array', [], 'Names.'),
)


class TableNode(ManagedNode):
    NAME = 'table'
    PARAMETERS = TABLE


@pytest.mark.parametrize(('name', 'value', 'words'), [
    ('rate', 200.0, 'outside 0.1 to 100 Hz'), ('rate', math.nan, 'not finite'), ('rate', 'x', 'type double'),
    ('rate', True, 'type double'), ('count', -1, 'outside 0 to inf'), ('count', 1.5, 'type int'),
    ('count', True, 'type int'), ('on', 1, 'type bool'), ('mode', 'c', 'one of a, b'), ('box', [3.0], 'outside'),
    ('box', 1.0, 'not a list'), ('box', [math.inf], 'not finite'), ('names', [1], 'type string_array'),
])
def test_a_wrong_value_is_refused_with_name_and_reason(name, value, words):
    reason = refuse(find(TABLE, name, 'test'), value)
    assert reason.startswith(f'parameter {name}: ') and words in reason


def test_integers_become_doubles_and_texts_are_read_by_type():
    rate = find(TABLE, 'rate', 'test')
    assert coerce(rate, 5) == 5.0 and isinstance(coerce(rate, 5), float)
    assert parse(rate, '7') == 7.0
    assert parse(find(TABLE, 'on', 'test'), 'False') is False
    assert parse(find(TABLE, 'box', 'test'), '[1, -1.5]') == [1.0, -1.5]
    assert parse(find(TABLE, 'names', 'test'), '') == []
    with pytest.raises(FospError, match="parameter count: '1.5' is not of type int"):
        parse(find(TABLE, 'count', 'test'), '1.5')


def test_a_default_that_its_own_range_refuses_cannot_be_written():
    with pytest.raises(ValueError, match='default of parameter x'):
        P('x', 'double', 5.0, 'X.', high=1.0)


def test_unknown_missing_and_wrong_keys_of_a_file_are_named():
    good = {p.name: p.default for p in TABLE} | {'use_sim_time': True}
    assert check_values(TABLE, good, 'a.yaml', complete=True)['rate'] == 10.0
    with pytest.raises(FospError, match="a.yaml: no parameter 'raet'; did you mean 'rate'"):
        check_values(TABLE, good | {'raet': 1.0}, 'a.yaml')
    with pytest.raises(FospError, match='a.yaml: parameter rate: 0.0 is outside'):
        check_values(TABLE, good | {'rate': 0.0}, 'a.yaml')
    del good['box']
    with pytest.raises(FospError, match='a.yaml: parameter box is missing'):
        check_values(TABLE, good, 'a.yaml', complete=True)


def test_declaration_coerces_overrides_and_refuses_unknown_names(rig):
    node = rig.add(TableNode(parameter_overrides=[Parameter('rate', value=20), Parameter('box', value=[1, 2])]))
    assert node.p.rate == 20.0 and isinstance(node.p.rate, float) and node.p.box == [1.0, 2.0] and node.p.names == []
    descriptor = node.describe_parameter('rate')
    assert descriptor.floating_point_range[0].to_value == 100.0 and '[Hz]' in descriptor.description
    assert node.describe_parameter('mode').read_only
    import rclpy.node
    for overrides, words in (([Parameter('raet', value=1.0)], "no parameter 'raet'; did you mean 'rate'"),
                             ([Parameter('rate', value=200.0)], 'parameter rate: 200.0 is outside'),
                             ([Parameter('mode', value='c')], "parameter mode: 'c' is not one of a, b")):
        bare = rclpy.node.Node('bare', parameter_overrides=overrides)
        with pytest.raises(FospError, match=words):
            declare(bare, TABLE)
        bare.destroy_node()


def test_a_live_change_is_checked_and_then_seen_by_the_node(rig):
    node = rig.add(TableNode())
    good, bad, fixed, nan = node.set_parameters([
        Parameter('rate', value=30.0), Parameter('count', value=-5), Parameter('mode', value='b'),
        Parameter('box', value=[math.nan])])
    assert good.successful and node.p.rate == 30.0
    assert not bad.successful and not fixed.successful and not nan.successful
    assert node.p.count == 3 and node.p.mode == 'a' and node.p.box == [0.0, 1.0]


def test_the_reference_table_lists_every_row():
    text = markdown('table', TABLE)
    assert text.count('\n| `') == len(TABLE)
    assert '| `rate` | double | `10.0` | 0.1 to 100 | Hz |  | Rate. |' in text
    assert '| `mode` | string | `a` | a, b |  | yes | Mode. |' in text


def node_table(name):
    try:
        module = importlib.import_module(graph.MODULES[name])
    except ModuleNotFoundError as error:
        pytest.skip(f'{graph.MODULES[name]} needs {error.name}')
    return COMMON_PARAMETERS + module.PARAMETERS


@pytest.mark.parametrize('name', graph.NODE_NAMES)
def test_the_shipped_file_has_every_parameter_and_no_other(name):
    data = yaml.safe_load(config_file(f'{name}.yaml').read_text())
    assert list(data) == [f'/**/{name}'] and list(data[f'/**/{name}']) == ['ros__parameters']
    table = node_table(name)
    values = check_values(table, data[f'/**/{name}']['ros__parameters'], f'{name}.yaml', complete=True)
    assert values == {p.name: coerce(p, p.default) for p in table}, 'file and table give different defaults'


@pytest.mark.parametrize('name', graph.NODE_NAMES)
def test_every_parameter_has_a_text_and_a_unit_where_it_has_a_dimension(name):
    for p in node_table(name):
        assert p.text.strip().endswith('.'), p.name
        assert not p.name.endswith('_s') or p.unit == 's', p.name


def test_the_reference_page_is_current():
    pytest.importorskip('mujoco', reason='MuJoCo is not installed')
    from fosp_ros import reference
    if not reference.page_path().parent.parent.is_dir():
        pytest.skip('docs/ is not part of an installed package')
    assert reference.page_path().read_text() == reference.parameters_page(), 'run: python -m fosp_ros.reference'


def test_the_filters_file_for_the_ground_differs_only_where_that_robot_does():
    """A limit that is changed in one of the two files must not be forgotten in the other."""
    arm, ground = (yaml.safe_load(config_file(name).read_text())['/**/safety_filter']['ros__parameters']
                   for name in ('safety_filter.yaml', graph.GROUND_FILTER))
    check_values(node_table('safety_filter'), ground, graph.GROUND_FILTER, complete=True)
    assert {key for key in arm if arm[key] != ground[key]} == {
        'position_vector', 'workspace_low', 'workspace_high', 'joint_names', 'joint_low', 'joint_high', 'joint_speed',
        'max_speed', 'max_acceleration', 'max_step', 'retreat_speed'}


def test_an_empty_list_in_a_parameter_file_is_an_empty_list(rig, tmp_path):
    """ROS gives it no type; taken for not given, the default box would guard a robot that has none."""
    (tmp_path / 'empty.yaml').write_text('/**:\n  ros__parameters:\n    box: []\n    names: []\n')
    node = rig.add(TableNode(cli_args=['--ros-args', '--params-file', str(tmp_path / 'empty.yaml')]))
    assert node.p.box == [] and node.p.names == []
