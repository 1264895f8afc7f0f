# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a training run tells: progress bar, metrics.jsonl, TensorBoard. Process 0 alone writes."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from fosp_core.io import atomic_write_bytes
from fosp_core.nn import parallel


class RunLog:
    """Writer of one run in `out`; made by `open_log`."""

    def __init__(self, out: Path, step: int, total: int):
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm
        self._file = out / 'metrics.jsonl'
        forget_after(self._file, step)
        self._stream = open(self._file, 'a')
        self._board = SummaryWriter(out / 'tensorboard', purge_step=step + 1)
        self._bar = tqdm(total=total, initial=step, unit='step', desc='pretrain', mininterval=1.0,
                         disable=None if os.environ.get('CI') is None else True)

    def advance(self) -> None:
        """One step is done."""
        self._bar.update()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Note the metrics of a step."""
        for key, value in metrics.items():
            self._board.add_scalar(key, value, step)
        self._stream.write(json.dumps({'step': step} | {k: round(v, 6) for k, v in metrics.items()}) + '\n')
        self._stream.flush()
        self._bar.set_postfix({k.split('/')[1]: f'{metrics[k]:.2f}' for k in
                               ('model/picture', 'actor/loss', 'reach/loss') if k in metrics})

    def close(self) -> None:
        """End all three."""
        self._bar.close()
        self._board.close()
        self._stream.close()


class _Silent:
    def advance(self) -> None:
        pass

    def write(self, step: int, metrics: dict[str, float]) -> None:
        pass


@contextlib.contextmanager
def open_log(out: Path, step: int, total: int) -> Iterator[RunLog | _Silent]:
    """Yield the log of a run that goes on after `step`; one that says nothing in all processes but the first."""
    if parallel.rank():
        yield _Silent()
        return
    out.mkdir(parents=True, exist_ok=True)
    log = RunLog(out, step, total)
    try:
        yield log
    finally:
        log.close()


def forget_after(file: Path, step: int) -> None:
    """Drop the lines of steps that were made after the checkpoint now resumed from, and a torn last one."""
    if not file.is_file():
        return
    lines = file.read_bytes().splitlines(keepends=True)
    kept = []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if json.loads(line)['step'] <= step:
                kept.append(line)
    if kept != lines:
        atomic_write_bytes(file, b''.join(kept))
