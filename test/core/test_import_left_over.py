# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What is said where no record is: a collision after which no command came must not import as a clean episode.

It belongs to the last record of the episode in which it happened, never to another episode.
"""

import json

import foreign_bags as fb
import numpy as np
import pytest
import yaml

from fosp_core.cli import main
from fosp_core.data.bag import ImportReport, read_episodes

CONTACT = {'topic': '/contact', 'type': 'std_msgs/msg/Bool'}
OF_THE_BAG = fb.contract({**fb.IMPORT, 'cost': CONTACT})
OF_RANGES = fb.contract({**fb.IMPORT, 'ranges': 'labels.yaml', 'cost': CONTACT})
RUN = {'topic': '/run', 'type': 'std_msgs/msg/Bool'}


def at(seconds):
    return fb.START + round(seconds * 1e9)


def bag(path, contacts=(), seconds=3.0, idle=((2.2, 9.0),), more=(), labels=None, topic='/cmd'):
    """A scene without commands (or another topic) in the times `idle`; contacts are (seconds, true or false)."""
    rows = [r for r in fb.scene(seconds) if r[0] != topic or not any(a < (r[2] - fb.START) / 1e9 < b for a, b in idle)]
    rows += [['/contact', 'bool', at(t), fb.data('bool', v)] for t, v in contacts]
    fb.write(path, sorted([*rows, *more], key=lambda r: r[2]))
    if labels:
        (path / 'labels.yaml').write_text(labels)
    return path


def load(path, contract):
    """Return per episode the seconds of its last record, and of those with a cost; and the report."""
    report = ImportReport()
    found = list(read_episodes(path, contract, report=report))
    seconds = [((e.stamp - fb.START) / 1e9).round(3) for e in found]
    return [(s[-1], s[np.flatnonzero(e.cost)].tolist()) for s, e in zip(seconds, found)], report


@pytest.mark.parametrize('contacts', [[(2.35, True)], [(2.35, True), (2.45, False)], [(2.35, False), (2.95, True)]])
def test_a_collision_after_the_last_command_is_of_the_episode(tmp_path, contacts):
    found, _ = load(bag(tmp_path / 'bag', contacts), OF_THE_BAG)
    assert found == [(2.1, [2.1])]


def test_and_so_is_one_after_the_last_picture(tmp_path):
    assert load(bag(tmp_path / 'bag', [(2.999, True)], idle=()), OF_THE_BAG)[0] == [(2.9, [2.9])]


def test_nothing_said_costs_nothing(tmp_path):
    assert load(bag(tmp_path / 'bag', [(2.35, False), (2.5, False)]), OF_THE_BAG)[0] == [(2.1, [])]


@pytest.mark.parametrize(('idle', 'start', 'end', 'expected'), [
    (((2.2, 9.0),), 2.35, 2.45, [2.1]), (((2.2, 9.0),), 2.0, 2.45, [2.0, 2.1]), ((), 2.85, 2.855, [2.8])])
def test_cost_ranges_after_the_last_record(tmp_path, idle, start, end, expected):
    """The third: the episode ends between two records, and the touch is after the last one that lies in it."""
    path = bag(tmp_path / 'bag', [(0.5, False)], idle=idle, labels='episodes: [{start: 0.0, end: 2.86}]\n'
               f'cost: [{{start: {start}, end: {end}}}]')
    assert load(path, OF_RANGES)[0] == [(2.8 if not idle else 2.1, expected)]


@pytest.mark.parametrize(('second', 'contact', 'expected'), [
    (4.0, 2.35, ([2.1], [])), (3.2, 2.35, ([2.1], [])), (3.2, 3.1, ([], [])), (4.0, 3.6, ([], [])),
    (3.2, 3.3, ([], [3.4])), (4.0, 3.99, ([], []))])
def test_between_two_episodes_each_gets_its_own(tmp_path, second, contact, expected):
    """Commands are away from 2.2 to 3.5 s; the first episode ends at 3 s. What lies in neither is of neither."""
    path = bag(tmp_path / 'bag', [(contact, True)], 6.0, ((2.2, 3.5),),
               labels=f'episodes: [{{start: 0.0, end: 3.0}}, {{start: {second}, end: 5.9}}]')
    (_, first), (_, other) = load(path, OF_RANGES)[0]
    assert (first, other) == expected


@pytest.mark.parametrize(('topic', 'contact', 'expected'), [
    ('/cmd', 1.75, ([1.4], [])), ('/cmd', 1.89, ([1.4], [])), ('/cam/image_raw', 1.75, ([1.467], [])),
    ('/arm/pose', 1.75, ([1.5], [])), ('/cmd', 1.95, ([], [2.0])), ('/cmd', 2.07, ([], [2.1]))])
def test_in_a_gap_it_goes_to_the_piece_before(tmp_path, topic, contact, expected):
    """What came within the last period before a record is that record's; nobody saw the rest of the gap."""
    path = bag(tmp_path / 'bag', [(contact, True)], 3.0, ((1.497, 2.09),), topic=topic)
    found, report = load(path, OF_THE_BAG)
    assert tuple(costs for _, costs in found) == expected and report.gaps == 1


