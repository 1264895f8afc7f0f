# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Marvel's value pre-alignment as a phase before fine-tuning: K steps, a diagnostic before and after, and a refusal.

The diagnostic is Spearman's rank correlation of Q(s_t, a_t) with the discounted return that was measured from there on,
over all pairs of episodes that the alignment does not see; without offline data, of the robot's own episodes.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from fosp_core.agent.agent import Agent
from fosp_core.agent.alignment import alignment_loss, discounted_to_go, rank_correlation
from fosp_core.agent.networks import ema_update
from fosp_core.contract import Contract
from fosp_core.data.episode import Episode
from fosp_core.data.replay import Replay
from fosp_core.errors import AlignmentError, TrainingError
from fosp_core.train.features import FeatureReplay
from fosp_core.train.learner import Learner

SIDES = ('reward', 'cost')


def correlations(agent: Agent, features: FeatureReplay) -> dict[str, float]:
    """Spearman's rho of Q^r and Q^c against measured discounted returns; NaN where the measurement does not vary."""
    series = {k: v.cpu().numpy() for k, v in features.series.items()}
    starts = [*np.flatnonzero(series['is_first']), len(features)]
    pairs = np.concatenate([np.arange(a, b - 1) for a, b in zip(starts, starts[1:])])
    discount = agent.config.behaviour.discount
    state = torch.cat([features.deter, features.stoch], -1)[pairs]
    action = features.series['action'][pairs]
    out = {}
    for side in SIDES:
        measured = np.concatenate([discounted_to_go(series[side][a:b], discount) for a, b in zip(starts, starts[1:])])
        with torch.no_grad():
            predicted = getattr(agent, f'q_{side}')(state, action).cpu().numpy()
        out[side] = rank_correlation(predicted, measured)
    return out


def pre_align(learner: Learner, offline: list[Episode], online: list[Episode], held: list[Episode],
              progress: Callable[[int], None] | None = None,
              contract: Contract | None = None) -> dict[str, float | int | str | None]:
    """Make `alignment.steps` steps on the critics and p alone; world model, actors and multiplier stay.

    `contract` says what a mirror image is (default: that of the model).

    Returns `steps`, `pairs`, `measured_on` (held-out or online), `rho_reward_before`, `rho_reward_after`,
    `rho_cost_before`, `rho_cost_after` (None: the measured returns do not vary, so there is nothing to rank).
    Raises AlignmentError with these figures when a rho is below `alignment.min_rho` after it, has fallen by more than
    `alignment.max_drop`, or none can be measured; the learner then is what it was before.
    """
    agent = learner.agent
    weights = {k: v.clone() for k, v in agent.state_dict().items()}
    random = learner.generator.get_state(), learner.rng.bit_generator.state
    try:
        return _pre_align(learner, offline, online, held, progress, contract or learner.contract)
    except TrainingError:
        agent.load_state_dict(weights)
        learner.generator.set_state(random[0])
        learner.rng.bit_generator.state = random[1]
        raise


def _pre_align(learner: Learner, offline: list[Episode], online: list[Episode], held: list[Episode],
               progress: Callable[[int], None] | None, contract: Contract) -> dict:
    cfg, agent = learner.config.alignment, learner.agent
    used = _spread(offline, cfg.episodes) + online
    if not used:
        raise TrainingError('value pre-alignment: no episode to align on')
    features = FeatureReplay(agent, Replay(contract, mirror=learner.config.train.mirror).extend(used))
    judged = _spread(held, cfg.episodes) or online
    judge = FeatureReplay(agent, Replay(learner.contract).extend(judged or used))
    before = correlations(agent, judge)
    optimizer = torch.optim.Adam([
        {'params': [p for c in learner.critics for p in c.parameters()]},
        {'params': list(agent.reach.parameters()), 'lr': cfg.lr * learner.config.behaviour.reach_lr_scale}],
        cfg.lr, eps=learner.config.behaviour.eps)
    for k in range(cfg.steps):
        states, batch = features.sample(cfg.batch, cfg.length, learner.rng)
        loss, _ = alignment_loss(agent, states.feature, batch, cfg.alpha_reward, cfg.alpha_cost, learner.generator)
        if not math.isfinite(loss.item()):
            raise TrainingError(f'value pre-alignment: loss not finite at step {k + 1}')
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for module in (*learner.critics, agent.reach):
            torch.nn.utils.clip_grad_norm_(module.parameters(), learner.config.behaviour.clip)
        optimizer.step()
        for name in ('q_reward', 'q_cost', 'reach'):
            ema_update(getattr(agent, f'{name}_target'), getattr(agent, name), cfg.ema)
        if progress:
            progress(k + 1)
    after = correlations(agent, judge)
    report = {'steps': cfg.steps, 'pairs': len(judge) - len(judged or used),
              'measured_on': 'held-out' if held else 'online' if online else 'training'}
    for side in SIDES:
        for when, rho in (('before', before), ('after', after)):
            report[f'rho_{side}_{when}'] = None if math.isnan(rho[side]) else round(rho[side], 6)
    _judge(report, cfg)
    return report


def _spread(episodes: list[Episode], limit: int) -> list[Episode]:
    """At most `limit` of the episodes, evenly spread over the list."""
    if len(episodes) <= limit:
        return list(episodes)
    return [episodes[i] for i in np.linspace(0, len(episodes) - 1, limit).round().astype(int)]


def _judge(report: dict, cfg) -> None:
    figures = ', '.join(f'rho of Q^{side[0]} {_text(report[f"rho_{side}_before"])} before and '
                        f'{_text(report[f"rho_{side}_after"])} after' for side in SIDES)
    where = (f'value pre-alignment refused: {figures} {cfg.steps} steps on {report["pairs"]} '
             f'{report["measured_on"]} pairs')
    known = False
    for side in SIDES:
        before, after = report[f'rho_{side}_before'], report[f'rho_{side}_after']
        if after is None:
            continue
        known = True
        if after < cfg.min_rho:
            raise AlignmentError(f'{where}; Q^{side[0]} is below alignment.min_rho {cfg.min_rho:g}')
        if before - after > cfg.max_drop:
            raise AlignmentError(f'{where}; Q^{side[0]} fell by more than alignment.max_drop {cfg.max_drop:g}')
    if not known:
        raise AlignmentError(f'{where}; neither reward nor cost varies in these episodes, nothing can be ranked')


def _text(rho: float | None) -> str:
    return 'unknown' if rho is None else f'{rho:.3f}'
