# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bundles: written whole, verified when opened, and each way of being wrong refused in one line."""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from fosp_core.cli import main
from fosp_core.contract import Contract
from fosp_core.deploy import bundle as module
from fosp_core.deploy.bundle import Bundle, write_bundle
from fosp_core.deploy.bundle_store import BundleStore
from fosp_core.errors import BundleError
from fosp_core.paths import config_file

CONTRACT = Contract.load(config_file('contract_safereach.yaml'))
CALIBRATION = {'schema': 1, 'reachability': {'level': 0.4, 'alpha': 0.1, 'n': 50},
               'surprise': {'level_slow': 5.0, 'level_stop': 9.0, 'alpha': 0.05, 'n': 900}, 'data_hash': 'd' * 64}


def make_files(calibration=CALIBRATION, contract=CONTRACT, **changes):
    files = {name: f'{name} content'.encode() for name in module.FILES}
    files['calibration.json'] = json.dumps(calibration).encode()
    files['contract.yaml'] = json.dumps(contract.to_dict()).encode()
    return {**files, **changes}


def make_manifest(version='v1', contract=CONTRACT, **changes):
    network = {'deter': 8, 'stoch': 4, 'classes': 4, 'action': 3, 'cameras': [], 'vectors': []}
    return {'name': 'toy', 'version': version, 'preset': 'test', 'contract_hash': contract.hash, 'parent': None,
            'data_hash': 'x', 'seed': 0, 'commit': None, 'steps': 1, 'metrics': {}, 'network': network, **changes}


def make(path, version='v1', calibration=CALIBRATION, **manifest):
    return write_bundle(path, make_files(calibration), make_manifest(version, **manifest))


def resign(path: Path, edit):
    """Change the manifest and save it as a forger would: no hash of the manifest itself is stored beside it."""
    manifest = json.loads((path / 'manifest.json').read_text())
    edit(manifest)
    (path / 'manifest.json').write_text(json.dumps(manifest))


def refuse(match, call, *args, **kwargs):
    with pytest.raises(BundleError, match=match) as caught:
        call(*args, **kwargs)
    assert '\n' not in str(caught.value)