@pytest.mark.parametrize(('combine', 'touched', 'expected'), [
    ('hold', 1.95, [2.0, 2.1]), ('max', 1.95, [2.0]), ('max', 2.05, [2.1]), ('last', 2.05, [2.1])])
def test_what_is_said_later_takes_no_cost_away(tmp_path, combine, touched, expected):
    """Said to be free in the gap: the last record had its touch all the same."""
    contract = fb.contract({**fb.IMPORT, 'cost': {**CONTACT, 'combine': combine}})
    assert load(bag(tmp_path / 'bag', [(touched, True), (2.35, False)]), contract)[0] == [(2.1, expected)]


@pytest.mark.parametrize(('contact', 'expected'), [(1.45, [1.2]), (1.8, []), (1.02, [1.1])])
def test_a_topic_of_episodes_parts_what_is_said_in_a_gap(tmp_path, contact, expected):
    contract = fb.contract({**fb.IMPORT, 'cost': CONTACT, 'episodes': RUN})
    run = [['/run', 'bool', at(t), fb.data('bool', v)] for t, v in ((0.05, True), (1.52, False), (2.55, True))]
    path = bag(tmp_path / 'bag', [(contact, True)], 4.0, ((1.297, 2.39),), run)
    first, second = load(path, contract)[0]
    assert first == (1.2, expected) and second[1] == []


@pytest.mark.parametrize(('contact', 'expected'), [(1.45, ([1.2], [])), (2.05, ([], [2.1])), (None, ([], [2.1]))])
def test_labels_part_it_where_the_next_episode_begins(tmp_path, contact, expected):
    """The end was said to nobody; the operator began anew at 2.01 s; None: with a cost in that very label."""
    contract = fb.contract({**fb.IMPORT, 'cost': CONTACT, 'label': {'topic': '/joy', 'mode': 'event'}})
    joy = [['/joy', 'joy', at(t), fb.joy(at(t), [0, f and t > 2 and contact is None], [f, 0, 0])]
           for t, f in ((.02, 1), (.04, 0), (2.01, 1), (2.03, 0))]
    path = bag(tmp_path / 'bag', [(contact or 2.5, contact is not None)], 3.0, ((1.297, 2.09),), joy)
    first, second = load(path, contract)[0]
    assert (first[1], second[1]) == expected


def test_a_lost_label_takes_no_contact_with_it(tmp_path):
    """The record at 1.0 s has no label and is dropped; the contact that it had taken was lost with it."""
    contract = fb.contract({**fb.IMPORT, 'cost': CONTACT, 'label': {'topic': '/label'}})
    labels = [['/label', 'joy', at(k / 10) + 4_000_000, fb.joy(at(k / 10), [0, 0], [k == 0, k == 19, False])]
              for k in range(20) if k != 10]
    path = bag(tmp_path / 'bag', [(0.99, True), (0.995, False)], 2.0, (), labels)
    found, report = load(path, contract)
    assert [costs for _, costs in found] in ([[0.9], []], [[], [1.1]]) and report.gaps == 1


@pytest.mark.parametrize(('combine', 'expected'), [('max', 5.0), ('sum', 65 * 5.0)])
def test_a_reward_in_a_gap_is_counted_once(tmp_path, combine, expected):
    contract = fb.contract({**fb.IMPORT, 'reward': {**CONTACT, 'scale': 5.0, 'combine': combine}})
    path = bag(tmp_path / 'bag', [(t / 100, True) for t in range(205, 270)])
    episode, = read_episodes(path, contract)
    assert episode.reward[-1] == episode.reward.sum() == expected


