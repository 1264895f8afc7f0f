# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How a gradient step is executed, chosen by configuration: precision, torch.compile, CUDA graph. Not what it computes.

`train.precision`, `train.compile` and `train.cuda_graph`; docs/performance.md says when each pays.
"""

import contextlib
import importlib.util
import os
import shutil

import torch
from torch import Tensor, nn

from fosp_core.agent.agent import Agent
from fosp_core.config import TrainConfig
from fosp_core.errors import TrainingError
from fosp_core.nn import parallel

PRECISIONS = ('float32', 'bfloat16_products', 'bfloat16')
EXECUTIONS = {'eager': {'compile': False, 'cuda_graph': False}, 'compile': {'compile': True, 'cuda_graph': False},
              'graph': {'compile': False, 'cuda_graph': True}, 'compile+graph': {'compile': True, 'cuda_graph': True},
              'products': {'compile': False, 'cuda_graph': False, 'precision': 'bfloat16_products'}}
WARM_UP = 3  # eager steps before a capture: libraries and optimisers allocate in the first ones


def as_device(name: str) -> torch.device:
    """Torch's device of that name; raise TrainingError for a name that is none, or one that is not here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ('cpu', 'cuda'):
        raise TrainingError(f'device {name}: expected cpu, cuda or cuda:N')
    if device.type == 'cuda':
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise TrainingError(f'device {name}: torch sees no GPU here; expected cpu')
        if device.index is not None and device.index >= count:
            raise TrainingError(f'device {name}: torch sees {count} GPUs here; expected cuda:0 to cuda:{count - 1}')
    return device


def check(config: TrainConfig, device: torch.device) -> None:
    """Raise TrainingError, in one line that says what to do, for a choice that this machine cannot serve."""
    if config.precision not in PRECISIONS:
        raise TrainingError(f'train.precision {config.precision!r}, expected one of {", ".join(PRECISIONS)}')
    if config.precision == 'bfloat16' and device.type == 'cpu' and not config.bf16_on_cpu:
        raise TrainingError('train.precision bfloat16 is many times slower than float32 on a CPU; '
                            'set train.bf16_on_cpu=true if you mean it')
    if config.precision == 'bfloat16_products' and (device.type != 'cpu' or not _product_settings()):
        raise TrainingError(f'train.precision bfloat16_products is for a CPU and torch 2.9 or newer, this is {device} '
                            f'and torch {torch.__version__}; expected float32 or bfloat16')
    if config.cuda_graph and device.type != 'cuda':
        raise TrainingError(f'train.cuda_graph needs a GPU, the device is {device}')
    if config.cuda_graph and parallel.size() > 1:
        raise TrainingError(f'train.cuda_graph: what {parallel.size()} processes tell each other cannot be captured; '
                            f'expected false')
    if config.compile:
        if device.type == 'cuda' and importlib.util.find_spec('triton') is None:
            raise TrainingError('train.compile: Python module triton is not installed')
        compiler = os.environ.get('CXX', 'g++')
        if device.type == 'cpu' and not (shutil.which(compiler) or shutil.which('clang++')):
            raise TrainingError(f'train.compile: no C++ compiler ({compiler}) found; install one, or set '
                                f'train.compile=false')


class Programs:
    """Compiled forms of an agent's networks, in force inside `with`; everybody else sees the ordinary ones.

    Exporter, calibration and feature extraction run with shapes of their own, and would compile for each of them.
    """

    def __init__(self, agent: Agent):
        from torch import _dynamo
        # One program for each network and shape; beyond the limit torch would silently go on without compiling.
        _dynamo.config.recompile_limit = max(_dynamo.config.recompile_limit, 256)
        _dynamo.config.accumulated_recompile_limit = max(_dynamo.config.accumulated_recompile_limit, 1024)
        model = agent.world_model
        self._rssm = model.rssm
        self._modules: list[nn.Module] = [
            model.encoder, model.decoder, model.reward, model.cost, model.cont, agent.actor, agent.q_reward.net,
            agent.q_cost.net, agent.v_reward.net, agent.v_cost.net, agent.reach.net, agent.q_reward_target.net,
            agent.q_cost_target.net, agent.reach_target.net]
        # `Module.compile` in pieces: it would leave the compiled form in force.
        self._calls = [torch.compile(m._call_impl, dynamic=False) for m in self._modules]
        self._steps = {name: torch.compile(getattr(self._rssm, name), dynamic=False)
                       for name in ('filter_step', 'imagine_step')}

    def __enter__(self):
        for module, call in zip(self._modules, self._calls):
            module._compiled_call_impl = call
        for name, step in self._steps.items():
            setattr(self._rssm, name, step)

    def __exit__(self, *exception):
        for module in self._modules:
            module._compiled_call_impl = None
        for name in self._steps:
            delattr(self._rssm, name)  # the class's own shows again


class Capture:
    """A function of a batch as one CUDA graph: no Python and no launch cost from the fourth call on."""

    def __init__(self, function, generator: torch.Generator):
        self._function, self._generator = function, generator
        self._calls, self._graph = 0, None
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Run on `batch`, whose shapes must stay the same; the tensors returned are overwritten by the next call."""
        self._calls += 1
        if self._calls <= WARM_UP:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                out = self._function(batch)
            torch.cuda.current_stream().wait_stream(stream)
            return out
        if self._graph is None:
            self._inputs = {k: v.clone() for k, v in batch.items()}
            graph = torch.cuda.CUDAGraph()
            graph.register_generator_state(self._generator)
            with torch.cuda.graph(graph):
                self._outputs = self._function(self._inputs)
            self._graph = graph
        for key, value in batch.items():
            if value.shape != self._inputs[key].shape:
                raise TrainingError(f'train.cuda_graph: batch key {key} has shape {tuple(value.shape)}, expected '
                                    f'{tuple(self._inputs[key].shape)}')
            self._inputs[key].copy_(value, non_blocking=True)
        self._graph.replay()
        return self._outputs


def _product_settings() -> list:
    """Where oneDNN is told how it may treat the factors of float32 products and convolutions; empty in older torch."""
    return [part for part in (getattr(torch.backends.mkldnn, name, None) for name in ('matmul', 'conv'))
            if hasattr(part, 'fp32_precision')]


@contextlib.contextmanager
def products(config: TrainConfig):
    """Context of whole steps: with `bfloat16_products` oneDNN rounds the factors, and sums in float32.

    All tensors stay float32. A processor with AMX or AVX512-BF16 gains by it; oneDNN ignores it on others.
    """
    settings = _product_settings() if config.precision == 'bfloat16_products' else []
    before = [part.fp32_precision for part in settings]
    try:
        for part in settings:
            part.fp32_precision = 'bf16'
        yield
    finally:
        for part, value in zip(settings, before):
            part.fp32_precision = value


def autocast(config: TrainConfig, device: torch.device):
    """Context of the forward passes: bfloat16 products with float32 weights, or nothing."""
    if config.precision == 'bfloat16':
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()
