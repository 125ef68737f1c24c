"""The weight compander: its bounds, slope and limits, and the function it keeps."""

import math

import pytest
import torch
from torch import nn

from wellposed.weights import WeightCompander
from wellposed.weights.reparametrize import source


def companded(a=1.0, b=1.0, learnable=True):
    torch.manual_seed(0)
    return WeightCompander(a, b, learnable).apply(nn.Linear(8, 5).double())


def at(layer, v):
    """The weight when every trained value is ``v``."""
    with torch.no_grad():
        source(layer).fill_(v)
    return layer.weight[0, 0].item()


def test_bounded_odd_and_increasing():
    layer = companded(0.7, 0.3)
    values = [at(layer, v) for v in (-1e9, -2.0, -0.1, 0.0, 0.1, 2.0, 1e9)]
    assert values == sorted(values)
    assert len(set(values)) == 7
    assert values[3] == 0
    assert values == pytest.approx([-v for v in reversed(values)])
    assert values[-1] == pytest.approx(0.7 * math.pi / 2)
    assert values[4] == pytest.approx(0.7 * math.atan2(0.1, 0.3))


def test_slope_is_largest_at_zero_and_there_a_over_b():
    layer = companded(0.7, 0.3)
    slopes = []
    for v in (0.0, 0.3, 3.0):
        at(layer, v)
        (slope,) = torch.autograd.grad(layer.weight.sum(), source(layer))
        slopes.append(slope[0, 0].item())
    assert slopes == pytest.approx([0.7 / 0.3, 0.7 / 0.3 / 2, 0.7 / 0.3 / 101])


def test_wide_and_steep_alike_it_is_the_identity():
    layer = companded(1e6, 1e6)
    torch.testing.assert_close(source(layer).detach(), layer.weight.detach(), atol=1e-12, rtol=0)


def test_applying_keeps_the_weight_up_to_the_bound():
    layer = nn.Linear(1000, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, 1000) * (math.pi / 2 - 1e-4))
    before = layer.weight.detach().clone()
    WeightCompander().apply(layer)
    torch.testing.assert_close(layer.weight.detach(), before, atol=3e-7, rtol=0)


def test_weights_over_the_bound_are_refused_with_the_scale_that_would_do():
    layer = nn.Linear(4, 4)
    nn.init.constant_(layer.weight, 2.0)
    with pytest.raises(ValueError, match=r"'1' reach 2 .*above 1\.273"):
        WeightCompander().apply(nn.Sequential(nn.Linear(4, 4), layer))
    WeightCompander(a=1.28).apply(layer)


def test_the_pair_is_learnt_one_a_layer_and_stays_positive():
    layer = companded()
    optimizer = torch.optim.SGD(layer.parameters(), lr=5.0)
    for _ in range(50):
        optimizer.zero_grad()
        layer.weight.square().sum().backward()
        optimizer.step()
    pair = layer.parametrizations["weight"][0]
    assert pair.alpha.item() < 0
    assert math.exp(pair.alpha.item()) > 0
    assert layer.weight.abs().max() <= math.exp(pair.alpha.item()) * math.pi / 2


def test_fixed_pairs_are_not_parameters():
    names = dict(companded(learnable=False).named_parameters())
    assert set(names) == {"bias", "parametrizations.weight.original"}


def test_scales_must_be_positive():
    for options in ({"a": 0.0}, {"b": -1.0}, {"a": math.nan}):
        with pytest.raises(ValueError, match=next(iter(options))):
            WeightCompander(**options)
