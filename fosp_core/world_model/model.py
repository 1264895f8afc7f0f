# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The world model: encoder, RSSM, decoder, reward, cost and continue heads, and their loss."""

import dataclasses

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fosp_core.config import NetworkConfig, WorldModelConfig
from fosp_core.contract import Contract
from fosp_core.nn.blocks import MLP
from fosp_core.nn.distributions import categorical_kl, twohot_bins, twohot_loss, twohot_mean
from fosp_core.nn.onehot import Feature, OneHot
from fosp_core.world_model.codec import Decoder, Encoder, stack_cameras
from fosp_core.world_model.rssm import RSSM


@dataclasses.dataclass
class States:
    """States: deter (..., D), stoch (..., S*K)."""

    deter: Tensor
    stoch: Tensor | OneHot

    @property
    def feature(self) -> Tensor | Feature:
        """(..., D + S*K)."""
        if isinstance(self.stoch, OneHot):
            return Feature(self.deter, self.stoch)
        return torch.cat([self.deter, self.stoch], -1)

    def to_columns(self, classes: int) -> 'States':
        """The same states with the latents of `classes` classes each as column numbers."""
        if isinstance(self.stoch, OneHot):
            return self
        return States(self.deter, OneHot.from_classes(self.stoch.unflatten(-1, (-1, classes)).argmax(-1), classes))

    def detach(self) -> 'States':
        """The same states as constants."""
        return States(self.deter.detach(), self.stoch.detach())


class WorldModel(nn.Module):
    """Learns q(z|h, o), p(z|h), o, reward, cost and continue from replay windows."""

    def __init__(self, contract: Contract, network: NetworkConfig, config: WorldModelConfig):
        super().__init__()
        self.contract, self.config = contract, config
        net = network
        self.encoder = Encoder(contract, net.cnn_depth, net.cnn_multipliers, net.vector_layers, net.vector_units)
        self.rssm = RSSM(self.encoder.size, contract.action.size, net.deter, net.stoch, net.classes, net.hidden,
                         net.unimix)
        feature = self.rssm.feature_size
        self.decoder = Decoder(contract, feature, net.cnn_depth, net.cnn_multipliers, net.vector_layers,
                               net.vector_units, net.decoder_norm)
        self.reward = MLP(feature, net.layers, net.units, net.bins, output_scale=0.0)
        self.cost = MLP(feature, net.layers, net.units, net.bins)
        self.cont = MLP(feature, net.layers, net.units, 1)
        with torch.no_grad():
            self.rssm.post_logits.weight.mul_(net.posterior_scale)
        # A short cut for learning alone: encoder and decoder learn to draw small objects through it at the speed of a
        # plain autoencoder, and the categorical latent then only has to carry what both already know.
        self.embed_feature = nn.Linear(self.encoder.size, feature) if config.autoencode else None
        self.register_buffer('bins', twohot_bins(net.bins), persistent=False)

    def loss(self, batch: dict[str, Tensor], gumbel: Tensor,
             columns: bool = False) -> tuple[Tensor, States, dict[str, Tensor]]:
        """Loss of B windows of T steps (algorithm.md 1.4, DreamerV3 with FOSP's cost weighting).

        Returns the scalar loss, the detached posterior states as (B, T, ...), and metrics. With `columns` the
        latents are kept as column numbers: the same numbers, in less time on a CPU.
        """
        cfg = self.config
        picture = stack_cameras(self.contract, batch)
        embedding = self.encoder(batch, picture)
        deter, stoch, log_post, log_prior = self.rssm.observe(embedding, batch['action'], batch['is_first'], gumbel,
                                                              columns)
        states = States(deter, stoch)
        feature = states.feature
        losses = self.decoder.loss(feature, batch, cfg.colour_weight, picture)
        if 'vector' in losses:
            losses['vector'] = cfg.vector_scale * losses['vector']
        if self.embed_feature is not None:
            part = {v.name: batch[v.name][:, ::3] for v in self.contract.vectors}
            third = picture.unflatten(0, embedding.shape[:2])[:, ::3].flatten(0, 1)
            straight = self.decoder.loss(self.embed_feature(embedding[:, ::3]), part, cfg.colour_weight, third)
            losses['autoencode'] = cfg.autoencode * straight['picture']
        losses['reward'] = twohot_loss(self.reward(feature), batch['reward'], self.bins)
        weight = torch.where(batch['cost'] >= 1.0, cfg.cost_weight, 1.0)
        losses['cost'] = weight * twohot_loss(self.cost(feature), batch['cost'], self.bins)
        cont = 1.0 - batch['is_terminal'].to(feature.dtype)
        losses['cont'] = F.binary_cross_entropy_with_logits(self.cont(feature).squeeze(-1), cont, reduction='none')
        dynamic = categorical_kl(log_post.detach(), log_prior)
        representation = categorical_kl(log_post, log_prior.detach())
        losses['dynamic'] = cfg.kl_dynamic * dynamic.clamp(min=cfg.free_nats)
        losses['representation'] = cfg.kl_representation * representation.clamp(min=cfg.free_nats)
        metrics = {f'model/{k}': v.mean().detach() for k, v in losses.items()}
        metrics['model/kl'] = dynamic.mean().detach()
        total = sum(v.mean() for v in losses.values())
        return total, states.detach(), metrics

    def predict_reward(self, feature: Tensor) -> Tensor:
        """Mean reward on arrival, (..., F) -> (...)."""
        return twohot_mean(self.reward(feature), self.bins)

    def predict_cost(self, feature: Tensor) -> Tensor:
        """Mean cost on arrival, (..., F) -> (...), not below 0."""
        return twohot_mean(self.cost(feature), self.bins).clamp(min=0.0)

    def predict_cont(self, feature: Tensor) -> Tensor:
        """Mode of the continue flag, 0 or 1, (..., F) -> (...)."""
        return (self.cont(feature).squeeze(-1) > 0).to(feature.dtype)
