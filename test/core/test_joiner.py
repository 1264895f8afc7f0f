# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Steps are joined by equal stamps alone, and no episode ever crosses a gap (lessons.md 24: drops go unnoticed)."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fosp_core.contract import CameraSpec
from fosp_core.data import bag, messages
from fosp_core.data.joiner import EpisodeAssembler, Label, StepJoiner, kinds
from fosp_core.errors import ContractError

ORDER = ('label', 'ee_pose', 'action', 'image')


def stream(episodes):
    """Turn episodes into what the topics carry: (kind, stamp, payload) in the order of publication."""
    out = []
    for e in episodes:
        for t in range(len(e)):
            label = Label(float(e.reward[t]), float(e.cost[t]), bool(e.is_first[t]), bool(e.is_last[t]),
                          bool(e.is_terminal[t]), int(e.step[t]))
            parts = {'image': e.images['image'][t], 'ee_pose': e.vectors['ee_pose'][t], 'action': e.action[t],
                     'label': label}
            out += [(kind, int(e.stamp[t]), parts[kind]) for kind in ORDER]
    return out


def join(contract, messages, **kwargs):
    joiner = StepJoiner(contract, **kwargs)
    steps = [s for m in messages for s in joiner.push(*m)]
    return joiner, steps + joiner.flush()


def assemble(contract, steps):
    assembler = EpisodeAssembler(contract)
    episodes = [e for s in steps if (e := assembler.add(s)) is not None]
    last = assembler.flush()
    return assembler, episodes + ([last] if last is not None else [])


def test_whole_streams_come_back_bit_for_bit(contract, make_episodes, same):
    episodes = make_episodes([5, 9, 2])
    joiner, steps = join(contract, stream(episodes))
    assembler, back = assemble(contract, steps)
    assert joiner.counts.clean and joiner.counts.steps == 16 and joiner.pending == 0
    assert assembler.gaps == 0 and assembler.short == 0
    assert len(back) == 3
    for a, b in zip(episodes, back):
        b.validate(contract)
        same(a, b, meta=False)
        assert b.meta == {}


def test_steps_come_at_once_when_nothing_is_missing(contract, make_episodes):
    """Held-back steps would keep the last episode from the trainer until the next one runs."""
    joiner = StepJoiner(contract)
    messages = stream(make_episodes([3, 3]))
    for i, message in enumerate(messages):
        assert len(joiner.push(*message)) == (i % 4 == 3)


def test_one_nanosecond_apart_is_not_one_step(contract, make_episodes):
    messages = stream(make_episodes([6]))
    kind, stamp, payload = messages[2 * 4 + 3]
    messages[2 * 4 + 3] = (kind, stamp + 1, payload)
    joiner, steps = join(contract, messages)
    assert [s.label.step for s in steps] == [0, 1, 3, 4, 5]
    assert (joiner.counts.lost, joiner.counts.mismatched) == (1, 2)


@pytest.mark.parametrize('kind', ORDER)
def test_a_lost_message_loses_its_step_and_splits_the_episode(contract, make_episodes, kind):
    episodes = make_episodes([20, 4])
    messages = [m for m in stream(episodes) if not (m[0] == kind and m[1] == episodes[0].stamp[7])]
    joiner, steps = join(contract, messages)
    assert joiner.counts.lost == 1 and joiner.counts.mismatched == 1 and joiner.counts.steps == 23
    assembler, back = assemble(contract, steps)
    assert [list(e.step) for e in back] == [list(range(7)), list(range(8, 20)), list(range(20, 24))]
    assert [e.meta for e in back] == [{'gap': True}, {'gap': True}, {}]
    assert [bool(e.is_last[-1]) for e in back] == [False, True, True]
    assert assembler.gaps == 1
    for e in back:
        e.validate(contract)


def test_a_wholly_lost_step_is_seen_by_the_counter(contract, make_episodes):
    episodes = make_episodes([6])
    messages = [m for m in stream(episodes) if m[1] != episodes[0].stamp[3]]
    joiner, steps = join(contract, messages)
    assert joiner.counts.lost == 1 and joiner.counts.mismatched == 0
    assert [list(e.step) for e in assemble(contract, steps)[1]] == [[0, 1, 2], [4, 5]]


def test_lost_ends_and_beginnings_do_not_glue_episodes(contract, make_episodes):
    a, b = make_episodes([6, 6])
    messages = [m for m in stream([a, b]) if m[1] not in (a.stamp[5], b.stamp[0])]
    _, back = assemble(contract, join(contract, messages)[1])
    assert [list(e.step) for e in back] == [[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]]
    assert all(e.meta['gap'] and e.is_first[0] for e in back)


def test_lost_at_the_very_end_is_counted(contract, make_episodes):
    messages = stream(make_episodes([6]))
    joiner, steps = join(contract, messages[:-1])
    assert len(steps) == 5 and joiner.counts.lost == 1 and joiner.counts.mismatched == 1


