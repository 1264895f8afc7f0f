# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Products with weights, by the fastest kernel for them, with gradients. Where the time of a gradient step goes.

Three things are exploited, none of which changes a result beyond float rounding:

* On x86 torch's float32 products go to MKL, which runs a narrower kernel on some processors; oneDNN, which torch
  carries for its convolutions, has a second one (`linear`).
* A product with one-hot rows is a sum of one column of the weight per variable (`OneHot`, `mixed_linear`).
* A weight that is used at every step of a loop has one gradient: the product of all inputs with all output gradients,
  taken once at the end (`Tied`).

Under autocast, tracing (ONNX) or torch.compile everything here is a plain `F.linear`.
"""

import contextlib
import platform

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd import Function

from fosp_core.nn.onehot import OneHot

# Below this many multiplications the detour through Python costs more than it saves.
SMALL = 4_000_000
SMALL_WEIGHT = 16_384


def _find_kernel():
    if platform.machine().lower() not in ('x86_64', 'amd64') or not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, '_linear_pointwise', None)


_KERNEL = _find_kernel()


def kernel():
    """Operator that `linear` prefers to torch's own, or None."""
    return _KERNEL


def traced() -> bool:
    """Tell whether somebody writes the operators down: the ONNX exporter or torch.compile."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def plain() -> bool:
    """Tell whether only ordinary operators may be used here and now: traced, or under autocast."""
    return traced() or torch.is_autocast_enabled('cpu') or torch.is_autocast_enabled('cuda')


def _takes(x: Tensor, weight: Tensor) -> bool:
    """Tell whether the other kernel is there, can do this product, and is worth the call."""
    return (_KERNEL is not None and x.device.type == 'cpu' and x.dtype == weight.dtype == torch.float32
            and x.numel() * weight.shape[0] >= SMALL and x.numel() > x.shape[-1])


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _whole(x: Tensor) -> Tensor:
    """A matrix without gaps, or its transpose: parts of a larger one would be read by a kernel 1,000 times slower."""
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., n) times weight (m, n) transposed, plus bias, without gradient; either may be any view."""
    if not _takes(x, weight):
        return F.linear(x, weight, bias)
    out = _KERNEL(_whole(_rows(x)), _whole(weight), bias, 'none', [], '')
    return out.view(*x.shape[:-1], weight.shape[0])


