# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The package as ROS and pip see it: prevents installed packages that lack a file or a library (lessons 23, 25)."""

import ast
import configparser
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP_LEVEL = {'fosp_ros', 'fosp_core', 'launch', 'config', 'models', 'sim', 'test', 'docs', 'resource', 'package.xml',
             'setup.py', 'setup.cfg', 'README.md', 'LICENSE', 'CHANGELOG.rst', 'Makefile'}
# Import name -> the distribution of setup.py that brings it.
LIBRARIES = {'numpy': 'numpy', 'yaml': 'pyyaml', 'rosbags': 'rosbags', 'mcap': 'mcap', 'zstandard': 'zstandard',
             'safetensors': 'safetensors', 'onnxruntime': 'onnxruntime', 'cv2': 'opencv-python-headless',
             'tqdm': 'tqdm', 'torch': 'torch', 'onnx': 'onnx', 'onnxscript': 'onnxscript', 'scipy': 'scipy',
             'tensorboard': 'tensorboard', 'h5py': 'h5py', 'pyarrow': 'pyarrow', 'pyrealsense2': 'pyrealsense2',
             'mujoco': 'mujoco', 'gymnasium': 'gymnasium', 'PIL': 'pillow', 'pytest': 'pytest',
             'hypothesis': 'hypothesis', 'psutil': 'psutil', 'xdist': 'pytest-xdist', 'setuptools': 'setuptools'}
ROS = {'rclpy', 'sensor_msgs', 'geometry_msgs', 'std_msgs', 'std_srvs', 'diagnostic_msgs', 'lifecycle_msgs',
       'rcl_interfaces', 'builtin_interfaces', 'rosgraph_msgs', 'trajectory_msgs', 'launch', 'launch_ros'}
TEST_ONLY = {'domain_coordinator', 'launch_pytest', 'launch_testing'}
OURS = {'fosp_core', 'fosp_ros', 'fosp_sim'}


@pytest.fixture(scope='module')
def arguments():
    """What setup.py hands to setuptools, without building anything."""
    code = ('import setuptools, json, sys\n'
            'setuptools.setup = lambda **kw: print(json.dumps(kw))\n'
            'sys.argv = ["setup.py"]\n'
            'exec(compile(open("setup.py").read(), "setup.py", "exec"), {"__file__": "setup.py", "__name__": "m"})')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    import json
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope='module')
def manifest():
    """The root element of package.xml."""
    return ElementTree.parse(ROOT / 'package.xml').getroot()


def tracked() -> list[str]:
    """Files that git knows; every file when this is no checkout (a release tarball)."""
    done = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0 and done.stdout:
        return [f for f in done.stdout.splitlines() if (ROOT / f).is_file()]
    return [str(p.relative_to(ROOT)) for p in ROOT.rglob('*') if p.is_file() and '.venv' not in p.parts]


