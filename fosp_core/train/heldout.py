# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What an agent says of episodes it was not trained on: risk, surprise, reconstruction. Feeds calibration and cards."""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from fosp_core.agent.agent import Agent
from fosp_core.data.episode import Episode
from fosp_core.errors import TrainingError
from fosp_core.nn.distributions import categorical_kl
from fosp_core.safety.calibration import (
    HORIZON,
    LEAD,
    calibrate_reachability,
    calibrate_surprise,
    warning_window,
)


@dataclasses.dataclass(frozen=True)
class Posterior:
    """One filtered episode: feature (1, T, F), logits (1, T, S, K), observations and action (1, T, ...)."""

    feature: Tensor
    log_post: Tensor
    log_prior: Tensor
    batch: dict[str, Tensor]
    action: Tensor


@torch.no_grad()
def posterior(agent: Agent, episode: Episode) -> Posterior:
    """Filter one episode with its recorded actions (latent mode, no noise)."""
    device = next(agent.parameters()).device
    batch = {k: torch.from_numpy(np.array(v)).unsqueeze(0).to(device)
             for k, v in (episode.images | episode.vectors).items()}
    action = torch.from_numpy(episode.action.copy()).unsqueeze(0).to(device)
    is_first = torch.from_numpy(episode.is_first.copy()).unsqueeze(0).to(device)
    model = agent.world_model
    gumbel = torch.zeros(1, len(episode), model.rssm.stoch, model.rssm.classes, device=device)
    deter, stoch, log_post, log_prior = model.rssm.observe(model.encoder(batch), action, is_first, gumbel)
    return Posterior(torch.cat([deter, stoch], -1), log_post, log_prior, batch, action)


@torch.no_grad()
def replay_episode(agent: Agent, episode: Episode) -> dict[str, np.ndarray]:
    """Filter one episode with its recorded actions, as the safety filter would (latent mode, no noise).

    Returns float32 arrays: risk (T,) = p(s_t, a_t), with the recorded action (the last record has the policy's);
    surprise (T,) in nats; picture (T,) squared reconstruction error; policy_error (T - 1,) mean absolute difference of
    the actor's mode and the recorded action.
    """
    agent.eval()
    seen = posterior(agent, episode)
    feature, action = seen.feature, seen.action
    mode = agent.actor(feature)[0].clamp(-1, 1)
    acted = action.clone()
    acted[:, -1] = mode[:, -1]
    out = {'risk': agent.reach(feature, acted), 'surprise': categorical_kl(seen.log_post, seen.log_prior),
           'picture': agent.world_model.decoder.loss(feature, seen.batch)['picture'],
           'policy_error': (mode - action)[:, :-1].abs().mean(-1)}
    return {k: v[0].float().cpu().numpy() for k, v in out.items()}


def calibrate(agent: Agent, episodes: list[Episode], alpha: float = 0.1, horizon: int = HORIZON,
              lead: int = LEAD, confidence: float | None = None) -> dict:
    """Split-conformal levels of the reachability estimate and of the surprise on held-out episodes.

    Returns the contents of calibration.json. `horizon` and `lead` in steps: how long before a violation, at the
    earliest and at the latest, a warning counts; `confidence` as in `conformal_floor`. Raises TrainingError when the
    model's risk or surprise is not a number.
    """
    from fosp_core.data.store import data_hash
    replayed = [replay_episode(agent, e) for e in episodes]
    for number, values in enumerate(replayed):
        for key in ('risk', 'surprise'):
            if not np.isfinite(values[key]).all():
                raise TrainingError(f'not finite: {key} of held-out episode {number} at record '
                                    f'{int(np.argmin(np.isfinite(values[key])))}')
    reach = calibrate_reachability([(r['risk'], e.cost) for r, e in zip(replayed, episodes)], alpha, horizon, lead,
                                   confidence)
    surprise = calibrate_surprise([r['surprise'] for r in replayed], alpha)
    return {'schema': 1, 'reachability': reach, 'surprise': surprise, 'data_hash': data_hash(episodes)}


def heldout_metrics(agent: Agent, episodes: list[Episode], level: float, horizon: int = HORIZON,
                    lead: int = LEAD) -> dict[str, float]:
    """Numbers for the model card: n, reconstruction, how well risk separates violating from safe episodes."""
    replayed = [replay_episode(agent, e) for e in episodes]
    warned = missed = alarms = 0
    violating = [(r, e) for r, e in zip(replayed, episodes) if e.violation]
    for r, e in violating:
        first = int(np.argmax(e.cost > 0))
        hit = bool((r['risk'][warning_window(first, horizon, lead)] > level).any())
        warned, missed = warned + hit, missed + (not hit)
    quiet = [r['risk'][:-1] for r, e in zip(replayed, episodes) if not e.violation]
    alarms = sum(float((r > level).sum()) for r in quiet)
    steps = max(1, sum(len(r) for r in quiet))
    return {'heldout_episodes': len(episodes), 'heldout_violating': len(violating), 'heldout_warned': warned,
            'heldout_missed': missed, 'heldout_alarm_rate_safe_steps': alarms / steps,
            'heldout_picture_error': float(np.mean(np.concatenate([r['picture'] for r in replayed]))),
            'heldout_policy_error': float(np.mean(np.concatenate([r['policy_error'] for r in replayed])))}
