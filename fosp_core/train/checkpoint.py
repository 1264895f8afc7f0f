# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Exact checkpoints of a Learner: weights, optimisers, random states, counters. No pickle.

`DIR/step_00000500/{agent.safetensors, training.safetensors, state.json}`; written whole or not at all.
"""

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fosp_core.errors import TrainingError
from fosp_core.io import atomic_dir
from fosp_core.train.learner import Learner

SCHEMA = 1
_PATTERN = re.compile(r'step_(\d{8})')


def save_checkpoint(folder: Path, learner: Learner, extra: dict | None = None, keep: int = 2) -> Path:
    """Write `folder/step_XXXXXXXX` and drop all but the newest `keep`; return its path.

    Raises TrainingError, and changes nothing, when a weight or an optimiser's state is NaN or Inf.
    """
    path = Path(folder) / f'step_{learner.step:08d}'
    if not path.exists():
        tensors = {'rng/torch': learner.generator.get_state()}
        for name, optimizer in learner.optimizers.items():
            for i, state in optimizer.state_dict()['state'].items():
                tensors |= {f'{name}/{i}/{k}': v.contiguous() for k, v in state.items()}
        for key, tensor in (learner.agent.state_dict() | tensors).items():
            if not torch.isfinite(tensor).all():
                raise TrainingError(f'gradient step {learner.step}: {key} not finite; the last checkpoint is intact')
        state = {'schema': SCHEMA, 'step': learner.step, 'online': learner.online,
                 'contract_hash': learner.contract.hash, 'config': learner.config.to_dict(),
                 'rng_numpy': learner.rng.bit_generator.state, **(extra or {})}
        with atomic_dir(path) as temporary:
            save_file({k: v.contiguous() for k, v in learner.agent.state_dict().items()},
                      temporary / 'agent.safetensors')
            save_file(tensors, temporary / 'training.safetensors')
            (temporary / 'state.json').write_text(json.dumps(state, indent=1))
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of `folder`, oldest first."""
    folder = Path(folder)
    found = [p for p in folder.glob('step_*') if _PATTERN.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(found, key=lambda p: p.name)


def read_state(path: Path) -> dict:
    """Return a checkpoint's counters and configuration; raise TrainingError naming the file and what it lacks."""
    path = Path(path)
    try:
        state = json.loads((path / 'state.json').read_text())
    except (OSError, ValueError) as error:
        raise TrainingError(f'{path}: unreadable checkpoint: {error}') from None
    if not isinstance(state, dict) or state.get('schema') != SCHEMA:
        found = state.get('schema') if isinstance(state, dict) else state
        raise TrainingError(f'{path}/state.json: schema {found!r}, expected {SCHEMA}')
    missing = {'step', 'online', 'contract_hash', 'config', 'rng_numpy'} - state.keys()
    if missing:
        raise TrainingError(f'{path}/state.json: keys missing: {", ".join(sorted(missing))}')
    return state


def load_checkpoint(path: Path, learner: Learner) -> dict:
    """Restore everything into `learner`; return the stored state; raise TrainingError naming the file."""
    path, state = Path(path), read_state(path)
    try:
        agent = load_file(path / 'agent.safetensors', device=str(learner.device))
        training = load_file(path / 'training.safetensors')
    except (OSError, ValueError, SafetensorError) as error:
        raise TrainingError(f'{path}: unreadable checkpoint: {error}') from None
    if state['contract_hash'] != learner.contract.hash:
        raise TrainingError(f'{path}/state.json: contract_hash {state["contract_hash"][:12]}, expected '
                            f'{learner.contract.hash[:12]}')
    if state['online'] and not learner.online:
        learner.begin_online()  # for its learning rates; networks and random states follow
    load_agent(learner, agent, f'{path}/agent.safetensors')
    for name, optimizer in learner.optimizers.items():
        restored = optimizer.state_dict()
        prefix = f'{name}/'
        restored['state'] = {}
        for key, tensor in training.items():
            if key.startswith(prefix):
                _, index, field = key.split('/')
                restored['state'].setdefault(int(index), {})[field] = tensor
        optimizer.load_state_dict(restored)
    learner.generator.set_state(training['rng/torch'])
    learner.rng.bit_generator.state = state['rng_numpy']
    learner.step, learner.online = state['step'], state['online']
    learner.forget_graph()      # it reads and writes tensors that have been replaced
    return state


def load_agent(learner: Learner, tensors: dict[str, torch.Tensor], where: str) -> None:
    """Load weights; every key must be there, none extra, each of the right shape; TrainingError names the key."""
    expected = learner.agent.state_dict()
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        raise TrainingError(f'{where}: missing keys {missing[:3]}, unknown keys {extra[:3]}, expected the network of '
                            f'preset {learner.config.name}')
    for key, value in expected.items():
        if tensors[key].shape != value.shape:
            raise TrainingError(f'{where}: key {key} has shape {tuple(tensors[key].shape)}, expected '
                                f'{tuple(value.shape)}')
    # Stored weights may be float16 (the bundle's); they are exact in float32.
    learner.agent.load_state_dict({k: v.to(expected[k].dtype) for k, v in tensors.items()})