def imports_of(file: Path) -> set[str]:
    """Top-level names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {a.name.split('.')[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split('.')[0])
    return names


def test_versions_and_names_agree(arguments, manifest):
    version = manifest.findtext('version')
    assert manifest.findtext('name') == arguments['name'] == 'fosp_ros'
    assert version == arguments['version']
    changes = (ROOT / 'CHANGELOG.rst').read_text()
    assert re.search(rf'^{re.escape(version)} \(', changes, re.M), f'CHANGELOG.rst has no section {version}'


def test_manifest_is_what_ament_and_rosdep_expect(manifest):
    assert manifest.get('format') == '3'
    assert manifest.findtext('export/build_type') == 'ament_python'
    assert manifest.findtext('license') == 'Apache-2.0'
    assert 'Apache License' in (ROOT / 'LICENSE').read_text()
    assert (ROOT / 'resource' / 'fosp_ros').read_bytes() == b''
    needed = {e.text for kind in ('exec_depend', 'test_depend') for e in manifest.findall(kind)}
    assert 'cv_bridge' not in needed


def test_every_file_of_launch_config_and_models_is_installed_where_it_lies(arguments):
    installed = {(target, source) for target, sources in arguments['data_files'] for source in sources}
    assert ('share/ament_index/resource_index/packages', 'resource/fosp_ros') in installed
    assert ('share/fosp_ros', 'package.xml') in installed
    missing = []
    for file in tracked():
        if file.split('/')[0] in ('launch', 'config', 'models') and not Path(file).name.startswith('.'):
            if (f'share/fosp_ros/{os.path.dirname(file)}', file) not in installed:
                missing.append(file)
    assert not missing


def test_only_our_three_packages_become_importable(arguments):
    assert {p.split('.')[0] for p in arguments['packages']} == OURS
    assert arguments['package_dir'] == {'fosp_sim': 'sim'}
    for package in arguments['packages']:
        folder = ROOT / package.replace('.', '/').replace('fosp_sim', 'sim', 1)
        assert (folder / '__init__.py').is_file(), package
    for name in ('launch', 'config', 'models', 'test'):
        assert not (ROOT / name / '__init__.py').exists(), f'{name}/ must not be a package'
    on_disk = {str(p.parent.relative_to(ROOT)).replace('/', '.') for top in ('fosp_core', 'fosp_ros')
               for p in (ROOT / top).rglob('*.py')}
    assert on_disk <= set(arguments['packages']), 'a folder with modules lacks __init__.py and would not be installed'


def test_every_entry_point_exists(arguments):
    for line in arguments['entry_points']['console_scripts']:
        name, target = (part.strip() for part in line.split('='))
        module, function = target.split(':')
        file = ROOT / (module.replace('.', '/').replace('fosp_sim', 'sim', 1) + '.py')
        assert file.is_file(), f'{name}: {file} is missing'
        defined = {n.name for n in ast.parse(file.read_text()).body if isinstance(n, ast.FunctionDef)}
        assert function in defined, f'{name}: {module} has no {function}'


def test_the_graphs_executables_are_entry_points(arguments):
    from fosp_ros import graph
    scripts = {line.split('=')[0].strip(): line.split('=')[1].strip().split(':')[0]
               for line in arguments['entry_points']['console_scripts']}
    for spec in graph.build():
        assert scripts.get(spec.executable) == spec.module


def test_every_imported_library_is_declared(arguments, manifest):
    """A library that only this machine happens to have must not be imported."""
    extras = arguments['extras_require']
    declared = {re.split(r'[\[<>=!~ ;]', r, maxsplit=1)[0].lower() for k, rs in extras.items() for r in rs}
    declared |= {'setuptools'}
    packages = {e.text for kind in ('exec_depend', 'test_depend') for e in manifest.findall(kind)}
    unknown = []
    for file in tracked():
        if not file.endswith('.py'):
            continue
        for name in imports_of(ROOT / file) - set(sys.stdlib_module_names) - OURS:
            if name in ROS:
                good = name in packages or file.startswith('test/')
            elif name in TEST_ONLY:
                good = file.startswith('test/')
            elif file.startswith('test/') and any((folder / f'{name}.py').is_file() for folder in
                                                  ((ROOT / file).parent, ROOT / 'test')):
                good = True         # a helper beside the tests that use it, or above them
            else:
                good = LIBRARIES.get(name, '').lower() in declared
            if not good:
                unknown.append(f'{file}: {name}')
    assert not unknown


def test_pins_hold_the_libraries_exactly(arguments):
    """Each library of the extras has one exact pin in each constraints file, and torch is the CPU build's version."""
    for name in ('constraints.txt', 'constraints-kilted.txt', 'constraints-ros.txt'):
        lines = [line for line in (ROOT / 'config' / name).read_text().splitlines() if line and line[0] != '#']
        pins = dict(line.split('==') for line in lines)
        lower = {k.lower(): v for k, v in pins.items()}
        wheels = {'constraints.txt': 'ros-jazzy', 'constraints-kilted.txt': 'ros-kilted'}.get(name)
        for extra, requirements in arguments['extras_require'].items():
            if extra.startswith('ros-') and extra != wheels or extra == 'dev' and name != 'constraints.txt':
                continue
            for requirement in requirements:
                library = re.split(r'[\[<>=!~ ;]', requirement, maxsplit=1)[0].lower()
                if library.startswith('ros-') and library not in lower:
                    continue        # a metapackage that the wheels of another name satisfy
                assert library in lower, f'{name}: no pin of {library}'
        assert lower['torch'] == '2.13.0'
        assert not [k for k in lower if 'cuda' in k or 'nvidia' in k]


