# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The graph runner and `fosp up`: a node that dies is named, everything ends in order, nothing is left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from fosp_core.errors import FospError
from fosp_ros import graph, shared_memory
from fosp_ros.runner import GraphRunner

NODE = '''
    import sys, time
    from std_msgs.msg import String
    from fosp_core.errors import FospError
    from fosp_ros.lifecycle import ManagedNode, spin_node
    from fosp_ros.parameters import P

    class Small(ManagedNode):
        NAME = 'small'
        PARAMETERS = (P('mode', 'string', 'good', 'Mode.'),)
        def set_up(self):
            if self.p.mode == 'refuses':
                raise FospError('manifest.json: sha256 is abc, expected def')
            self.publisher = self.publish_on(String, 'words', 10)
            self.listen(String, 'words', lambda message: None, 10)
        def start(self):
            print('started', flush=True)
        def stop(self):
            print('stopped', time.monotonic(), flush=True)
            if self.p.mode == 'hangs':
                time.sleep(60)
    if __name__ == '__main__':
        sys.exit(spin_node(Small))
'''


@pytest.fixture
def run(tmp_path, isolated):
    (tmp_path / 'small_node.py').write_text(textwrap.dedent(NODE))
    runners = []

    def _run(*modes, **options):
        specs = [graph.NodeSpec(f'node{i}', 'none', 'small_node', params={'mode': mode}, critical=i == 0)
                 for i, mode in enumerate(modes)]
        runner = GraphRunner(specs, extra_env={'PYTHONPATH': str(tmp_path), 'PYTHONSAFEPATH': '1'}, **options)
        runners.append(runner)
        runner.start()
        end = time.monotonic() + 10
        while time.monotonic() < end and not all('started' in runner.lines[s.name] or runner.poll().get(s.name)
                                                 for s in specs):
            time.sleep(0.02)
        return runner
    yield _run
    for runner in runners:
        runner.stop(timeout=1.0)


def segments(runner):
    """Return the nodes' own segments: the owner has the lock open; ports and others' segments it only reads."""
    files = {f for pid in runner.pids.values() for f in shared_memory.opened_by(pid) if '_port' not in f}
    return {f for f in files if f.endswith('_el') or f'{f}_el' in files}


def left_over(files):
    return files & set(os.listdir('/dev/shm'))


def test_all_nodes_end_with_zero_and_the_critical_one_last(run):
    logged = []
    runner = run('good', 'good', 'good', log=logged.append)
    assert len(runner.pids) == 3 and runner.poll() == {}
    runner.check()
    files = segments(runner)
    assert files, 'the test must see shared memory in use, or it proves nothing'
    assert runner.stop() == {'node0': 0, 'node1': 0, 'node2': 0} and not runner.forced
    assert not left_over(files)
    stopped = {name: float(line.split()[1]) for name, lines in runner.lines.items() for line in lines
               if line.startswith('stopped')}
    assert stopped['node0'] > max(stopped['node1'], stopped['node2'])
    assert '[node1] started' in logged


def test_a_node_that_is_killed_is_named_and_its_shared_memory_removed(run):
    runner = run('good', 'good')
    time.sleep(0.6)
    files = segments(runner)
    end = time.monotonic() + 5
    while not files <= runner._files and time.monotonic() < end:
        runner.poll()  # notes, about once a second, which files the nodes have
        time.sleep(0.1)
    os.kill(runner.pids['node1'], signal.SIGKILL)
    end = time.monotonic() + 5
    while not runner.poll() and time.monotonic() < end:
        time.sleep(0.05)
    with pytest.raises(FospError, match=r'node node1 ended \(signal SIGKILL\)'):
        runner.check()
    assert runner.stop() == {'node0': 0, 'node1': -9}
    assert not left_over(files)


def test_a_node_that_refuses_its_configuration_is_named_with_its_reason(run):
    runner = run('good', 'refuses')
    end = time.monotonic() + 5
    while not runner.poll() and time.monotonic() < end:
        time.sleep(0.05)
    with pytest.raises(FospError, match=r'node node1 ended \(exit code 2\): .*manifest.json: sha256 is abc'):
        runner.check()


def test_a_node_that_does_not_end_is_killed_and_reported(run):
    runner = run('good', 'hangs')
    pids = runner.pids
    began = time.monotonic()
    runner.stop(timeout=1.0)
    assert runner.forced == ['node1'] and time.monotonic() - began < 4.0
    assert not any(psutil.pid_exists(pid) for pid in pids.values())


