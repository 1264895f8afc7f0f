# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The audit of the safety filter: one JSON line per tick, in files of bounded size. Standard library only; anyone may
import it.

A line is complete or it is not read: whatever a crash cuts off costs that line alone. What it says: `fosp_core/audit`.
"""

import datetime
import json
import math
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from fosp_core.errors import DataError
from fosp_core.safety.filter import Record
from fosp_core.safety.reasons import Reason

SCHEMA = 1
PATTERN = 'audit-*.jsonl'
START, TICK, EVENT, DROPPED = 'start', 'tick', 'event', 'dropped'
_NOTHING = Record()


def tick_entry(t: float, mono: float, reason: Reason, record: Record, latched: Iterable[Reason],
               ages: Mapping[str, float], **more) -> dict:
    """Return the entry of one tick.

    Parameters
    ----------
    t, mono : float
        Wall clock (seconds since 1970) and monotonic clock, s.
    reason : Reason
        What was reported. `record` is that of the decision; when it is of another reason (the decision itself failed,
        or none was made), its numbers are not of this tick and are left out.
    latched, ages
        Of the state; seconds per kind of source.
    more
        model, stamp (ns), latency_ms, position, joints, note, proposal: as they are.

    """
    record = record if record.reason is reason else _NOTHING
    rules = record.rules if record is not _NOTHING else (reason,)
    return {'k': TICK, 't': t, 'mono': mono, 'reason': reason.word, 'rules': [r.word for r in rules],
            'latched': [r.word for r in latched], 'nominal': record.nominal, 'sent': record.sent, 'risk': record.risk,
            'risk_nominal': record.risk_nominal, 'level': record.level, 'surprise': record.surprise,
            'ages': dict(ages), **{key: value for key, value in more.items() if value is not None}}


def to_line(entry: Mapping) -> bytes:
    """Return an entry as one line; NaN and infinity, which JSON lacks, become null; numbers keep six decimals."""
    return json.dumps(_plain(entry), separators=(',', ':')).encode() + b'\n'


def _plain(value):
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if hasattr(value, 'tolist'):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


class AuditFiles:
    """Appends lines to `audit-<UTC>-<process>-<run>-<number>.jsonl`, one file after another; the oldest are deleted.

    Each file begins with what `header()` returns then, so that it can be read alone.

    Parameters
    ----------
    folder
        Is made when it is not there.
    file_bytes, total_bytes : int
        Size at which a file is closed; size that all audit files of the folder may have together.
    header : callable
        Returns a mapping with what was in force.

    """

    def __init__(self, folder: Path | str, file_bytes: int, total_bytes: int, header: Callable[[], Mapping]):
        self.folder = Path(folder)
        self._file_bytes, self._total_bytes, self._header = file_bytes, max(total_bytes, file_bytes), header
        self._run = f'{os.getpid()}-{secrets.token_hex(4)}'
        self._file = None
        self.path: Path | None = None
        self.size = 0
        self._number = 0

    def append(self, entries: Iterable[Mapping]) -> None:
        """Write entries, one `write` for all; OSError when the disk refuses, and the next call tries a new file."""
        data = b''.join(map(to_line, entries))
        try:
            if self._file is None or self.size + len(data) > self._file_bytes:
                self._next()
            self._write(data)
        except OSError:
            self.close()
            raise

    def sync(self) -> None:
        """Make what was written survive a power cut."""
        if self._file is not None:
            os.fdatasync(self._file.fileno())

    def close(self) -> None:
        """Close the file; a later `append` opens another one."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _write(self, data: bytes) -> None:
        written = self._file.write(data)
        self.size += written
        if written < len(data):
            raise OSError(f'{self.path}: {written} of {len(data)} bytes written')

    def _next(self) -> None:
        self.sync()
        self.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        now = datetime.datetime.now(datetime.UTC)
        self._number += 1
        self.path = self.folder / f'audit-{now:%Y%m%dT%H%M%S}-{self._run}-{self._number:05d}.jsonl'
        self._file, self.size = open(self.path, 'ab', buffering=0), 0
        self._prune()
        try:
            self._write(to_line({'k': START, 't': time.time(), 'mono': time.monotonic(), 'schema': SCHEMA,
                                 'run': self._run, 'pid': os.getpid(), **self._header()}))
        except Exception:
            # A full disk still makes names: one file for each attempt, four a second, would stay.
            self.close()
            self.path.unlink(missing_ok=True)
            self._number -= 1
            raise

    def _prune(self) -> None:
        """Delete the oldest files until there is room for a full one."""
        sizes = {}
        for path in self.folder.glob(PATTERN):
            try:
                stat = path.stat()
            except OSError:     # another filter with the same folder was quicker
                continue
            if path != self.path:
                sizes[path] = (stat.st_mtime_ns, stat.st_size)
        room = self._total_bytes - self._file_bytes - sum(size for _, size in sizes.values())
        for path in sorted(sizes, key=sizes.get):
            if room >= 0:
                return
            path.unlink(missing_ok=True)
            room += sizes[path][1]


def audit_files(path: Path | str) -> list[Path]:
    """Return the audit files that a path means: itself, or those in the folder; raise DataError when there is none."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.exists():
        raise DataError(f'{path}: no such audit file or folder')
    files = sorted(path.glob(PATTERN))
    if not files:
        raise DataError(f'{path}: no audit files ({PATTERN})')
    return files


def read_entries(path: Path | str) -> Iterator[dict]:
    """Yield the entries of a file or a folder, each with its `run`; skip what is no entry.

    Raises
    ------
    DataError
        When a file is of another schema, or holds no entry at all.

    """
    files, found = audit_files(path), False
    for file in files:
        run = file.name
        try:
            stream = open(file, 'rb')
        except OSError as error:
            raise DataError(f'{file}: {error.strerror}') from None
        with stream:
            for line in stream:
                entry = _entry(line)
                if entry is None:
                    continue
                if entry['k'] == START:
                    if entry.get('schema') != SCHEMA:
                        raise DataError(f'{file}: audit of schema {entry.get("schema")!r}, expected {SCHEMA}')
                    run = str(entry.get('run', run))
                found = True
                yield {**entry, 'run': run}
    if not found:
        raise DataError(f'{path}: holds no line of an audit')


def _entry(line: bytes) -> dict | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    sound = isinstance(entry, dict) and isinstance(entry.get('k'), str) and isinstance(entry.get('t'), (int, float)) \
        and (entry['k'] != TICK or isinstance(entry.get('reason'), str))
    return entry if sound else None
