# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One table of nodes: `fosp up` and the launch file start the same processes, and only the filter commands the arm."""

import json
import os
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path

import pytest

from fosp_core import paths
from fosp_core.errors import FospError
from fosp_ros import graph, up

# Stands in for ROS's launch, which no registry has: just enough to evaluate the file and print what it would start.
FAKE_LAUNCH = '''
    import importlib.util, json, sys, types

    class Item:
        def __init__(self, *args, **kw):
            self.args, self.kw = args, kw
    def module(name, **members):
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(members)
    class LaunchConfiguration(Item):
        def perform(self, context):
            return context[self.args[0]]
    kinds = {name: type(name, (Item,), {}) for name in
             ('DeclareLaunchArgument', 'OpaqueFunction', 'SetEnvironmentVariable', 'Shutdown', 'Node')}
    module('launch', LaunchDescription=lambda actions: actions)
    module('launch.actions', **{k: v for k, v in kinds.items() if k != 'Node'})
    module('launch.substitutions', LaunchConfiguration=LaunchConfiguration)
    module('launch_ros')
    module('launch_ros.actions', Node=kinds['Node'])
    spec = importlib.util.spec_from_file_location('safereach_launch', sys.argv[1])
    file = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(file)
    description = file.generate_launch_description()
    context, texts = {}, {}
    for action in description:
        if isinstance(action, kinds['DeclareLaunchArgument']):
            context[action.args[0]] = action.kw['default_value']
            texts[action.args[0]] = action.kw['description']
    context.update(json.loads(sys.argv[2]))
    opaque = next(a for a in description if isinstance(a, kinds['OpaqueFunction']))
    actions = opaque.kw['function'](context)
    print(json.dumps({
        'arguments': texts,
        'environment': {a.args[0]: a.args[1] for a in actions if isinstance(a, kinds['SetEnvironmentVariable'])},
        'nodes': [{**{k: v for k, v in a.kw.items() if k != 'on_exit'},
                   'on_exit': a.kw['on_exit'] and [type(e).__name__ for e in a.kw['on_exit']]}
                  for a in actions if isinstance(a, kinds['Node'])]}))
'''


def evaluate_launch_file(**arguments):
    file = paths.share_dir() / 'launch' / 'safereach.launch.py'
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(FAKE_LAUNCH), str(file), json.dumps(arguments)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize('arguments', [{}, {'sim': 'false'}, {'namespace': 'left', 'task': 'unseen3',
                                                             'use_sim_time': 'true'},
                                       {'sim': 'false', 'camera': 'realsense'},
                                       {'sim': 'false', 'arm': 'servo', 'ee_pose_topic': '/arm/pose'},
                                       {'sim': 'false', 'arm': 'velocity', 'ee_pose_topic': '/arm/pose'}])
def test_the_launch_file_starts_exactly_the_nodes_of_the_table(arguments, tmp_path):
    (tmp_path / 'mine.yaml').write_text('{}')
    arguments = arguments | {'model': str(tmp_path), 'params_file': str(tmp_path / 'mine.yaml')}
    launched = evaluate_launch_file(**arguments)
    specs = graph.build(graph.GraphOptions(
        namespace=arguments.get('namespace', 'fosp'), model=arguments['model'], params_file=arguments['params_file'],
        task=arguments.get('task', ''), sim=arguments.get('sim', 'true') == 'true',
        use_sim_time=arguments.get('use_sim_time') == 'true', camera=arguments.get('camera', ''),
        arm=arguments.get('arm', ''),
        topics=(('ee_pose', '/arm/pose'),) if 'ee_pose_topic' in arguments else ()))
    assert [s.name for s in specs].count('realsense') == (arguments.get('camera') == 'realsense')
    assert [s.name for s in specs].count('velocity_adapter') == (arguments.get('arm') == 'velocity')
    expected = [{'package': s.package, 'executable': s.executable, 'name': s.name, 'namespace': s.namespace,
                 'parameters': [*s.params_files] + ([dict(s.params)] if s.params else []),
                 'remappings': [list(pair) for pair in s.remappings]}
                for s in specs]
    for nodes in (launched['nodes'], expected):     # the latch of a simulated run is its own: another name each time
        for node in nodes:
            for parameters in (p for p in node['parameters'] if isinstance(p, dict)):
                run = parameters.pop('latch_file', None)
                simulated = node['name'] == 'safety_filter' and arguments.get('sim', 'true') == 'true'
                assert run.startswith('latch-run-') if simulated else run is None
            node['parameters'] = [p for p in node['parameters'] if p]
    assert [{k: n[k] for k in expected[0]} for n in launched['nodes']] == expected
    # An empty list makes a real launch raise when the process ends: absent or full.
    assert {n['name']: n['on_exit'] for n in launched['nodes'] if n['on_exit'] is not None} == {
        name: ['Shutdown'] for name in ('velocity_adapter', 'safety_filter') if name in [s.name for s in specs]}
    assert all(text.endswith('.') for text in launched['arguments'].values())
    assert all(task in launched['arguments']['task'] for task in (*graph.TASKS, *graph.GROUND_TASKS))


