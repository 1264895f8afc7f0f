# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The fast forms of products, losses and samples against the plain formulas: same numbers, same gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from fosp_core.nn import products
from fosp_core.nn.blocks import MLP
from fosp_core.nn.distributions import sample_classes, twohot, twohot_bins, twohot_loss, unimix_probs
from fosp_core.nn.onehot import Feature, OneHot, Path
from fosp_core.nn.products import Tied, linear
from fosp_core.world_model.codec import squared_error

S, K, D, A = 6, 5, 7, 3     # variables, classes, deter, action


def assert_close(a, b, scale: float = 1.0):
    torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5 * scale)


def latent(generator, *lead) -> tuple[torch.Tensor, torch.Tensor]:
    """Class of each variable, and probabilities that carry a gradient."""
    probs = torch.softmax(torch.randn(*lead, S, K, generator=generator), -1).requires_grad_()
    return torch.randint(0, K, (*lead, S), generator=generator), probs


def dense(classes, probs) -> torch.Tensor:
    """The straight-through sample as the equations have it."""
    return (F.one_hot(classes, K).float() + probs - probs.detach()).flatten(-2)


def gradients(y, inputs, g) -> list[torch.Tensor]:
    return torch.autograd.grad(y, inputs, g, allow_unused=True)


@pytest.mark.parametrize('bias', [True, False])
def test_linear_of_any_layout_is_f_linear(bias):
    """A kernel that reads parts of a larger matrix as if they were whole would go unnoticed for a while."""
    generator = torch.Generator().manual_seed(0)
    big = torch.randn(300, 700, generator=generator)
    x = torch.randn(9, 40, 200, generator=generator).requires_grad_()
    w, b = big[:, 100:300].clone().requires_grad_(), torch.randn(300, generator=generator).requires_grad_()
    bias = b if bias else None
    assert x.numel() * len(w) > products.SMALL, 'too small for the other kernel: proves nothing'
    for weight in (w, big[:, 100:300], big[:, 100:300].t().contiguous().t()):     # whole, a part, a transpose
        for inputs in (x, x.transpose(0, 1), x[:, ::2]):
            y, reference = linear(inputs, weight, bias), F.linear(inputs, weight, bias)
            assert_close(y, reference, 20)
            g = torch.randn(y.shape, generator=generator)
            leaves = [v for v in (x, w, bias) if v is not None]
            if weight is w:
                for a, r in zip(gradients(y, leaves, g), gradients(reference, leaves, g)):
                    assert_close(a, r, 100)


def test_small_and_foreign_products_go_the_ordinary_way():
    x, w = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    assert torch.equal(linear(x, w), F.linear(x, w)) and linear(x, w).dtype == torch.float64
    x, w = torch.randn(1, 3000), torch.randn(2000, 3000)     # one row: no matrix product
    assert torch.equal(linear(x, w), F.linear(x, w))


@pytest.mark.parametrize('right', [True, False])
def test_layer_on_columns_is_the_layer_on_ones_and_zeros(right):
    generator = torch.Generator().manual_seed(1)
    classes, probs = latent(generator, 4, 8)
    deter = torch.randn(4, 8, D, generator=generator).requires_grad_()
    action = torch.randn(4, 8, A, generator=generator).requires_grad_() if right else None
    torch.manual_seed(0)
    net = MLP(D + S * K + (A if right else 0), 2, 16, 9)
    leaves = [v for v in (deter, probs, action) if v is not None] + list(net.parameters())
    parts = [deter, dense(classes, probs)] + ([action] if right else [])
    reference = net(torch.cat(parts, -1))
    y = net(Feature(deter, OneHot.from_classes(classes, K, probs)), action)
    assert_close(y, reference)
    g = torch.randn(y.shape, generator=generator)
    for a, r in zip(gradients(y, leaves, g), gradients(reference, leaves, g)):
        assert_close(a, r, 5)


def test_path_is_evaluated_step_by_step_to_the_same_end():
    generator = torch.Generator().manual_seed(2)
    steps = [Feature(torch.randn(4, D, generator=generator), OneHot.from_classes(*latent(generator, 4)[:1], K))
             for _ in range(3)]
    net, path = MLP(D + S * K, 2, 16, 2), Path(steps)
    assert_close(net(path), net(path.detach().dense()))
    assert_close(net(path[1:]), net(path.detach()[1:].dense()))


def test_carrier_gets_the_gradient_of_the_dense_rows():
    classes, probs = latent(torch.Generator().manual_seed(3), 4)
    hot = OneHot.from_classes(classes, K, probs)
    assert torch.equal(hot.detach().dense(), F.one_hot(classes, K).float().flatten(-2))
    (hot.dense() * torch.arange(S * K)).sum().backward()
    assert torch.equal(probs.grad, torch.arange(S * K).float().view(S, K).expand(4, S, K))


