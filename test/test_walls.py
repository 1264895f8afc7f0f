# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The walls of the house, by running the imports where the forbidden names do not exist, and by reading the tree.

fosp_core imports neither ROS nor a simulator; learner and filter import no torch; the simulator imports nothing of the
learner. No pickle anywhere (lessons.md 22: an endpoint that unpickled what it received). A folder named `launch/` must
never be importable as ROS's `launch`.
"""

import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROS = ('rclpy', 'rosgraph_msgs', 'std_msgs', 'std_srvs', 'sensor_msgs', 'geometry_msgs', 'diagnostic_msgs',
       'lifecycle_msgs', 'builtin_interfaces', 'rcl_interfaces')
SIMULATORS = ('mujoco', 'gymnasium', 'safety_gymnasium', 'fosp_sim')
LEARNING = ('torch', 'onnx', 'onnxscript', 'safetensors', 'tensorboard')

# Imports every named module in an interpreter where the blocked top-level names raise.
PROBE = '''
    import importlib, sys
    blocked, names = sys.argv[1].split(','), sys.argv[2:]
    class Wall:
        def find_spec(self, name, path=None, target=None):
            if any(name == b or name.startswith(b + '.') for b in blocked):
                raise ImportError(f'wall: {name}')
    sys.meta_path.insert(0, Wall())
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            print(f'{name}: {error}')
    loaded = [b for b in blocked if b in sys.modules]
    if loaded:
        print('loaded:', loaded)
'''


def modules(package, folder):
    found = []
    for path in sorted((ROOT / folder).rglob('*.py')):
        parts = path.relative_to(ROOT / folder).with_suffix('').parts
        parts = parts[:-1] if parts[-1] == '__init__' else parts
        if '__main__' not in parts:
            found.append('.'.join((package, *parts)))
    return found


def probe(blocked, names):
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(PROBE), ','.join(blocked), *names],
                          capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    return (done.stdout + done.stderr).strip()


def test_fosp_core_needs_neither_ros_nor_a_simulator():
    names = modules('fosp_core', 'fosp_core')
    assert len(names) > 15, 'the test looks in the wrong place'
    assert probe((*ROS, *SIMULATORS, 'fosp_ros', 'launch'), names) == ''


def test_the_bundle_and_the_runtime_of_the_robot_need_no_torch():
    names = ['fosp_core.deploy.bundle', 'fosp_core.deploy.runtime', 'fosp_core.contract', 'fosp_core.cli',
             *(n for n in modules('fosp_core', 'fosp_core') if n.startswith(('fosp_core.safety', 'fosp_core.data')))]
    assert probe(LEARNING, names) == ''


def test_the_nodes_import_no_torch_and_no_simulator():
    pytest.importorskip('rclpy', reason='rclpy is not installed')
    names = [n for n in modules('fosp_ros', 'fosp_ros') if n.rsplit('.', 1)[-1] not in ('demo', 'report', 'reference')]
    assert 'fosp_ros.learner_node' in names and 'fosp_ros.trainer_node' in names
    assert probe((*LEARNING, *SIMULATORS), names) == ''


def test_the_simulator_imports_nothing_of_the_learner():
    pytest.importorskip('mujoco', reason='MuJoCo is not installed')
    learner = (*LEARNING, 'fosp_core.agent', 'fosp_core.train', 'fosp_core.world_model', 'fosp_core.nn')
    assert probe(learner, modules('fosp_sim', 'sim')) == ''


# Folder -> what none of its files may import, not even within a function; the trainer's worker is the one exception.
LEARNER = ('torch', 'fosp_core.agent', 'fosp_core.train', 'fosp_core.world_model', 'fosp_core.nn')
NEVER = {'fosp_core': (*ROS, *SIMULATORS, 'fosp_ros', 'launch'), 'fosp_ros': (*LEARNER, *SIMULATORS), 'sim': LEARNER}
EXCEPTIONS = {'fosp_ros/trainer_worker.py': 'fosp_core.train'}


def imported(tree):
    """Line and full name of every import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f'{node.module}.{alias.name}') for alias in node.names)


