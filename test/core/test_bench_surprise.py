# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp bench surprise`: exact areas, changed pictures that are changed, and a comparison that can tell."""

import json
import types

import numpy as np
import pytest

from fosp_core import cli
from fosp_core.train import bench_surprise as bench


def test_area_under_the_curve_on_small_cases():
    assert bench.auc([1, 2, 3], [4, 5]) == 1.0 and bench.auc([1, 2, 3], [0.0]) == 0.0
    assert bench.auc([1, 2, 3], [2]) == 0.5 and bench.auc([1, 1], [1, 2]) == 0.75


def test_intervals_are_paired_and_hold_the_area():
    rng = np.random.default_rng(0)
    base, shift = rng.normal(size=80), rng.normal(1.0, 1.0, 60)
    # The same signal on another scale: not one draw of the difference may be off zero.
    rows = bench.auc_intervals({'kl': base, 'twin': 3 * base, 'blind': rng.normal(size=80)},
                               {'kl': shift, 'twin': 3 * shift, 'blind': rng.normal(size=60)}, draws=200)
    assert rows['kl']['ci'][0] < rows['kl']['auc'] < rows['kl']['ci'][1] and 'minus_kl_ci' not in rows['kl']
    assert rows['twin']['minus_kl_ci'] == [0.0, 0.0] and rows['blind']['minus_kl_ci'][1] < 0.0


def test_shifted_pictures(make_episode):
    pictures = make_episode(4).images['image']
    made = {kind: bench.shift_pictures(pictures, kind, np.random.default_rng(0)) for kind in bench.PICTURES}
    assert all(m.shape == pictures.shape and m.dtype == np.uint8 for m in made.values())
    np.testing.assert_array_equal(made['red-blue'][..., 0], pictures[..., 2])
    assert made['dark'].max() <= 127
    changed = (made['occluded'] != pictures).any((0, 3))
    assert changed.sum() <= 16 * 16 and (made['occluded'][:, changed] == 128).all()
    assert abs(np.std(made['noise'].astype(float) - pictures) - 20.0) < 5.0


def test_every_signal_of_a_random_model_is_told_and_it_repeats(tmp_path, make_episodes, write_bag, contract, capsys):
    pytest.importorskip('torch')
    from fosp_core.deploy.toy import make_toy
    toy = make_toy(tmp_path / 'toy')
    known = write_bag(tmp_path / 'known', contract, make_episodes([5] * 60))
    other = write_bag(tmp_path / 'other', contract, make_episodes([5] * 4, seed=500))
    argv = ['bench', 'surprise', '--model', str(toy.path), '--nominal', str(known), '--shifted', f'other={other}',
            '--members', '2', '--steps', '2', '--json', '-']
    told = []
    for _ in range(2):
        assert cli.main(argv) == 0
        told.append(json.loads(capsys.readouterr().out))
        del told[-1]['wall_s']
    assert told[0] == told[1]
    shifts = told[0]['shifts']
    assert list(shifts) == ['nominal', 'other', *bench.PICTURES] and set(told[0]['signals']) == set(bench.SIGNALS)
    assert (shifts['nominal']['n'], shifts['other']['n'], shifts['dark']['n']) == (20, 4, 20)
    for shift in list(shifts)[1:]:
        for name in bench.SIGNALS:
            cell = shifts[shift][name]
            assert 0.0 <= cell['ci'][0] <= cell['auc'] <= cell['ci'][1] <= 1.0 and 0.0 <= cell['found'] <= 1.0
    assert bench.table(shifts).count('\n') == len(shifts)
    assert cli.main([*argv[:-2], '--shifted', 'dark=x']) == 2 and 'a name of its own' in capsys.readouterr().err
    assert cli.main([*argv[:-2], '--members', '1']) == 2 and '--members 1' in capsys.readouterr().err
    assert cli.main([*argv[:4], '--nominal', str(other)]) == 2 and 'at least 60' in capsys.readouterr().err


def test_the_fitted_signals_see_what_they_should():
    """A predictor that learned a rule errs where the rule is broken; a Gaussian sees what lies outside its plane."""
    torch = pytest.importorskip('torch')
    generator = torch.Generator().manual_seed(0)

    def states(broken=False):
        feature = torch.randn(40, 4, generator=generator)
        embedding = torch.zeros(40, 3)
        embedding[1:, :2] = feature[:-1, :2] * (-1.0 if broken else 1.0)
        embedding[:, 2] = 0.1 * torch.randn(40, generator=generator) + (2.0 if broken else 0.0)
        return {'feature': feature, 'embedding': embedding, 'action': torch.zeros(40, 1), 'kl': torch.zeros(40),
                'picture': torch.zeros(40)}
    probe = bench.Probe(types.SimpleNamespace(eval=lambda: types.SimpleNamespace(world_model=None)), 3, 200, 0)
    probe.fit([states() for _ in range(20)])
    known, broken = probe.signals(states()), probe.signals(states(True))
    assert broken['ensemble_error'][1:].mean() > 5 * known['ensemble_error'][1:].mean()
    assert broken['embedding'].mean() > 10 * known['embedding'].mean() and known['ensemble'].shape == (40,)
