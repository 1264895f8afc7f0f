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
from fosp_core.nn.distributions import sample_classes, sample_onehot, straight_through, unimix_logits, unimix_probs
from fosp_core.nn.onehot import OneHot
from fosp_core.nn.products import Tied, linear, times


class RSSM(nn.Module):
    """Deterministic state h, categorical state z; prior p(z|h), posterior q(z|h, embedding).

    z is a tensor of zeros and ones, or a `OneHot` that holds their column numbers.
    """

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

    def _prior_logits(self, deter: Tensor) -> Tensor:
        x = self.prior_hidden(deter)
        return linear(x, self.prior_logits.weight, self.prior_logits.bias).unflatten(-1, (self.stoch, self.classes))

    def prior(self, deter: Tensor) -> Tensor:
        """Log-probabilities (..., S, K) of z given h."""
        return unimix_logits(self._prior_logits(deter), self.unimix)

    def posterior(self, deter: Tensor, embedded: Tensor) -> Tensor:
        """Log-probabilities (..., S, K) of z given h and `embedded` = post_embed(embedding) (..., hidden)."""
        x = F.silu(self.post_norm(self.post_deter(deter) + embedded))
        return unimix_logits(self.post_logits(x).unflatten(-1, (self.stoch, self.classes)), self.unimix)

    def advance(self, deter: Tensor, stoch: Tensor | OneHot, action: Tensor) -> Tensor:
        """h' from (h, z, a); the action is divided by max(1, |a|) per entry."""
        action = action / action.abs().clamp(min=1.0).detach()
        return self._cell(deter, self.input(stoch, action), self.gru.weight)

    def _cell(self, deter: Tensor, x: Tensor, gru: Tensor | Tied) -> Tensor:
        """The GRU step (B, D) from h and the input layer's output."""
        product = times(torch.cat([deter, x], -1), gru)
        reset, candidate, update = self.gru_norm(product).chunk(3, -1)
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        update = torch.sigmoid(update - 1.0)
        return update * candidate + (1.0 - update) * deter

    def observe(self, embedding: Tensor, action: Tensor, is_first: Tensor, gumbel: Tensor,
                columns: bool = False) -> tuple[Tensor, Tensor | OneHot, Tensor, Tensor]:
        """Filter T steps.

        embedding (B, T, E); action (B, T, A), the action chosen AT each record; is_first (B, T); gumbel (B, T, S, K).
        The action consumed at t is that of t - 1; where is_first is set, state and action start anew. Returns deter
        (B, T, D), stoch (B, T, S*K), as a OneHot with `columns`, log posterior and log prior (B, T, S, K).
        """
        batch = is_first.shape[0]
        # What does not depend on the state leaves the loop; the weights in it get one gradient after it.
        embedded = linear(embedding, self.post_embed.weight).unbind(1)
        previous = torch.cat([torch.zeros_like(action[:, :1]), action[:, :-1]], 1)
        previous = previous / previous.abs().clamp(min=1.0) * (1.0 - is_first.to(action.dtype).unsqueeze(-1))
        z_weight, a_weight = self.input.linear.weight.split([self.stoch * self.classes, action.shape[-1]], 1)
        acted = F.linear(previous, a_weight).unbind(1)
        z_weight = Tied(z_weight, columns)
        gru, post_deter, post_logits = (Tied(m.weight) for m in (self.gru, self.post_deter, self.post_logits))
        if 'filter_step' in vars(self):  # compiled: by whom, `fosp_core.train.execution` knows
            gru, post_deter, post_logits = gru.weight, post_deter.weight, post_logits.weight
        deter0, stoch0 = self.initial_state(1)
        product0 = F.linear(stoch0, z_weight.weight)
        deter = product = None
        deters, stochs, posts = [], [], []
        for t, first in enumerate(self._resets(is_first)):
            if t == 0 or first is True:
                deter, product = deter0.expand(batch, -1), product0.expand(batch, -1)
            elif first is not None:
                deter, product = torch.where(first, deter0, deter), torch.where(first, product0, product)
            deter, classes, log_post = self.filter_step(deter, product + acted[t], embedded[t], gumbel[:, t], gru,
                                                        post_deter, post_logits)
            stoch = self._state(classes, log_post.exp(), columns)
            product = z_weight(stoch)
            deters.append(deter)
            stochs.append(stoch)
            posts.append(log_post)
        deter = torch.stack(deters, 1)
        stoch = OneHot.stack(stochs, 1) if columns else torch.stack(stochs, 1)
        return deter, stoch, torch.stack(posts, 1), self.prior(deter)

    def filter_step(self, deter: Tensor, product: Tensor, embedded: Tensor, gumbel: Tensor, gru: Tensor | Tied,
                    post_deter: Tensor | Tied, post_logits: Tensor | Tied) -> tuple[Tensor, Tensor, Tensor]:
        """From h, the input layer's product and the embedding's to h', classes (B, S) and log posterior (B, S, K)."""
        deter = self._cell(deter, F.silu(self.input.norm(product)), gru)
        x = F.silu(self.post_norm(times(deter, post_deter) + embedded))
        logits = times(x, post_logits) + self.post_logits.bias
        log_post = unimix_logits(logits.unflatten(-1, (self.stoch, self.classes)), self.unimix)
        return deter, (log_post.detach() + gumbel).argmax(-1), log_post

    @staticmethod
    def _resets(is_first: Tensor) -> list[Tensor | bool | None]:
        """For each step: which rows (B, 1) start anew; True for all and None for none, where that is known."""
        rows = is_first.bool().unsqueeze(-1).unbind(1)
        if is_first.device.type != 'cpu':
            return list(rows)  # looking would wait for the device
        return [True if row.all() else row if row.any() else None for row in rows]

    def _state(self, classes: Tensor, probs: Tensor, columns: bool) -> Tensor | OneHot:
        """z (B, S*K) of classes (B, S), with the gradient of probs (B, S, K)."""
        if columns:
            return OneHot.from_classes(classes, self.classes, probs if probs.requires_grad else None)
        return straight_through(classes, probs).flatten(-2)

    def imagine_step(self, deter: Tensor, stoch: Tensor | OneHot, action: Tensor,
                     uniform: Tensor) -> tuple[Tensor, Tensor | OneHot]:
        """One step of the prior dynamics: (B, D), (B, S*K), (B, A), noise (B, S) in [0, 1) -> (B, D), (B, S*K)."""
        deter = self.advance(deter, stoch, action)
        probs = unimix_probs(self._prior_logits(deter), self.unimix)
        return deter, self._state(sample_classes(probs.detach(), uniform), probs, isinstance(stoch, OneHot))
