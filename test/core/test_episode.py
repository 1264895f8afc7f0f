# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""An episode that is wrong in any one place is refused, naming key and step."""

import numpy as np
import pytest

from fosp_core.errors import DataError


def test_a_good_episode_passes(contract, make_episode):
    episode = make_episode(7)
    episode.validate(contract)
    assert len(episode) == 7 and episode.success and not episode.violation
    assert make_episode(7, success=False, violation=True).violation


def put(name, index, value):
    def change(episode):
        getattr(episode, name)[index] = value
    return change


def replace(name, value):
    def change(episode):
        setattr(episode, name, value(getattr(episode, name)))
    return change


@pytest.mark.parametrize(('change', 'names'), [
    (put('action', (3, 1), np.nan), ('action', 'step 3')),
    (put('action', (3, 1), 1.01), ('action', 'step 3')),
    (put('reward', 2, np.inf), ('reward', 'step 2')),
    (put('cost', 4, -1.0), ('cost', 'step 4')),
    (put('is_first', 0, False), ('is_first',)),
    (put('is_first', 3, True), ('is_first',)),
    (put('is_last', 3, True), ('is_last', 'step 3')),
    (put('step', 3, 9), ('step must rise',)),
    (put('stamp', 3, 0), ('stamp must rise',)),
    (replace('action', lambda a: a.astype(np.float64)), ('action', 'float32')),
    (replace('reward', lambda r: r[:-1]), ('expected',)),
    (replace('images', lambda i: {}), ('image', 'missing')),
    (replace('images', lambda i: {'image': i['image'][:, :32]}), ('image', '(6, 64, 64, 3)')),
    (replace('vectors', lambda v: {'ee_pose': v['ee_pose'] * np.nan}), ('ee_pose', 'step 0')),
])
def test_a_wrong_episode_names_key_and_step(contract, make_episode, change, names):
    episode = make_episode(6)
    change(episode)
    with pytest.raises(DataError) as error:
        episode.validate(contract, 'bag x')
    assert 'bag x' in str(error.value)
    for name in names:
        assert name in str(error.value)


def test_one_step_is_no_episode(contract, make_episode):
    with pytest.raises(DataError, match='1 steps'):
        make_episode(1).validate(contract)
