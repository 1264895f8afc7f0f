# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Posterior states of a whole replay under a frozen world model, for the behaviour phase of pretraining.

Once the world model stands still, its states of a whole episode can be kept for many steps: at the latent's mode, which
is what the deployed graphs see, or drawn from the posterior, and then drawn anew now and then. A policy that always
sees the same state of a record learns that state by heart (docs/explanation/results.md).
"""

import numpy as np
import torch

from fosp_core.agent.agent import Agent
from fosp_core.data.episode import Episode
from fosp_core.data.mirror import mirrored, signs
from fosp_core.data.replay import Replay
from fosp_core.nn import parallel
from fosp_core.world_model.model import States

_CHUNK = 65536  # steps per message between processes
_TOGETHER, _STEPS = 16, 2048    # episodes that are filtered side by side at most, and steps of them with the padding
_KEPT = 2 << 30     # bytes of the encoder's output; what is beyond them is encoded again at each draw
_KEYS = ('action', 'reward', 'cost', 'is_first', 'is_terminal')


class FeatureReplay:
    """The replay's stream as deter (N, D), stoch (N, S*K), action (N, A) and scalars (N,), float32 on one device.

    Of a replay with `mirror` the stream goes on with each episode in the mirror: N is twice its steps. With a generator
    the latents are drawn from the posterior, without one they are its mode; `draw` does so again. The world model must
    not change in between. `keep`: the encoder's embeddings stay for the next draw, in each process as far as 2 GiB go.
    """

    def __init__(self, agent: Agent, replay: Replay, generator: torch.Generator | None = None, keep: bool = False):
        device = next(agent.parameters()).device
        self._agent, self._contract, self._count = agent, replay.contract, len(replay.episodes)
        self._episodes = episodes = replay.episodes * (2 if replay.mirror else 1)
        self._embedded: dict[int, torch.Tensor] = {}
        self._room = _KEPT if keep else 0
        rssm = agent.world_model.rssm
        self.deter = torch.zeros(sum(map(len, episodes)), rssm.deter, device=device)
        self.stoch = torch.zeros(len(self.deter), rssm.stoch * rssm.classes, device=device)
        # Where the windows may begin that are to hold a violation: anywhere in an episode that has one.
        number = np.repeat([e.violation for e in episodes], [len(e) for e in episodes])
        self.violating = np.flatnonzero(number)
        series = {k: np.concatenate([getattr(e, k) for e in episodes]) for k in _KEYS}
        series['action'][len(replay):] *= signs(replay.contract)['action']
        self.series = {k: torch.from_numpy(v).to(device) for k, v in series.items()}
        self.draw(generator)

    def draw(self, generator: torch.Generator | None = None) -> None:
        """Write deter and stoch anew: the latents drawn with the generator, or without one their mode."""
        rssm, device = self._agent.world_model.rssm, self.deter.device
        if parallel.size() > 1:     # summed below: the parts of others are theirs
            self.deter.zero_()
            self.stoch.zero_()
        end = 0
        for number, (first, last) in enumerate(_groups([len(e) for e in self._episodes])):
            some = self._episodes[first:last]
            shape = len(some), max(map(len, some)), rssm.stoch, rssm.classes
            # Also for the parts of other processes: the same noise, however many there are.
            gumbel = torch.zeros(shape, device=device) if generator is None else _gumbel(shape, generator)
            starts = end + np.cumsum([0, *map(len, some)])
            end = int(starts[-1])
            if number % parallel.size() != parallel.rank():
                continue  # another process's part
            for k, (deter, stoch) in enumerate(zip(*self._states(number, first, some, int(starts[0]), gumbel))):
                here = slice(int(starts[k]), int(starts[k + 1]))
                self.deter[here], self.stoch[here] = deter[:len(some[k])], stoch[:len(some[k])]
        for part in (*self.deter.split(_CHUNK), *self.stoch.split(_CHUNK)):
            parallel.total(part)

    @torch.no_grad()
    def _states(self, number: int, first: int, some: list[Episode], at: int,
                gumbel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Filter the B episodes from `first` on, of which the stream has the steps from `at` on, side by side.

        gumbel (B, T, S, K), T of the longest; returns deter (B, T, D), stoch (B, T, S*K), shorter ones padded.
        """
        agent, longest, device = self._agent, gumbel.shape[1], gumbel.device
        embedded = self._embedded.get(number)
        if embedded is None:
            turned = [mirrored(e, self._contract) if first + k >= self._count else e for k, e in enumerate(some)]
            names = [s.name for s in (*self._contract.cameras, *self._contract.vectors)]
            embedded = agent.world_model.encoder({
                name: _together([(e.images | e.vectors)[name] for e in turned], longest, device) for name in names})
            if sum(e.nbytes for e in self._embedded.values()) + embedded.nbytes <= self._room:
                self._embedded[number] = embedded
        lengths = [len(e) for e in some]
        action, is_first = (torch.nn.utils.rnn.pad_sequence(self.series[key][at:at + sum(lengths)].split(lengths),
                                                            batch_first=True) for key in ('action', 'is_first'))
        return agent.world_model.rssm.observe(embedded, action, is_first, gumbel)[:2]

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


def _groups(lengths: list[int]) -> list[tuple[int, int]]:
    """Return the first and the one after the last of each group of episodes; a long one stands alone."""
    found, first = [], 0
    for k in range(1, len(lengths) + 1):
        if k == len(lengths) or k - first == _TOGETHER or (k + 1 - first) * max(lengths[first:k + 1]) > _STEPS:
            found.append((first, k))
            first = k
    return found


def _gumbel(shape: tuple, generator: torch.Generator) -> torch.Tensor:
    uniform = torch.rand(shape, generator=generator, device=generator.device).clamp_(1e-10, 1 - 1e-7)
    return -torch.log(-torch.log(uniform))


def _together(arrays: list[np.ndarray], longest: int, device: torch.device) -> torch.Tensor:
    """Stack arrays (T_k, ...) as (B, longest, ...), with zeros behind the shorter ones."""
    out = np.zeros((len(arrays), longest, *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in zip(out, arrays):
        row[:len(array)] = array
    return torch.from_numpy(out).to(device)
