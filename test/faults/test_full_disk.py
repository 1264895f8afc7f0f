# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A trainer whose disk is full: it says so, loses nothing that it had, and goes on when there is room again."""

import os
import subprocess
import time

import pytest
from ros_rig import wait_for
from test_trainer_kills import ENDED, Workshop

from fosp_core.data.store import load_episode, save_episode
from fosp_core.deploy.bundle import Bundle

ROOM = 24       # MiB


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few megabytes; only root can make one."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    made = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={ROOM}m', 'tmpfs', str(folder)], capture_output=True,
                          text=True, check=False)
    if made.returncode:
        pytest.skip(f'a file system of its own cannot be mounted here: {made.stderr.strip()}')
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)


def fill(folder):
    """Take all the room that is left; return the file that does it."""
    path = folder / 'filler'
    with path.open('wb', buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
    return path


def test_a_full_disk_is_said_and_costs_nothing_that_was_there(small_disk, model, tmp_path, contract, make_episodes,
                                                              same):
    offline = tmp_path / 'offline'
    offline.mkdir()
    for i, episode in enumerate(make_episodes([24, 18], seed=70, violation=True)):
        save_episode(offline / f'{i}.npz', episode)
    shop = Workshop(model, tmp_path, contract, offline)
    shop.work = shop.parameters['work_dir'] = small_disk / 'work'
    try:
        shop.start()
        robot, sent = shop.robot, make_episodes([14, 15, 16, 17])
        for count, episode in enumerate(sent[:2], 1):
            robot.send(episode)
            wait_for(lambda count=count: len(shop.stored()) == count, 10.0, 'the episode on disk')
        filler = fill(small_disk)
        robot.send(sent[2])
        wait_for(lambda: 'No space left on device' in shop.child.text, 10.0, 'the reason in the log')
        assert len(shop.stored()) == 2 and shop.child.alive
        answer = robot.fine_tune()
        if answer.success:      # the job may start: what it writes does not fit
            phase, values = wait_for(lambda: robot.progress[-1][0] in ENDED and robot.progress[-1], 120.0, 'its end')
            assert phase in ('failed', 'refused') and 'No space left on device' in values['reason'], (phase, values)
        else:
            assert 'No space left on device' in answer.message
        whole(shop, contract, sent[:2], same)
        filler.unlink()
        robot.send(sent[3])     # there is room again: it goes on as if nothing had been
        wait_for(lambda: len(shop.stored()) == 3, 10.0, 'the next episode on disk')
        whole(shop, contract, [*sent[:2], sent[3]], same)
        answer = robot.fine_tune()
        assert answer.success, answer.message
        time.sleep(0.3)         # past what is latched of the job before
        phase, values = wait_for(lambda: robot.progress[-1][0] in ENDED and robot.progress[-1][1]['job'] ==
                                 answer.message and robot.progress[-1], 120.0, 'the end of the job')
        assert phase in ('published', 'refused') and 'No space' not in values.get('reason', ''), (phase, values)
    finally:
        shop.close()


def whole(shop, contract, episodes, same):
    """Nothing but these episodes, bit for bit, and the model that was there."""
    names = sorted(shop.stored())
    for name, episode in zip(names, episodes, strict=True):
        same(load_episode(shop.session / 'episodes' / name, contract), episode, meta=False)
    assert not [n for n in os.listdir(shop.session / 'episodes') if n not in names]
    assert Bundle.open(shop.session / 'models', contract, True).version == 'calibrated'
