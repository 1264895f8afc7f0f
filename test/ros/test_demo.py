# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The demo watches from outside: prevents a green report while a node died or another node moved the arm (lesson 6)."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import types

import psutil
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import TwistStamped
from rclpy.node import Node
from sensor_msgs.msg import Image, Joy

from fosp_core.cli import main
from fosp_core.errors import FospError
from fosp_ros import qos
from fosp_ros.demo import fresh_folder
from fosp_ros.demo_observer import Observer
from fosp_ros.diagnostics import status
from fosp_ros.messages import time_of

PERIOD = 0.05


class Graph:
    """Publishes what bridge and filter publish, one tick at a time."""

    def __init__(self, rig, name='safety_filter'):
        self.bridge = rig.add(Node('sim_bridge', namespace='fosp'))
        self.filter = rig.add(Node(name, namespace='fosp'))
        self.label = self.bridge.create_publisher(Joy, 'label', qos.LABEL)
        self.image = self.bridge.create_publisher(Image, 'image', qos.IMAGE)
        self.episode = self.bridge.create_publisher(DiagnosticStatus, 'sim_bridge/episode', qos.EVENT)
        self.command = self.filter.create_publisher(TwistStamped, 'command_out', qos.COMMAND)
        self.state = self.filter.create_publisher(DiagnosticStatus, 'safety_filter/state', qos.STATUS)
        self.stamp = time.time_ns()

    def tick(self, first=False, last=False, cost=0.0, answer=0.0, reason='ok', risk=0.2, altered=''):
        """One observation; the command follows after `answer` seconds, not at all for None."""
        self.stamp += 100_000_000
        header = {'stamp': time_of(self.stamp)}
        label = Joy(axes=[0.0, cost], buttons=[int(first), int(last), 0])
        label.header.stamp = header['stamp']
        self.label.publish(label)
        image = Image(height=2, width=2, encoding='rgb8', step=8)
        image.header.stamp = header['stamp']
        image.data.frombytes(bytes(range(16)))
        self.image.publish(image)
        if answer is not None:
            time.sleep(answer)
            command = TwistStamped()
            command.header.stamp = header['stamp']
            self.command.publish(command)
            self.state.publish(status('safety_filter', DiagnosticStatus.OK, reason,
                                      {'stamp': self.stamp, 'risk': risk, 'level': 0.5, 'interventions': 3,
                                       'altered': altered}))
        time.sleep(0.01)


@pytest.fixture
def watched(rig):
    """A fake graph and the observer that watches it, connected."""
    graph = Graph(rig)
    observer = Observer(period=PERIOD)
    rig.wait_for(lambda: graph.label.get_subscription_count() and graph.command.get_subscription_count()
                 and graph.image.get_subscription_count() and graph.state.get_subscription_count()
                 and graph.episode.get_subscription_count(), what='discovery')
    time.sleep(0.3)     # the subscriber's side of the match
    yield graph, observer, rig
    observer.close()


def test_latency_is_from_the_pictures_publication_to_the_commands_arrival(watched):
    graph, observer, rig = watched
    graph.tick(first=True)
    for _ in range(8):
        graph.tick(answer=0.02)
    rig.wait_for(lambda: len(observer.latencies) == 9, what='nine answers')
    slow = sorted(observer.latencies)[1:]
    assert all(20.0 <= x < 45.0 for x in slow[:6]), observer.latencies
    assert observer.missed == 0


def test_a_missing_and_a_late_answer_are_missed_deadlines_but_the_last_record_needs_none(watched):
    graph, observer, rig = watched
    graph.tick(first=True)
    graph.tick(answer=None)
    graph.tick(answer=PERIOD + 0.03)
    graph.tick(last=True, answer=None)
    time.sleep(2.5 * PERIOD)
    graph.tick(first=True)
    rig.wait_for(lambda: observer.missed >= 2, what='the two misses')
    time.sleep(0.2)
    assert observer.missed == 2
    assert len(observer.latencies) == 3


