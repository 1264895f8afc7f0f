# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The floor of a gradient step: its operations, counted on the real update, at the rates that this machine reaches.

Counted twice: as the equations stand (latents dense), and as executed (latents as column numbers, if the learner keeps
them so). Rates: torch's own float32 matrix product, the fastest of those at hand, and a convolution of the encoder,
forward and backward.
"""

import contextlib
import statistics
import time

import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils.flop_counter import FlopCounterMode

from fosp_core.nn import products
from fosp_core.train.learner import Learner

_SIDE, _PICTURES = 2048, 64


def _linear_flop(x, weight, *args, out_shape=None, **kwargs) -> int:
    rows = 1
    for n in x[:-1]:
        rows *= n
    return 2 * rows * x[-1] * weight[0]


def _bag_flop(weight, indices, *args, out_shape=None, **kwargs) -> int:
    return indices[0] * weight[1]  # additions


def _mapping() -> dict:
    found = {torch.ops.aten._embedding_bag_forward_only: _bag_flop, torch.ops.aten._embedding_bag: _bag_flop}
    if products.kernel() is not None:
        found[products.kernel()] = _linear_flop
    return found


def count(learner: Learner, batch: dict) -> tuple[int, int]:
    """Operations of one update on `batch`, which is made: of matrix products and of convolutions."""
    with FlopCounterMode(display=False, custom_mapping=_mapping()) as counter:
        learner.update(batch)
    found = counter.get_flop_counts()['Global']
    convolutions = sum(n for op, n in found.items() if 'convolution' in str(op))
    return sum(found.values()) - convolutions, convolutions


@contextlib.contextmanager
def as_written(learner: Learner):
    """Let the learner compute densely."""
    columns, learner.columns = learner.columns, False
    try:
        yield
    finally:
        learner.columns = columns


def _rate(flop: float, function, repeat: int = 7) -> float:
    """Median GFLOP/s."""
    function()
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return flop / statistics.median(times) / 1e9


def rates(learner: Learner) -> dict[str, float]:
    """GFLOP/s of torch's product, of the best one, and of the encoder's third convolution with both its gradients."""
    device = learner.device
    a, b = (torch.randn(_SIDE, _SIDE, device=device) for _ in range(2))
    flop = 2 * _SIDE ** 3
    with torch.no_grad():
        found = {'matmul': _rate(flop, lambda: F.linear(a, b))}
        found['matmul_best'] = max(found['matmul'], _rate(flop, lambda: products.product(a, b)))
    net = learner.config.network
    m = net.cnn_multipliers
    weight = torch.randn(net.cnn_depth * m[2], net.cnn_depth * m[1], 4, 4, device=device)
    weight = weight.contiguous(memory_format=torch.channels_last).requires_grad_()
    size = learner.contract.cameras[0].height // 4
    x = torch.randn(_PICTURES, weight.shape[1], size, size, device=device)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()

    def convolve():
        y = F.conv2d(x, weight, None, 2, 1)
        torch.autograd.grad(y, (x, weight), y.detach())

    flop = 3 * 2 * _PICTURES * (size // 2) ** 2 * weight.numel()
    return found | {'convolution': _rate(flop, convolve)}


def measure(learner: Learner, batch: dict, seconds: float) -> dict[str, float]:
    """Operations, rates, floors in seconds, and floor / `seconds`; makes two updates.

    `fraction` is of the floor that the issue of speed is about: the equations' operations at the rate of torch's own
    product. `fraction_best` takes the fastest product instead, `fraction_executed` also the operations really done.
    """
    with as_written(learner):
        dense, convolutions = count(learner, batch)
    executed, _ = count(learner, batch)
    rate = rates(learner)
    floors = {'': dense / rate['matmul'], '_best': dense / rate['matmul_best'],
              '_executed': executed / rate['matmul_best']}
    floors = {k: (v + convolutions / rate['convolution']) / 1e9 for k, v in floors.items()}
    return {'tflop_matmul': dense / 1e12, 'tflop_matmul_executed': executed / 1e12,
            'tflop_convolution': convolutions / 1e12, **{f'gflops_{k}': v for k, v in rate.items()},
            **{f'floor_seconds{k}': v for k, v in floors.items()},
            **{f'fraction{k}': v / seconds for k, v in floors.items()}}
