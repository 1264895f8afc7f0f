# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Calibrate a finished bundle anew, through the graph that will run: no torch. `fosp calibrate` uses it."""

from pathlib import Path

import numpy as np

from fosp_core.data.episode import Episode
from fosp_core.data.store import data_hash
from fosp_core.deploy.bundle import Bundle
from fosp_core.deploy.card import ACTS_AS, EVALUATIONS, derive, kept_metrics, same_model
from fosp_core.deploy.runtime import FilterRuntime
from fosp_core.deploy.trained_on import fingerprint, known_episodes
from fosp_core.errors import DataError, FospError
from fosp_core.safety.calibration import SURPRISE_SKIP, calibrate_reachability, calibrate_surprise
from fosp_core.train.dataset import split

HOLDOUTS = (0.15, 0.1, 0.2, 0.25, 0.3, 0.5)    # parts that `fosp pretrain --holdout` is likely to have kept


def replay_episode(runtime: FilterRuntime, episode: Episode) -> tuple[np.ndarray, np.ndarray]:
    """Return risk (T,) of the recorded actions and surprise (T,), float64, step by step as the filter computes them.

    The last record has no action: there it is the risk of the frozen offline policy's.
    """
    size = len(episode)
    risk, surprise = np.empty(size), np.empty(size)
    previous = np.zeros(episode.action.shape[1], np.float32)
    for t in range(size):
        observation = {k: v[t] for k, v in (episode.images | episode.vectors).items()}
        out = runtime.step(observation, previous, t == 0, episode.action[t:t + 1])
        risk[t] = out.risk[0] if t < size - 1 else out.offline_risk
        surprise[t] = out.surprise
        previous = episode.action[t]
    return risk, surprise


def unseen(bundle: Bundle, episodes: list[Episode], held_out: bool, where: str) -> list[Episode]:
    """Return the episodes that may calibrate this bundle.

    A model that lists its training episodes knows each of them again, in whatever bag it comes. An older one has one
    hash of them all: only the very bags, in their order, are recognised, whole or as `fosp pretrain` splits them.

    Raises
    ------
    DataError
        When the model was trained on any of them; with `held_out` when no part of them is known to be held out.

    """
    trained = bundle.manifest['data_hash']
    known = known_episodes(bundle.manifest, f'{bundle.path}/manifest.json')
    if known is None:
        return _unseen_by_hash(bundle, episodes, held_out, where)
    fresh = [e for e in episodes if fingerprint(e) not in known]
    if len(fresh) == len(episodes):
        return fresh
    if not fresh:
        raise DataError(f'{where}: the model {bundle.version} was trained on these {len(episodes)} episodes (data_hash '
                        f'{trained[:12]}); calibrate on others')
    if not held_out:
        first = next(k for k, e in enumerate(episodes) if fingerprint(e) in known)
        raise DataError(f'{where}: the model {bundle.version} was trained on {len(episodes) - len(fresh)} of these '
                        f'{len(episodes)} episodes, the first of them number {first + 1}; give other bags, or '
                        f'--held-out to use the other {len(fresh)}')
    return fresh


def _unseen_by_hash(bundle: Bundle, episodes: list[Episode], held_out: bool, where: str) -> list[Episode]:
    trained = bundle.manifest['data_hash']
    if data_hash(episodes) == trained:
        raise DataError(f'{where}: the model {bundle.version} was trained on these {len(episodes)} episodes (data_hash '
                        f'{trained[:12]}); calibrate on others')
    for part in HOLDOUTS:
        training, held = split(episodes, part)
        if training and held and data_hash(training) == trained:
            if held_out:
                return held
            raise DataError(f'{where}: the model {bundle.version} was trained on {len(training)} of these '
                            f'{len(episodes)} episodes (data_hash {trained[:12]}); give other bags, or --held-out to '
                            f'use the {len(held)} that were held out')
    if held_out:
        raise DataError(f'{where}: --held-out: no part of these {len(episodes)} episodes is known to be the training '
                        f'data of {bundle.version} (data_hash {str(trained)[:12]}), expected the very bags and order')
    return episodes


def calibration_of(replayed: list[tuple[np.ndarray, np.ndarray]], episodes: list[Episode], alpha: float, horizon: int,
                   lead: int, where: str, confidence: float | None = None) -> dict:
    """Return the contents of calibration.json; raise DataError when the episodes cannot calibrate."""
    if not 0.0 < alpha < 1.0:
        raise FospError(f'--alpha {alpha}: expected between 0 and 1')
    if not any((e.cost > 0).any() and int(np.argmax(e.cost > 0)) >= lead for e in episodes):
        raise DataError(f'{where}: key cost is never positive from record {lead} on in {len(episodes)} episodes: '
                        'nothing to calibrate reachability with')
    if not any(len(e) > SURPRISE_SKIP for e in episodes):
        raise DataError(f'{where}: no episode of more than {SURPRISE_SKIP} records: nothing to calibrate surprise with')
    return {'schema': 1, 'reachability': calibrate_reachability([(r, e.cost) for (r, _), e in zip(replayed, episodes)],
                                                                alpha, horizon, lead, confidence),
            'surprise': calibrate_surprise([s for _, s in replayed], alpha), 'data_hash': data_hash(episodes),
            'episodes': len(episodes), 'through': 'filter.onnx'}


def rewrite(bundle: Bundle, out: Path, version: str, calibration: dict, metrics: dict) -> Bundle:
    """Write a new bundle that differs in version, parent, calibration, card and what `metrics` say of the level.

    With another level the filter acts otherwise: what was evaluated before does not pass on.
    """
    changes = {'metrics': kept_metrics(bundle.manifest['metrics']) | metrics}
    if all(calibration[gate] == bundle.calibration.get(gate) for gate in ('reachability', 'surprise')):
        changes |= same_model(bundle)
    else:
        changes |= {EVALUATIONS: [], ACTS_AS: []}
    return derive(bundle, out, version, changes, calibration)
