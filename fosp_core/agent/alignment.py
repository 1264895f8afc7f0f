# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Marvel's value pre-alignment: fitted-Q evaluation of the frozen offline policy, and its rank-correlation diagnostic.

algorithm.md 4.1 and 4.4. World model, both actors and the multiplier stay as they are; Q, V and p are re-fitted.
"""

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from fosp_core.agent import returns
from fosp_core.agent.agent import Agent
from fosp_core.nn import parallel


def aligned_target(signal: Tensor, cont: Tensor, value: Tensor, log_prob: Tensor, discount: float,
                   alpha: float) -> Tensor:
    """Signal + discount cont (Q(s', a') - alpha log pi_off(a'|s')), a' ~ pi_off; all (...)."""
    return signal + discount * cont * (value - alpha * log_prob)


def alignment_loss(agent: Agent, feature: Tensor, batch: dict[str, Tensor], alpha_reward: float, alpha_cost: float,
                   generator: torch.Generator) -> Tensor:
    """Loss of one alignment step on posterior features (B, T, F): Q^r, Q^c by the targets above, V as plain means.

    The target networks are bootstrapped from, so that the regression does not chase itself.
    """
    cfg = agent.config.behaviour
    mask = returns.pair_mask(batch['is_first'])
    cont = 1.0 - batch['is_terminal'][:, 1:].to(feature.dtype)
    state, arrival, action = feature[:, :-1], feature[:, 1:], batch['action'][:, :-1]
    with torch.no_grad():
        mean, std = agent.offline_actor(arrival)
        noise = parallel.draw(torch.randn, mean.shape, generator).to(mean.device)
        following = mean + std * noise
        log_prob = torch.distributions.Normal(mean, std, validate_args=False).log_prob(following).sum(-1)
        following = following.clamp(-1.0, 1.0)
    total = torch.zeros((), device=feature.device)
    for name, q, target_q, v, alpha in (('reward', agent.q_reward, agent.q_reward_target, agent.v_reward, alpha_reward),
                                        ('cost', agent.q_cost, agent.q_cost_target, agent.v_cost, alpha_cost)):
        with torch.no_grad():
            y = aligned_target(batch[name][:, 1:], cont, target_q(arrival, following), log_prob, cfg.discount, alpha)
            mean_value = target_q(arrival, following)
        total = total + returns.masked_mean(q.loss(q.logits(state, action), y), mask)
        total = total + returns.masked_mean(v.loss(v.logits(arrival), mean_value), mask)
    return total


def discounted_to_go(signal: np.ndarray, discount: float) -> np.ndarray:
    """Monte-Carlo return of each pair (s_t, a_t): sum_k discount^k signal[t + 1 + k]; (T,) -> (T - 1,)."""
    out = np.zeros(len(signal) - 1)
    running = 0.0
    for t in reversed(range(len(out))):
        running = signal[t + 1] + discount * running
        out[t] = running
    return out


def rank_correlation(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Spearman's rho; 0 when either side is constant (no ranking to speak of)."""
    if np.ptp(predicted) == 0 or np.ptp(measured) == 0:
        return 0.0
    return float(spearmanr(predicted, measured).statistic)
