# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a study's evaluations came to, layout by layout, in one small CSV that can be kept when models and data are not.

A line per evaluation; `success` and `violation` are the layouts' outcomes as bits in hexadecimal, the first layout in
the highest bit of the first digit. All tables and comparisons of a study can be made from it again.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fosp_core.errors import FospError
from fosp_core.evaluate.statistics import summary_row
from fosp_core.io import atomic_write_bytes

COLUMNS = ('job', 'model', 'seed', 'stage', 'task', 'filter', 'n', 'first_layout', 'success', 'violation', 'return',
           'steps', 'version', 'sha256')
_BITS = ('success', 'violation')


def write(path: Path | str, rows: Sequence[dict]) -> None:
    """Write the rows of `table.evaluations`, whole or not at all; ValueError for layouts that do not count up by 1."""
    out = io.StringIO()
    lines = csv.DictWriter(out, COLUMNS, extrasaction='ignore', lineterminator='\n')
    lines.writeheader()
    for row in rows:
        seeds = row['outcomes']['seed']
        if seeds != list(range(seeds[0], seeds[0] + len(seeds))):
            raise ValueError(f'{row["job"]}: layouts {seeds[:3]}..., expected each one more than the last')
        lines.writerow({**row, 'first_layout': seeds[0], **{k: f'{row[k]:.3f}' for k in ('return', 'steps')}, **{
            k: np.packbits(np.asarray(row['outcomes'][k], bool)).tobytes().hex() for k in _BITS}})
    atomic_write_bytes(path, out.getvalue().encode())


def read(paths: Sequence[Path | str], plan: str) -> list[dict]:
    """Return the rows as `table.evaluations` does, but for what is not in the file; `command` by the plan's name.

    Raises
    ------
    FospError
        Naming file and line: no such file, other columns, outcomes that are not those of n layouts, a job twice.

    """
    rows: dict[str, dict] = {}
    for path in paths:
        try:
            lines = list(csv.DictReader(io.StringIO(Path(path).read_text())))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise FospError(f'{path}: {error}') from None
        if not lines:
            raise FospError(f'{path}: no rows, expected a line of {", ".join(COLUMNS)} and one per evaluation')
        for number, line in enumerate(lines, 2):
            try:
                row = _row(line, plan)
                if row['job'] in rows:
                    raise ValueError(f'{row["job"]} has been read before')
            except (TypeError, ValueError) as error:
                raise FospError(f'{path}: line {number}: {error}') from None
            rows[row['job']] = row
    return list(rows.values())


def _row(line: dict, plan: str) -> dict:
    if set(line) != set(COLUMNS) or None in line.values():
        raise ValueError(f'columns {", ".join(str(k) for k, v in line.items() if v is not None)}, expected '
                         f'{", ".join(COLUMNS)}')
    n, first = int(line['n']), int(line['first_layout'])
    outcomes = {}
    for key in _BITS:
        packed = np.frombuffer(bytes.fromhex(line[key]), np.uint8)
        if n < 1 or len(packed) != -(-n // 8) or np.unpackbits(packed)[n:].any():
            raise ValueError(f'{key} has {8 * len(packed)} bits, expected those of {n} layouts')
        outcomes[key] = np.unpackbits(packed, count=n).tolist()
    row = summary_row(line['task'], '', outcomes['success'], outcomes['violation'])
    del row['phase'], row['interventions']      # are not kept
    return {**row, **{k: line[k] for k in ('job', 'model', 'stage', 'filter', 'version', 'sha256')},
            'seed': int(line['seed']), 'return': float(line['return']), 'steps': float(line['steps']),
            'outcomes': {'seed': list(range(first, first + n)), **outcomes},
            'command': f'fosp study {plan} --only {line["job"]}'}
