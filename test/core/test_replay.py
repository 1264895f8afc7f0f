# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The replay: windows are slices of the stream, each step is held once, and sampling outruns what it feeds."""

import json
import time
import tracemalloc

import numpy as np
import pytest

from fosp_core.cli import main
from fosp_core.data.pack import step_bytes
from fosp_core.data.replay import MixedReplay, Replay


def reference(episodes, batch, length, rng):
    """What `sample` promises, in the plainest form: the whole stream in one array, indexed."""
    stream = {k: np.concatenate([e.images[k] for e in episodes]) for k in episodes[0].images}
    stream |= {k: np.concatenate([e.vectors[k] for e in episodes]) for k in episodes[0].vectors}
    stream |= {k: np.concatenate([getattr(e, k) for e in episodes])
               for k in ('action', 'reward', 'cost', 'is_first', 'is_terminal')}
    steps = len(stream['reward'])
    index = (rng.integers(0, steps, size=batch)[:, None] + np.arange(length)) % steps
    out = {k: v[index] for k, v in stream.items()}
    out['is_first'][:, 0] = True
    return out


def equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype and np.array_equal(a[key], b[key]), key


@pytest.mark.parametrize('lengths', [[12, 5, 9], [2, 2, 2, 2], [30], [3]])
@pytest.mark.parametrize('length', [1, 4, 12, 70])
def test_windows_are_slices_of_the_stream(tiny, make_episodes, lengths, length):
    """Episodes shorter than the window, down to two steps, and a stream shorter than one window."""
    episodes = make_episodes(lengths, contract=tiny, violation=True)
    replay = Replay(tiny).extend(episodes)
    for seed in range(5):
        batch = replay.sample(20, length, np.random.default_rng(seed))
        equal(batch, reference(episodes, 20, length, np.random.default_rng(seed)))
        # A new episode always begins with a reset, so that nothing is learned across the seam.
        joined = batch['is_terminal'][:, :-1] & ~batch['is_first'][:, 1:]
        assert not joined.any()


def test_parts_of_a_batch_are_the_batch(tiny, make_episodes):
    replay = Replay(tiny).extend(make_episodes([12, 5, 9], contract=tiny))
    rngs = [np.random.default_rng(7) for _ in range(4)]
    whole = replay.sample(12, 6, rngs[0])
    parts = [replay.sample(12, 6, rng, slice(4 * i, 4 * i + 4)) for i, rng in enumerate(rngs[1:])]
    equal(whole, {k: np.concatenate([p[k] for p in parts]) for k in whole})
    assert len({rng.integers(2 ** 40) for rng in rngs}) == 1     # all have drawn alike


def test_a_batch_is_the_callers_own(tiny, make_episodes):
    episodes = make_episodes([6, 6], contract=tiny)
    replay = Replay(tiny).extend(episodes)
    batch = replay.sample(4, 3, np.random.default_rng(0))
    for value in batch.values():
        value[...] = 0
    equal(replay.sample(4, 3, np.random.default_rng(0)), reference(episodes, 4, 3, np.random.default_rng(0)))


def test_episodes_added_later_and_capacity(tiny, make_episodes):
    episodes = make_episodes([6, 5, 4, 7], contract=tiny)
    replay = Replay(tiny, capacity=16)
    for i, episode in enumerate(episodes):
        replay.add(episode)
        kept = replay.episodes
        assert len(replay) == sum(map(len, kept)) <= 16 and kept[-1] is episode
        equal(replay.sample(9, 4, np.random.default_rng(i)), reference(kept, 9, 4, np.random.default_rng(i)))
    assert replay.episodes == episodes[1:]
    assert len(Replay(tiny).extend(episodes)) == 22, 'without a capacity nothing is ever dropped'


def test_mixed_batches_hold_their_share(tiny, make_episodes):
    offline, online = (Replay(tiny).extend(make_episodes([6, 5], seed=s, contract=tiny)) for s in (0, 50))
    batch = MixedReplay(offline, online, 0.25).sample(8, 3, np.random.default_rng(1))
    rng = np.random.default_rng(1)
    mine, theirs = online.sample(2, 3, rng), offline.sample(6, 3, rng)
    equal(batch, {k: np.concatenate([mine[k], theirs[k]]) for k in mine})
    for fraction, share in ((0.3, 2), (0.7, 6), (0.0, 0), (1.0, 8)):     # the nearest whole number of windows
        batch = MixedReplay(offline, online, fraction).sample(8, 3, np.random.default_rng(3))
        known = {a.tobytes() for e in online.episodes for a in e.action}
        assert sum(any(a.any() and a.tobytes() in known for a in row[:2]) for row in batch['action']) == share
    empty = Replay(tiny)
    for mixed in (MixedReplay(empty, online), MixedReplay(online, empty)):
        equal(mixed.sample(8, 3, np.random.default_rng(2)), online.sample(8, 3, np.random.default_rng(2)))


def test_memory_per_step_is_its_raw_bytes(contract, make_episode):
    """At most 1.1 times, at the highest point too: growing and sampling copy nothing but the batch."""
    tracemalloc.start()
    try:
        replay, rng = Replay(contract), np.random.default_rng(0)
        empty = tracemalloc.get_traced_memory()[0]
        for i in range(40):
            replay.add(make_episode(50, i))
            replay.sample(2, 4, rng)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    raw = len(replay) * step_bytes(contract)
    assert 1.0 <= (held - empty) / raw < 1.02
    assert (peak - empty) / raw < 1.1


def test_sampling_outruns_the_step_it_feeds(contract, make_episode):
    """At least ten times; the `small` preset takes more than 0.3 s a step on any CPU seen, so 30 ms is the limit."""
    replay, rng = Replay(contract).extend(make_episode(50, i) for i in range(20)), np.random.default_rng(0)
    times = []
    for _ in range(20):
        began = time.process_time()
        replay.sample(16, 12, rng)
        times.append(time.process_time() - began)
    assert np.median(times) < 0.03


def test_the_benchmark(capsys):
    """`fosp bench replay --json -`: its keys, and the bounds that hold on any machine."""
    assert main(['bench', 'replay', '--preset', 'debug', '--steps', '5000', '--memory-steps', '1000', '--updates', '2',
                 '--json', '-']) == 0
    result = json.loads(capsys.readouterr().out)
    assert {'preset', 'batch', 'length', 'steps', 'open_s', 'windows_per_second', 'memory_windows_per_second',
            'seconds_per_step', 'consumed_windows_per_second', 'sampling_ratio', 'bytes_per_step',
            'raw_bytes_per_step', 'memory_ratio'} <= result.keys()
    assert result['steps'] == 5000 and result['raw_bytes_per_step'] == 12339
    assert result['memory_ratio'] < 1.1 and result['open_s'] < 2.0 and result['sampling_ratio'] > 1.0
    assert main(['bench', 'replay', '--steps', '10']) == 2
    assert capsys.readouterr().err.count('\n') == 1