def retar(data, edit):
    """Repack `data` with the list of (name, bytes, type) after `edit`."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = [[m.name, tar.extractfile(m).read(), tarfile.REGTYPE] for m in tar]
    edit(members)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as tar:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content) if kind == tarfile.REGTYPE else 0, '/etc/passwd'
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_round_trip_is_exact_and_deterministic(tmp_path):
    bundle = make(tmp_path / 'v1')
    again = Bundle.open(tmp_path / 'v1', CONTRACT, calibrated=True)
    assert again.sha256 == bundle.sha256 == hashlib.sha256((tmp_path / 'v1/manifest.json').read_bytes()).hexdigest()
    assert again.version == 'v1' and again.contract == CONTRACT and again.calibration == CALIBRATION
    assert again.read('policy.onnx') == b'policy.onnx content'
    packed = bundle.to_bytes()
    assert packed == again.to_bytes()
    other = Bundle.unpack(packed, tmp_path / 'cache', CONTRACT, calibrated=True)
    assert other.path == (tmp_path / 'cache/v1').resolve() and other.sha256 == bundle.sha256
    assert other.to_bytes() == packed
    assert Bundle.unpack(packed, tmp_path / 'cache').path == other.path


def test_open_finds_current_and_a_single_version(tmp_path):
    make(tmp_path / 'm/v1')
    assert Bundle.open(tmp_path / 'm').version == 'v1'
    make(tmp_path / 'm/v2', 'v2')
    refuse('exactly one bundle directory, found v1, v2', Bundle.open, tmp_path / 'm')
    (tmp_path / 'm/current').symlink_to('v2')
    assert Bundle.open(tmp_path / 'm').version == 'v2'
    refuse('no such bundle directory', Bundle.open, tmp_path / 'absent')


@pytest.mark.parametrize('name', module.FILES)
def test_one_flipped_byte_is_found(tmp_path, name):
    path = make(tmp_path / 'v1').path
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)
    refuse(f'{name}: sha256 [0-9a-f]+, expected [0-9a-f]+', Bundle.open, path)


def test_damage_on_disk_is_refused(tmp_path):
    path = make(tmp_path / 'v1').path
    weights = path / 'weights.safetensors'
    content = weights.read_bytes()
    weights.write_bytes(content[:-3])
    refuse(r'weights.safetensors: \d+ bytes, expected', Bundle.open, path)
    weights.unlink()
    refuse('weights.safetensors is missing', Bundle.open, path)
    (tmp_path / 'elsewhere').write_bytes(content)
    weights.symlink_to(tmp_path / 'elsewhere')
    refuse('not a plain file', Bundle.open, path)
    weights.unlink()
    weights.write_bytes(content)
    (path / 'extra.pkl').write_bytes(b'')
    refuse("unexpected file 'extra.pkl'", Bundle.open, path)


def test_change_after_open_is_found(tmp_path):
    bundle = make(tmp_path / 'v1')
    (bundle.path / 'filter.onnx').write_bytes(b'another content')
    refuse('filter.onnx', bundle.read, 'filter.onnx')
    refuse('filter.onnx', bundle.to_bytes)
    refuse("no file '../x'", bundle.read, '../x')
    other = make(tmp_path / 'v2', 'v2')
    resign(other.path, lambda m: m.update(steps=99))
    refuse('manifest.json: changed since', other.to_bytes)


@pytest.mark.parametrize(('edit', 'match'), [
    (lambda m: m.update(schema=0), 'schema is 0, expected 1: export'),
    (lambda m: m.update(schema=2), 'schema is 2, expected 1: update'),
    (lambda m: m.pop('steps'), 'key steps is missing'),
    (lambda m: m['network'].pop('deter'), 'key network.deter is missing'),
    (lambda m: m.update(version='../../etc'), 'key version'),
    (lambda m: m.update(contract_hash='0' * 64), 'contract hash'),
    (lambda m: m['files'].pop('policy.onnx'), 'policy.onnx is missing'),
    (lambda m: m['files'].update({'../x': {'sha256': '0' * 64, 'size': 1}}), 'unexpected file'),
    (lambda m: m['files']['policy.onnx'].update(size=10 ** 12), 'size is 1000000000000'),
    (lambda m: m['files']['policy.onnx'].update(size=-1), 'size is -1'),
    (lambda m: m['files']['policy.onnx'].update(size=True), 'size is True'),
    (lambda m: m['files']['policy.onnx'].update(sha256='short'), '64 hexadecimal'),
])
def test_wrong_manifest_is_refused(tmp_path, edit, match):
    path = make(tmp_path / 'v1').path
    resign(path, edit)
    refuse(match, Bundle.open, path)


@pytest.mark.parametrize('raw', [b'', b'{', b'[1]', b'{"schema": NaN}', b'\xff\xfe', b'[' * 100000])
def test_manifest_that_is_not_json_is_refused(tmp_path, raw):
    path = make(tmp_path / 'v1').path
    (path / 'manifest.json').write_bytes(raw)
    refuse('manifest.json', Bundle.open, path)


def test_foreign_contract_is_refused_with_both_named(tmp_path):
    other = Contract.from_dict({**CONTRACT.to_dict(), 'name': 'other'})
    make(tmp_path / 'v1')
    refuse(f'{CONTRACT.hash[:12]}.*{other.hash[:12]}', Bundle.open, tmp_path / 'v1', other)


@pytest.mark.parametrize(('calibration', 'match'), [
    ({}, 'not calibrated: key schema'),
    ({**CALIBRATION, 'reachability': None}, 'key reachability is missing'),
    ({**CALIBRATION, 'surprise': {'level_slow': 9.0, 'level_stop': 5.0, 'alpha': 0.1, 'n': 5}}, 'above'),
    ({**CALIBRATION, 'reachability': {'level': None, 'alpha': 0.1, 'n': 5}}, 'level is None'),
    ({**CALIBRATION, 'reachability': {'level': 1.5, 'alpha': 0.1, 'n': 5}}, 'expected 0 to 1'),
    ({**CALIBRATION, 'reachability': {'level': 0.5, 'alpha': 1.0, 'n': 5}}, 'alpha is 1.0'),
    ({**CALIBRATION, 'reachability': {'level': 0.5, 'alpha': 0.1, 'n': 0}}, 'n is 0'),
    ({**CALIBRATION, 'data_hash': ''}, 'data_hash'),
])
def test_uncalibrated_is_refused_only_where_it_matters(tmp_path, calibration, match):
    bundle = make(tmp_path / 'v1', calibration=calibration)
    refuse(match, Bundle.open, bundle.path, calibrated=True)
    refuse(match, Bundle.unpack, bundle.to_bytes(), tmp_path / 'cache', calibrated=True)
    assert not (tmp_path / 'cache').exists()


def test_write_refuses_wrong_input_and_leaves_nothing(tmp_path):
    files = make_files()
    refuse('card.md is missing', write_bundle, tmp_path / 'v1', {k: v for k, v in files.items() if k != 'card.md'},
           make_manifest())
    refuse('unexpected file', write_bundle, tmp_path / 'v1', {**files, 'a/b': b''}, make_manifest())
    refuse('key seed is missing', write_bundle, tmp_path / 'v1', files,
           {k: v for k, v in make_manifest().items() if k != 'seed'})
    refuse('cannot be written as JSON', write_bundle, tmp_path / 'v1', files,
           make_manifest(metrics={'loss': float('nan')}))
    assert list(tmp_path.iterdir()) == []
    make(tmp_path / 'v1')
    refuse('exists already', make, tmp_path / 'v1')
    (tmp_path / 'file').write_bytes(b'')
    refuse('cannot be created|cannot be written', make, tmp_path / 'file/v1')


def test_packed_path_tricks_and_sizes_are_refused(tmp_path, monkeypatch):
    packed = make(tmp_path / 'v1').to_bytes()
    into = tmp_path / 'cache'
    edits = [
        lambda m: m.append(['../../evil', b'x', tarfile.REGTYPE]),
        lambda m: m.append(['/tmp/evil', b'x', tarfile.REGTYPE]),
        lambda m: m.append(['card.md', b'twice', tarfile.REGTYPE]),
        lambda m: m[-1].__setitem__(2, tarfile.SYMTYPE),
        lambda m: m[-1].__setitem__(2, tarfile.LNKTYPE),
        lambda m: m.pop(),
        lambda m: m.pop(0),
        lambda m: m[3].__setitem__(1, b'other'),
        lambda m: m[-1].__setitem__(0, './card.md'),
    ]
    for edit in edits:
        refuse('packed bundle', Bundle.unpack, retar(packed, edit), into)
    for data in (b'', b'abc', packed[:1000], packed[:9000], os.urandom(5000)):
        refuse('packed bundle', Bundle.unpack, data, into)
    monkeypatch.setattr(module, 'MAX_TOTAL', 100)
    refuse('at most 100', Bundle.unpack, packed, into)
    assert not into.exists() and not Path('/tmp/evil').exists()


def test_unpack_replaces_damage_but_never_another_bundle(tmp_path):
    bundle = make(tmp_path / 'a/v1')
    packed, cache = bundle.to_bytes(), tmp_path / 'cache'
    path = Bundle.unpack(packed, cache).path
    (path / 'policy.onnx').write_bytes(b'damaged')
    assert Bundle.unpack(packed, cache).read('policy.onnx') == b'policy.onnx content'
    other = make(tmp_path / 'b/v1', steps=2)
    refuse('another bundle of the same version', Bundle.unpack, other.to_bytes(), cache)
    assert Bundle.open(path).sha256 == bundle.sha256


def test_store_current_previous_and_prune(tmp_path):
    store = BundleStore(tmp_path / 'store')
    assert store.current() is None and store.previous() is None and store.versions() == []
    for k in range(1, 6):
        bundle = make(tmp_path / f'src{k}', f'v{k}', parent=f'v{k - 1}')
        store.put(bundle if k % 2 else bundle.to_bytes())
    assert store.versions() == ['v1', 'v2', 'v3', 'v4', 'v5']
    store.set_current('v3')
    assert store.current().version == 'v3' and store.previous().version == 'v2'  # by parent: no history yet
    store.set_current('v5')
    store.set_current('v5')
    assert store.previous().version == 'v4'
    assert store.prune(1) == ['v1', 'v2']
    assert store.versions() == ['v3', 'v4', 'v5']       # v3 was in force before, v4 is what v5 was made from
    refuse('no such bundle', store.set_current, 'v1')
    refuse('not a version word', store.set_current, '../v3')
    assert Bundle.open(tmp_path / 'store').version == 'v5'


def stored(tmp_path, count=3):
    """Versions v1, v2, ..., each made from the one before and made current in turn."""
    store = BundleStore(tmp_path / 'store')
    for k in range(1, count + 1):
        store.put(make(tmp_path / f'src{k}', f'v{k}', parent=f'v{k - 1}' if k > 1 else 'elsewhere'))
        store.set_current(f'v{k}')
    return store


def test_a_rollback_goes_from_version_to_ancestor_and_never_back(tmp_path):
    """It once went to whatever was in force before: the second one put the bad model back."""
    store, path = stored(tmp_path), []
    while (previous := store.previous()) is not None:
        path.append(previous.version)
        assert len(path) < 3, path
        assert store.roll_back(previous.version).version == store.current().version == store.current_version()
        store = BundleStore(store.root)     # what was rolled back outlives the process
    assert path == ['v2', 'v1'] and store.rolled_back() == {'v2', 'v3'}
    for version, parent in (('v4', 'v1'), ('v5', 'v4')):
        store.put(make(tmp_path / version, version, parent=parent))
        store.set_current(version)
    shutil.rmtree(store.root / 'v4')
    assert store.previous() is None         # v4 was in force before, and is gone
    store.put(make(tmp_path / 'v6', 'v6', parent='v3'))
    store.set_current('v6')
    assert store.previous().version == 'v1', 'the parent was rolled back, and so was its parent'


def test_without_its_parent_a_model_goes_back_to_what_was_in_force_before(tmp_path):
    store = stored(tmp_path, 2)
    store.put(make(tmp_path / 'w', 'w', parent='gone'))
    store.set_current('w')
    assert store.previous().version == 'v2'
    store.roll_back('v2')
    assert store.previous().version == 'v1' and BundleStore(tmp_path / 'none').previous() is None
    store.roll_back('v1')
    store.set_current('w')          # chosen by hand; what was in force before it is v1
    store.roll_back('v1')
    assert store.previous() is None


def test_a_model_that_names_itself_as_its_parent_has_none(tmp_path):
    store = BundleStore(tmp_path / 'store')
    store.put(make(tmp_path / 'v1', parent='v1'))
    store.set_current('v1')
    assert store.previous() is None


@pytest.mark.parametrize('call', ['rename', 'replace', 'symlink', 'rmtree'])
def test_a_disk_that_takes_nothing_is_said_in_one_line_and_a_rollback_holds_all_the_same(tmp_path, monkeypatch, call):
    store = stored(tmp_path)
    new = make(tmp_path / 'v4', 'v4', parent='v3')
    where = shutil if call == 'rmtree' else os

    def full(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    with monkeypatch.context() as patch:
        patch.setattr(where, call, full)
        if call == 'rename':
            refuse('Read-only file system', store.put, new)
        if call in ('rename', 'rmtree'):
            refuse('an old version cannot be removed: Read-only file system', store.prune, 2)
        else:
            refuse('store/previous: cannot be written: Read-only file system', store.set_current, 'v2')
            assert store.current().version == 'v3'
            refuse('cannot be written: Read-only file system', store.roll_back, 'v2')
            assert store.current().version == store.current_version() == 'v2' and store.previous().version == 'v1'
            assert BundleStore(store.root).current().version == 'v3', 'the disk took it'
    if call in ('replace', 'symlink'):
        store.roll_back('v1')
        assert BundleStore(store.root).current().version == 'v1' and BundleStore(store.root).previous() is None
        assert BundleStore(store.root).rolled_back() == {'v2', 'v3'}


@pytest.mark.parametrize('call', ['rename', 'replace', 'symlink', 'unlink', 'fsync'])
def test_a_crash_at_any_moment_leaves_a_valid_current(tmp_path, monkeypatch, call):
    monkeypatch.setattr(os, 'fsync', lambda handle: None)   # slow, and not what is tested
    new, old = make(tmp_path / 'v2', 'v2'), make(tmp_path / 'v1')
    real = getattr(os, call)
    for moment in range(1, 40):
        store = BundleStore(tmp_path / f'store{moment}')
        store.put(old)
        store.set_current('v1')
        count = 0

        def crash(*args, moment=moment, **kwargs):
            nonlocal count
            count += 1
            if count == moment:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(os, call, crash)
            store.put(new)
            store.set_current('v2')
        assert store.current().version in ('v1', 'v2')
        assert set(store.versions()) <= {'v1', 'v2'}
        if count < moment:
            break
    assert count < moment and store.current().version == 'v2'


def test_the_command_verifies_and_names_what_is_wrong(tmp_path, capsys):
    make(tmp_path / 'v1')
    assert main(['bundle', 'verify', str(tmp_path / 'v1')]) == 0
    assert 'sound' in capsys.readouterr().out
    assert main(['bundle', 'verify', str(tmp_path), '--json', '-']) == 0
    assert json.loads(capsys.readouterr().out)['reachability']['level'] == 0.4
    (tmp_path / 'v1/policy.onnx').write_bytes(b'x')
    assert main(['bundle', 'verify', str(tmp_path / 'v1')]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and 'policy.onnx' in error and error.count('\n') == 1
    make(tmp_path / 'v2', calibration={})
    assert main(['bundle', 'verify', str(tmp_path / 'v2')]) == 2
    assert main(['bundle', 'verify', str(tmp_path / 'v2'), '--allow-uncalibrated']) == 0