@pytest.mark.parametrize('folder', NEVER)
def test_no_import_within_a_function_goes_through_a_wall(folder):
    files = sorted((ROOT / folder).rglob('*.py'))
    assert len(files) > 10, 'the test looks in the wrong place'
    found = [f'{path.relative_to(ROOT)}:{line}: {name}' for path in files
             for line, name in imported(ast.parse(path.read_text()))
             if any(f'{name}.'.startswith(f'{wall}.') for wall in NEVER[folder])
             and not f'{name}.'.startswith(f'{EXCEPTIONS.get(str(path.relative_to(ROOT)), "nothing")}.')]
    assert found == []


def source_files():
    skip = {'.venv', '.git', 'build', 'install', 'log', 'out'}
    return [p for p in ROOT.rglob('*.py') if not skip & set(p.relative_to(ROOT).parts)]


def forbidden(tree):
    """Yield (line, what) of each construct that can run code from data."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] + [getattr(node, 'module', None) or '']
            for name in names:
                if name.split('.')[0] in ('pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'shelve', 'marshal'):
                    yield node.lineno, f'import {name}'
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {k.arg: k.value for k in node.keywords}
        if any(k == 'allow_pickle' and not (isinstance(v, ast.Constant) and v.value is False)
               for k, v in keywords.items()):
            yield node.lineno, 'allow_pickle'
        if called in ('torch.load', 'load_url') and not (
                isinstance(keywords.get('weights_only'), ast.Constant) and keywords['weights_only'].value is True):
            yield node.lineno, 'torch.load without weights_only=True'
        if called in ('torch.save', 'yaml.load', 'yaml.unsafe_load', 'yaml.full_load', 'eval', 'exec'):
            yield node.lineno, called


def test_nothing_in_the_tree_can_run_code_from_data():
    files = source_files()
    assert len(files) > 30
    found = [f'{p.relative_to(ROOT)}:{line}: {what}' for p in files
             for line, what in forbidden(ast.parse(p.read_text()))]
    assert found == []


@pytest.mark.parametrize('text', ['import pickle', 'from pickle import loads', 'np.load(p, allow_pickle=True)',
                                  'np.load(p, allow_pickle=flag)', 'torch.load(p)', 'torch.load(p, weights_only=False)',
                                  'yaml.load(t)', 'torch.save(x, p)', 'eval(t)'])
def test_the_search_finds_what_it_must(text):
    assert list(forbidden(ast.parse(text)))


def test_the_search_lets_safe_loading_pass():
    safe = 'np.load(p, allow_pickle=False)\ntorch.load(p, weights_only=True)\nyaml.safe_load(t)\nmodel.eval()'
    assert not list(forbidden(ast.parse(safe)))


def test_the_folder_named_launch_is_not_an_importable_package():
    assert not (ROOT / 'launch' / '__init__.py').exists()
    code = 'import launch; print(getattr(launch, "LaunchDescription", None), getattr(launch, "__file__", None))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    if done.returncode == 0:  # an implicit namespace package, from the current folder alone: no file, no description
        assert done.stdout.split() == ['None', 'None'] or 'LaunchDescription' in done.stdout
    elsewhere = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd='/')
    assert elsewhere.returncode != 0 or 'LaunchDescription' in elsewhere.stdout, \
        'our folder launch/ is on sys.path and hides ROS launch'


@pytest.mark.parametrize('name', ['config', 'models', 'sim', 'test', 'launch'])
def test_no_folder_is_installed_as_a_top_level_module_of_ours(name):
    code = (f'import importlib.util as u; s = u.find_spec({name!r}); '
            'print(s and list(s.submodule_search_locations or []))')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd='/')
    assert str(ROOT / name) not in done.stdout, done.stdout


def test_no_heavy_library_is_imported_by_the_command_line():
    heavy = ('torch', 'rclpy', 'mujoco', 'onnxruntime', 'cv2', 'rosbags')
    code = f'import sys, fosp_core.cli; print([m for m in {heavy} if m in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stdout + done.stderr
