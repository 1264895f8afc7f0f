# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The recurrent state and the decoder's losses in numpy: the GRU's gates, what each record sees, resets, weights."""

import numpy as np
import pytest
import torch

from fosp_core.config import Config
from fosp_core.contract import Contract
from fosp_core.nn.distributions import gumbel_like, sample_classes, twohot_bins, twohot_loss
from fosp_core.paths import config_file
from fosp_core.train.bench_step import random_replay
from fosp_core.train.learner import Learner

CONTRACT = Contract.load(config_file('contract_safereach.yaml'))


def model_of(*overrides):
    return Learner(CONTRACT, Config.load('debug', list(overrides)), seed=0).agent.world_model


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def layer_norm(x, module):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
    return x * module.weight.detach().numpy() + module.bias.detach().numpy()


def test_the_recurrent_step_is_the_released_gru_cell():
    """x = SiLU(LN(W[z, a / max(1, |a|)])); r, c, u of one product; h' = u tanh(r c) + (1 - u) h, u = sigmoid(. - 1)."""
    rssm, rng = model_of().rssm, np.random.default_rng(0)
    with torch.no_grad():
        for parameter in rssm.parameters():
            parameter.add_(0.3 * torch.from_numpy(rng.normal(size=parameter.shape)).float())
    h, z = rng.normal(size=(3, rssm.deter)), np.eye(rssm.classes)[rng.integers(0, rssm.classes, (3, rssm.stoch))]
    a = np.array([[0.5, -3.0, 1.0], [2.0, 0.1, -0.2], [-1.5, 0.0, 9.0]])
    clipped = a / np.maximum(1.0, np.abs(a))
    product = np.concatenate([z.reshape(3, -1), clipped], 1) @ rssm.input.linear.weight.detach().numpy().T
    x = layer_norm(product, rssm.input.norm)
    x = x * sigmoid(x)
    gates = layer_norm(np.concatenate([h, x], 1) @ rssm.gru.weight.detach().numpy().T, rssm.gru_norm)
    reset, candidate, update = np.split(gates, 3, 1)
    update = sigmoid(update - 1.0)
    expected = update * np.tanh(sigmoid(reset) * candidate) + (1.0 - update) * h
    found = rssm.advance(*(torch.from_numpy(v).float() for v in (h, z.reshape(3, -1), a)))
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=2e-5)


def test_a_record_sees_the_action_before_it_and_nothing_of_an_earlier_episode():
    rssm, generator = model_of().rssm, torch.Generator().manual_seed(0)
    with torch.no_grad():
        rssm.initial.copy_(torch.linspace(-2.0, 2.0, rssm.deter))
    embedding = torch.randn(2, 7, rssm.post_embed.in_features, generator=generator)
    action = 2.0 * torch.randn(2, 7, 3, generator=generator)
    gumbel = gumbel_like((2, 7, rssm.stoch, rssm.classes), generator, 'cpu')
    first = torch.zeros(2, 7, dtype=torch.bool)
    first[:, 0] = first[0, 3] = True        # one row alone starts anew there

    def states(embedding=embedding, action=action, first=first, part=slice(None)):
        return rssm.observe(embedding[:, part], action[:, part], first[:, part], gumbel[:, part])[0].detach()
    whole = states()
    for t in range(7):
        other = action.clone()
        other[:, t] *= -1.0
        changed = (states(action=other) - whole).abs().amax(-1) > 1e-6
        # Row 0: up to the end of its episode; row 1: all that follows. Never the record itself.
        assert changed[0].tolist() == [t < k and (k < 3) == (t < 3) for k in range(7)], t
        assert changed[1].tolist() == [t < k for k in range(7)], t
    begun = states(first=torch.ones(2, 7, dtype=torch.bool), part=slice(3, 4))
    torch.testing.assert_close(whole[0, 3], begun[0, 0])
    start = rssm.initial_state(2)
    np.testing.assert_allclose(start[0][0].detach().numpy(), np.tanh(np.linspace(-2.0, 2.0, rssm.deter)), atol=1e-6)
    step = rssm.advance(*start, torch.zeros(2, 3)).detach()
    torch.testing.assert_close(whole[:, 0], step, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole[0, 3], step[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(('scale', 'autoencode'), [(1.0, 2.0), (50.0, 0.5)])
def test_reconstruction_is_the_sum_of_squares_and_its_weights(scale, autoencode):
    """A decoder that says zero: pictures are in [-0.5, 0.5], a vector counts `vector_scale` times."""
    model = model_of(f'world_model.vector_scale={scale}', f'world_model.autoencode={autoencode}')
    numbers = random_replay(CONTRACT, 100).sample(2, 7, np.random.default_rng(0))
    with torch.no_grad():
        for layer in (model.decoder.convs[-1], model.decoder.vectors.output):
            layer.weight.zero_()
            layer.bias.zero_()
    batch = {k: torch.from_numpy(v) for k, v in numbers.items()}
    metrics = model.loss(batch, torch.zeros(2, 7, model.rssm.stoch, model.rssm.classes))[2]
    picture = ((numbers['image'] / 255.0 - 0.5) ** 2).sum((2, 3, 4))
    assert float(metrics['model/picture']) == pytest.approx(picture.mean(), rel=1e-4)
    assert float(metrics['model/autoencode']) == pytest.approx(autoencode * picture[:, ::3].mean(), rel=1e-4)
    assert float(metrics['model/vector']) == pytest.approx(scale * (numbers['ee_pose'] ** 2).sum(-1).mean(), rel=1e-4)


@pytest.mark.parametrize('upstream', [1.0, -2.0])
def test_gradient_of_the_twohot_loss(upstream):
    """Softmax minus the two weights, times what comes from above."""
    bins, logits = twohot_bins(255), torch.randn(3, 255, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = np.array([-3.0, 0.0, 10.0])
    (upstream * twohot_loss(logits, torch.tensor(targets, dtype=torch.float32), bins)).sum().backward()
    expected = np.exp(logits.detach().numpy())
    expected /= expected.sum(-1, keepdims=True)
    for row, weights in enumerate(({118: 0.802969, 119: 0.197031}, {127: 1.0}, {142: 0.773365, 143: 0.226635})):
        for index, weight in weights.items():
            expected[row, index] -= weight
    np.testing.assert_allclose(logits.grad.numpy(), upstream * expected, atol=1e-4)


def test_classes_are_drawn_by_inversion_and_gumbel_noise_is_gumbel():
    probs = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    for number, drawn in ((0.0, 0), (0.19, 0), (0.21, 1), (0.49, 1), (0.51, 2), (0.999999, 2)):
        assert sample_classes(probs, torch.tensor(number, dtype=torch.float64)).item() == drawn
    noise = gumbel_like((200_000,), torch.Generator().manual_seed(0), 'cpu')
    assert noise.mean().item() == pytest.approx(0.577216, abs=0.02)      # Euler's constant
    assert noise.var().item() == pytest.approx(np.pi ** 2 / 6, rel=0.03)
    assert (noise < 0).double().mean().item() == pytest.approx(np.exp(-1.0), abs=0.01)
