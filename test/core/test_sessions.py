# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer's folder on disk: what a start may remove, and that no two trainers share a session."""

import dataclasses
import errno
import json
import os
import subprocess
import sys

import pytest

from fosp_core.data import store as episode_store
from fosp_core.data.store import load_episode
from fosp_core.deploy.bundle import FILES, write_bundle
from fosp_core.errors import FospError
from fosp_ros.sessions import Session

CALIBRATION = {'schema': 1, 'reachability': {'level': 0.4, 'alpha': 0.1, 'n': 50},
               'surprise': {'level_slow': 5.0, 'level_stop': 9.0, 'alpha': 0.05, 'n': 900}, 'data_hash': 'd' * 64}


def model(folder, contract, version='v1', calibration=CALIBRATION, parent=None):
    """Write a bundle that verifies."""
    files = {name: f'{name} of {version}'.encode() for name in FILES}
    files |= {'calibration.json': json.dumps(calibration).encode(),
              'contract.yaml': json.dumps(contract.to_dict()).encode()}
    network = {'deter': 8, 'stoch': 4, 'classes': 4, 'action': 3, 'cameras': [], 'vectors': []}
    return write_bundle(folder, files, {
        'name': 'toy', 'version': version, 'preset': 'test', 'contract_hash': contract.hash, 'parent': parent,
        'data_hash': 'x', 'seed': 0, 'commit': None, 'steps': 1, 'metrics': {}, 'network': network})


@pytest.fixture
def first(tmp_path, contract, make_episodes):
    """A session with three episodes and a model, whose trainer has ended."""
    session = Session(tmp_path / 'work', contract, 10)
    for episode in make_episodes([5, 6, 7]):
        session.add(episode)
    session.store.put(model(tmp_path / 'model', contract))
    session.store.set_current('v1')
    session.close()
    return session


