# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One-hot rows kept as column numbers, and model features that hold them. Used for training on a CPU alone.

A latent of 48 variables with 48 classes has 48 ones among 2304 entries: kept as numbers, a product with it reads 48
columns of the weight. Shapes: S variables, K classes, W = S*K columns, D deter.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


class OneHot:
    """Rows (..., W) with S ones each: `columns` (..., S) int64, and `carrier` (..., W) or None.

    The carrier stands for the rows in the graph (straight through): it receives their gradient and has no value that
    anybody reads.
    """

    def __init__(self, columns: Tensor, width: int, carrier: Tensor | None = None):
        self.columns, self.width, self.carrier = columns, width, carrier

    @classmethod
    def from_classes(cls, classes: Tensor, count: int, carrier: Tensor | None = None) -> OneHot:
        """Class of each variable (..., S), out of `count`; carrier (..., S, count)."""
        size = classes.shape[-1]
        columns = classes + torch.arange(0, size * count, count, device=classes.device)
        return cls(columns, size * count, carrier.flatten(-2) if carrier is not None else None)

    @classmethod
    def cat(cls, parts: list[OneHot]) -> OneHot:
        """Rows of all parts, leading axes flattened, without carrier."""
        return cls(torch.cat([p.columns.reshape(-1, p.columns.shape[-1]) for p in parts]), parts[0].width)

    @classmethod
    def stack(cls, parts: list[OneHot], axis: int = 0) -> OneHot:
        """Stack rows of equal shape along a new leading axis, carriers too."""
        carriers = [p.carrier for p in parts]
        return cls(torch.stack([p.columns for p in parts], axis), parts[0].width,
                   None if carriers[0] is None else torch.stack(carriers, axis))

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., W)."""
        return (*self.columns.shape[:-1], self.width)

    def __getitem__(self, index) -> OneHot:
        """Rows by an index into the leading axes."""
        return OneHot(self.columns[index], self.width, None if self.carrier is None else self.carrier[index])

    def map(self, function: Callable[[Tensor], Tensor]) -> OneHot:
        """What `function` of rows of entries gives on the column numbers, as constants."""
        return OneHot(function(self.columns), self.width)

    def detach(self) -> OneHot:
        """The same rows as constants."""
        return self if self.carrier is None else OneHot(self.columns, self.width)

    def flatten(self, start: int, end: int) -> OneHot:
        """Leading axes start..end made one."""
        return OneHot(self.columns.flatten(start, end), self.width,
                      None if self.carrier is None else self.carrier.flatten(start, end))

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """(..., W) zeros and ones; with a carrier its gradient passes straight through."""
        out = torch.zeros(self.shape, dtype=dtype, device=self.columns.device).scatter_(-1, self.columns, 1.0)
        return out if self.carrier is None else out + (self.carrier - self.carrier.detach())

    def product(self, table: Tensor) -> Tensor:
        """Rows (..., W) times table (W, m) -> (..., m), without gradient."""
        columns = self.columns
        out = F.embedding_bag(columns.reshape(-1, columns.shape[-1]), table, mode='sum')
        return out.view(*columns.shape[:-1], table.shape[1])

    @functools.cached_property
    def _transposed(self) -> tuple[Tensor, Tensor]:
        """Row numbers sorted by column, and where each column's begin."""
        flat = self.columns.flatten()
        rows = torch.argsort(flat, stable=True) // self.columns.shape[-1]
        count = torch.bincount(flat, minlength=self.width)
        return rows, torch.cumsum(count, 0) - count

    def gradient(self, grad: Tensor) -> Tensor:
        """Rows (N, W) transposed times grad (N, m) -> (W, m): the gradient of `product`'s table."""
        rows, offsets = self._transposed
        return F.embedding_bag(rows, grad, offsets, mode='sum')


@dataclasses.dataclass(frozen=True)
class Feature:
    """Model feature [deter, stoch]: deter (..., D), stoch OneHot (..., W). Indexed like a tensor of its rows."""

    deter: Tensor
    stoch: OneHot

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., D + W)."""
        return (*self.deter.shape[:-1], self.deter.shape[-1] + self.stoch.width)

    @property
    def dtype(self) -> torch.dtype:
        """Of the deterministic part."""
        return self.deter.dtype

    @property
    def device(self) -> torch.device:
        """Of all parts."""
        return self.deter.device

    def __getitem__(self, index) -> Feature:
        """Rows by an index into the leading axes."""
        return Feature(self.deter[index], self.stoch[index])

    def detach(self) -> Feature:
        """The same rows as constants."""
        return Feature(self.deter.detach(), self.stoch.detach())

    def flatten(self, start: int, end: int) -> Feature:
        """Leading axes start..end made one."""
        return Feature(self.deter.flatten(start, end), self.stoch.flatten(start, end))

    def dense(self) -> Tensor:
        """(..., D + W)."""
        return torch.cat([self.deter, self.stoch.dense(self.dtype)], -1)


class Path(Sequence):
    """Features of consecutive steps that carry a graph, kept apart: networks are evaluated step by step on them.

    Stacking them would copy, forward and backward, what the processor's cache holds.
    """

    def __init__(self, steps: Sequence[Feature]):
        self.steps = list(steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index) -> Feature | Path:
        """One step, or a Path of several."""
        found = self.steps[index]
        return Path(found) if isinstance(index, slice) else found

    def detach(self) -> Feature:
        """All steps as constants, stacked: (T, ...)."""
        steps = [f.detach() for f in self.steps]
        return Feature(torch.stack([f.deter for f in steps]), OneHot.stack([f.stoch for f in steps]))


def stack(features: list[Tensor] | list[Feature]) -> Tensor | Feature | Path:
    """Join features (N, F) of T steps: (T, N, F), or a Path when there is a graph to keep."""
    if isinstance(features[0], Tensor):
        return torch.stack(features)
    path = Path(features)
    return path if torch.is_grad_enabled() else path.detach()
