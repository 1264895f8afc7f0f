# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The bridge's rules without ROS: no command outlives its time or its episode; a second commander is counted."""

import numpy as np
import pytest

pytest.importorskip('mujoco', reason='the simulator extra is not installed')

from fosp_sim.bridge_core import CommandSlot, EpisodeLoop, WriterWatch
from fosp_sim.safereach import SafeReachEnv


def test_a_command_acts_for_its_time_and_no_longer():
    """Silence is a stop, not a repetition of what came last (lessons.md 6)."""
    slot = CommandSlot(3, timeout=0.2)
    assert not slot.take(0.0)[1] and not slot.take(0.0)[0].any()
    slot.put([0.1, 0.0, -0.2], stamp=5, now=1.0)
    command, fresh = slot.take(1.2)
    assert fresh and command.tolist() == [0.1, 0.0, -0.2]
    command[:] = 9.0        # the caller's copy
    assert slot.take(1.1)[0].tolist() == [0.1, 0.0, -0.2]
    command, fresh = slot.take(1.21)
    assert not fresh and not command.any()


@pytest.mark.parametrize('bad', [[np.nan, 0, 0], [np.inf, 0, 0], [0.1, 0.1], []])
def test_an_unusable_command_stops_the_arm(bad):
    slot = CommandSlot(3, timeout=0.2)
    slot.put([0.1, 0.1, 0.1], stamp=1, now=0.0)
    assert not slot.put(bad, stamp=2, now=0.05)
    assert slot.refused == 1 and not slot.take(0.06)[1]


def test_answers_to_an_earlier_episode_do_not_move_the_arm():
    """The reset arm would set off with the last episode's command, which the records would not show."""
    slot = CommandSlot(3, timeout=0.2)
    slot.put([0.1, 0, 0], stamp=100, now=0.0)
    slot.clear(not_before=200)
    assert not slot.take(0.0)[1]
    assert not slot.put([0.1, 0, 0], stamp=199, now=0.01) and slot.old == 1
    assert not slot.take(0.02)[1]
    assert slot.put([0.1, 0, 0], stamp=200, now=0.02) and slot.take(0.03)[1]
    assert slot.put([0.2, 0, 0], stamp=0, now=0.04) and slot.take(0.05)[0][0] == 0.2     # unstamped: by arrival


def test_a_command_that_was_held_up_on_its_way_does_not_move_the_arm():
    """It answers what is long past, however fresh its arrival is."""
    slot, clock = CommandSlot(3, timeout=0.2), 10**18
    assert slot.put([0.1, 0, 0], stamp=clock - 200_000_000, now=0.0, clock=clock) and slot.take(0.01)[1]
    assert not slot.put([0.3, 0, 0], stamp=clock - 200_000_001, now=0.1, clock=clock) and slot.old == 1
    assert slot.take(0.15)[0][0] == 0.1 and not slot.take(0.21)[1]      # nor does it prolong the one before
    assert slot.put([0.1, 0, 0], stamp=0, now=0.3, clock=clock)
    assert slot.put([0, 0, 0], stamp=clock - 10**12, now=0.35, clock=clock) and not slot.take(0.36)[0].any()    # a stop


def test_two_writers_are_seen_and_a_restarted_one_is_not_two():
    watch = WriterWatch()
    for n in range(1, 101):
        watch.put(n)
    assert watch.foreign == 0
    watch.put(105)              # four were lost
    assert watch.foreign == 0
    for n in range(1, 31):      # the filter was started anew
        watch.put(n)
    assert watch.foreign == 0
    watch = WriterWatch()
    for n in [*range(1, 11), *range(1, 101)]:       # started anew early on
        watch.put(n)
    assert watch.foreign == 0
    watch = WriterWatch()
    for n in range(5000, 5010):
        watch.put(n)
    watch.put(1)                # `ros2 topic pub --once` from somewhere
    watch.put(5010)
    assert watch.foreign == 1
    watch.clear()
    assert watch.foreign == 0
    watch.put(5011)
    assert watch.foreign == 0
    watch = WriterWatch()
    for n in range(1, 20):      # both from the start, with equal numbers
        watch.put(n)
        watch.put(n)
    assert watch.foreign == 19


class Scripted:
    """An environment whose episodes last `length` steps."""

    def __init__(self, length):
        self.length, self.calls = length, []

    def reset(self, seed):
        self.calls.append(('reset', seed))
        self.t, self.at = 0, seed
        return {'image': np.zeros(1)}, {}

    def step(self, action):
        self.calls.append(('step', float(action[0])))
        self.t += 1
        end = self.t >= self.length
        info = {'task': 'standard', 'seed': self.at, 'success': end, 'violation': True, 'min_clearance': 0.01}
        return {'image': np.zeros(1)}, float(end), 1.0, end, False, info


def test_ticks_make_the_records_of_episodes():
    env = Scripted(3)
    loop = EpisodeLoop(env, episodes=2, seed=40)
    ticks = []
    while not loop.finished:
        ticks.append(loop.tick(np.array([0.5, 0, 0])))
    assert [t.is_first for t in ticks] == [True, False, False, False] * 2
    assert [t.is_last for t in ticks] == [False, False, False, True] * 2
    assert [t.is_terminal for t in ticks] == [t.is_last for t in ticks]
    assert [t.reward for t in ticks] == [0, 0, 0, 1] * 2 and [t.cost for t in ticks] == [0, 1, 1, 1] * 2
    assert [c for c in env.calls if c[0] == 'reset'] == [('reset', 40), ('reset', 41)]
    results = [t.result for t in ticks if t.result]
    assert [(r['seed'], r['steps'], r['cost'], r['return'], r['index']) for r in results] == [
        (40, 3, 3.0, 1.0, 0), (41, 3, 3.0, 1.0, 1)]


def test_halt_closes_the_record_without_a_result():
    loop = EpisodeLoop(Scripted(3), episodes=2, seed=0)
    loop.tick(np.zeros(3))
    tick = loop.tick(np.zeros(3), halt=True)
    assert tick.is_last and not tick.is_terminal and tick.result is None and loop.done == 0


def test_the_loop_gives_what_the_gymnasium_loop_gives():
    """Through ROS and without it a policy must see the same pictures for the same actions, bit for bit."""
    env, other = SafeReachEnv('unseen1'), SafeReachEnv('unseen1')
    rng = np.random.default_rng(0)
    loop = EpisodeLoop(env, episodes=1, seed=9)
    expected, _ = other.reset(seed=9)
    tick = loop.tick(rng.uniform(-1, 1, 3))
    for _ in range(15):
        assert np.array_equal(tick.observation['image'], expected['image'])
        assert np.array_equal(tick.observation['ee_pose'], expected['ee_pose'])
        action = rng.uniform(-1, 1, 3)
        tick, (expected, reward, cost, *_) = loop.tick(action), other.step(action)
        assert (tick.reward, tick.cost) == (reward, cost)
    env.close()
    other.close()