@pytest.mark.parametrize('columns', [True, False])
def test_tied_weight_gets_the_gradient_of_the_loop(columns):
    """One product for all uses, plus what reaches the weight on other ways."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(S * K, S * K, generator=generator)
    big = torch.nn.Parameter(torch.cat([weight] * 20, 0) / 10)     # above the size where tying pays
    assert big.numel() > products.SMALL_WEIGHT
    inputs = [latent(generator, 4) for _ in range(3)]
    leaves = [big] + [p for _, p in inputs]

    def loss(use, other):
        return sum((use(OneHot.from_classes(c, K, p) if columns and use is not plain else dense(c, p))
                    * (i + 1)).square().sum() for i, (c, p) in enumerate(inputs)) + other.square().sum()

    def plain(x):
        return F.linear(x, big)

    tied = Tied(big, columns)
    found = torch.autograd.grad(loss(tied, tied.weight), leaves)
    for a, r in zip(found, torch.autograd.grad(loss(plain, big), leaves)):
        assert_close(a, r, 100)


def test_tables_live_as_long_as_weights_are_constant():
    weight = torch.nn.Parameter(torch.randn(4, 6))
    with products.constant_weights():
        first = products.table(weight, 1, 3)
        assert products.table(weight, 1, 3) is first
        assert torch.equal(first, weight.detach()[:, 1:4].t())
    with torch.no_grad():
        weight.add_(1.0)
    assert torch.equal(products.table(weight, 1, 3), weight.detach()[:, 1:4].t())


def test_twohot_loss_without_the_bins_is_the_cross_entropy():
    generator, bins = torch.Generator().manual_seed(5), twohot_bins(255)
    logits = torch.randn(7, 11, 255, generator=generator).requires_grad_()
    target = torch.randn(7, 11, generator=generator) * 100
    target[0, :3] = torch.tensor([0.0, 1e12, -1e12])     # a bin's centre, and both ends
    reference = -(twohot(target, bins) * torch.log_softmax(logits, -1)).sum(-1)
    loss = twohot_loss(logits, target, bins)
    assert_close(loss, reference)
    g = torch.randn(loss.shape, generator=generator)
    assert_close(*(torch.autograd.grad(v, logits, g)[0] for v in (loss, reference)))
    moving = target.clone().requires_grad_()     # a target that learns must not be cut off silently
    assert torch.autograd.grad(twohot_loss(logits, moving, bins).sum(), moving)[0].abs().sum() > 0


def test_classes_are_drawn_by_inversion():
    generator = torch.Generator().manual_seed(6)
    probs = unimix_probs(torch.randn(50, S, K, generator=generator), 0.01)
    uniform = torch.rand(50, S, generator=generator)
    expected = [[np.searchsorted(np.cumsum(p.astype(np.float64)), u, side='right') for p, u in zip(ps, us)]
                for ps, us in zip(probs.numpy(), uniform.numpy())]
    assert (sample_classes(probs, uniform).numpy() == np.array(expected)).mean() > 0.99  # sums differ by rounding
    # A class without probability is never drawn, whatever the number.
    edge = torch.tensor([0.0, 0.5, 0.5, 0.0]).expand(3, 4)
    assert sample_classes(edge, torch.tensor([0.0, 0.5, 1.0 - 2 ** -24])).tolist() == [1, 2, 2]


def test_frequencies_are_the_probabilities():
    probs = unimix_probs(torch.tensor([2.0, 0.0, -1.0, -30.0]), 0.01)
    n = 200_000
    drawn = sample_classes(probs.expand(n, 4), torch.rand(n, generator=torch.Generator().manual_seed(7)))
    found = torch.bincount(drawn, minlength=4) / n
    deviation = (probs * (1 - probs) / n).sqrt()
    assert ((found - probs).abs() < 4 * deviation).all()


def test_squared_error_keeps_only_the_difference():
    generator = torch.Generator().manual_seed(8)
    picture = torch.randn(3, 8, 9, 2, generator=generator).permute(0, 3, 1, 2).requires_grad_()
    target = torch.randn(3, 2, 8, 9, generator=generator)
    reference = F.mse_loss(picture, target, reduction='none').sum((1, 2, 3))
    error = squared_error(picture, target)
    assert_close(error, reference)
    one, two = (torch.autograd.grad((e * torch.arange(1.0, 4.0)).sum(), picture)[0] for e in (error, reference))
    assert_close(one, two)
    assert one.is_contiguous(memory_format=torch.channels_last), 'the convolution would have to copy it'
