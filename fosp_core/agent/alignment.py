# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Marvel's value pre-alignment: fitted-Q evaluation of the frozen offline policy, and its rank-correlation diagnostic.

algorithm.md 4.1 and 4.4. World model, both actors and the multiplier stay as they are; Q, V and p are re-fitted. The
loop is `fosp_core.train.align`.
"""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from scipy.stats import spearmanr
from torch import Tensor

from fosp_core.agent import returns
from fosp_core.agent.agent import Agent


def aligned_target(signal: Tensor, cont: Tensor, value: Tensor, log_prob: Tensor, discount: float,
                   alpha: float) -> Tensor:
    """Signal + discount cont (Q(s', a') - alpha log pi_off(a'|s')), a' ~ pi_off; all (...)."""
    return signal + discount * cont * (value - alpha * log_prob)


def alignment_loss(agent: Agent, feature: Tensor, batch: dict[str, Tensor], alpha_reward: float, alpha_cost: float,
                   generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one alignment step on posterior features (B, T, F), and its parts.

    Q^r, Q^c by the targets above; V^r, V^c as plain means of Q under the offline policy; p by its own recursion under
    that policy. The target networks are bootstrapped from, so that the regression does not chase itself.
    """
    cfg = agent.config.behaviour
    mask = returns.pair_mask(batch['is_first'])
    cont = 1.0 - batch['is_terminal'][:, 1:].to(feature.dtype)
    state, action = feature[:, :-1], batch['action'][:, :-1]
    with torch.no_grad():
        drawn, log_prob = agent.offline_actor.sample(feature, generator)
        reached = agent.reach_data_target(feature, batch, drawn[:, 1:])
    parts = {}
    for name, q, target_q, v, alpha in (('reward', agent.q_reward, agent.q_reward_target, agent.v_reward, alpha_reward),
                                        ('cost', agent.q_cost, agent.q_cost_target, agent.v_cost, alpha_cost)):
        with torch.no_grad():
            value = target_q(feature, drawn)
            y = aligned_target(batch[name][:, 1:], cont, value[:, 1:], log_prob[:, 1:], cfg.discount, alpha)
        parts[f'align/q_{name}'] = returns.masked_mean(q.loss(q.logits(state, action), y), mask)
        # Both sides of an expectile of one half weigh one half.
        parts[f'align/v_{name}'] = 2 * agent.expectile_loss(v, feature, value, 0.5).mean()
    logits = agent.reach.logit(state, action, cfg.reach_dropout, generator)
    parts['align/reach'] = returns.masked_mean(
        F.binary_cross_entropy_with_logits(logits, reached, reduction='none'), mask)
    return sum(parts.values()), {k: v.detach() for k, v in parts.items()}


def discounted_to_go(signal: np.ndarray, discount: float) -> np.ndarray:
    """Monte-Carlo return of each pair (s_t, a_t): sum_k discount^k signal[t + 1 + k]; (T,) -> (T - 1,)."""
    out = np.zeros(len(signal) - 1)
    running = 0.0
    for t in reversed(range(len(out))):
        running = signal[t + 1] + discount * running
        out[t] = running
    return out


def rank_correlation(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Spearman's rho; 0 for a prediction that does not vary, NaN when the measurement does not: nothing to rank."""
    if np.ptp(measured) == 0:
        return float('nan')
    if np.ptp(predicted) == 0:
        return 0.0
    return float(spearmanr(predicted, measured).statistic)
