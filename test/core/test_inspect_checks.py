# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp inspect`: a clean data set gives no finding, and each fault gives its own code and no other."""

import dataclasses

import numpy as np
import pytest

from fosp_core.contract import CameraSpec
from fosp_core.data.store import save_episode
from fosp_core.doctor import survey as module
from fosp_core.doctor.findings import CODES
from fosp_core.doctor.reference import PAGE, with_table
from fosp_core.doctor.survey import survey

STAMP_0 = 1_700_000_000_000_000_000
COLOUR = np.array([46, 50, 52])     # of SafeReach
T = 30


@pytest.fixture(scope='module')
def scene(contract):
    """SafeReach with pictures that are quick to make; its name, and with it the known colours, stays."""
    return dataclasses.replace(contract, cameras=(CameraSpec('image', 'image', 12, 12),))


@pytest.fixture
def clean(scene, make_episode):
    """Four episodes without fault: one violation, all succeed."""
    def make(number, length=T):
        rng = np.random.default_rng(number)
        episode = make_episode(length, number, T * number, STAMP_0 + number * 10 ** 11, contract=scene,
                               violation=number == 1)
        noise = rng.integers(-25, 26, (length, 12, 12, 1))
        episode.images = {'image': (COLOUR + noise).astype(np.uint8)}
        episode.vectors['ee_pose'] = np.cumsum(rng.normal(0, 0.01, (length, 3)), axis=0).astype(np.float32)
        return episode
    make.four = [make(n) for n in range(4)]
    return make


@pytest.fixture
def store(monkeypatch):
    """Return a function that names a data set of these episodes; it is held in memory, for speed."""
    held = {}
    real = module.read_source
    monkeypatch.setattr(module, 'read_source', lambda path, *args, **kwargs: iter(held[path]) if path in held
                        else real(path, *args, **kwargs))

    def keep(path, episodes):
        held[path] = episodes
        return path
    return keep


def codes(folder, contract, **more):
    return [f.code for f in survey([folder], contract, **more).findings]


def test_a_clean_data_set_gives_no_finding(tmp_path, store, clean, scene):
    found = survey([store(tmp_path / 'd', clean.four)], scene)
    assert found.findings == [] and found.worst is None
    assert (found.totals.episodes, found.totals.steps) == (4, 4 * T)


# ---------------------------------------------------------------------- faults of one episode: the function gets it

def nan(e):
    e.vectors['ee_pose'][3, 0] = np.nan


def infinite_reward(e):
    e.reward[4] = np.inf


def beyond(e):
    e.action[3, 1] = 1.5


def negative(e):
    e.cost[3] = -1


def first_twice(e):
    e.is_first[5] = True


def last_inside(e):
    e.is_last[5] = True


def no_first(e):
    e.is_first[0] = False


def stamp_stands(e):
    e.stamp[5] = e.stamp[4]


def counter_jumps(e):
    e.step[5:] += 1


def fragment(e):
    e.meta['gap'] = True


def waits(e):
    e.stamp[10:] += 1_000_000_000


def freezes(e):
    e.images['image'][10:16] = e.images['image'][10]


def sticks(e):
    e.vectors['ee_pose'][10:21] = e.vectors['ee_pose'][10]


def dark(e):
    e.images['image'][3:6] //= 20


def bright(e):
    e.images['image'][3:6] = 255 - e.images['image'][3:6] // 40


def one_colour(e):
    e.images['image'][3] = 128


def terminal(e):
    e.is_terminal[5] = True


def wrong_type(e):
    e.reward = e.reward.astype(np.float64)


def wrong_shape(e):
    e.vectors['ee_pose'] = e.vectors['ee_pose'][:, :2]


def no_camera(e):
    e.images = {'other': e.images['image']}


