# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Files and folders appear whole or not at all, whatever happens while they are written."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from fosp_core import io
from fosp_core.errors import FospError


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_bytes_are_replaced_whole(tmp_path):
    path = tmp_path / 'new' / 'folder' / 'file'
    io.atomic_write_bytes(path, b'old')
    io.atomic_write_bytes(path, b'new content')
    assert path.read_bytes() == b'new content'
    assert names(path.parent) == ['file']


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'file'
    io.atomic_write_bytes(path, b'old')

    def full(*_):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(FospError, match='file: cannot be written: No space left'):
        io.atomic_write_bytes(path, b'new')
    assert path.read_bytes() == b'old' and names(tmp_path) == ['file']


def test_a_reader_never_meets_half_a_file(tmp_path, monkeypatch):
    path = tmp_path / 'file'
    io.atomic_write_bytes(path, b'old')
    with open(path, 'rb') as reader:
        io.atomic_write_bytes(path, b'new')
        assert reader.read() == b'old'      # who has it open keeps the file that he opened
    monkeypatch.setattr(os, 'replace', lambda *_: (_ for _ in ()).throw(OSError(5, 'Input/output error')))
    with pytest.raises(FospError, match='Input/output error'):
        io.atomic_write_bytes(path, b'newer')
    assert path.read_bytes() == b'new' and names(tmp_path) == ['file']


def test_a_folder_appears_only_at_the_end(tmp_path):
    path = tmp_path / 'bag'
    with io.atomic_dir(path) as temporary:
        (temporary / 'inner').mkdir()
        (temporary / 'inner' / 'a').write_text('1')
        assert not path.exists() and temporary.parent == tmp_path
    assert (path / 'inner' / 'a').read_text() == '1'
    assert names(tmp_path) == ['bag']


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
def test_a_folder_that_failed_leaves_nothing(tmp_path, error):
    with pytest.raises(error), io.atomic_dir(tmp_path / 'bag') as temporary:
        (temporary / 'a').write_text('1')
        raise error
    assert names(tmp_path) == []


def test_an_existing_folder_is_refused_and_kept(tmp_path):
    path = tmp_path / 'bag'
    path.mkdir()
    with pytest.raises(FospError, match='bag: exists already'), io.atomic_dir(path):
        raise AssertionError('entered')
    with pytest.raises(FospError, match='meanwhile'), io.atomic_dir(tmp_path / 'late') as temporary:
        (temporary / 'a').write_text('mine')
        (tmp_path / 'late').mkdir()      # rename() would silently replace an empty folder
    assert names(tmp_path / 'late') == []
    assert names(tmp_path) == ['bag', 'late']


def test_all_is_synced_before_the_rename(tmp_path, monkeypatch):
    """After a power cut a renamed folder with empty files would pass for a good one."""
    order, real_sync, real_rename = [], os.fsync, os.rename
    monkeypatch.setattr(os, 'fsync', lambda fd: (order.append(os.readlink(f'/proc/self/fd/{fd}')), real_sync(fd))[1])
    monkeypatch.setattr(os, 'rename', lambda a, b: (order.append('rename'), real_rename(a, b))[1])
    with io.atomic_dir(tmp_path / 'bag') as temporary:
        (temporary / 'a').write_text('1')
    before = order[:order.index('rename')]
    assert str(temporary / 'a') in before and str(temporary) in before
    assert order[order.index('rename') + 1:] == [str(tmp_path)]


def test_a_killed_writer_leaves_no_final_folder(tmp_path):
    code = ('import os, sys, signal; from fosp_core.io import atomic_dir\n'
            'with atomic_dir(sys.argv[1]) as d:\n'
            '    (d / "a").write_text("1"); os.kill(os.getpid(), signal.SIGKILL)')
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path / 'bag')])
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / 'bag').exists()
    assert all(n.startswith('.bag.tmp-') for n in names(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_no_permission_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(FospError, match='cannot be written: Permission denied'):
        io.atomic_write_bytes(tmp_path / 'a', b'')


def test_a_file_in_the_way_is_one_line(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(FospError, match='file'):
        io.atomic_write_bytes(tmp_path / 'file' / 'below', b'')
    with pytest.raises(FospError, match='cannot be written'):
        io.atomic_write_bytes(tmp_path, b'')


def test_json_to_file_and_to_standard_output(tmp_path, capsys):
    obj = {'a': np.float32(0.5), 'b': np.arange(2), 'c': tmp_path, 'd': None}
    io.write_json(tmp_path / 'r.json', obj)
    io.write_json('-', obj)
    text = capsys.readouterr().out
    assert text == (tmp_path / 'r.json').read_text()
    assert json.loads(text) == {'a': 0.5, 'b': [0, 1], 'c': str(tmp_path), 'd': None}


def test_json_refuses_nan_and_keeps_the_old_report(tmp_path):
    io.write_json(tmp_path / 'r.json', {'a': 1})
    with pytest.raises(ValueError, match='JSON'):
        io.write_json(tmp_path / 'r.json', {'a': float('nan')})
    assert json.loads((tmp_path / 'r.json').read_text()) == {'a': 1}
