# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The floor of a gradient step: its operations, counted on the real update, at the rates that this machine reaches.

Counted twice: as the equations stand (latents dense), and as executed (latents as column numbers, if the learner keeps
them so). Rates: torch's own matrix product, the fastest of those at hand, and a convolution of the encoder, forward and
backward; in the precision of the configuration. On a GPU there is a second floor, the time that its kernels take.
"""

import contextlib
import dataclasses
import statistics
import time

import torch
import torch.nn.functional as F  # noqa: N812
from torch.autograd import DeviceType
from torch.utils.flop_counter import FlopCounterMode

from fosp_core.config import Config
from fosp_core.contract import Contract
from fosp_core.nn import products
from fosp_core.train import execution
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
    half = learner.config.train.precision == 'bfloat16'     # of rounded products the floor is that of float32
    place = {'device': learner.device, 'dtype': torch.bfloat16 if half else torch.float32}
    a, b = (torch.randn(_SIDE, _SIDE, **place) for _ in range(2))
    flop = 2 * _SIDE ** 3
    with torch.no_grad():
        found = {'matmul': _rate(flop, lambda: F.linear(a, b))}
        found['matmul_best'] = max(found['matmul'], _rate(flop, lambda: products.product(a, b)))
    net = learner.config.network
    m = net.cnn_multipliers
    weight = torch.randn(net.cnn_depth * m[2], net.cnn_depth * m[1], 4, 4, **place)
    weight = weight.contiguous(memory_format=torch.channels_last).requires_grad_()
    size = learner.contract.cameras[0].height // 4
    x = torch.randn(_PICTURES, weight.shape[1], size, size, **place)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()

    def convolve():
        y = F.conv2d(x, weight, None, 2, 1)
        torch.autograd.grad(y, (x, weight), y.detach())

    flop = 3 * 2 * _PICTURES * (size // 2) ** 2 * weight.numel()
    return found | {'convolution': _rate(flop, convolve)}


def measure(contract: Contract, config: Config, device: str, batch: dict) -> dict[str, float]:
    """Operations, rates, and floors in seconds; makes two updates of a learner of its own, eager ones.

    `floor_seconds` is the equations' operations at the rate of torch's own product; `_best` takes the fastest product
    instead, `_executed` also the operations really done.
    """
    plain = dataclasses.replace(config.train, **execution.EXECUTIONS['eager'])
    learner = Learner(contract, dataclasses.replace(config, train=plain), device)
    with as_written(learner):
        dense, convolutions = count(learner, dict(batch))
    executed, _ = count(learner, dict(batch))
    rate = rates(learner)
    floors = {'': dense / rate['matmul'], '_best': dense / rate['matmul_best'],
              '_executed': executed / rate['matmul_best']}
    return {'tflop_matmul': dense / 1e12, 'tflop_matmul_executed': executed / 1e12,
            'tflop_convolution': convolutions / 1e12, **{f'gflops_{k}': v for k, v in rate.items()},
            **{f'floor_seconds{k}': (v + convolutions / rate['convolution']) / 1e9 for k, v in floors.items()}}


def fractions(limits: dict[str, float], seconds: float) -> dict[str, float]:
    """How much of a step of `seconds` each of the floors in `limits` is."""
    return {k.replace('floor_seconds', 'fraction'): v / seconds for k, v in limits.items()
            if k.startswith('floor_seconds')}


def kernel_seconds(learner: Learner, batch: dict) -> float:
    """Time that the GPU's kernels take in one update, without the gaps between them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        learner.update(batch)
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profiler.key_averages()
               if event.device_type == DeviceType.CUDA and not event.is_user_annotation) / 1e6
