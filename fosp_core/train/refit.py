# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Learn a bundle's reachability estimate further on episodes of its own policy; nothing else of the model changes.

An estimate that saw demonstrators alone is blind to the near misses of the policy that was made of them: what they do
wrong it knows, what the policy does wrong it was never shown. The step is ours, not the paper's.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fosp_core.data.episode import Episode
from fosp_core.data.replay import Replay
from fosp_core.data.store import data_hash
from fosp_core.deploy.bundle import Bundle
from fosp_core.deploy.export import export_bundle, round_to_half
from fosp_core.deploy.trained_on import KEY, fingerprint, known_episodes, listing
from fosp_core.errors import DataError
from fosp_core.safety.calibration import HORIZON, LEAD, warning_window
from fosp_core.train.dataset import split
from fosp_core.train.features import FeatureReplay
from fosp_core.train.finetune import load_learner
from fosp_core.train.heldout import calibrate, heldout_metrics, replay_episode
from fosp_core.train.pretrain import cosine_lr, git_commit

OWN = 0.5           # of each batch is of the policy's own episodes (with offline ones to mix in)
VIOLATING = 0.5     # of either part begins in an episode with a violation: of a good policy's they are 2 %
ALARMS = 0.01       # steps of episodes without a violation, at which the two estimates are compared


def refit(bundle: Bundle, own: list[Episode], offline: list[Episode], out: Path, steps: int, seed: int,
          holdout: float = 0.3, alpha: float | None = None, confidence: float | None = None,
          version: str | None = None, progress: Callable[[int, dict], None] | None = None) -> Bundle:
    """Make `steps` gradient steps of the reachability estimate; return the new, calibrated Bundle at `out`.

    Parameters
    ----------
    bundle : Bundle
        The parent. World model, policies and critics stay as they are, bit for bit.
    own : list of Episode
        Episodes of the bundle's policy acting without a filter that hides its mistakes. A part is held out: the new
        levels are those of these episodes.
    offline : list of Episode
        Of what the parent was trained on, so that it is not forgotten. Episodes that the parent does not list are left
        out: they may be wanted to calibrate with.
    steps, seed : int
        Gradient steps, along the cosine and with the batch of the configuration's behaviour phase.
    holdout : float
        Share of `own` to calibrate with.
    alpha, confidence : float, optional
        As in `calibrate_reachability`; by default as the parent was calibrated.

    Raises
    ------
    DataError
        When `own` has too few violations to learn from and to calibrate with.
    RefusedError
        When the exported graphs differ from torch.

    """
    old = bundle.calibration.get('reachability') or {}
    alpha = old.get('alpha', 0.1) if alpha is None else alpha
    confidence = old.get('confidence') if confidence is None else confidence
    window = old.get('horizon', HORIZON), old.get('lead', LEAD)
    training, held = split(own, holdout)
    for name, part in (('to learn from', training), ('held out to calibrate with', held)):
        if not any(e.violation and (e.cost[:window[1]] <= 0).all() for e in part):
            raise DataError(f'{len(own)} episodes of the policy: none {name} has a violation at record {window[1]} or '
                            'later; record more of them, with the filter off where that does no harm')
    known = known_episodes(bundle.manifest, f'{bundle.path}/manifest.json')
    if known is not None:
        offline = [e for e in offline if fingerprint(e) in known]
    learner = load_learner(bundle, seed)
    agent, cfg = learner.agent, learner.config.train
    before = _warned(agent, held, *window)
    features, others = (FeatureReplay(agent, Replay(bundle.contract, mirror=cfg.mirror).extend(part, check=False))
                        if part else None for part in (training, offline))
    mine = round(cfg.behaviour_batch * OWN) if others else cfg.behaviour_batch
    sources = [(features, mine)] + ([(others, cfg.behaviour_batch - mine)] if others else [])
    for step in range(steps):
        learner.scale_lr(cosine_lr(step / steps, cfg.behaviour_final_lr))
        parts = [part for source, size in sources for part in _windows(source, size, cfg.behaviour_length, learner.rng)]
        metrics = learner.update_reachability(torch.cat([states.feature for states, _ in parts]),
                                              {k: torch.cat([batch[k] for _, batch in parts]) for k in parts[0][1]})
        if progress:
            progress(step + 1, metrics)
    round_to_half(agent)
    calibration = calibrate(agent, held, alpha, *window, confidence)
    metrics = {'own_episodes': len(training), 'own_violating': sum(e.violation for e in training),
               'offline_episodes': len(offline), 'refit_steps': steps,
               f'warned_at_{ALARMS:.0%}_alarms_before': before,
               f'warned_at_{ALARMS:.0%}_alarms': _warned(agent, held, *window),
               **heldout_metrics(agent, held, calibration['reachability']['level'], *window)}
    return export_bundle(agent, out, version=version or f'{bundle.version}-refit-{data_hash(training)[:8]}',
                         name=bundle.manifest['name'], calibration=calibration,
                         data_hash=data_hash(training + offline), seed=seed, steps=bundle.manifest['steps'],
                         metrics=metrics, parent=bundle.version, commit=git_commit(),
                         trained_on=listing(training + offline, bundle.manifest.get(KEY)))


def _windows(source: FeatureReplay, size: int, length: int, rng: np.random.Generator) -> list[tuple]:
    """Windows of which the share VIOLATING begins in episodes with a violation, if there are any."""
    bad = round(size * VIOLATING) if len(source.violating) else 0
    return [source.sample(size - bad, length, rng)] + ([source.sample(bad, length, rng, violating=True)] if bad else [])


def _warned(agent, episodes: list[Episode], horizon: int, lead: int) -> float:
    """Share of the violations that were announced, at the level of ALARMS false alarms: which estimate tells more."""
    replayed = [(replay_episode(agent, e)['risk'], e) for e in episodes]
    quiet = [risk[:-1] for risk, e in replayed if not e.violation]
    level = float(np.quantile(np.concatenate(quiet), 1.0 - ALARMS)) if quiet else 0.0
    firsts = [(risk, int(np.argmax(e.cost > 0))) for risk, e in replayed if e.violation]
    peaks = [risk[warning_window(first, horizon, lead)].max() for risk, first in firsts if first >= lead]
    return float(np.mean([peak > level for peak in peaks]))
