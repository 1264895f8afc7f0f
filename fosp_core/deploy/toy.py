# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m fosp_core.deploy.toy OUT`: a debug-size bundle of random weights, for tests; its card says so."""

import sys
from pathlib import Path

from fosp_core.config import Config
from fosp_core.contract import Contract
from fosp_core.deploy.export import export_bundle
from fosp_core.paths import config_file
from fosp_core.train.learner import Learner

# Random weights learn nothing, and what they then do is chance.
GATES = [f'gates.{key}_margin=1.0' for key in ('risk', 'warned', 'estimate')]


def make_toy(out: Path, contract: Contract | None = None, seed: int = 0, version: str = 'toy'):
    """Write and return a toy bundle; its levels and its gates let everything pass."""
    contract = contract or Contract.load(config_file('contract_safereach.yaml'))
    learner = Learner(contract, Config.load('debug', GATES), seed=seed)
    learner.agent.freeze_offline()
    calibration = {'schema': 1, 'reachability': {'level': 1.0, 'alpha': 0.1, 'n': 1},
                   'surprise': {'level_slow': 1e9, 'level_stop': 1e9, 'alpha': 0.1, 'n': 1}, 'data_hash': 'none'}
    return export_bundle(learner.agent, Path(out), version=version, name='toy', calibration=calibration,
                         data_hash='none', seed=seed, steps=0, metrics={},
                         note='Random weights, for tests. Never for a robot.')


if __name__ == '__main__':
    print(make_toy(Path(sys.argv[1])).path)