def test_doubled_messages_and_steps_change_nothing(contract, make_episodes, same):
    episodes = make_episodes([6, 4])
    messages = stream(episodes)
    joiner, steps = join(contract, [m for m in messages for _ in range(2)])
    assert joiner.counts.doubled == len(messages) and joiner.counts.lost == 0
    again = messages[:12] + messages[:12] + messages[12:]
    joiner, more = join(contract, again)
    assert joiner.counts.doubled == 12
    for part in (steps, more):
        for x, y in zip(episodes, assemble(contract, part)[1], strict=True):
            same(x, y, meta=False)


def test_reordered_steps_come_out_in_order(contract, make_episodes):
    episodes = make_episodes([10])
    messages = stream(episodes)
    blocks = [messages[i:i + 4] for i in range(0, len(messages), 4)]
    blocks[3], blocks[5] = blocks[5], blocks[3]
    joiner, steps = join(contract, sum(blocks, []))
    assert [s.label.step for s in steps] == list(range(10))
    assert joiner.counts.lost == 0 and joiner.counts.reordered > 0


def test_a_step_that_comes_after_its_successors_is_lost_not_misplaced(contract, make_episodes):
    messages = stream(make_episodes([40]))
    late = messages[4 * 4:5 * 4]
    joiner, steps = join(contract, messages[:16] + messages[20:] + late)
    assert [s.label.step for s in steps] == [n for n in range(40) if n != 4]
    assert joiner.counts.lost == 1 and joiner.counts.reordered >= 4


def test_a_new_learner_does_not_continue_the_old_episode(contract, make_episode):
    """A learner that died and came back counts from 0 again: its steps belong to another episode."""
    old = make_episode(9, 0, step=50)
    new = make_episode(9, 1, step=0, stamp=int(old.stamp[-1]) + 10 ** 9)
    messages = stream([old])[:-8] + stream([new])
    joiner, steps = join(contract, messages)
    _, back = assemble(contract, steps)
    assert [list(e.step) for e in back] == [list(range(50, 57)), list(range(9))]
    assert joiner.counts.restarts == 1 and joiner.counts.lost == 0
    assert back[0].meta == {'gap': True} and back[1].meta == {}


@pytest.mark.parametrize('skip', [0, 1, 3])
def test_steps_before_the_first_one_seen_are_counted_for_each_learner(contract, make_episode, skip):
    old = make_episode(9, 0)
    new = make_episode(9, 1, stamp=int(old.stamp[-1]) + 10 ** 12)
    joiner, steps = join(contract, stream([old])[4 * skip:] + stream([new])[4 * skip:])
    counts = joiner.counts
    assert (counts.steps, counts.unseen, counts.restarts) == (2 * (9 - skip), 2 * skip, 1)
    assert counts.lost == 0 and counts.clean     # a listener may come late


def test_a_new_learner_that_goes_on_with_the_counter_of_the_old_one_is_not_glued_to_it(contract, make_episode):
    """The old one died after three steps, and the first three of the new one are lost: 0, 1, 2, then 3 and on."""
    old = make_episode(9, 0)
    new = make_episode(9, 1, stamp=int(old.stamp[-1]) + 10 ** 12)
    _, steps = join(contract, stream([old])[:12] + stream([new])[12:])
    assembler, back = assemble(contract, steps)
    assert [list(e.step) for e in back] == [[0, 1, 2], list(range(3, 9))]
    assert all(e.meta == {'gap': True} for e in back) and assembler.gaps == 1
    assert all(np.diff(e.stamp).max() < 10 ** 9 for e in back)


def test_a_pause_between_episodes_is_no_gap_and_a_slow_contract_has_none(contract, make_episode):
    a = make_episode(9, 0)
    b = make_episode(9, 1, step=9, stamp=int(a.stamp[-1]) + 10 ** 12)
    a.is_last[-1] = False       # an end that no operator marked
    assembler, back = assemble(contract, join(contract, stream([a, b]))[1])
    assert len(back) == 2 and assembler.gaps == 0
    slow = dataclasses.replace(contract, rate_hz=0.5)
    a.stamp = a.stamp[0] + 2 * 10 ** 9 * np.arange(9)
    assembler, back = assemble(slow, join(slow, stream([a]))[1])
    assert [len(e) for e in back] == [9] and assembler.gaps == 0


def test_a_clock_set_back_splits_but_does_not_deafen(contract, make_episode):
    a = make_episode(30, 0)
    b = make_episode(30, 1, step=30, stamp=int(a.stamp[0]) - 3600 * 10 ** 9)
    joiner, steps = join(contract, stream([a, b]))
    assert joiner.counts.steps == 60 and joiner.counts.lost == 0
    assert joiner.counts.reordered == 4, 'the step at which it was set, not each one for the hour to come'
    joiner, _ = join(contract, stream([a, b])[:4 * 31])
    joiner.push('label', int(b.stamp[0]) - 1, None)
    assert joiner.counts.reordered == 5, 'what is older than its predecessor of the new time is still counted'
    assert len(assemble(contract, steps)[1]) == 2


