# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The `fosp` command: quick to start, exit codes that scripts can rely on, one line per mistake."""

import errno
import importlib.util
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from fosp_core import cli
from fosp_core.data.bag import BagWriter
from fosp_core.errors import DataError

ROOT = Path(cli.__file__).resolve().parent.parent
HEAVY = ('torch', 'rclpy', 'mujoco', 'onnxruntime', 'cv2', 'rosbags', 'numpy', 'fosp_sim', 'fosp_ros')


def run(*argv):
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run([sys.executable, '-m', 'fosp_core.cli', *argv], env=env, capture_output=True, text=True)


def test_help_lists_every_command():
    done = run('--help')
    assert done.returncode == 0 and done.stderr == ''
    for name, (_, text) in cli.COMMANDS.items():
        assert re.search(rf'^  {name} +{re.escape(text)}$', done.stdout, re.M)


def test_help_imports_nothing_heavy():
    code = ('import sys; from fosp_core.cli import main\n'
            'try: main(["--help"])\n'
            f'except SystemExit: pass\nprint(sorted(set(sys.modules) & set({HEAVY!r})))')
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == '[]'


def test_version_is_that_of_the_package(capsys):
    assert cli.main(['--version']) == 0
    manifest = re.search(r'<version>([^<]+)</version>', (ROOT / 'package.xml').read_text())
    assert capsys.readouterr().out == f'fosp {manifest.group(1)}\n'


def test_no_command_and_unknown_command(capsys):
    assert cli.main([]) == 2
    assert 'usage: fosp' in capsys.readouterr().err
    assert cli.main(['fly']) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: unknown command 'fly', expected one of ") and err.count('\n') == 1
    assert 'collect' in err


@pytest.mark.parametrize('argv', [['--fly'], ['bag-info'], ['bag-info', 'x', '--fly']])
def test_wrong_usage_is_2(argv, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(argv)
    assert error.value.code == 2


@pytest.mark.parametrize('name', cli.COMMANDS)
def test_each_command_has_the_agreed_shape(name):
    module = cli.COMMANDS[name][0]
    if importlib.util.find_spec(module.split('.')[0]) is None:
        pytest.skip(f'{module.split(".")[0]} is not installed here')
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name.split('.')[0] in ('fosp_core', 'fosp_ros', 'fosp_sim'):
            raise
        pytest.skip(f'{error.name} is not installed here')
    assert callable(loaded.add_arguments) and callable(loaded.run)


@pytest.fixture
def command(monkeypatch):
    """Return a function that makes the command `try` do what it is given."""
    def make(action):
        module = types.ModuleType('fosp_try')
        module.add_arguments = lambda parser: parser.add_argument('--number', type=int, default=0)
        module.run = action
        monkeypatch.setitem(sys.modules, 'fosp_try', module)
        monkeypatch.setitem(cli.COMMANDS, 'try', ('fosp_try', 'try it'))
    return make


def test_options_after_the_command_belong_to_it(command, capsys):
    command(lambda args: args.number)
    assert cli.main(['try', '--number', '1']) == 1
    assert cli.main(['try']) == 0
    with pytest.raises(SystemExit) as error:
        cli.main(['try', '--help'])
    assert error.value.code == 0
    assert 'usage: fosp try' in capsys.readouterr().out
    command(lambda args: None)
    assert cli.main(['try']) == 0


def failing(error):
    def action(args):
        raise error
    return action


def test_the_users_mistakes_are_one_line_and_2(command, capsys):
    command(failing(DataError('bag x: topic y,\n   expected z')))
    assert cli.main(['try']) == 2
    assert capsys.readouterr().err == 'error: bag x: topic y, expected z\n'


def test_the_machines_limits_are_one_line_and_2(command, capsys):
    command(failing(OSError(errno.ENOSPC, 'No space left on device', 'out/bag')))
    assert cli.main(['try']) == 2
    assert capsys.readouterr().err == 'error: out/bag: No space left on device\n'


def test_our_own_faults_keep_their_traceback(command):
    for error in (ZeroDivisionError(), OSError(errno.EBADF, 'Bad file descriptor')):
        command(failing(error))
        with pytest.raises(type(error)):
            cli.main(['try'])


def test_interrupt_is_130(command, capsys):
    command(failing(KeyboardInterrupt()))
    assert cli.main(['try']) == 130
    assert capsys.readouterr().err == 'interrupted\n'


def test_a_missing_library_is_named(command, monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, 'try', ('fosp_absent.module', 'try it'))
    assert cli.main(['try']) == 2
    assert capsys.readouterr().err == 'error: try: Python module fosp_absent is not installed here\n'


def test_a_closed_pipe_is_no_error(tmp_path, contract, make_episode):
    with BagWriter(tmp_path / 'bag', contract) as writer:
        writer.add(make_episode(4))
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(f'{sys.executable} -m fosp_core.cli bag-info {tmp_path}/bag | true', shell=True, env=env,
                          capture_output=True, text=True)
    assert done.stderr == ''


def test_bag_info(tmp_path, contract, make_episode, make_episodes, capsys):
    first = make_episode(6, 0, 3, violation=True, policy='reckless')
    second = make_episode(8, 1, 9, int(first.stamp[-1]) + 10 ** 9, success=False, policy='safe')
    with BagWriter(tmp_path / 'bag', contract) as writer:
        writer.add(first)
        writer.add(second)
    assert cli.main(['bag-info', str(tmp_path / 'bag')]) == 0
    out = capsys.readouterr().out
    assert re.search(r'^/fosp/replay/image +14 +sensor_msgs/msg/Image$', out, re.M)
    assert 'steps 14, episodes 2 (1 reckless, 1 safe)' in out and 'SR 0.500, CV 0.500' in out and 'lost 0 steps' in out
    assert 'steps before the first one seen 3' in out
    assert cli.main(['bag-info', str(tmp_path / 'bag'), '--json', '-']) == 0
    info = json.loads(capsys.readouterr().out)
    assert (info['steps'], info['episodes'], info['sr'], info['cv'], info['lost']) == (14, 2, 0.5, 0.5, 0)
    assert info['unseen'] == 3
    assert cli.main(['bag-info', str(tmp_path / 'bag'), '--json', str(tmp_path / 'x' / 'info.json')]) == 0
    assert json.loads((tmp_path / 'x' / 'info.json').read_text()) == info