def test_a_publisher_is_foreign_only_when_its_name_stays_unknown(watched, monkeypatch):
    _, observer, _ = watched
    endpoint = types.SimpleNamespace(node_name='_NODE_NAME_UNKNOWN_', endpoint_gid=[1] * 16)
    found = [endpoint]
    monkeypatch.setattr(observer.node, 'get_publishers_info_by_topic', lambda topic: found)
    monkeypatch.setattr('fosp_ros.demo_observer.NAMELESS_S', 0.3)
    observer.check_publishers()
    assert not observer.foreign_publishers
    time.sleep(0.4)
    observer.check_publishers()
    assert observer.foreign_publishers == {'a node without a name'}
    found.clear()
    observer.check_publishers()
    assert not observer._nameless


def test_an_episode_carries_its_ticks_with_picture_risk_and_reason(watched):
    graph, observer, rig = watched
    graph.tick(first=True, risk=0.1)
    graph.tick(reason='risk_scaled', risk=0.7, altered='risk')
    graph.tick(reason='risk_least', risk=0.6, altered='limits')     # the proposal was the least risky one
    graph.tick(last=True, cost=1.0, risk=0.3)
    rig.wait_for(lambda: sum(observer.reasons.values()) == 4, what='four states')
    graph.episode.publish(status('sim_bridge/episode', DiagnosticStatus.OK, 'reached, touched', {
        'task': 'unseen3', 'seed': 7, 'success': True, 'violation': True, 'steps': 2, 'bypassed': 0}))
    episode = rig.wait_for(lambda: observer.episodes and observer.episodes[0], what='the episode')
    assert (episode.task, episode.seed, episode.success, episode.violation, episode.steps) == (
        'unseen3', 7, True, True, 2)
    assert [t.reason for t in episode.ticks] == ['ok', 'risk_scaled', 'risk_least', 'ok']
    assert episode.changed == 1 and episode.altered == {'risk': 1, 'surprise': 0, 'limits': 1, 'stopped': 0}
    assert not episode.unwarned and dataclasses.replace(episode, ticks=episode.ticks[2:]).unwarned
    assert [t.cost for t in episode.ticks] == [False, False, False, True]
    assert [t.risk for t in episode.ticks] == [0.1, 0.7, 0.6, 0.3]
    # Row padding (step 8 for 6 bytes) must not reach the picture.
    assert episode.ticks[0].picture.tolist() == [[[0, 1, 2], [3, 4, 5]], [[8, 9, 10], [11, 12, 13]]]


def test_another_publisher_of_command_out_is_seen(watched):
    _graph, observer, rig = watched
    time.sleep(0.5)
    assert not observer.foreign_publishers
    rogue = rig.add(Node('rogue', namespace='fosp'))
    rogue.create_publisher(TwistStamped, 'command_out', 1)
    rig.wait_for(lambda: 'rogue' in observer.foreign_publishers, what='the rogue')


