# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Several processes that make one gradient step on one batch. With one process every function here does nothing.

Process r of n holds rows r B/n to (r + 1) B/n of the batch. Random numbers are drawn for the whole batch by all alike,
and statistics that are no plain mean over rows (masked means, percentiles, the predicted cost) are made global here.
The mean of the processes' gradients then is the gradient of the whole batch, and the losses are those of one process.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from fosp_core.errors import TrainingError

_size, _rank = 1, 0     # plain numbers: a compiled graph of one process holds nothing of this


class PeerLostError(TrainingError):
    """Another process has ended, so that this one cannot go on."""


def join(rank: int, size: int) -> None:
    """Act as process `rank` of `size` from now on; the default process group must exist."""
    global _rank, _size
    _rank, _size = rank, size


def leave() -> None:
    """Be the only process again."""
    join(0, 1)


def size() -> int:
    """Number of processes."""
    return _size


def rank() -> int:
    """Number of this process."""
    return _rank


def share(count: int) -> slice:
    """Return this process's part of `count` rows; `count` must be a multiple of the processes."""
    part = count // _size
    return slice(_rank * part, (_rank + 1) * part)


def _reduce(x: Tensor) -> Tensor:
    """Sum `x` over all processes, in place."""
    try:
        dist.all_reduce(x)
    except RuntimeError as error:
        text = ' '.join(str(error).split()).split('. ')[0]
        raise PeerLostError(f'lost contact to another process: {text}') from None
    return x


def total(x: Tensor) -> Tensor:
    """Sum over all processes, in place, without gradient."""
    return x if _size == 1 else _reduce(x.detach())


def mean(x: Tensor) -> Tensor:
    """Mean over all processes, without gradient."""
    return x if _size == 1 else _reduce(x.detach() / _size)


def global_value(x: Tensor) -> Tensor:
    """The mean over all processes as value, with the gradient of this one's part.

    For a function that is not linear in a batch mean, as the penalty of a constraint. The same bits in all processes:
    the part whose value differs among them is zero.
    """
    return x if _size == 1 else mean(x) + (x - x.detach())


def gather(x: Tensor) -> Tensor:
    """The parts of all processes in order, joined on the first axis, without gradient."""
    if _size == 1:
        return x
    x = x.detach()
    whole = x.new_zeros(_size * len(x), *x.shape[1:])
    whole[share(len(whole))] = x
    return _reduce(whole)


def take(x: Tensor, rows: Tensor) -> Tensor:
    """`whole[rows]` for the batch of which `x` is this process's part; of the result, this process's share."""
    if _size == 1:
        return x[rows]
    part = share(len(x) * _size)
    found = x.new_zeros(len(rows), *x.shape[1:])
    mine = (rows >= part.start) & (rows < part.stop)
    found[mine] = x.detach()[rows[mine] - part.start]
    return _reduce(found)[share(len(rows))]


def draw(sample, shape: tuple[int, ...], generator: torch.Generator, axis: int = 0) -> Tensor:
    """Random numbers by `sample` (torch.rand, torch.randn), of which `shape[axis]` is this process's part."""
    if _size == 1:
        return sample(shape, generator=generator, device=generator.device)
    whole = [n * _size if i == axis else n for i, n in enumerate(shape)]
    return sample(whole, generator=generator, device=generator.device).narrow(axis, _rank * shape[axis], shape[axis])


def average_gradients(parameters) -> None:
    """Replace each gradient by its mean over all processes, in one message."""
    if _size == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = mean(torch.cat([g.flatten() for g in gradients]))
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(part.view_as(gradient))
