# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Episodes, rewards and costs of foreign bags: from Joy, from topics, from a YAML file of time ranges."""

import foreign_bags as fb
import numpy as np
import pytest

from fosp_core.cli import main
from fosp_core.data.bag import ImportReport, read_episodes
from fosp_core.errors import ContractError, DataError


def load(path, contract):
    report = ImportReport()
    return list(read_episodes(path, contract, report=report)), report


def bag(path, more=(), seconds=4.0):
    return fb.write(path, sorted([*fb.scene(seconds), *more], key=lambda r: r[2]))


def at(seconds):
    return fb.START + round(seconds * 1e9)


def seconds(episode):
    return ((episode.stamp - fb.START) / 1e9).round(3)


def with_ranges(path, text):
    (path / 'labels.yaml').write_text(text)
    return path


RANGES = fb.contract({**fb.IMPORT, 'ranges': 'labels.yaml'})


def test_joy_of_the_picture_as_the_simulator_sends_it(tmp_path):
    more = []
    for k in range(30):                         # two episodes, 0 to 1.0 s and 1.5 to 2.5 s, one label each 0.1 s
        t, first, last = k / 10, k in (0, 15), k in (10, 25)
        more.append(['/label', 'joy', at(t) + 4_000_000,
                     fb.joy(at(t), [float(k == 25), float(k in (4, 5))], [first, last, k == 25])])
    found, report = load(bag(tmp_path / 'bag', more),
                         fb.contract({**fb.IMPORT, 'label': {'topic': '/label', 'mode': 'stamped'}}))
    assert [seconds(e).tolist() for e in found] == [[k / 10 for k in range(11)], [k / 10 for k in range(15, 26)]]
    assert np.flatnonzero(found[0].cost).tolist() == [4, 5] and not found[0].reward.any()
    assert found[1].reward[-1] == 1 and found[1].success and not found[0].success
    assert [e.is_terminal[-1] for e in found] == [False, True] and all(e.is_last[-1] for e in found)
    assert not any(e.action[-1].any() for e in found)
    assert report.outside == 8                  # 1.1 to 1.4 and 2.6 to 2.9 s
    name = next(n for n in report.topics if 'label' in n)
    assert report.topics[name].missing == 10    # from 3 s on there are none


def test_a_cost_between_two_records_is_not_lost_with_its_picture(tmp_path):
    """Labels at 30 Hz, records at 10: a collision in a picture that was not picked counts for the next record."""
    more = [['/label', 'joy', at(k / 30), fb.joy(at(k / 30), [0.0, float(k == 13)], [k == 0, k == 45, False])]
            for k in range(60)]
    found, _ = load(bag(tmp_path / 'bag', more), fb.contract({**fb.IMPORT, 'label': {'topic': '/label'}}))
    assert np.flatnonzero(found[0].cost).tolist() == [5]        # 13/30 s is after 0.4 and before 0.5 s


def test_joy_of_an_operator_counts_rising_edges(tmp_path):
    presses = [(0.52, [0, 0], [1, 0, 0]), (0.65, [0, 0], [1, 0, 0]), (0.72, [0, 0], [0, 0, 0]),
               (1.23, [0, 1.0], [0, 0, 0]), (1.27, [0, 0], [0, 0, 0]),
               (1.98, [1.0, 0], [0, 1, 1]), (2.05, [0, 0], [0, 0, 0])]
    more = [['/joy', 'joy', at(t), fb.joy(at(t), axes, buttons)] for t, axes, buttons in presses]
    found, report = load(bag(tmp_path / 'bag', more),
                         fb.contract({**fb.IMPORT, 'label': {'topic': '/joy', 'mode': 'event'}}))
    episode, = found
    assert seconds(episode)[0] == 0.6 and seconds(episode)[-1] == 2.0
    assert seconds(episode)[np.flatnonzero(episode.cost)].tolist() == [1.3]
    assert episode.reward[-1] == 1 and episode.is_terminal[-1]
    assert report.outside == 6 + 19


def test_bool_and_float_topics(tmp_path):
    more = [['/done', 'bool', at(3.55), fb.data('bool', True)]]
    more += [['/contact', 'bool', at(k / 100), fb.data('bool', 152 <= k < 165)] for k in range(400)]
    more += [['/force', 'float', at(k / 50), fb.data('float', 12.0 if k == 111 else 1.0)] for k in range(200)]
    found, _ = load(bag(tmp_path / 'bag', more), fb.contract({
        **fb.IMPORT, 'reward': {'topic': '/done', 'type': 'std_msgs/msg/Bool', 'scale': 5.0},
        'cost': [{'topic': '/contact', 'type': 'std_msgs/msg/Bool'},
                 {'topic': '/force', 'type': 'std_msgs/Float32', 'above': 10.0, 'scale': 0.5}]}))
    episode, = found
    assert seconds(episode)[np.flatnonzero(episode.cost == 1)].tolist() == [1.6, 1.7]
    assert seconds(episode)[np.flatnonzero(episode.cost == 0.5)].tolist() == [2.3]
    assert episode.reward[np.flatnonzero(seconds(episode) == 3.6)[0]] == 5 and np.count_nonzero(episode.reward) == 1