def test_scripts_follow_the_environment():
    """Lesson 25: scripts that carry the system's interpreter ignore a virtual environment."""
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    assert config['build_scripts']['executable'] == '/usr/bin/env python3'
    assert config['install']['install_scripts'] == config['develop']['script_dir'] == '$base/lib/fosp_ros'


def test_launch_folder_does_not_shadow_ros_launch():
    """With this checkout first on the path, `import launch` is ROS's package or nothing usable, never our folder."""
    done = subprocess.run([sys.executable, '-c', 'import launch; print(getattr(launch, "__file__", None))'], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    assert str(ROOT / 'launch') not in done.stdout


def test_top_level_holds_only_what_it_should():
    extra = {f.split('/')[0] for f in tracked()} - TOP_LEVEL
    assert not {name for name in extra if not name.startswith('.')}


def test_every_source_file_names_its_licence():
    bare = []
    for file in tracked():
        if file.endswith(('.py', '.sh')) or file in ('Makefile', '.ci/run'):
            head = (ROOT / file).read_text()[:300]
            if not head:
                continue        # the empty __init__.py of a package
            if 'Copyright 2026 The fosp_ros authors' not in head or 'SPDX-License-Identifier: Apache-2.0' not in head:
                bare.append(file)
    assert not bare


def test_code_passes_ruff():
    """The rules of .ruff.toml, as `make check` runs them."""
    ruff = Path(sys.executable).with_name('ruff')
    if not ruff.is_file():
        pytest.skip('ruff is not installed beside this Python')
    files = [f for f in tracked() if f.endswith('.py')]
    done = subprocess.run([ruff, 'check', '--no-cache', '--output-format', 'concise', *files], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_command_reference_names_every_command_and_option():
    """An option that only `--help` knows is one that nobody finds; a documented one that is gone misleads."""
    import argparse
    import importlib

    from fosp_core.bench import BENCHMARKS
    from fosp_core.cli import COMMANDS
    text = (ROOT / 'docs' / 'reference' / 'cli.md').read_text()
    sections = dict(re.findall(r'^### (\S+)\n(.*?)(?=^### |\Z)', text, re.M | re.S))
    assert set(sections) == set(COMMANDS)
    modules = {name: [module] for name, (module, _) in COMMANDS.items()}
    modules['bench'] = [module for module, _ in BENCHMARKS.values()]
    for name, parts in modules.items():
        if any(part.startswith('fosp_ros') for part in parts):
            pytest.importorskip('rclpy')
        options = set()
        for part in parts:
            parser = argparse.ArgumentParser(add_help=False)
            importlib.import_module(part).add_arguments(parser)
            options |= {o for a in parser._actions if a.help != argparse.SUPPRESS for o in a.option_strings}
        documented = set(re.findall(r'`(--[a-z-]+)', sections[name]))
        assert options - {'-h', '--help'} == documented, name


def test_links_of_the_documents_lead_somewhere():
    broken = []
    for file in tracked():
        if file.endswith('.md'):
            for target in re.findall(r'\]\(([^)#]+)[^)]*\)', (ROOT / file).read_text()):
                if '://' not in target and not (ROOT / file).parent.joinpath(target).exists():
                    broken.append(f'{file}: {target}')
    assert not broken
