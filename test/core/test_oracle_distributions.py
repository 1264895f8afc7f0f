# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Symlog, two-hot, KL and unimix against hand-computed numbers (oracles 8.1 and 8.10)."""

import pytest
import torch

from fosp_core.nn.distributions import (
    categorical_kl,
    sample_onehot,
    symexp,
    symlog,
    twohot,
    twohot_bins,
    twohot_loss,
    twohot_mean,
    unimix_logits,
)

BINS = twohot_bins(255)


@pytest.mark.parametrize(('x', 'y'), [(1.0, 0.693147), (-3.0, -1.386294), (99.0, 4.605170)])
def test_symlog_and_inverse(x, y):
    value = symlog(torch.tensor(x))
    assert value.item() == pytest.approx(y, abs=1e-6)
    assert symexp(value).item() == pytest.approx(x, rel=1e-6)


@pytest.mark.parametrize(('x', 'weights'), [
    (0.0, {127: 1.0}), (1.0, {131: 0.598515, 132: 0.401485}), (-3.0, {118: 0.802969, 119: 0.197031}),
    (10.0, {142: 0.773365, 143: 0.226635}), (99.0, {156: 0.757169, 157: 0.242831})])
def test_twohot_weights_and_decoding(x, weights):
    out = twohot(torch.tensor(x), BINS)
    assert (BINS[1] - BINS[0]).item() == pytest.approx(0.157480315, abs=2e-6)
    for index, weight in weights.items():
        assert out[index].item() == pytest.approx(weight, abs=2e-5)
    assert out.sum().item() == pytest.approx(1.0, abs=1e-6)
    assert symexp((out * BINS).sum()).item() == pytest.approx(x, rel=1e-4, abs=1e-5)


def test_zero_logits_decode_to_zero_and_ends_clip():
    assert abs(twohot_mean(torch.zeros(255), BINS).item()) < 1e-5
    assert twohot(torch.tensor(1e12), BINS)[254].item() == pytest.approx(1.0)
    assert twohot(torch.tensor(-1e12), BINS)[0].item() == pytest.approx(1.0)


def test_twohot_loss_is_least_at_the_target():
    target = torch.tensor([2.5])
    logits = torch.log(twohot(target, BINS) + 1e-9)
    assert twohot_loss(logits, target, BINS) < twohot_loss(torch.zeros(1, 255), target, BINS)


def test_kl_of_one_variable_and_of_48():
    post, prior = torch.log(torch.tensor([[0.9, 0.1]])), torch.log(torch.tensor([[0.5, 0.5]]))
    assert categorical_kl(post, prior).item() == pytest.approx(0.368064, abs=1e-6)
    assert categorical_kl(post.expand(48, 2), prior.expand(48, 2)).item() == pytest.approx(17.667082, abs=1e-4)
    assert categorical_kl(post, post).item() == 0.0


def test_unimix_bounds_probabilities():
    logits = torch.full((48,), -100.0)
    logits[3] = 100.0
    probs = unimix_logits(logits, 0.01).exp()
    assert probs.min().item() == pytest.approx(2.08333e-4, rel=1e-4)
    assert probs.max().item() == pytest.approx(0.990208, abs=1e-6)


def test_onehot_sample_is_the_mode_without_noise_and_passes_gradients():
    logits = torch.tensor([[0.1, 2.0, -1.0]], requires_grad=True)
    sample = sample_onehot(unimix_logits(logits, 0.01), torch.zeros(1, 3))
    assert sample.argmax().item() == 1 and sample.sum().item() == pytest.approx(1.0)
    (sample * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert logits.grad.abs().sum() > 0
