# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp collect` refuses the seeds that evaluation keeps for itself."""

import argparse

import pytest

from fosp_core.errors import FospError
from fosp_sim import collect


@pytest.mark.parametrize('seed', [999_995, 1_000_000, -1])
def test_evaluation_seeds_never_enter_a_data_set(seed, tmp_path):
    parser = argparse.ArgumentParser()
    collect.add_arguments(parser)
    args = parser.parse_args(['--episodes', '10', '--seed', str(seed), '--out', str(tmp_path / 'bag')])
    with pytest.raises(FospError, match='for evaluation alone'):
        collect.run(args)
    assert not (tmp_path / 'bag').exists()