EPISODE_FAULTS = [
    (nan, 'not-finite', 3), (infinite_reward, 'not-finite', 4), (beyond, 'action-range', 3),
    (negative, 'negative-cost', 3),
    (first_twice, 'flags', 5), (last_inside, 'flags', 5), (no_first, 'flags', 0), (stamp_stands, 'order', 5),
    (counter_jumps, 'order', 5), (fragment, 'gap', 0), (waits, 'pause', 10), (freezes, 'frozen', 10),
    (sticks, 'stuck', 10), (dark, 'black', 3), (bright, 'over-exposed', 3), (one_colour, 'flat', 3),
    (terminal, 'terminal-inside', 5), (wrong_type, 'contract', 0), (wrong_shape, 'contract', 0),
    (no_camera, 'contract', 0)]


@pytest.mark.parametrize(('fault', 'code', 'step'), EPISODE_FAULTS, ids=[f.__name__ for f, _, _ in EPISODE_FAULTS])
def test_a_fault_of_one_episode_is_found_and_nothing_else(tmp_path, store, clean, scene, fault, code, step):
    fault(clean.four[2])
    folder = store(tmp_path / 'd', clean.four)
    finding, = survey([folder], scene).findings
    assert (finding.code, finding.where) == (code, f'{folder}: episode 2, step {step}')
    assert finding.severity == CODES[code].severity


# ------------------------------------------------------------------ faults of the whole: the function gets each episode

def slow(e):
    e.stamp[:] = e.stamp[0] + (e.stamp - e.stamp[0]) * 2


def stutters(e):
    e.stamp[:] = e.stamp[0] + np.cumsum(np.where(np.arange(T) % 10 == 9, 170, 100)) * 1_000_000


def locked(e):
    e.vectors['ee_pose'][:, 2] = 0.3


def one_command(e):
    e.action[:, 0] = 0.5


def slow_camera(e):
    e.images['image'][1::3] = e.images['image'][::3]


def swap(e):
    e.images['image'] = e.images['image'][..., ::-1].copy()


def no_cost(e):
    e.cost[:] = 0


def cost_everywhere(e):
    e.cost[1:] = 1


def no_reward(e):
    e.reward[:] = 0


def at_the_limit(e):
    e.action[:, 1] = np.where(np.arange(T) % 6 == 0, 0.1, np.sign(e.action[:, 1]))


def no_commands(e):
    e.action[2:] = 0


def no_end(e):
    e.is_last[:] = e.is_terminal[:] = False


WHOLE_FAULTS = [(slow, 'rate'), (stutters, 'late'), (locked, 'constant'), (one_command, 'constant'),
                (slow_camera, 'doubled-pictures'), (swap, 'colour-order'), (no_cost, 'cost-never'),
                (cost_everywhere, 'cost-always'), (no_reward, 'reward-never'), (at_the_limit, 'saturation'),
                (no_commands, 'idle'), (no_end, 'endless')]


@pytest.mark.parametrize(('fault', 'code'), WHOLE_FAULTS, ids=[f.__name__ for f, _ in WHOLE_FAULTS])
def test_a_fault_of_the_whole_is_found_and_nothing_else(tmp_path, store, clean, scene, fault, code):
    for episode in clean.four:
        fault(episode)
    assert codes(store(tmp_path / 'd', clean.four), scene) == [code]


def test_every_episode_violates(tmp_path, store, clean, scene):
    episodes = [clean(n) for n in range(20)]
    for episode in episodes:
        episode.cost[3] = 1
    assert codes(store(tmp_path / 'd', episodes), scene) == ['cost-always']
    episodes[7].cost[:] = 0
    assert codes(store(tmp_path / 'e', episodes), scene) == []


def test_a_copy_of_an_episode(tmp_path, store, clean, scene):
    copy = dataclasses.replace(clean.four[1], stamp=clean.four[1].stamp + 10 ** 12, step=clean.four[1].step + 10 ** 4)
    finding, = survey([store(tmp_path / 'd', [*clean.four, copy])], scene).findings
    assert finding.code == 'duplicate-episode' and 'number 4 (of 1)' in finding.text


def test_pieces_of_episodes_are_information(tmp_path, store, clean, scene):
    finding, = survey([store(tmp_path / 'd', [*clean.four, clean(8, 6), clean(9, 6)])], scene).findings
    assert (finding.code, finding.severity) == ('short', 'info')