def test_files_that_a_living_process_has_open_are_never_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_memory, 'FOLDER', tmp_path)
    for name in ('fastrtps_aaaa', 'fastrtps_aaaa_el', 'fastrtps_bbbb', 'fastdds_cccc', 'sem.fastrtps_port7_mutex',
                 'fastrtps_port7', 'precious'):
        (tmp_path / name).write_bytes(b'x' * 4096)
    with open(tmp_path / 'fastrtps_bbbb'):
        removed = shared_memory.remove({'fastrtps_aaaa', 'fastrtps_bbbb', 'fastrtps_port7', 'precious'})
    assert removed == ['fastrtps_aaaa', 'fastrtps_aaaa_el', 'fastrtps_port7', 'sem.fastrtps_port7_mutex']
    assert sorted(os.listdir(tmp_path)) == ['fastdds_cccc', 'fastrtps_bbbb', 'precious']


def test_a_segment_whose_owner_is_dead_goes_although_a_reader_still_has_it(tmp_path, monkeypatch):
    import fcntl
    monkeypatch.setattr(shared_memory, 'FOLDER', tmp_path)
    for name in ('fastrtps_dead', 'fastrtps_dead_el', 'fastrtps_live', 'fastrtps_live_el'):
        (tmp_path / name).write_bytes(b'x' * 4096)
    with open(tmp_path / 'fastrtps_dead'), open(tmp_path / 'fastrtps_live_el') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert shared_memory.remove({'fastrtps_dead', 'fastrtps_live'}) == ['fastrtps_dead', 'fastrtps_dead_el']


def test_children_get_the_environment_even_where_the_wheels_restart_the_interpreter(tmp_path, isolated):
    (tmp_path / 'shows.py').write_text('import os\nfor k in ("FASTRTPS_DEFAULT_PROFILES_FILE", "ROS_DOMAIN_ID", '
                                       '"OMP_NUM_THREADS", "FOSP_PARENT_PID"): print(k, os.environ[k], flush=True)\n'
                                       'import rclpy; print("rclpy", os.getppid(), flush=True)\n')
    spec = graph.NodeSpec('shows', 'none', 'shows')
    for guard in (True, False):
        runner = GraphRunner([spec], domain_id=7, extra_env={'PYTHONPATH': str(tmp_path)})
        if guard:  # as if started by an interpreter that was never restarted
            runner._env = {k: v for k, v in runner._env.items()
                           if k not in ('_ROS_WHEELS_BOOTSTRAP_COMPLETE', 'LD_LIBRARY_PATH')}
        runner.start()
        end = time.monotonic() + 10
        while not runner.poll() and time.monotonic() < end:
            time.sleep(0.02)
        runner.stop()
        shown = dict(line.split(' ', 1) for line in runner.lines['shows'])
        assert shown['ROS_DOMAIN_ID'] == '7' and shown['OMP_NUM_THREADS'] == '1', list(runner.lines['shows'])
        assert shown['FASTRTPS_DEFAULT_PROFILES_FILE'].endswith('fastdds_local.xml')
        assert shown['FOSP_PARENT_PID'] == shown['rclpy'] == str(os.getpid())


@pytest.mark.parametrize(('arguments', 'words'), [
    (['--task', 'moon'], "error: task 'moon': expected one of standard"),
    (['--model', '/nowhere'], 'error: /nowhere: no such model folder'),
    (['--set', 'learner'], "error: --set 'learner': expected NODE.PARAM=VALUE"),
    (['--domain-id', '500'], 'error: --domain-id 500: expected 0 to 101'),
])
def test_fosp_up_refuses_bad_arguments_in_one_line(arguments, words):
    done = subprocess.run([sys.executable, '-m', 'fosp_core.cli', 'up', *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(words) and done.stderr.count('\n') == 1, done.stderr


def test_fosp_up_names_the_node_that_cannot_start_and_stops_the_rest(tmp_path, toy):
    """A bundle with one wrong byte: the graph ends with exit code 2 and a line that names node and file."""
    import shutil
    broken = tmp_path / 'broken'
    shutil.copytree(toy, broken)
    data = bytearray((broken / 'policy.onnx').read_bytes())
    data[100] ^= 1
    (broken / 'policy.onnx').write_bytes(data)
    done = subprocess.run([sys.executable, '-m', 'fosp_core.cli', 'up', '--no-sim', '--model', str(broken), '--set',
                           f'trainer.work_dir={tmp_path / "work"}'], capture_output=True, text=True, timeout=40)
    assert done.returncode == 2, done.stderr
    assert 'error: node ' in done.stderr and 'policy.onnx' in done.stderr and done.stderr.count('\n') == 1