@pytest.mark.parametrize(('combine', 'expected'), [('max', [0.5, 0.0]), ('sum', [0.75, 0.0]), ('last', [0.25, 0.0]),
                                                   ('hold', [0.5, 0.25])])
def test_how_several_messages_make_one_record(tmp_path, combine, expected):
    more = [['/r', 'float', at(t), fb.data('float', v)] for t, v in ((1.02, 0.5), (1.06, 0.25))]
    found, _ = load(bag(tmp_path / 'bag', more), fb.contract({
        **fb.IMPORT, 'reward': {'topic': '/r', 'type': 'std_msgs/Float32', 'combine': combine}}))
    assert found[0].reward[11:13].tolist() == expected


def test_a_topic_says_whether_an_episode_runs(tmp_path):
    more = [['/run', 'bool', at(t), fb.data('bool', v)] for t, v in ((0.45, True), (1.52, False), (2.2, True))]
    found, report = load(bag(tmp_path / 'bag', more), fb.contract({
        **fb.IMPORT, 'episodes': {'topic': '/run', 'type': 'std_msgs/msg/Bool'}}))
    assert [(seconds(e)[0], seconds(e)[-1]) for e in found] == [(0.5, 1.5), (2.2, 3.9)]
    assert [e.is_last[-1] for e in found] == [True, False]      # nobody saw the second one's end
    assert report.outside == 5 + 6


def test_ranges_of_a_sidecar(tmp_path):
    path = with_ranges(bag(tmp_path / 'bag'), '''
        clock: bag
        episodes:
          - {start: 0.5, end: 1.6, success: true, policy: teleop, seed: 7}
          - {start: 2.0, end: 3.0}
        cost:
          - {start: 0.95, end: 1.12, value: 0.5}
          - {start: 2.51, end: 2.52}
        reward:
          - {start: 2.9, end: 2.95, value: -1}
        ''')
    found, report = load(path, RANGES)
    first, second = found
    # Counted from the receipt of the bag's first message, 3 ms after the first picture was taken.
    assert (seconds(first)[0], seconds(first)[-1]) == (0.5, 1.6) and (seconds(second)[0], seconds(second)[-1]) == (2, 3)
    assert first.meta == {'policy': 'teleop', 'seed': 7} and second.meta == {}
    assert first.success and first.is_terminal[-1] and first.reward[-1] == 1 and not second.success
    assert second.is_last[-1] and not second.is_terminal[-1]
    assert seconds(first)[np.flatnonzero(first.cost)].tolist() == [1.0, 1.1, 1.2] and first.cost.max() == 0.5
    assert seconds(second)[np.flatnonzero(second.cost)].tolist() == [2.6]
    assert seconds(second)[np.flatnonzero(second.reward)].tolist() == [2.9, 3.0]
    assert report.outside == 40 - 12 - 11


def test_an_episode_whose_end_lies_in_a_gap_has_no_end(tmp_path):
    rows = [r for r in fb.scene(4.0) if not 1.0 < (r[2] - fb.START) / 1e9 < 2.5 or r[1] == 'pose']
    path = with_ranges(fb.write(tmp_path / 'bag', rows),
                       'episodes: [{start: 0, end: 2, success: true}, {start: 2.6, end: 3.5, success: true}]')
    first, second = load(path, RANGES)[0]
    assert not first.is_last.any() and not first.success
    assert second.is_last[-1] and second.success and 'gap' not in second.meta


@pytest.mark.parametrize(('text', 'words'), [
    ('episodes: [{start: 1.0, end: 9.5}]', ['episodes[0]', 'end', '9.5 s', 'from 0.000 to 3.9']),
    ('episodes: [{start: -1.0, end: 2}]', ['episodes[0]', 'start', '-1 s']),
    ('episodes: [{start: 2.0, end: 1.0}]', ['ends at 1.000 s', 'not after its start, 2.000 s']),
    ('episodes: [{start: 0.1, end: 2.0}, {start: 1.5, end: 3}]', ['overlap', '2.000 s', '1.500 s']),
    ('episodes: [{start: 1, end: 2}]\ncost: [{start: 2.5, end: 3}]', ['cost', 'lies in no episode']),
    ('episodes: [{start: 1, end: 2}]\ncost: [{start: 1, end: 1.5, value: -1}]', ['cost[0]', 'value', '-1']),
    ('episodes: [{start: .nan, end: 2}]', ['start', 'nan']),
    ('episodes: [{start: 1, end: 2, success: maybe}]', ['success', 'maybe']),
    ('episodes: [{start: 1, end: 2, note: [1]}]', ['note']),
    ('clock: mine\nepisodes: []', ['clock', 'mine']),
    ('clock: unix\nepisodes: [{start: 1.0, end: 2.0}]', ['1 s', '1700000000.003']),
    ('epsiodes: []', ['epsiodes']), ('[1]', ['mapping']), ('{', ['not YAML']), ('episodes: 3', ['no list']),
    ('episodes: [3]', ['episodes[0]']), ('cost: [{start: 1, end: 2, val: 3}]', ['val']),
    ('episodes: []', ['no complete episode'])])