def test_colours_of_some_episodes_mirror_those_of_the_others(tmp_path, store, clean, scene):
    swap(clean.four[3])
    finding, = survey([store(tmp_path / 'd', clean.four)], scene).findings
    assert finding.code == 'colour-mixed' and 'in 1 of 4 episodes: number 3' in finding.text


def test_colours_are_judged_by_the_reference_that_is_given(tmp_path, store, clean, scene):
    folder = store(tmp_path / 'd', clean.four)
    assert codes(folder, scene, references={'image': (52, 50, 46)}) == ['colour-order']
    assert codes(folder, scene, references={'image': (80, 20, 20)}) == []       # another scene, not a swapped one
    assert codes(folder, scene, references={'image': (50.2, 50, 50)}) == []     # too grey to say
    bgr = dataclasses.replace(scene, cameras=(CameraSpec('image', 'image', 12, 12, 'bgr8'),))
    assert codes(folder, bgr) == ['colour-order']       # the same bytes, now said to be blue first


def test_a_scene_that_is_nearly_grey_says_nothing(tmp_path, store, clean, scene):
    def recoloured(red):
        episodes = [clean(number) for number in range(4)]
        for episode in episodes:
            grey = episode.images['image'][..., :1] + np.uint8(100)
            episode.images['image'] = grey + np.array([red, 5, 10], np.uint8)
        return store(tmp_path / f'{red}', episodes)
    assert codes(recoloured(8), scene, references={'image': (156, 151, 154)}) == []
    assert codes(recoloured(0), scene, references={'image': (156, 151, 146)}) == ['colour-order']


def test_a_picture_that_stands_while_the_robot_stands_is_no_fault(tmp_path, store, clean, scene):
    freezes(clean.four[2])
    clean.four[2].vectors['ee_pose'][10:16] = clean.four[2].vectors['ee_pose'][10]
    assert codes(store(tmp_path / 'd', clean.four), scene) == []


def test_a_truncated_file_is_a_finding_and_the_other_source_is_read(tmp_path, store, clean, scene):
    good, bad = store(tmp_path / 'good', clean.four), tmp_path / 'bad'
    file = bad / '000.npz'
    save_episode(file, clean(9))
    file.write_bytes(file.read_bytes()[:-200])
    found = survey([bad, good], scene)
    finding, = found.findings
    assert (finding.code, finding.severity, finding.where) == ('unreadable', 'error', str(bad))
    assert str(file) in finding.text and found.totals.episodes == 4


def test_messages_that_came_twice(tmp_path, scene, clean, records, write_raw):
    rows = [row for e in clean.four[:2] for row in records(scene, e)]
    bag = write_raw(tmp_path / 'bag', rows[:40] + rows[36:40] + rows[40:])
    finding, = survey([bag], scene).findings
    assert (finding.code, finding.text) == ('transport', '4 doubled')


def test_another_contract_is_named(tmp_path, scene, clean, write_bag):
    bag = write_bag(tmp_path / 'bag', scene, clean.four)
    other = dataclasses.replace(scene, action=dataclasses.replace(scene.action, high=(0.3, 0.3, 0.3)))
    assert codes(bag, other) == ['contract']


def test_a_fault_in_many_episodes_is_one_finding(tmp_path, store, clean, scene):
    for episode in clean.four[1:]:
        dark(episode)
    finding, = survey([store(tmp_path / 'd', clean.four)], scene).findings
    assert 'episode 1, step 3' in finding.where and finding.text.endswith('in 3 episodes, 9 records in all')


def test_each_code_has_a_test_and_a_line_in_the_docs():
    tested = {c for _, c, _ in EPISODE_FAULTS} | {c for _, c in WHOLE_FAULTS} | {
        'duplicate-episode', 'short', 'colour-mixed', 'unreadable', 'transport'}
    assert tested == set(CODES)
    assert PAGE.read_text() == with_table(PAGE.read_text()), 'run: python -m fosp_core.doctor.reference'