# -- the whole demo, as a user runs it --------------------------------------------------------------------------------
def start_demo(toy, out, *more):
    """Start `fosp demo` on a toy model with one episode per phase."""
    command = [sys.executable, '-m', 'fosp_core.cli', 'demo', '--model', str(toy), '--episodes', '1', '--steps', '2',
               '--practice', '2', '--offline-episodes', '3', '--realtime', '2', '--out', str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def nodes_of(pid):
    """Processes of the graph below `pid`, by the last part of their module."""
    found = {}
    for child in psutil.Process(pid).children(recursive=True):
        try:
            line = child.cmdline()
        except psutil.NoSuchProcess:
            continue
        if '-m' in line:
            found[line[line.index('-m') + 1].split('.')[-1]] = child
    return found


def wait_for_node(process, name, timeout=60.0):
    """Return the process of one node once it runs."""
    end = time.monotonic() + timeout
    while time.monotonic() < end and process.poll() is None:
        found = nodes_of(process.pid)
        if name in found:
            return found[name]
        time.sleep(0.1)
    pytest.fail(f'{name} did not start: {process.communicate(timeout=10)}')


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_whole_demo_writes_table_page_and_json(toy, tmp_path):
    process = start_demo(toy, tmp_path / 'demo', '--verbose')
    out, err = process.communicate(timeout=220)
    assert process.returncode == 0, out + err
    report = json.loads((tmp_path / 'demo' / 'report.json').read_text())
    assert [(r['task'], r['phase'], r['n']) for r in report['rows']] == [
        ('standard', 'before', 1), ('unseen3', 'before', 1), ('unseen3', 'after', 1)]
    assert report['bypassed_commands'] == 0
    # The two of practice alone, though two were scored before them; the page says on which layouts.
    assert 'job ft-0001: 2 steps on 2 episodes' in out
    trained = re.search(r'fine-tuned on 2 episodes of unseen3 on layouts (\d+) to (\d+)', out)
    assert trained and (int(trained[1]), int(trained[2])) == (1_900_000_500, 1_900_000_501)
    assert 0 < report['latency_ms']['p50'] <= report['latency_ms']['p99']
    assert report['model']['version'] == 'toy'
    page = (tmp_path / 'demo' / 'report.html').read_text()
    assert 'Fine-tuned on 2 episodes of unseen3 on layouts 1900000500 to 1900000501' in page
    assert 'data:image/webp;base64,' in page
    if report['model']['fine_tuned']:
        assert report['model']['fine_tuned']['version'] != 'toy' and report['model']['fine_tuned']['version'] in page
    else:       # a model of random weights may fail a gate: the demo says so and goes on
        assert 'the new model was refused: ' in out and 'refused by a gate' in page
    assert 'unseen3    after' in out and 'image to command_out: p50' in out


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_dead_node_and_a_second_commander_fail_the_demo_which_leaves_no_process(toy, tmp_path, rig):
    process = start_demo(toy, tmp_path / 'demo')
    rogue = rig.add(Node('rogue', namespace='fosp'))
    command = rogue.create_publisher(TwistStamped, 'command_out', 1)
    rogue.create_timer(0.05, lambda: command.publish(TwistStamped()))
    trainer = wait_for_node(process, 'trainer_node')
    everyone = [*nodes_of(process.pid).values()]
    time.sleep(3.0)
    trainer.send_signal(signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, out + err
    assert 'PROBLEM: node trainer ended (signal SIGKILL)' in out
    assert 'PROBLEM: command_out has a publisher besides the safety filter: rogue' in out
    assert 'node trainer ended' in (tmp_path / 'demo' / 'report.html').read_text()
    assert not psutil.wait_procs(everyone, timeout=10)[1]


def test_without_opengl_the_demo_says_so_in_one_line_and_leaves_nothing(toy, tmp_path):
    done = subprocess.run([sys.executable, '-m', 'fosp_core.cli', 'demo', '--model', str(toy), '--out',
                           str(tmp_path / 'demo')], env={**os.environ, 'MUJOCO_GL': 'nothing', 'FOSP_GL_PROBED': ''},
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and 'no headless OpenGL platform' in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith('error: ')]) == 1
    assert not [f for f in (tmp_path / 'demo').rglob('*') if f.is_file()] if (tmp_path / 'demo').exists() else True


def test_only_a_work_folder_of_a_demo_is_ever_removed(tmp_path):
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work' / 'thesis.tex').touch()
    with pytest.raises(FospError, match='not the work folder of a demo'):
        fresh_folder(tmp_path / 'work')
    assert (tmp_path / 'work' / 'thesis.tex').exists()
    made = fresh_folder(tmp_path / 'other')
    (made / 'x').touch()
    assert not (fresh_folder(made) / 'x').exists()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_interrupted_demo_leaves_no_process(toy, tmp_path):
    process = start_demo(toy, tmp_path / 'demo')
    wait_for_node(process, 'trainer_node')
    time.sleep(1.0)
    everyone = [*nodes_of(process.pid).values()]
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not psutil.wait_procs(everyone, timeout=10)[1]


def test_bad_input_is_one_line(capsys, tmp_path):
    assert main(['demo', '--model', str(tmp_path / 'none'), '--out', str(tmp_path / 'o')]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith('error: ') and 'none' in error and '\n' not in error
    assert main(['demo', '--episodes', '0', '--out', str(tmp_path / 'o')]) == 2
    assert '--episodes 0' in capsys.readouterr().err
    assert main(['demo', '--practice', '0', '--out', str(tmp_path / 'o')]) == 2
    assert '--practice 0' in capsys.readouterr().err
    assert not (tmp_path / 'o').exists()
