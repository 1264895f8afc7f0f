# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Export an agent as a bundle: ONNX graphs, weights, probe, card; refuse when ONNX and torch differ.

Weights are rounded to float16 first and stored so (half the file, half the message on the wire); all arithmetic is
float32 on the rounded values, in torch and in ONNX alike, so parity is not affected.
"""

import dataclasses
import datetime
import io
import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
import yaml
from onnx import numpy_helper
from safetensors.torch import save

from fosp_core.agent.agent import Agent
from fosp_core.deploy.bundle import Bundle, write_bundle
from fosp_core.deploy.card import NOTE, model_card
from fosp_core.deploy.graphs import FilterGraph, PolicyGraph, example_inputs, input_names
from fosp_core.deploy.runtime import make_session
from fosp_core.errors import RefusedError

PARITY = 1e-4
PROBE_STEPS = 16
_HALF_MINIMUM = 1024  # smaller tensors stay float32


def round_to_half(agent: Agent) -> None:
    """Round every large float32 weight to the nearest float16 value, in place."""
    with torch.no_grad():
        for tensor in agent.state_dict().values():
            if tensor.dtype == torch.float32 and tensor.numel() >= _HALF_MINIMUM:
                tensor.copy_(tensor.half().float())


def weights_bytes(agent: Agent) -> bytes:
    """Return the state dict as safetensors, large float32 tensors as float16 (exact after `round_to_half`)."""
    tensors = {}
    for key, tensor in agent.state_dict().items():
        if tensor.dtype == torch.float32 and tensor.numel() >= _HALF_MINIMUM:
            tensor = tensor.half()
        tensors[key] = tensor.contiguous()
    return save(tensors)


def _store_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store large float initialisers as float16 with a Cast, which ONNX Runtime folds when it loads the graph."""
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype != np.float32 or array.size < _HALF_MINIMUM:
            continue
        half = array.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), array):
            continue  # a constant that the exporter computed: keep it exact
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f'{name}.half'))
        casts.append(onnx.helper.make_node('Cast', [f'{name}.half'], [name], to=onnx.TensorProto.FLOAT))
    for node in reversed(casts):
        graph.node.insert(0, node)
    return model


def export_graph(agent: Agent, graph: str) -> bytes:
    """Return ONNX bytes of `policy` or `filter`."""
    module = {'policy': PolicyGraph, 'filter': FilterGraph}[graph](agent).eval()
    names = input_names(agent.contract, graph)
    inputs = tuple(example_inputs(agent, graph, torch.Generator().manual_seed(0)))
    dynamic = {'candidates': {1: 'n'}, 'risk': {1: 'n'}} if graph == 'filter' else {}
    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the tracer's remarks on constant shapes
        torch.onnx.export(module, inputs, buffer, input_names=names, output_names=list(module.outputs),
                          dynamic_axes=dynamic, opset_version=17, dynamo=False)
    model = onnx.load_from_string(buffer.getvalue())
    for node in model.graph.node:
        node.doc_string = ''
    model = _store_half(model)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def make_probe(agent: Agent, graph: str, seed: int = 7) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Random inputs and torch's outputs over PROBE_STEPS recurrent steps; arrays with a leading step axis."""
    module = {'policy': PolicyGraph, 'filter': FilterGraph}[graph](agent).eval()
    names, generator = input_names(agent.contract, graph), torch.Generator().manual_seed(seed)
    feeds, results = [], []
    deter = stoch = None
    with torch.no_grad():
        for t in range(PROBE_STEPS):
            feed = dict(zip(names, example_inputs(agent, graph, generator)))
            if t % 10 == 0:
                feed['is_first'] = torch.ones(1, 1)
            if deter is not None:
                feed['deter'], feed['stoch'] = deter, stoch
            out = module(*(feed[n] for n in names))
            deter, stoch = out[0], out[1]
            feeds.append({k: v.numpy() for k, v in feed.items()})
            results.append(dict(zip(module.outputs, (o.numpy() for o in out))))
    return ({k: np.stack([f[k] for f in feeds]) for k in names},
            {k: np.stack([r[k] for r in results]) for k in module.outputs})