def test_episodes_one_right_after_the_other_share_no_cost(tmp_path):
    labels = 'episodes: [{start: 0.0, end: 2.86}, {start: 2.87, end: 3.8}]\ncost: [{start: 2.85, end: 2.855}]'
    path = bag(tmp_path / 'bag', [(2.857, True)], 4.0, (), labels=labels)
    assert load(path, OF_RANGES)[0] == [(2.8, [2.8]), (3.8, [])]


def test_a_signal_that_stands_is_heard_between_the_episodes_too(tmp_path):
    contract = fb.contract({**fb.IMPORT, 'ranges': 'labels.yaml', 'cost': {**CONTACT, 'combine': 'hold'}})
    path = bag(tmp_path / 'bag', [(3.1, True), (3.62, False)], 6.0, ((2.2, 3.5),),
               labels='episodes: [{start: 0.0, end: 3.0}, {start: 3.2, end: 5.9}]')
    assert load(path, contract)[0] == [(2.1, []), (5.9, [3.4, 3.5, 3.6, 3.7])]


SUCCESS = 'episodes: [{start: 0.0, end: 0.9, success: true}, {start: 1.0, end: 2.9, success: true}, ' \
          '{start: 2.92, end: 2.95, success: true}]'


def test_a_success_whose_end_nobody_saw_is_counted(tmp_path, capsys, caplog):
    """The commands end 0.7 s before the range, and one range has no record at all."""
    path = bag(tmp_path / 'bag', labels=SUCCESS)
    file = tmp_path / 'contract.yaml'
    file.write_text(yaml.safe_dump({**fb.BASE, 'import': {**fb.IMPORT, 'ranges': 'labels.yaml'}}))
    assert main(['bag-info', str(path), '--contract', str(file), '--json', '-']) == 0
    info = json.loads(capsys.readouterr().out)
    assert (info['episodes'], info['sr'], info['unseen_successes']) == (2, 0.5, 2)
    assert '2 ranges with success whose end was not seen' in caplog.text
    assert main(['bag-info', str(path), '--contract', str(file)]) == 0
    assert 'ranges with success whose end was not seen 2' in capsys.readouterr().out
    caplog.clear()
    still = fb.contract({**fb.IMPORT, 'ranges': 'labels.yaml', 'action': {'topic': '/cmd', 'missing': 'zero'}})
    report = ImportReport()
    assert [e.success for e in read_episodes(path, still, report=report)] == [True, True] and report.unseen == 1
    assert '1 ranges with success whose end was not seen' in caplog.text


def labels(tail, first=0):
    """A label for each picture of 3 s: an episode from `first` to 2.8 s, a cost at 1.5 s; and on for `tail` labels."""
    return [['/label', 'joy', at(k / 10) + 3_000_000, fb.joy(at(k / 10), [0, float(k == 15)], [k == first, k == 28, 0])]
            for k in range(30 + tail)]


def set_back(rows):
    """The same rows once more, 4 s later, by a clock that was set back by a minute."""
    for row in rows:
        fb.stamped(row[3], int(row[2]) - 60_000_000_000, row[3].header.frame_id)
    return [[row[0], row[1], row[2] + 4_000_000_000, row[3]] for row in rows]


@pytest.mark.parametrize('tail', [0, 3])
def test_a_label_left_over_blocks_none_after_the_clock_was_set_back(tmp_path, tail):
    """The labels go on for longer than the camera. Eight messages in a row prove that a clock was set back."""
    contract = fb.contract({**fb.IMPORT, 'label': {'topic': '/label'}})
    rows = [*fb.scene(3.0), *labels(tail), *set_back([*fb.scene(3.0), *labels(tail, first=10)])]
    found, report = load(fb.write(tmp_path / 'bag', sorted(rows, key=lambda r: r[2])), contract)
    assert [len(costs) for _, costs in found] == [1, 1] and report.counts.restarts == 4


def test_a_cost_left_over_at_a_set_clock_is_of_the_episode_before(tmp_path):
    contract = fb.contract({**fb.IMPORT, 'cost': {'topic': '/label', 'type': 'sensor_msgs/Joy', 'field': 'axes[1]'}})
    late = ['/label', 'joy', at(3.2) + 3_000_000, fb.joy(at(3.2), [0, 1.0], [])]
    rows = [*fb.scene(3.0), *labels(2), late, *set_back([*fb.scene(3.0), *labels(0)])]
    found, report = load(fb.write(tmp_path / 'bag', sorted(rows, key=lambda r: r[2])), contract)
    assert [len(costs) for _, costs in found] == [2, 1] and found[0] == (2.9, [1.5, 2.9])