def test_a_clock_set_back_within_an_episode_splits_it(contract, make_episode):
    """The time between the two records is unknown, so no model may learn from their pair."""
    episode = make_episode(12)
    episode.stamp[7:] -= 10 ** 9
    _, back = assemble(contract, join(contract, stream([episode]))[1])
    assert [list(e.step) for e in back] == [list(range(7)), list(range(7, 12))]
    for e in back:
        e.validate(contract)


def test_another_older_bag_can_be_played_after_a_newer_one(contract, make_episode):
    a = make_episode(30, 0, step=500)
    b = make_episode(30, 1, step=0, stamp=int(a.stamp[0]) - 3600 * 10 ** 9)
    joiner, steps = join(contract, stream([a, b]))
    assert joiner.counts.steps >= 30 + 30 - 8
    _, back = assemble(contract, steps)
    assert not any({0, 500} <= set(e.step) for e in back)


def test_memory_stays_bounded(contract, make_episode):
    joiner = StepJoiner(contract, max_pending=16)
    for stamp in range(5000):
        joiner.push('image', stamp, None)
    assert joiner.pending <= 16 and joiner.counts.mismatched >= 5000 - 16
    assert len(joiner._done) <= 64


def test_an_episode_without_end_is_cut(contract, make_episode):
    episode = make_episode(50)
    _, steps = join(contract, stream([episode]))
    assembler = EpisodeAssembler(contract, max_steps=20)
    back = [e for s in steps if (e := assembler.add(s)) is not None]
    assert [len(e) for e in back] == [20, 20, 10]
    for e in back:
        e.validate(contract)


def test_a_single_step_makes_no_episode(contract, make_episodes):
    a, b = make_episodes([5, 5])
    messages = [m for m in stream([a, b]) if m[1] in (*a.stamp[:3], a.stamp[4], *b.stamp)]
    assembler, back = assemble(contract, join(contract, messages)[1])
    assert [list(e.step) for e in back] == [[0, 1, 2], [5, 6, 7, 8, 9]] and assembler.short == 1


def test_reserved_and_unknown_names_are_refused(contract):
    bad = dataclasses.replace(contract, cameras=(CameraSpec('label', 'label', 64, 64),))
    with pytest.raises(ContractError, match='reserved'):
        kinds(bad)
    with pytest.raises(ValueError, match='wrist'):
        StepJoiner(contract).push('wrist', 0, None)


@st.composite
def damage(draw):
    lengths = draw(st.lists(st.integers(2, 15), min_size=1, max_size=4))
    n = 4 * sum(lengths)
    lost = draw(st.sets(st.integers(0, n - 1), max_size=6))
    doubled = draw(st.sets(st.integers(0, n - 1), max_size=6))
    jitter = draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))
    return lengths, lost, doubled, jitter


@settings(max_examples=150, deadline=None)
@given(damage())
def test_whatever_is_lost_no_episode_crosses_a_gap(contract, make_episodes, damage):
    lengths, lost, doubled, jitter = damage
    episodes = make_episodes(lengths)
    messages = [(i, m) for i, m in enumerate(stream(episodes)) if i not in lost]
    messages += [(i, m) for i, m in messages if i in doubled]
    messages.sort(key=lambda im: im[0] + jitter[im[0]])
    joiner, steps = join(contract, [m for _, m in messages])
    whole = set(range(sum(lengths))) - {i // 4 for i in lost}
    numbers = [s.label.step for s in steps]
    assert numbers == sorted(set(numbers)) and set(numbers) <= whole
    if numbers:
        assert joiner.counts.lost >= numbers[-1] - numbers[0] + 1 - len(numbers)
    # A jitter of up to 9 messages is less than the window of 8 steps: only at the very start may a step be too late.
    assert len(whole - set(numbers)) <= 3
    truth = {int(s): (e, t) for e in episodes for t, s in enumerate(e.step)}
    for back in assemble(contract, steps)[1]:
        back.validate(contract)
        source, at = truth[int(back.step[0])]
        part = slice(at, at + len(back))
        for name in ('stamp', 'step', 'action', 'reward', 'cost', 'is_last', 'is_terminal'):
            np.testing.assert_array_equal(getattr(back, name), getattr(source, name)[part])
        np.testing.assert_array_equal(back.images['image'], source.images['image'][part])
        entire = at == 0 and len(back) == len(source)
        assert entire or back.meta == {'gap': True} or part.stop < len(source)


def test_who_proposed_is_kept_as_a_share_of_the_episode(contract, make_episode):
    """The label's frame says which policy acted; the last record's action is never executed, and some are unknown."""
    episode = make_episode(6)
    policies = ['online', 'offline', '', 'online', 'online', 'offline']
    made = [(k, s, p._replace(policy=policies[p.step - int(episode.step[0])]) if k == 'label' else p)
            for k, s, p in stream([episode])]
    _, back = assemble(contract, join(contract, made)[1])
    assert [e.meta for e in back] == [{'online_share': 0.75}]
    for policy in policies[:3]:
        label = Label(0.5, 0.0, True, False, False, 3, policy)
        message = messages.fill(contract, 'label', bag.blank(messages.LABEL_TYPE), 10 ** 9, label)
        assert messages.payload(contract, 'label', message) == (10 ** 9, label)