def check_parity(model: bytes, feeds: dict[str, np.ndarray], expected: dict[str, np.ndarray], where: str,
                 tolerance: float = PARITY) -> float:
    """Run the ONNX graph on its own recurrent state over the probe; return the largest difference.

    Raises RefusedError naming graph, output, step and difference when it exceeds `tolerance`.
    """
    session = make_session(model, where)
    used = {i.name for i in session.get_inputs()}
    outputs = [o.name for o in session.get_outputs()]
    worst, deter, stoch = 0.0, feeds['deter'][0], feeds['stoch'][0]
    for t in range(len(feeds['deter'])):
        feed = {k: v[t] for k, v in feeds.items() if k in used} | {'deter': deter, 'stoch': stoch}
        result = dict(zip(outputs, session.run(None, feed)))
        deter, stoch = result['deter_next'], result['stoch_next']
        for name, value in result.items():
            truth = expected[name][t].astype(np.float64)
            # Absolute for what is of order one, relative for large scores: float32 has seven digits.
            difference = float((np.abs(value.astype(np.float64) - truth) / np.maximum(1.0, np.abs(truth))).max())
            if not difference <= tolerance:
                raise RefusedError(f'{where}: output {name} differs from torch by {difference:.2e} at probe step {t}, '
                                  f'allowed {tolerance:.0e}')
            worst = max(worst, difference)
    return worst


def export_bundle(agent: Agent, out: Path, *, version: str, name: str, calibration: dict, data_hash: str, seed: int,
                  steps: int, metrics: dict, parent: str | None = None, commit: str = 'unknown',
                  note: str | None = None, trained_on: str | None = None) -> Bundle:
    """Round, export both graphs, gate on parity, write the bundle; nothing is written when a gate fails.

    `agent` is changed: its weights are rounded to float16 values. `trained_on`: `deploy.trained_on.listing` of every
    episode that shaped the weights, None when not known. `note`: a line for the card. Raises RefusedError.
    """
    agent = agent.to('cpu').eval()
    for key, tensor in agent.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise RefusedError(f'weight {key} is not finite: nothing written')
    if agent.world_model.embed_feature is not None:
        # The short cut of the first thousand steps: a fifth of the weights, and of no use to fine-tuning.
        agent.world_model.embed_feature = None
        agent.config = dataclasses.replace(agent.config, world_model=dataclasses.replace(agent.config.world_model,
                                                                                         autoencode=0.0))
        agent.world_model.config = agent.config.world_model
    round_to_half(agent)
    files, probe, parity = {}, {}, {}
    for graph in ('policy', 'filter'):
        files[f'{graph}.onnx'] = export_graph(agent, graph)
        feeds, expected = make_probe(agent, graph)
        parity[graph] = check_parity(files[f'{graph}.onnx'], feeds, expected, f'{graph}.onnx')
        probe |= {f'{graph}/in/{k}': v for k, v in feeds.items()}
        probe |= {f'{graph}/out/{k}': v for k, v in expected.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **probe)
    files |= {'probe.npz': buffer.getvalue(), 'weights.safetensors': weights_bytes(agent),
              'calibration.json': json.dumps(calibration, indent=1).encode(),
              'contract.yaml': yaml.safe_dump(agent.contract.to_dict(), sort_keys=False).encode()}
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    manifest = {'name': name, 'version': version, 'created': created, 'preset': agent.config.name,
                'contract_hash': agent.contract.hash, 'parent': parent, 'data_hash': data_hash, 'seed': seed,
                'commit': commit, 'steps': steps, 'metrics': metrics, 'parity': parity,
                'config': agent.config.to_dict(), 'trained_on': trained_on,
                NOTE: note,
                'network': {'deter': agent.config.network.deter, 'stoch': agent.config.network.stoch,
                            'classes': agent.config.network.classes, 'action': agent.contract.action.size,
                            'cameras': [c.name for c in agent.contract.cameras],
                            'vectors': [v.name for v in agent.contract.vectors]}}
    files['card.md'] = model_card(manifest, calibration).encode()
    return write_bundle(Path(out), files, manifest)
