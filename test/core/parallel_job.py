# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One process of a parallel run, for test_parallel.py: `curve PACK OUT`, or `fault KIND RANK STEP ARG...`.

Rank, size and meeting point come from the environment, as torchrun sets them.
"""

import json
import os
import signal
import sys

from fosp_core.train import options

options.hush_transport()     # as the command does, before torch is loaded

import torch  # noqa: E402

from fosp_core import cli  # noqa: E402
from fosp_core.config import Config  # noqa: E402
from fosp_core.contract import Contract  # noqa: E402
from fosp_core.data.replay import Replay  # noqa: E402
from fosp_core.errors import DataError  # noqa: E402
from fosp_core.nn import parallel  # noqa: E402
from fosp_core.paths import config_file  # noqa: E402
from fosp_core.train.dataset import load_dataset  # noqa: E402
from fosp_core.train.distributed import processes  # noqa: E402
from fosp_core.train.features import FeatureReplay  # noqa: E402
from fosp_core.train.learner import Learner  # noqa: E402

COMMON = ['train.length=8', 'train.behaviour_batch=8', 'train.behaviour_length=6', 'constraint.lambda_init=0.1',
          'constraint.penalty_init=0.5']
# What is drawn, picked and averaged differs: with picked starts and all; with every loss of the presets.
CONFIGS = {
    'picked': [*COMMON, 'behaviour.imagine_starts=16'],
    'all': [*COMMON, 'behaviour.imagine_starts=0', 'world_model.autoencode=1.0', 'world_model.colour_weight=10.0',
            'behaviour.ema_regulariser=1.0', 'behaviour.reach_dropout=0.3', 'behaviour.reach_lam=0.9'],
    # With the cross-entropy an expectile's weight jumps where Q = V to rounding, as young critics have it by chance.
    'dynamics': [*COMMON, 'behaviour.actor_objective=dynamics', 'behaviour.in_sample=false',
                 'behaviour.value_loss=squared'],
}
UPDATES, BEHAVIOUR = 8, 4


def curve(pack: str) -> dict:
    """Train each configuration; return losses per step, and at the end every tensor's sum and mean square."""
    contract = Contract.load(config_file('contract_safereach.yaml'))
    replay, result = Replay(contract).extend(load_dataset([pack], contract), check=False), {}
    for name, overrides in CONFIGS.items():
        config = Config.load('debug', overrides)
        cfg, learner = config.train, Learner(contract, config)
        log = [learner.update(replay.sample(cfg.batch, cfg.length, learner.rng, parallel.share(cfg.batch)))
               for _ in range(UPDATES)]
        # The parts of the processes are summed: at a second draw each must begin at zero again.
        fresh = FeatureReplay(Learner(contract, config).agent, replay, keep=True)
        fresh.draw(torch.Generator().manual_seed(7))
        again = [float(x.double().square().sum()) for x in (fresh.deter, fresh.stoch)]
        features = FeatureReplay(learner.agent, replay)
        log += [learner.update_behaviour(*features.sample(cfg.behaviour_batch, cfg.behaviour_length, learner.rng,
                                                          parallel.share(cfg.behaviour_batch)))
                for _ in range(BEHAVIOUR)]
        ends = {k: [float(v.double().sum()), float(v.double().square().mean())]
                for k, v in learner.agent.state_dict().items()}
        result[name] = {'log': log, 'ends': ends, 'draws': [float(learner.rng.random()), float(
            torch.rand(1, generator=learner.generator))], 'features': float(features.deter.double().square().sum()),
            'again': again}
    return result


def fault(kind: str, rank: int, step: int, argv: list[str]) -> int:
    """Run the command; in process `rank`, `step` steps on, fail."""
    original = Learner.update

    def update(self, batch):
        if self.step == step and parallel.rank() == rank:
            if kind == 'kill':
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == 'error':
                raise DataError('the disk has gone')
            if kind == 'drift':
                with torch.no_grad():
                    self.agent.reach.net.output.bias.add_(1e-3)
        return original(self, batch)
    Learner.update = update
    return cli.main(argv)


if __name__ == '__main__':
    torch.set_num_threads(1)
    if sys.argv[1] == 'fault':
        sys.exit(fault(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:]))
    with processes('cpu'):
        found = curve(sys.argv[2])
        if not parallel.rank():
            with open(sys.argv[3], 'w') as stream:
                json.dump(found, stream)
