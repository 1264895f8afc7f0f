# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The model bundle: one directory that is written whole or not at all, and verified whenever it is opened.

Anyone may import this module; it needs neither torch, ONNX Runtime nor ROS. What a bundle must hold, and every way
in which it can be wrong, is decided here and nowhere else.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import yaml

from fosp_core.contract import Contract
from fosp_core.errors import BundleError, ContractError, FospError
from fosp_core.io import atomic_dir
from fosp_core.safety.calibration import check_calibration

SCHEMA = 1
MANIFEST = 'manifest.json'
FILES = ('weights.safetensors', 'policy.onnx', 'filter.onnx', 'probe.npz', 'calibration.json', 'contract.yaml',
         'card.md')
MANIFEST_KEYS = ('schema', 'name', 'version', 'created', 'preset', 'contract_hash', 'parent', 'data_hash', 'seed',
                 'commit', 'steps', 'metrics', 'files', 'network')
NETWORK_KEYS = ('deter', 'stoch', 'classes', 'action', 'cameras', 'vectors')
MAX_TEXT = 1 << 20  # bytes of a manifest, calibration, contract or card: they are read whole by people
MAX_FILE = 256 << 20  # bytes of one weight file
MAX_TOTAL = 512 << 20  # bytes of a bundle, and so of one message on the `model` topic
_TEXT_FILES = (MANIFEST, 'calibration.json', 'contract.yaml', 'card.md')
_WORD = re.compile(r'[A-Za-z0-9][A-Za-z0-9._+-]{0,63}')
_SHA = re.compile(r'[0-9a-f]{64}')


def is_word(word: object) -> bool:
    """Whether this can name a bundle or a version, and so a folder."""
    return isinstance(word, str) and _WORD.fullmatch(word) is not None


def check_word(key: str, word: str) -> str:
    """Return `word` when it can name a bundle or a version; raise BundleError that names `key` when not."""
    if not is_word(word):
        raise BundleError(f'{key} {word!r}, expected a word of letters, digits and ._+-')
    return word


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A verified bundle directory. Make one with `Bundle.open`, `Bundle.unpack` or `write_bundle`."""

    path: Path
    manifest: dict[str, Any]
    sha256: str
    contract: Contract
    calibration: dict[str, Any]

    @property
    def version(self) -> str:
        """Version word, unique within one model's store."""
        return self.manifest['version']

    @property
    def name(self) -> str:
        """Model name."""
        return self.manifest['name']

    @classmethod
    def open(cls, path: Path | str, contract: Contract | None = None, calibrated: bool = False) -> 'Bundle':
        """Verify a bundle and return it.

        Parameters
        ----------
        path : Path or str
            The bundle directory, or a parent that holds the link `current` or exactly one bundle directory.
        contract : Contract, optional
            The contract in force; a bundle made for another one is refused.
        calibrated : bool
            Refuse a bundle without a usable calibration. Whoever guards a robot passes True.

        Raises
        ------
        BundleError
            One line that names the file, what was expected and what was found.

        """
        directory = _locate(Path(path))
        raw = _read_plain(directory / MANIFEST, MAX_TEXT)
        manifest = _parse_manifest(raw, f'{directory}/{MANIFEST}')
        present = {entry.name for entry in directory.iterdir()} - {MANIFEST}
        _same_names(present, set(manifest['files']), str(directory))
        texts = {}
        for name, record in manifest['files'].items():
            data = _read_plain(directory / name, _limit(name))
            _check_bytes(data, record, f'{directory}/{name}')
            if name in _TEXT_FILES:
                texts[name] = data
        return cls._verified(directory, raw, manifest, texts, contract, calibrated)

    @classmethod
    def open_or_none(cls, directory: Path) -> 'Bundle | None':
        """Return the bundle in a directory, or None when there is no whole one."""
        if (directory / MANIFEST).exists():
            with contextlib.suppress(BundleError):
                return cls.open(directory)
        return None

    @classmethod
    def _verified(cls, directory: Path, raw: bytes, manifest: dict, texts: dict[str, bytes],
                  contract: Contract | None, calibrated: bool) -> 'Bundle':
        own = _parse_contract(texts['contract.yaml'], f'{directory}/contract.yaml')
        if own.hash != manifest['contract_hash']:
            raise BundleError(f'{directory}/contract.yaml: contract hash {own.hash[:12]}, but {MANIFEST} key '
                              f'contract_hash says {str(manifest["contract_hash"])[:12]}')
        if contract is not None and contract.hash != own.hash:
            raise BundleError(f'{directory}: made for contract {own.name!r} {own.hash[:12]}, but the contract in '
                              f'force is {contract.name!r} {contract.hash[:12]}')
        calibration = _parse_json(texts['calibration.json'], f'{directory}/calibration.json')
        if calibrated:
            check_calibration(calibration, f'{directory}/calibration.json')
        return cls(directory, manifest, hashlib.sha256(raw).hexdigest(), own, calibration)

    def read(self, name: str) -> bytes:
        """Return the bytes of one file, verified again: the directory may have changed since it was opened."""
        if name not in self.manifest['files']:
            raise BundleError(f'{self.path}: holds no file {name!r}')
        data = _read_plain(self.path / name, _limit(name))
        _check_bytes(data, self.manifest['files'][name], f'{self.path}/{name}')
        return data

    def to_bytes(self) -> bytes:
        """Pack into an uncompressed tar; the same bundle always gives the same bytes."""
        raw = _read_plain(self.path / MANIFEST, MAX_TEXT)
        if hashlib.sha256(raw).hexdigest() != self.sha256:
            raise BundleError(f'{self.path}/{MANIFEST}: changed since the bundle was opened')
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode='w', format=tarfile.USTAR_FORMAT) as tar:
            for name in (MANIFEST, *FILES):
                data = raw if name == MANIFEST else self.read(name)
                info = tarfile.TarInfo(name)
                info.size, info.mode, info.mtime = len(data), 0o644, 0
                tar.addfile(info, io.BytesIO(data))
        return buffer.getvalue()

    @classmethod
    def unpack(cls, data: bytes, into_dir: Path | str, contract: Contract | None = None,
               calibrated: bool = False) -> 'Bundle':
        """Verify packed bytes and write them as `into_dir/<version>`; nothing is written unless all is right.

        A directory of that version that holds the very same bundle is reused, a damaged one is replaced, and one
        that holds another bundle is never overwritten.
        """
        into_dir = Path(into_dir)
        members = _read_tar(data)
        where = 'packed bundle'
        raw = members.pop(MANIFEST)
        manifest = _parse_manifest(raw, f'{where}: {MANIFEST}')
        _same_names(set(members), set(manifest['files']), where)
        for name, record in manifest['files'].items():
            _check_bytes(members[name], record, f'{where}: {name}')
        cls._verified(Path(where), raw, manifest, members, contract, calibrated)
        target = into_dir / manifest['version']
        sha256 = hashlib.sha256(raw).hexdigest()
        there = cls.open_or_none(target)
        if there is not None:
            if there.sha256 == sha256:
                return there
            raise BundleError(f'{target}: holds another bundle of the same version ({there.sha256[:12]}, expected '
                              f'{sha256[:12]})')
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        _write_dir(target, {MANIFEST: raw, **members})
        return cls.open(target, contract, calibrated)


