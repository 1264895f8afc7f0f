# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the world model predicts with its eyes shut: records are seen, then only the recorded actions. For reports."""

import numpy as np
import torch

from fosp_core.agent.agent import Agent
from fosp_core.data.episode import Episode
from fosp_core.world_model.codec import stack_cameras


@torch.no_grad()
def open_loop(agent: Agent, episode: Episode, context: int = 5, horizon: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Return (truth, predicted), uint8 (n, H, W, 3) of the first camera, for n = context + at most `horizon` records.

    The first `context` predictions are reconstructions of what was seen. Latents are modes: no noise.
    """
    agent.eval()
    model = agent.world_model
    count = min(len(episode), context + horizon)
    batch = {k: torch.from_numpy(np.array(v[:count])).unsqueeze(0)
             for k, v in (episode.images | episode.vectors).items()}
    action = torch.from_numpy(episode.action[:count].copy()).unsqueeze(0)
    first = torch.from_numpy(episode.is_first[:context].copy()).unsqueeze(0)
    rssm = model.rssm
    seen = {k: v[:, :context] for k, v in batch.items()}
    deter, stoch, _, _ = rssm.observe(model.encoder(seen), action[:, :context], first,
                                      torch.zeros(1, context, rssm.stoch, rssm.classes))
    features = [torch.cat([deter, stoch], -1)[0]]
    deter, stoch = deter[:, -1], stoch[:, -1]
    for t in range(context, count):
        deter = rssm.advance(deter, stoch, action[:, t - 1])
        mode = rssm.prior(deter).argmax(-1)
        stoch = torch.nn.functional.one_hot(mode, rssm.classes).float().flatten(-2)
        features.append(torch.cat([deter, stoch], -1))
    pictures, _ = model.decoder(torch.cat(features))
    target = stack_cameras(model.decoder.contract, batch)

    def as_bytes(x: torch.Tensor) -> np.ndarray:
        return ((x[:, :3] + 0.5).clamp(0.0, 1.0) * 255.0).round().byte().permute(0, 2, 3, 1).numpy()
    return as_bytes(target), as_bytes(pictures)


def strip(truth: np.ndarray, predicted: np.ndarray, every: int = 3, scale: int = 2) -> np.ndarray:
    """Return one picture uint8 (3 H s, n W s, 3): truth, prediction and their difference, every `every` records."""
    difference = np.abs(truth.astype(np.int16) - predicted).astype(np.uint8)
    rows = [np.concatenate(list(x[::every]), 1) for x in (truth, predicted, difference)]
    return np.concatenate(rows, 0).repeat(scale, 0).repeat(scale, 1)