def test_the_launch_file_names_the_parent_and_the_local_transport():
    launched = evaluate_launch_file()
    assert int(launched['environment']['FOSP_PARENT_PID']) > 0
    assert launched['environment']['OMP_NUM_THREADS'] == '1'
    assert Path(launched['environment']['FASTRTPS_DEFAULT_PROFILES_FILE']).name == 'fastdds_local.xml'
    remote = evaluate_launch_file(local='false')['environment']
    assert 'ROS_AUTOMATIC_DISCOVERY_RANGE' not in remote and 'FASTRTPS_DEFAULT_PROFILES_FILE' not in remote


def test_a_real_launch_accepts_the_file():
    launch = pytest.importorskip('launch', reason='ROS launch is not installed')
    if not hasattr(launch, 'LaunchDescription'):
        pytest.skip('the importable `launch` is a folder or an unrelated project, not ROS launch')
    from launch.launch_description_sources import get_launch_description_from_python_launch_file
    description = get_launch_description_from_python_launch_file(
        str(paths.share_dir() / 'launch' / 'safereach.launch.py'))
    names = {argument.name for argument in description.get_launch_arguments()}
    assert {'namespace', 'model', 'params_file', 'task', 'sim', 'use_sim_time'} <= names


def test_every_node_has_an_entry_point_that_calls_its_module():
    try:
        scripts = {e.name: e.value for e in metadata.distribution('fosp_ros').entry_points
                   if e.group == 'console_scripts'}
    except metadata.PackageNotFoundError:
        pytest.skip('fosp_ros is not installed')
    for spec in [*graph.build(), *graph.build(graph.GraphOptions(sim=False, camera='realsense',
                                                                         arm='velocity'))]:
        assert scripts[spec.executable] == f'{spec.module}:main'


def test_a_command_line_carries_name_namespace_files_and_quoted_values(tmp_path):
    (tmp_path / 'mo del').mkdir()
    spec = next(s for s in graph.build(graph.GraphOptions(
        namespace='/left/', model=str(tmp_path / 'mo del'), overrides=(('learner', 'explore', True),)))
        if s.name == 'learner')
    command = spec.command('python')
    assert command[:3] == ['python', '-m', 'fosp_ros.learner_node']
    assert '__ns:=/left' in command and '__node:=learner' in command
    assert f'model:="{tmp_path / "mo del"}"' in command and 'explore:=true' in command
    assert command.index('--params-file') < command.index('-p')


@pytest.mark.parametrize(('options', 'words'), [
    ({'task': 'unseen9'}, "task 'unseen9': expected one of standard"),
    ({'params_file': '/nowhere.yaml'}, '/nowhere.yaml: no such parameter file'),
    ({'model': '/nowhere'}, '/nowhere: no such model folder'),
    ({'camera': 'kinect', 'sim': False}, "camera 'kinect': expected one of realsense"),
    ({'arm': 'crane', 'sim': False}, "arm 'crane': expected one of servo"),
    ({'arm': 'servo'}, 'the simulation is an arm, too'),
    ({'topics': (('image', ''),), 'sim': False}, 'expected two names'),
    ({'camera': 'realsense'}, 'the simulation publishes pictures, too'),
    ({'overrides': (('lerner', 'explore', True),)}, "no node 'lerner'; nodes: sim_bridge"),
])
def test_what_a_user_gets_wrong_is_one_sentence(options, words):
    with pytest.raises(FospError, match=words):
        graph.build(graph.GraphOptions(**options))