def write_bundle(out_dir: Path | str, files: dict[str, bytes], manifest: dict[str, Any]) -> Bundle:
    """Write a new bundle directory and return it, verified.

    Parameters
    ----------
    out_dir : Path or str
        The directory to make; an existing one is refused.
    files : dict of str to bytes
        Exactly the names of `FILES`.
    manifest : dict
        The keys of `MANIFEST_KEYS`; `schema`, `created` and `files` are filled in here.

    """
    out_dir = Path(out_dir)
    _same_names(set(files), set(FILES), str(out_dir))
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec='microseconds')
    records = {name: {'sha256': hashlib.sha256(files[name]).hexdigest(), 'size': len(files[name])} for name in FILES}
    full = {**manifest, 'schema': SCHEMA, 'created': manifest.get('created') or created, 'files': records}
    try:
        raw = (json.dumps(full, indent=1, sort_keys=True, allow_nan=False) + '\n').encode()
    except (TypeError, ValueError) as error:
        raise BundleError(f'{out_dir}/{MANIFEST}: cannot be written as JSON: {error}') from None
    _parse_manifest(raw, f'{out_dir}/{MANIFEST}')
    texts = {name: bytes(files[name]) for name in FILES if name in _TEXT_FILES}
    Bundle._verified(out_dir, raw, full, texts, None, False)
    if os.path.lexists(out_dir):
        raise BundleError(f'{out_dir}: exists already; a bundle is never overwritten')
    _write_dir(out_dir, {MANIFEST: raw, **files})
    return Bundle.open(out_dir)


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the checked manifest of a bundle directory and read nothing else; BundleError when it is wrong."""
    return _parse_manifest(_read_plain(directory / MANIFEST, MAX_TEXT), str(directory))


def _locate(path: Path) -> Path:
    if not path.is_dir():
        raise BundleError(f'{path}: no such bundle directory')
    if (path / MANIFEST).exists():
        return path.resolve()
    if (path / 'current').is_dir():
        return (path / 'current').resolve()
    inside = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith('.')
                    and (entry / MANIFEST).exists())
    if len(inside) != 1:
        raise BundleError(f'{path}: expected {MANIFEST}, a link `current` or exactly one bundle directory, found '
                          f'{", ".join(entry.name for entry in inside) or "none of them"}')
    return inside[0].resolve()


def _limit(name: str) -> int:
    return MAX_TEXT if name in _TEXT_FILES else MAX_FILE


def _read_plain(path: Path, limit: int) -> bytes:
    try:
        if path.is_symlink() or not path.is_file():
            raise BundleError(f'{path}: {"is not a plain file" if os.path.lexists(path) else "is missing"}')
        size = path.stat().st_size
        if size > limit:
            raise BundleError(f'{path}: {size} bytes, expected at most {limit}')
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f'{path}: {error.strerror}') from None


def _parse_json(raw: bytes, where: str) -> dict[str, Any]:
    def refuse(word: str) -> None:
        raise ValueError(f'{word} is not a JSON number')

    try:
        data = json.loads(raw.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise BundleError(f'{where}: not JSON: {error}') from None
    if not isinstance(data, dict):
        raise BundleError(f'{where}: expected a mapping of keys, found {type(data).__name__}')
    return data


def _parse_manifest(raw: bytes, where: str) -> dict[str, Any]:
    if len(raw) > MAX_TEXT:
        raise BundleError(f'{where}: {len(raw)} bytes, expected at most {MAX_TEXT}')
    manifest = _parse_json(raw, where)
    if manifest.get('schema') != SCHEMA:
        found = manifest.get('schema')
        advice = 'update fosp_ros' if isinstance(found, int) and found > SCHEMA else 'export the model again'
        raise BundleError(f'{where}: key schema is {found!r}, expected {SCHEMA}: {advice}')
    for key in MANIFEST_KEYS:
        if key not in manifest:
            raise BundleError(f'{where}: key {key} is missing')
    for key in ('name', 'version'):
        check_word(f'{where}: key {key} is', manifest[key])
    for key in NETWORK_KEYS:
        if not isinstance(manifest['network'], dict) or key not in manifest['network']:
            raise BundleError(f'{where}: key network.{key} is missing')
    for key in ('contract_hash', 'created'):
        if not isinstance(manifest[key], str):
            raise BundleError(f'{where}: key {key} is {manifest[key]!r}, expected text')
    records = manifest['files']
    if not isinstance(records, dict):
        raise BundleError(f'{where}: key files is {type(records).__name__}, expected a mapping')
    _same_names(set(records), set(FILES), f'{where}: key files')
    for name, record in records.items():
        size = record.get('size') if isinstance(record, dict) else None
        if type(size) is not int or not 0 <= size <= _limit(name):
            raise BundleError(f'{where}: key files.{name}.size is {size!r}, expected 0 to {_limit(name)} bytes')
        if not isinstance(record.get('sha256'), str) or not _SHA.fullmatch(record['sha256']):
            raise BundleError(f'{where}: key files.{name}.sha256 is not 64 hexadecimal digits')
    return manifest


def _parse_contract(raw: bytes, where: str) -> Contract:
    try:
        return Contract.from_dict(yaml.safe_load(raw.decode()), where)
    except ContractError as error:
        raise BundleError(str(error)) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise BundleError(f'{where}: {" ".join(str(error).split())}') from None


def _same_names(found: set[str], expected: set[str], where: str) -> None:
    if expected - found:
        raise BundleError(f'{where}: file {", ".join(sorted(expected - found))} is missing')
    if found - expected:
        raise BundleError(f'{where}: unexpected file {", ".join(sorted(map(repr, found - expected)))}')


def _check_bytes(data: bytes, record: dict[str, Any], where: str) -> None:
    if len(data) != record['size']:
        raise BundleError(f'{where}: {len(data)} bytes, expected {record["size"]}')
    found = hashlib.sha256(data).hexdigest()
    if found != record['sha256']:
        raise BundleError(f'{where}: sha256 {found[:12]}, expected {record["sha256"][:12]}')


def _read_tar(data: bytes) -> dict[str, bytes]:
    where = 'packed bundle'
    if len(data) > MAX_TOTAL:
        raise BundleError(f'{where}: {len(data)} bytes, expected at most {MAX_TOTAL}')
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode='r:') as tar:
            for info in tar:
                # The name is compared with a fixed list, so no path can leave the directory; extract() is never used.
                if info.name not in (MANIFEST, *FILES) or not info.isreg() or info.name in members:
                    raise BundleError(f'{where}: unexpected member {info.name[:80]!r}')
                if not 0 <= info.size <= _limit(info.name):
                    raise BundleError(f'{where}: {info.name}: {info.size} bytes, expected at most {_limit(info.name)}')
                members[info.name] = tar.extractfile(info).read()
    except (tarfile.TarError, ValueError, EOFError, OSError) as error:
        raise BundleError(f'{where}: not a bundle of this format, or truncated: {error}') from None
    _same_names(set(members), {MANIFEST, *FILES}, where)
    return members


def _write_dir(target: Path, files: dict[str, bytes]) -> None:
    try:
        with atomic_dir(target) as temporary:
            for name, data in files.items():
                (temporary / name).write_bytes(data)
    except FospError as error:
        raise BundleError(str(error)) from None
    except OSError as error:
        raise BundleError(f'{target}: cannot be written: {error.strerror}') from None
