# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Posterior states of a whole replay under a frozen world model, for the behaviour phase of pretraining.

Once the world model stands still, encoding a frame again and again teaches nothing: the states are computed once, over
whole episodes and at the latent's mode, which is exactly what the deployed graphs see.
"""

import numpy as np
import torch

from fosp_core.agent.agent import Agent
from fosp_core.data.mirror import mirrored, signs
from fosp_core.data.replay import Replay
from fosp_core.nn import parallel
from fosp_core.world_model.model import States

_CHUNK = 65536  # steps per message between processes
_KEYS = ('action', 'reward', 'cost', 'is_first', 'is_terminal')


class FeatureReplay:
    """The replay's stream as deter (N, D), stoch (N, S*K), action (N, A) and scalars (N,), float32 on one device.

    Of a replay with `mirror` the stream goes on with each episode in the mirror: N is twice its steps.
    """

    def __init__(self, agent: Agent, replay: Replay):
        device = next(agent.parameters()).device
        rssm = agent.world_model.rssm
        count = len(replay.episodes)
        episodes = replay.episodes * (2 if replay.mirror else 1)
        self.deter = torch.zeros(sum(map(len, episodes)), rssm.deter, device=device)
        self.stoch = torch.zeros(len(self.deter), rssm.stoch * rssm.classes, device=device)
        end = 0
        with torch.no_grad():
            for number, episode in enumerate(episodes):
                start, end = end, end + len(episode)
                if number % parallel.size() != parallel.rank():
                    continue  # another process's part
                if number >= count:
                    episode = mirrored(episode, replay.contract)
                # Copies: episodes of a packed folder are read-only, which torch warns of.
                batch = {k: torch.from_numpy(np.array(v)).unsqueeze(0).to(device)
                         for k, v in (episode.images | episode.vectors).items()}
                action = torch.from_numpy(np.array(episode.action)).unsqueeze(0).to(device)
                is_first = torch.from_numpy(np.array(episode.is_first)).unsqueeze(0).to(device)
                gumbel = torch.zeros(1, len(episode), rssm.stoch, rssm.classes, device=device)
                deter, stoch, _, _ = rssm.observe(agent.world_model.encoder(batch), action, is_first, gumbel)
                self.deter[start:end], self.stoch[start:end] = deter[0], stoch[0]
        for part in (*self.deter.split(_CHUNK), *self.stoch.split(_CHUNK)):
            parallel.total(part)
        # Where the windows may begin that are to hold a violation: anywhere in an episode that has one.
        number = np.repeat([e.violation for e in episodes], [len(e) for e in episodes])
        self.violating = np.flatnonzero(number)
        series = {k: np.concatenate([getattr(e, k) for e in episodes]) for k in _KEYS}
        series['action'][len(replay):] *= signs(replay.contract)['action']
        self.series = {k: torch.from_numpy(v).to(device) for k, v in series.items()}

    def __len__(self) -> int:
        return len(self.deter)

    def sample(self, batch: int, length: int, rng: np.random.Generator, rows: slice = slice(None),
               violating: bool = False) -> tuple[States, dict[str, torch.Tensor]]:
        """Return windows as in `Replay.sample`: states (B, L, ...) and the batch without its observations.

        With `violating` they begin in episodes with a violation.
        """
        if violating:
            start = self.violating[rng.integers(0, len(self.violating), size=batch)][rows]
        else:
            start = rng.integers(0, len(self), size=batch)[rows]
        index = torch.from_numpy((start[:, None] + np.arange(length)) % len(self)).to(self.deter.device)
        return States(self.deter[index], self.stoch[index]), {k: v[index] for k, v in self.series.items()}
