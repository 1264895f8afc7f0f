# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Oracle 8.16: from twenty mixed episodes of a tiny task to a better and safer policy, then online, on one core.

The task is drawn here: a point in the plane (64 x 64 picture), a goal line on the right, a disc in between that costs.
"""

import json

import cv2
import numpy as np
import pytest
import torch

from fosp_core.config import Config
from fosp_core.contract import Contract
from fosp_core.data.episode import Episode
from fosp_core.data.replay import MixedReplay, Replay
from fosp_core.deploy.graphs import PolicyGraph
from fosp_core.paths import config_file
from fosp_core.train.checkpoint import list_checkpoints, load_checkpoint
from fosp_core.train.learner import Learner
from fosp_core.train.pretrain import train_loop

CONTRACT = Contract.load(config_file('contract_safereach.yaml'))
GOAL, DISC, RADIUS, STEP, LIMIT = 0.85, np.array([0.5, 0.5]), 0.16, 0.06, 80
SIZES = {'deter': 32, 'stoch': 4, 'classes': 4, 'units': 16, 'cnn_depth': 8}


class Plane:
    """Observation: picture and (x, y, 0); action: displacement, its third entry idle."""

    steps_taken = 0

    def reset(self, seed: int) -> dict:
        self.place = np.array([0.12, np.random.default_rng([seed, 1]).uniform(0.5, 0.75)])
        self.time = 0
        return self._observe()

    def _observe(self) -> dict:
        picture = np.full((64, 64, 3), 60, np.uint8)
        picture[:, int(64 * GOAL):] = (220, 40, 40)
        for centre, radius, colour in ((DISC, RADIUS, (40, 200, 40)), (self.place, 0.05, (240, 240, 240))):
            cv2.circle(picture, tuple(int(round(63 * v)) for v in centre), int(round(63 * radius)), colour, -1)
        return {'image': picture, 'ee_pose': np.array([*self.place, 0.0], np.float32)}

    def step(self, action: np.ndarray) -> tuple[dict, float, float, bool, bool]:
        Plane.steps_taken += 1
        self.place = np.clip(self.place + STEP * np.clip(action[:2], -1, 1), 0.0, 1.0)
        self.time += 1
        reached = bool(self.place[0] >= GOAL)
        cost = float(np.linalg.norm(self.place - DISC) < RADIUS)
        return self._observe(), float(reached), cost, reached, self.time >= LIMIT


def run_episode(env: Plane, policy, seed: int) -> Episode:
    """`policy(observation, previous action, first) -> action`; one Episode in the arrival convention."""
    observation, previous, first = env.reset(seed), np.zeros(3, np.float32), True
    rows, end = [(observation, np.zeros(3, np.float32), 0.0, 0.0)], None
    while end is None:
        action = np.clip(policy(observation, previous, first), -1, 1).astype(np.float32)
        rows[-1] = (rows[-1][0], action, *rows[-1][2:])
        observation, reward, cost, terminal, truncated = env.step(action)
        rows.append((observation, np.zeros(3, np.float32), reward, cost))
        previous, first = action, False
        if terminal or truncated:
            end = terminal
    n = len(rows)
    last = np.arange(n) == n - 1
    return Episode(images={'image': np.stack([r[0]['image'] for r in rows])},
                   vectors={'ee_pose': np.stack([r[0]['ee_pose'] for r in rows])},
                   action=np.stack([r[1] for r in rows]),
                   reward=np.array([r[2] for r in rows], np.float32), cost=np.array([r[3] for r in rows], np.float32),
                   is_first=np.arange(n) == 0, is_last=last, is_terminal=last & end,
                   stamp=np.arange(n, dtype=np.int64) * 10 ** 8, step=np.arange(n, dtype=np.int64))


def demonstrator(kind: str, seed: int):
    """Safe goes around the disc, reckless straight to the line, lost drifts about."""
    rng, drift = np.random.default_rng([seed, 2]), np.zeros(2)

    def act(observation, previous, first):
        nonlocal drift
        place = observation['ee_pose'][:2].astype(float)
        drift = 0.8 * drift + 0.3 * rng.normal(size=2)
        wish = np.array([1.0, 0.0])
        if kind == 'safe':
            # Up first, then past the disc.
            wish = np.array([0.3 if place[1] < DISC[1] + RADIUS + 0.08 else 1.0, 0.0])
            wish[1] = 5.0 * (DISC[1] + RADIUS + 0.14 - place[1])
        wish = drift if kind == 'lost' else wish + drift / 2
        return np.array([*np.clip(wish, -1, 1), 0.0])
    return act


class Acting:
    """The deployed graph in torch, as the runtime drives it; `explore` samples the candidates."""

    def __init__(self, learner: Learner, seed: int, explore: bool = False):
        self.graph, self.rssm = PolicyGraph(learner.agent).eval(), learner.agent.world_model.rssm
        self.generator, self.explore = torch.Generator().manual_seed(seed), explore
        self.deter, self.stoch = torch.zeros(1, self.rssm.deter), torch.zeros(1, self.rssm.stoch * self.rssm.classes)
        self.indices: list[int] = []

    @torch.no_grad()
    def __call__(self, observation, previous, first) -> np.ndarray:
        noise = torch.randn(1, 2, 3, generator=self.generator) * float(self.explore)
        out = self.graph(torch.from_numpy(observation['image'])[None], torch.from_numpy(observation['ee_pose'])[None],
                         torch.from_numpy(previous)[None], torch.tensor([[float(first)]]), self.deter, self.stoch,
                         torch.zeros(1, self.rssm.stoch, self.rssm.classes), noise,
                         torch.rand(1, 1, generator=self.generator))
        named = dict(zip(self.graph.outputs, out))
        self.deter, self.stoch = named['deter_next'], named['stoch_next']
        self.indices.append(int(named['index']))
        return named['action'][0].numpy()


def rates(episodes: list[Episode]) -> tuple[float, float]:
    """Mean return and violation rate."""
    return (float(np.mean([e.reward.sum() for e in episodes])), float(np.mean([e.violation for e in episodes])))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_mixed_episodes_make_a_better_and_safer_policy(tmp_path):
    torch.set_num_threads(1)
    config = Config.load('debug', [
        'train.steps=500', 'train.behaviour_steps=2000', 'train.behaviour_batch=48', 'train.log_every=5',
        'train.save_every=5000', 'behaviour.beta_reward=10', 'behaviour.beta_cost=10', 'expansion.online_lr_scale=0.1'])
    assert {k: getattr(config.network, k) for k in SIZES} == SIZES
    assert (config.train.batch, config.train.length) == (8, 12)
    env = Plane()
    kinds = ('safe', 'reckless', 'lost', 'safe', 'lost')
    data = [run_episode(env, demonstrator(kinds[i % 5], i), i) for i in range(20)]
    data_return, data_violations = rates(data)
    assert 0.3 < data_return < 0.9 and 0.3 < data_violations < 0.8, 'the data must be of mixed quality'

    # Offline: no environment step is taken.
    taken = Plane.steps_taken
    learner = Learner(CONTRACT, config)
    train_loop(learner, Replay(CONTRACT).extend(data), tmp_path, {'data_hash': 'plane'})
    assert Plane.steps_taken == taken
    losses = [m['model/loss'] for m in map(json.loads, (tmp_path / 'metrics.jsonl').read_text().splitlines())
              if 'model/loss' in m]
    assert len(losses) == 100 and np.mean(losses[-10:]) < 0.5 * np.mean(losses[:2])
    learner.agent.freeze_offline()
    tried = [run_episode(env, Acting(learner, i), 1000 + i) for i in range(20)]
    offline_return, offline_violations = rates(tried)
    print(f'data return {data_return:.2f} violations {data_violations:.2f}; '
          f'policy {offline_return:.2f} {offline_violations:.2f}; model loss {losses[0]:.1f} to {losses[-1]:.1f}')
    assert offline_return > data_return and offline_violations < data_violations

    # A checkpoint that is read back acts the same, bit for bit.
    resumed = Learner(CONTRACT, config, seed=77)
    load_checkpoint(list_checkpoints(tmp_path / 'checkpoints')[-1], resumed)
    resumed.agent.freeze_offline()
    again = run_episode(env, Acting(resumed, 5, explore=True), 1005)
    assert np.array_equal(run_episode(env, Acting(learner, 5, explore=True), 1005).action, again.action)

    # Online: ten episodes, a few gradient steps after each, none while it runs.
    learner.begin_online()
    online, replay, acted = Replay(CONTRACT), Replay(CONTRACT).extend(data), []
    for i in range(10):
        policy = Acting(learner, 50 + i, explore=True)
        episode = run_episode(env, policy, 2000 + i)
        acted += policy.indices
        online.add(episode)
        learner.end_episode(float(episode.cost.sum()), identity=i + 1)
        for _ in range(3):
            metrics = learner.update(MixedReplay(replay, online).sample(8, 12, learner.rng))
            assert all(np.isfinite(v) for v in metrics.values())
    assert np.isfinite(np.concatenate([e.action for e in online.episodes])).all() and set(acted) == {0, 1}