def test_a_wrong_sidecar_is_named(tmp_path, capsys, text, words):
    path = with_ranges(bag(tmp_path / 'bag'), text)
    with pytest.raises(DataError) as error:
        load(path, RANGES)
    for word in words:
        assert word in str(error.value)
    assert str(path) in str(error.value) and '\n' not in str(error.value)


def test_the_sidecar_of_a_single_file_and_of_many_bags(tmp_path):
    path = fb.write_mcap(tmp_path / 'demo.mcap', fb.scene())
    (tmp_path / 'demo.labels.yaml').write_text('episodes: [{start: 0, end: 1}]')
    contract = fb.contract({**fb.IMPORT, 'ranges': '{bag}.labels.yaml'})
    assert len(load(path, contract)[0][0]) == 11
    path = bag(tmp_path / 'other')
    with pytest.raises(DataError, match=r'other.labels.yaml: no such file'):
        load(path, contract)


@pytest.mark.parametrize(('entry', 'word'), [
    ({'episodes': 'label'}, 'episodes'), ({'episodes': 'ranges'}, 'episodes'), ({'episodes': 'none'}, 'episodes'),
    ({'label': {'topic': '/l', 'type': 'std_msgs/Bool'}}, 'sensor_msgs/msg/Joy'),
    ({'label': {'mode': 'button'}}, 'stamped, event'), ({'cost': {'type': 'std_msgs/Bool'}}, 'topic'),
    ({'cost': {'topic': '/c'}}, 'type'), ({'cost': [{'topic': '/c', 'type': 'a/B', 'combine': 'mean'}]}, 'max, sum'),
    ({'reward': 3}, 'mapping')])
def test_a_wrong_section_of_labels_is_named(entry, word):
    with pytest.raises(ContractError, match=word) as error:
        fb.contract({**fb.IMPORT, **entry})
    assert str(error.value).startswith('c.yaml: import') and '\n' not in str(error.value)


def test_negative_costs_and_infinite_rewards_name_topic_and_stamp(tmp_path, capsys):
    more = [['/c', 'float', at(1.0), fb.data('float', -0.5)]]
    contract = fb.contract({**fb.IMPORT, 'cost': {'topic': '/c', 'type': 'std_msgs/Float32'}})
    with pytest.raises(DataError, match=rf'/c, stamp {at(1.0)}: field data gives -0.5'):
        load(bag(tmp_path / 'bag', more), contract)
    more = [['/joy', 'joy', at(1.0), fb.joy(at(1.0), [np.inf, 0.0])]]
    contract = fb.contract({**fb.IMPORT, 'label': {'topic': '/joy', 'mode': 'event'}})
    with pytest.raises(DataError, match=rf'/joy, stamp {at(1.0)}: reward'):
        load(bag(tmp_path / 'bag2', more), contract)


def test_bag_info_and_pack_go_through_it(tmp_path, capsys):
    import json

    import yaml
    path = with_ranges(bag(tmp_path / 'bag'), 'episodes: [{start: 0.5, end: 1.6, success: true}]')
    file = tmp_path / 'contract.yaml'
    file.write_text(yaml.safe_dump({**fb.BASE, 'import': {**fb.IMPORT, 'ranges': 'labels.yaml'}}))
    assert main(['bag-info', str(path), '--contract', str(file), '--json', '-']) == 0
    info = json.loads(capsys.readouterr().out)
    assert (info['steps'], info['episodes'], info['sr'], info['outside']) == (12, 1, 1.0, 28)
    counts = next(v for k, v in info['sources'].items() if '(image)' in k)
    assert counts['messages'] == 120 and counts['used'] == 40 and counts['rate_hz'] == pytest.approx(30.0)
    assert main(['bag-info', str(path), '--contract', str(file)]) == 0
    assert 'cam/image_raw (image): 120 messages at 30.0 Hz' in capsys.readouterr().out
    assert main(['pack', str(path), '--contract', str(file), '--out', str(tmp_path / 'pack'), '--json', '-']) == 0
    assert json.loads(capsys.readouterr().out)['steps'] == 12
