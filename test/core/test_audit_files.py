# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The files of the audit, to the byte: names, heads, sizes, order of deletion, what a reader makes of what is there."""

import json
import os
import re
import time
from pathlib import Path

import pytest

from fosp_core.errors import DataError
from fosp_core.safety.audit import AuditFiles, audit_files, read_entries, tick_entry, to_line
from fosp_core.safety.filter import Record
from fosp_core.safety.reasons import Reason

RECORD = Record(Reason.LIMIT_SPEED, (Reason.LIMIT_SPEED, Reason.RAMP), (0.1,), (0.05,), 0.2, 0.3, 0.6, 1.5)
EVENT = {'k': 'event', 't': 5.0}


def test_every_key_of_a_tick():
    assert tick_entry(1.0, 2.0, Reason.LIMIT_SPEED, RECORD, (Reason.ESTOP,), {'pose': 0.1}, note=None, model='v1') == {
        'k': 'tick', 't': 1.0, 'mono': 2.0, 'reason': 'limit_speed', 'rules': ['limit_speed', 'ramp'],
        'latched': ['estop'], 'nominal': (0.1,), 'sent': (0.05,), 'risk': 0.2, 'risk_nominal': 0.3, 'level': 0.6,
        'surprise': 1.5, 'ages': {'pose': 0.1}, 'model': 'v1'}


def test_a_line_is_compact_and_keeps_six_decimals():
    assert to_line({'a': 0.12345678, 'b': [1, (2.0, float('inf'))]}) == b'{"a":0.123457,"b":[1,[2.0,null]]}\n'


def test_names_count_from_one_and_files_follow_one_another(tmp_path, monkeypatch):
    monkeypatch.setenv('TZ', 'Pacific/Kiritimati')      # 14 hours ahead: a name in local time would show
    time.tzset()
    try:
        files = AuditFiles(tmp_path / 'deep' / 'audit', 300, 10_000, lambda: {'more': 7})
        assert (files.path, files.size) == (None, 0)
        files.append([EVENT])
        utc = time.strftime('%Y%m%dT%H', time.gmtime())
        for _ in range(20):
            files.append([EVENT])
    finally:
        monkeypatch.undo()
        time.tzset()
    names = [path.name for path in sorted((tmp_path / 'deep' / 'audit').iterdir())]
    pattern = re.compile(rf'audit-(\d{{8}}T\d{{2}})\d{{4}}-({os.getpid()}-[0-9a-f]{{8}})-(\d{{5}})\.jsonl')
    parts = [pattern.fullmatch(name).groups() for name in names]
    assert [int(number) for *_, number in parts] == list(range(1, len(names) + 1)) and len(names) > 2
    assert len({run for _, run, _ in parts}) == 1 and parts[0][0] == utc
    # Nothing waits in a buffer: another process reads it at once.
    assert sum(line.startswith('{"k":"event"') for path in audit_files(tmp_path / 'deep' / 'audit')
               for line in path.read_text().splitlines()) == 21
    assert files.size == files.path.stat().st_size
    head = json.loads(files.path.read_text().splitlines()[0])
    assert set(head) == {'k', 't', 'mono', 'schema', 'run', 'pid', 'more'}
    assert head['k'] == 'start' and head['schema'] == 1 and head['pid'] == os.getpid() and head['run'] == parts[0][1]
    assert abs(head['t'] - time.time()) < 60 and abs(head['mono'] - time.monotonic()) < 60
    files.close()


def test_a_file_is_filled_to_its_last_byte(tmp_path):
    files = AuditFiles(tmp_path, 10_000, 10_000, dict)
    files.append([EVENT])
    files._file_bytes = files.size + len(to_line(EVENT))
    first = files.path
    files.append([EVENT])
    assert files.path == first and files.size == files._file_bytes
    files.append([EVENT])
    assert files.path != first
    files.close()


def test_sync_reaches_the_disk_and_is_nothing_before_the_first_line(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, 'fdatasync', synced.append)
    files = AuditFiles(tmp_path, 1000, 1000, dict)
    files.sync()
    assert synced == []
    files.append([EVENT])
    files.sync()
    assert len(synced) == 1
    files.close()
    files.sync()
    assert len(synced) == 1


def old(folder, name, size, age):
    path = folder / f'audit-{name}.jsonl'
    path.write_bytes(b'x' * size)
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.mark.parametrize(('sizes', 'kept'), [((400, 400, 400), 2), ((400, 400, 400, 400), 2), ((200, 200), 2),
                                             ((400, 401), 1)])
def test_the_oldest_go_until_a_full_file_fits_and_no_further(tmp_path, sizes, kept):
    """1000 bytes in all, 200 for the next file. Names sort against their ages."""
    for name in ('gone-a', 'gone-b', 'zgone-c', 'zgone-d'):
        os.symlink(tmp_path / 'nowhere', tmp_path / f'audit-{name}.jsonl')      # what vanishes while one looks
    made = [old(tmp_path, f'{9 - k}', size, 1000 - k) for k, size in enumerate(sizes)]
    files = AuditFiles(tmp_path, 200, 1000, dict)
    files.append([EVENT])
    assert [path for path in made if path.exists()] == made[len(made) - kept:]
    files.close()


def test_another_filter_that_deletes_first_is_no_fault(tmp_path, monkeypatch):
    path, unlink = old(tmp_path, 'a', 5000, 100), Path.unlink

    def raced(self, missing_ok=False):
        os.unlink(self)
        unlink(self, missing_ok=missing_ok)
    monkeypatch.setattr(Path, 'unlink', raced)
    files = AuditFiles(tmp_path, 200, 1000, dict)
    files.append([EVENT])
    files.close()
    assert not path.exists()


def test_what_a_reader_is_told(tmp_path):
    headless = tmp_path / 'audit-h.jsonl'
    headless.write_text('{"k": "event", "t": 1}\n{"k": "start", "t": 1, "schema": 1}\n{"k": "event", "t": 2}\n')
    # Without a run in it a file is a run of its own.
    assert [entry['run'] for entry in read_entries(headless)] == ['audit-h.jsonl'] * 3
    folder = tmp_path / 'f' / 'audit-d.jsonl'
    folder.mkdir(parents=True)
    with pytest.raises(DataError, match=f'^{re.escape(str(folder))}: Is a directory$'):
        list(read_entries(tmp_path / 'f'))


def test_a_file_that_vanished_meanwhile_does_not_hide_what_went_wrong(tmp_path):
    def header():
        for path in tmp_path.iterdir():
            path.unlink()
        raise OSError('the disk is full')
    with pytest.raises(OSError, match='the disk is full'):
        AuditFiles(tmp_path, 300, 10_000, header).append([EVENT])


def test_a_full_disk_is_not_littered_and_the_audit_goes_on_when_there_is_room(tmp_path, monkeypatch):
    files, write = AuditFiles(tmp_path, 1000, 10_000, dict), AuditFiles._write

    def full(self, data):
        self._file.write(data[:3])
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(AuditFiles, '_write', full)
    for _ in range(10):
        with pytest.raises(OSError, match='No space'):
            files.append([EVENT])
    assert not list(tmp_path.iterdir()) and files._file is None
    monkeypatch.setattr(AuditFiles, '_write', write)
    files.append([EVENT])
    assert [path.name[-10:-6] for path in tmp_path.iterdir()] == ['0001'] and len(list(read_entries(tmp_path))) == 2
    files.close()