class _Linear(Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        ctx.bias = bias is not None
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        rows = _rows(grad)
        return (product(grad, weight.t()) if need_x else None,
                product(rows.t(), _rows(x).t()) if need_weight else None,
                rows.sum(0) if ctx.bias and need_bias else None)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` with the faster kernel where there is one."""
    if plain() or not _takes(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Linear.apply(x, weight, bias)
    return product(x, weight, bias)


class _Mixed(Function):
    """Product of [left, one-hot, right] with a weight, columns in that order; see `mixed_linear`."""

    @staticmethod
    def forward(ctx, left, carrier, right, weight, hot, table):
        start = 0 if left is None else left.shape[-1]
        end = start + hot.width
        out = hot.product(table)
        if left is not None:
            out += product(left, weight[:, :start])
        if right is not None:
            out += F.linear(right, weight[:, end:])
        keep = weight.requires_grad
        ctx.save_for_backward(left if keep else None, right if keep else None, weight, table)
        ctx.hot, ctx.span = hot.detach(), (start, end)
        return out

    @staticmethod
    def backward(ctx, grad):
        left, right, weight, table = ctx.saved_tensors
        need_left, need_carrier, need_right, need_weight = ctx.needs_input_grad[:4]
        start, end = ctx.span
        grad_weight = None
        if need_weight:
            rows = _rows(grad)
            grad_weight = torch.empty_like(weight)
            grad_weight[:, start:end] = ctx.hot.gradient(rows).t()
            if left is not None:
                grad_weight[:, :start] = product(rows.t(), _rows(left).t())
            if right is not None:
                grad_weight[:, end:] = (_rows(right).t() @ rows).t()  # the other way round takes six times as long
        return (product(grad, weight[:, :start].t()) if need_left else None,
                product(grad, table) if need_carrier else None,
                F.linear(grad, weight[:, end:].t()) if need_right else None,
                grad_weight, None, None)


def mixed_linear(left: Tensor | None, hot: OneHot, right: Tensor | None, weight: Tensor) -> Tensor:
    """Product of [left (..., n), hot (..., w), right (..., r)] with weight (m, n + w + r) transposed."""
    rows = table(weight, 0 if left is None else left.shape[-1], hot.width)
    return _Mixed.apply(left, hot.carrier, right, weight, hot, rows)


_tables: dict[tuple, tuple[Tensor, Tensor]] | None = None


@contextlib.contextmanager
def constant_weights():
    """Within this no weight changes: what `table` makes of one is made once."""
    global _tables
    if _tables is not None:
        yield
        return
    _tables = {}
    try:
        yield
    finally:
        _tables = None


def table(weight: Tensor, start: int, width: int) -> Tensor:
    """Columns start..start + width of weight (m, n) as contiguous rows (width, m), without gradient."""
    key = (id(weight), start, width)
    if _tables is not None and key in _tables:
        return _tables[key][1]
    rows = weight.detach()[:, start:start + width].t().contiguous()
    if _tables is not None:
        _tables[key] = weight, rows  # the weight too: its id must not be given to another
    return rows


class _Collect(Function):
    @staticmethod
    def forward(ctx, weight, owner):
        ctx.owner = owner
        ctx.set_materialize_grads(False)
        whole = weight.contiguous()     # a part of a larger matrix would be copied at every use
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx, grad):
        tied = ctx.owner.gradient()
        return tied if grad is None else grad if tied is None else tied + grad, None


class _Use(Function):
    @staticmethod
    def forward(ctx, x, weight, owner, hot):
        ctx.owner, ctx.hot, ctx.dtype = owner, hot, None if x is None else x.dtype
        ctx.x = None if hot is not None else x.to(weight.dtype)
        ctx.save_for_backward(weight.t() if hot is None else owner.table)
        return hot.product(owner.table) if hot is not None else product(ctx.x, weight)

    @staticmethod
    def backward(ctx, grad):
        transposed, = ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            ctx.owner.keep(ctx.x if ctx.hot is None else ctx.hot, grad)
        # The weight's gradient is taken by `_Collect`, which runs when the last use has passed here.
        return product(grad, transposed).to(ctx.dtype) if ctx.needs_input_grad[0] else None, None, None, None


class Tied:
    """A weight (m, n) for all steps of a loop: call it with (..., n), or when `columns` with a OneHot of width n."""

    def __init__(self, weight: Tensor, columns: bool = False):
        self._inputs: list = []
        self._grads: list[Tensor] = []
        self._plain = traced() or weight.numel() < SMALL_WEIGHT and not columns
        kind = weight.device.type
        if torch.is_autocast_enabled(kind):
            weight = weight.to(torch.get_autocast_dtype(kind))  # once, not at every step
        self.table = weight.detach().t().contiguous() if columns else None
        tracked = weight.requires_grad and torch.is_grad_enabled() and not self._plain
        self.weight = _Collect.apply(weight, self) if tracked else weight

    def __call__(self, x: Tensor | OneHot) -> Tensor:
        """Return x times the weight transposed."""
        if self._plain:
            return F.linear(x, self.weight)
        hot = x if isinstance(x, OneHot) else None
        return _Use.apply(x if hot is None else hot.carrier, self.weight, self, None if hot is None else hot.detach())

    def keep(self, x: Tensor | OneHot, grad: Tensor) -> None:
        """Remember one use: its input and the gradient of its output."""
        self._inputs.append(x)
        self._grads.append(_rows(grad))

    def gradient(self) -> Tensor | None:
        """Gradient of the weight over all uses kept, which are forgotten; None without any."""
        inputs, grads = self._inputs, self._grads
        self._inputs, self._grads = [], []
        if not grads:
            return None
        grad = torch.cat(grads)
        if isinstance(inputs[0], OneHot):
            return OneHot.cat(inputs).gradient(grad).t()
        return product(grad.t(), torch.cat([_rows(x) for x in inputs]).t())


def times(x: Tensor, weight: Tensor | Tied) -> Tensor:
    """x (..., n) times the weight (m, n) transposed."""
    return weight(x) if isinstance(weight, Tied) else linear(x, weight)