def tree(folder):
    """Return name and bytes of every file but the lock."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file() and p.name != 'lock'}


def test_a_resumed_session_moves_what_it_cannot_use_and_deletes_nothing(first, tmp_path, contract):
    bad = first.episodes / '000002.npz'
    bad.write_bytes(b'half a file')
    before = tree(first.path)
    for start in range(3):
        session = Session(tmp_path / 'work', contract, 10, resume=True)
        assert session.resumed and session.path == first.path and (session.episode_count, session.step_count) == (2, 11)
        assert len(session.unreadable) == (start == 0)
        path = session.add(load_episode(first.episodes / '000000.npz', contract))
        assert path.name == '000003.npz', 'a number that is moved away must not come again'
        path.unlink()
        session.close()
    moved = {k.replace('episodes/000002', 'episodes.unreadable/000002'): v for k, v in before.items()}
    assert tree(first.path) == moved


def test_what_the_system_refuses_today_stays_for_tomorrow(first, tmp_path, contract, monkeypatch):
    """Once a resume with too many open files deleted every episode of the robot."""
    before = tree(first.path)

    def full(*args, **kwargs):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    with monkeypatch.context() as patch:
        patch.setattr(episode_store.np, 'load', full)
        session = Session(tmp_path / 'work', contract, 10, resume=True)
        session.close()
    assert session.episode_count == 0 and len(session.unreadable) == 3
    assert all('Too many open files; left where it is' in text for text in session.unreadable)
    assert tree(first.path) == before
    session = Session(tmp_path / 'work', contract, 10, resume=True)
    session.close()
    assert session.episode_count == 3 and not session.unreadable


def test_a_session_of_another_contract_or_an_unfit_model_is_not_resumed_and_not_touched(first, tmp_path, contract):
    before = tree(first.path)
    other = dataclasses.replace(contract, rate_hz=contract.rate_hz + 1)
    with pytest.raises(FospError, match=r'cannot be resumed: .* made for contract .*; parameter resume = false begins'):
        Session(tmp_path / 'work', other, 10, resume=True)
    first.store.put(model(tmp_path / 'raw', contract, 'raw', calibration={}))
    first.store.set_current('raw')
    with pytest.raises(FospError, match=r'cannot be resumed: .*calibration\.json'):
        Session(tmp_path / 'work', contract, 10, resume=True, calibrated=True)
    Session(tmp_path / 'work', contract, 10, resume=True).close()     # what was refused holds no lock
    assert before.items() <= tree(first.path).items()


def test_a_session_in_use_is_neither_resumed_nor_removed(tmp_path, contract):
    used = Session(tmp_path / 'work', contract, 10)
    with pytest.raises(FospError, match=f'{used.path.name}: another trainer works in this session; give another work'):
        Session(tmp_path / 'work', contract, 10, resume=True)
    sessions = []
    for _ in range(4):
        sessions.append(Session(tmp_path / 'work', contract, 10, keep_sessions=2))
        sessions[-1].close()
    assert used.path.is_dir(), 'the folder of a running trainer was deleted'
    names = [s.path.name for s in sessions]
    assert [s.removed for s in sessions] == [[], [], names[:1], names[1:2]]
    assert sorted(p.name for p in used.path.parent.iterdir()) == [used.path.name, *names[2:]]
    used.close()
    last = Session(tmp_path / 'work', contract, 10, keep_sessions=1)
    assert last.removed == [used.path.name, *names[2:]] and not used.path.exists()
    last.close()


def test_the_lock_of_a_killed_trainer_is_gone_with_it(tmp_path, contract):
    code = ('import sys; from fosp_core.contract import Contract; from fosp_core.paths import config_file\n'
            'from fosp_ros.sessions import Session\n'
            's = Session(sys.argv[1], Contract.load(config_file("contract_safereach.yaml")), 10)\n'
            'print(s.path, flush=True); sys.stdin.read()')
    process = subprocess.Popen([sys.executable, '-c', code, str(tmp_path / 'work')], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    try:
        path = process.stdout.readline().strip()
        with pytest.raises(FospError, match='another trainer works in this session'):
            Session(tmp_path / 'work', contract, 10, resume=True)
    finally:
        process.kill()
        process.communicate()
    session = Session(tmp_path / 'work', contract, 10, resume=True)
    session.close()
    assert str(session.path) == path


def test_a_work_folder_that_cannot_be_is_one_line(tmp_path, contract):
    (tmp_path / 'work').write_text('')
    with pytest.raises(FospError, match='sessions: the work folder cannot be used: Not a directory'):
        Session(tmp_path / 'work', contract, 10)


def test_the_disk_keeps_what_is_listed_and_nothing_more(first, tmp_path, contract):
    """A killed trainer leaves snapshots, results and half-written files; each fine-tune left a copy of its model."""
    killed = first.jobs / 'ft-0001'
    for folder in (killed / 'episodes', killed / '.bundle.tmp-1-ab', first.models / '.gone-v0',
                   first.models / '.v2.tmp-1-ab'):
        folder.mkdir(parents=True)
        (folder / 'x').write_text('x')
    model(killed / 'bundle', contract, 'v2')
    (first.models / '.current-17').symlink_to('v9')
    (first.episodes / '.000003.npz.tmp-1-ab').write_text('x')
    model(first.jobs / 'ft-0002' / 'bundle', contract, 'v3')
    first.set_aside('ft-0002', 'worse')
    keep = {k: v for k, v in tree(first.path).items() if k.startswith(('episodes/0', 'models/v1', 'models/current',
                                                                       'jobs/ft-0002/bundle.refused'))}
    assert len(keep) == 3 + 2 * (len(FILES) + 1) + 1
    session = Session(tmp_path / 'work', contract, 10, resume=True, keep_refused=2)
    assert tree(session.path) == keep and killed.is_dir(), 'the number of a job must not come again'
    assert not os.path.lexists(session.models / '.current-17') and os.path.lexists(session.models / 'current')
    session.snapshot('ft-0003')
    model(session.jobs / 'ft-0003' / 'bundle', contract, 'v4')
    (session.jobs / 'ft-0003' / '.bundle.tmp-1-ab').mkdir()
    session.forget_data('ft-0003')
    assert os.listdir(session.jobs / 'ft-0003') == ['bundle']
    session.forget_result('ft-0003')
    assert not os.listdir(session.jobs / 'ft-0003')
    for name in ('ft-9999', 'ft-10000', 'ft-10001'):
        session.set_aside(name, 'worse')
        session.forget_data(name)
    assert {p.parent.name for p in session.jobs.glob('*/bundle.refused')} == {'ft-10000', 'ft-10001'}
    session.close()


def test_a_snapshot_that_fails_leaves_no_link_behind(first, tmp_path, contract, monkeypatch):
    session = Session(tmp_path / 'work', contract, 10, resume=True)
    link, calls = os.link, []

    def full(*args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        link(*args)
    monkeypatch.setattr(os, 'link', full)
    with pytest.raises(FospError, match='ft-0001/episodes: cannot be written: No space left on device'):
        session.snapshot('ft-0001')
    assert not list((session.jobs / 'ft-0001').iterdir())
    session.close()
