# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The recurrent state-space model with categorical latents (algorithm: DreamerV3's RSSM, FOSP preset's details).

Shapes: B batch, T time, D deter, S stoch variables, K classes, E embedding. `stoch` is kept flat, (B, S*K).
The GRU cell is written from matrix products: the exporter has silently mis-exported nn.GRU.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fosp_core.nn.blocks import NormedLinear, init_weights
from fosp_core.nn.distributions import sample_onehot, unimix_logits


class RSSM(nn.Module):
    """Deterministic state h, categorical state z; prior p(z|h), posterior q(z|h, embedding)."""

    def __init__(self, embed: int, action: int, deter: int, stoch: int, classes: int, hidden: int, unimix: float):
        super().__init__()
        self.deter, self.stoch, self.classes, self.unimix = deter, stoch, classes, unimix
        self.input = NormedLinear(stoch * classes + action, hidden)
        self.gru = nn.Linear(deter + hidden, 3 * deter, bias=False)
        self.gru_norm = nn.LayerNorm(3 * deter, eps=1e-3)
        self.prior_hidden = NormedLinear(deter, hidden)
        self.prior_logits = nn.Linear(hidden, stoch * classes)
        # The posterior's first layer acts on [h, embedding]; split, so that the embedding's half leaves the time loop.
        self.post_deter = nn.Linear(deter, hidden, bias=False)
        self.post_embed = nn.Linear(embed, hidden, bias=False)
        self.post_norm = nn.LayerNorm(hidden, eps=1e-3)
        self.post_logits = nn.Linear(hidden, stoch * classes)
        self.initial = nn.Parameter(torch.zeros(deter))
        for layer in (self.gru, self.prior_logits, self.post_deter, self.post_embed, self.post_logits):
            init_weights(layer)

    @property
    def feature_size(self) -> int:
        """D + S*K."""
        return self.deter + self.stoch * self.classes

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """Learned start: deter = tanh(parameter) (B, D), stoch = mode of the prior (B, S*K)."""
        deter = torch.tanh(self.initial).expand(batch, -1)
        log_prior = self.prior(deter)
        return deter, sample_onehot(log_prior, torch.zeros_like(log_prior)).flatten(-2)

    def prior(self, deter: Tensor) -> Tensor:
        """Log-probabilities (..., S, K) of z given h."""
        logits = self.prior_logits(self.prior_hidden(deter))
        return unimix_logits(logits.unflatten(-1, (self.stoch, self.classes)), self.unimix)

    def posterior(self, deter: Tensor, embedded: Tensor) -> Tensor:
        """Log-probabilities (..., S, K) of z given h and `embedded` = post_embed(embedding) (..., hidden)."""
        x = F.silu(self.post_norm(self.post_deter(deter) + embedded))
        return unimix_logits(self.post_logits(x).unflatten(-1, (self.stoch, self.classes)), self.unimix)

    def advance(self, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
        """h' from (h, z, a); the action is divided by max(1, |a|) per entry."""
        action = action / action.abs().clamp(min=1.0).detach()
        x = self.input(torch.cat([stoch, action], -1))
        reset, candidate, update = self.gru_norm(self.gru(torch.cat([deter, x], -1))).chunk(3, -1)
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        update = torch.sigmoid(update - 1.0)
        return update * candidate + (1.0 - update) * deter

    def observe_step(self, deter: Tensor, stoch: Tensor, action: Tensor, embedded: Tensor, is_first: Tensor,
                     gumbel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One filtering step; is_first (B, 1) float resets state and action. Returns h', z', log posterior."""
        deter0, stoch0 = self.initial_state(deter.shape[0])
        keep = 1.0 - is_first
        deter = keep * deter + is_first * deter0
        stoch = keep * stoch + is_first * stoch0
        deter = self.advance(deter, stoch, keep * action)
        log_post = self.posterior(deter, embedded)
        return deter, sample_onehot(log_post, gumbel).flatten(-2), log_post

    def observe(self, embedding: Tensor, action: Tensor, is_first: Tensor,
                gumbel: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Filter T steps.

        embedding (B, T, E); action (B, T, A), the action chosen AT each record; is_first (B, T); gumbel (B, T, S, K).
        The action consumed at t is that of t - 1. Returns deter (B, T, D), stoch (B, T, S*K), log posterior and log
        prior (B, T, S, K).
        """
        batch, time = is_first.shape
        embedded = self.post_embed(embedding)
        previous = torch.cat([torch.zeros_like(action[:, :1]), action[:, :-1]], 1)
        reset = is_first.to(embedded.dtype).unsqueeze(-1)
        deter, stoch = self.initial_state(batch)
        deters, stochs, posts = [], [], []
        for t in range(time):
            deter, stoch, log_post = self.observe_step(deter, stoch, previous[:, t], embedded[:, t], reset[:, t],
                                                       gumbel[:, t])
            deters.append(deter)
            stochs.append(stoch)
            posts.append(log_post)
        deter = torch.stack(deters, 1)
        return deter, torch.stack(stochs, 1), torch.stack(posts, 1), self.prior(deter)

    def imagine_step(self, deter: Tensor, stoch: Tensor, action: Tensor, gumbel: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the prior dynamics: (B, D), (B, S*K), (B, A) -> next (B, D), (B, S*K)."""
        deter = self.advance(deter, stoch, action)
        return deter, sample_onehot(self.prior(deter), gumbel).flatten(-2)