def test_task_names_are_accepted_with_and_without_the_family():
    for task, expected in (('safereach', 'standard'), ('safereach/unseen3', 'unseen3'), ('unseen1', 'unseen1')):
        assert graph.build(graph.GraphOptions(task=task))[0].params['task'] == expected


def test_an_arm_driver_gets_its_topics_and_the_user_has_the_last_word():
    specs = graph.build(graph.GraphOptions(sim=False, arm='servo', topics=(up.parse_topic('joint_states=/ur/joints'),)))
    for spec in specs:
        assert dict(spec.remappings) == {'command_out': '/servo_node/delta_twist_cmds', 'joint_states': '/ur/joints'}
        assert 'command_out:=/servo_node/delta_twist_cmds' in spec.command('python')
    with pytest.raises(FospError, match='NAME=TOPIC'):
        up.parse_topic('joint_states')


def test_what_the_user_has_set_is_kept():
    env = graph.environment(base={'ROS_AUTOMATIC_DISCOVERY_RANGE': 'OFF', 'FASTRTPS_DEFAULT_PROFILES_FILE': '/my.xml'})
    assert env['ROS_AUTOMATIC_DISCOVERY_RANGE'] == 'OFF' and env['FASTRTPS_DEFAULT_PROFILES_FILE'] == '/my.xml'
    assert graph.environment(base={})['ROS_AUTOMATIC_DISCOVERY_RANGE'] == 'LOCALHOST'
    assert 'ROS_AUTOMATIC_DISCOVERY_RANGE' not in graph.environment(local=False, base={})


@pytest.mark.parametrize('text', ['learner', 'learner.explore', 'explore=true', '.x=1', 'learner.=1', 'a.b=[1'])
def test_a_malformed_setting_is_refused(text):
    with pytest.raises(FospError, match='--set'):
        up.parse_setting(text)


def test_settings_are_read_as_yaml():
    assert up.parse_setting('learner.explore=true') == ('learner', 'explore', True)
    assert up.parse_setting('trainer.offline_data=/a=b.c') == ('trainer', 'offline_data', '/a=b.c')
    assert up.parse_setting('trainer.offline_data=') == ('trainer', 'offline_data', '')


def test_only_the_filter_publishes_the_command_that_reaches_the_arm():
    """By source: no other file of the nodes creates a publisher on command_out."""
    import re
    root = Path(__file__).resolve().parents[2]
    offenders = [f.name for folder in ('fosp_ros', 'sim') for f in (root / folder).glob('*.py')
                 if re.search(r"(publish_on|create_publisher)\([^)]*'command_out'", f.read_text())]
    assert set(offenders) <= {'safety_filter_node.py', 'watchdog.py'}
    assert os.path.basename(graph.MODULES['safety_filter'].replace('.', '/')) == 'safety_filter_node'


def test_a_task_on_the_ground_brings_its_contract_and_its_limits():
    """Every node that takes a model must read the same contract, and the filter must not guard an arm's joints."""
    specs = {s.name: s for s in graph.build(graph.GraphOptions(task='SafetyCarGoal2-v0'))}
    assert specs['sim_bridge'].params['task'] == 'SafetyCarGoal2' and 'contract' not in specs['sim_bridge'].params
    for name in ('learner', 'safety_filter', 'trainer'):
        assert Path(specs[name].params['contract']).name == graph.GROUND_CONTRACT
    assert [Path(f).name for f in specs['safety_filter'].params_files] == [graph.GROUND_FILTER]
    arm = {s.name: s for s in graph.build(graph.GraphOptions(task='unseen3'))}
    assert 'contract' not in arm['learner'].params
    assert [Path(f).name for f in arm['safety_filter'].params_files] == ['safety_filter.yaml']
