"""The loss between two models: closed forms, weights of batches, nothing changed."""

import copy

import pytest
import torch
from torch import nn

from wellposed.measure import interpolate_loss


def linear(weight: float) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, weight)
    return model


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(11, 1, dtype=torch.float64), torch.randn(11, 1, dtype=torch.float64)


def test_a_linear_model_gives_the_parabola(data):
    x, y = data
    found = interpolate_loss(linear(-1.0), linear(2.0), nn.MSELoss(), [(x, y)], points=5)
    weights = [-1.0, -0.25, 0.5, 1.25, 2.0]
    expected = [((w * x - y) ** 2).mean().item() for w in weights]
    assert found.losses.tolist() == pytest.approx(expected)
    assert found.alphas.tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_unequal_batches_weigh_by_their_size(data):
    x, y = data
    whole = interpolate_loss(linear(-1.0), linear(2.0), nn.MSELoss(), [(x, y)])
    parts = interpolate_loss(linear(-1.0), linear(2.0), nn.MSELoss(), list(zip(x.split(9), y.split(9), strict=True)))
    torch.testing.assert_close(whole.losses, parts.losses)


def test_a_convex_loss_has_no_barrier_and_two_signs_of_one_network_have_one(data):
    x, y = data
    assert interpolate_loss(linear(-1.0), linear(2.0), nn.MSELoss(), [(x, y)]).barrier == 0
    torch.manual_seed(1)
    a = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    b = copy.deepcopy(a)
    with torch.no_grad():
        for p in (b[0].weight, b[0].bias, b[2].weight):
            p.neg_()
    target = a(x).detach()
    found = interpolate_loss(a, b, nn.MSELoss(), [(x, target)], points=3)
    assert found.losses[0] == found.losses[-1] == 0
    assert found.barrier == pytest.approx((target - a[2].bias.detach()).square().mean().item())


def test_running_statistics_are_interpolated_and_nothing_is_written(data):
    x, y = data
    models = [nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1)).double() for _ in range(2)]
    with torch.no_grad():
        models[1][0].running_mean.fill_(2.0)
        models[1][1].load_state_dict(models[0][1].state_dict())
    before = [copy.deepcopy(m.state_dict()) for m in models]
    found = interpolate_loss(*models, nn.MSELoss(), [(x, y)], points=3)
    between = copy.deepcopy(models[0]).eval()
    between[0].running_mean.fill_(1.0)
    assert found.losses[1].item() == pytest.approx(nn.functional.mse_loss(between(x), y).item())
    for model, state in zip(models, before, strict=True):
        assert model.training
        assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())


def test_dropout_is_off(data):
    x, y = data
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(1, 1)).double()
    found = interpolate_loss(model, model, nn.MSELoss(), [(x, y)], points=2)
    assert found.losses[0].item() == pytest.approx(nn.functional.mse_loss(model[1](x), y).item())


def test_mistakes_are_named(data):
    x, y = data
    with pytest.raises(ValueError, match="differ"):
        interpolate_loss(linear(0.0), nn.Linear(1, 1).double(), nn.MSELoss(), [(x, y)])
    with pytest.raises(ValueError, match="points=1"):
        interpolate_loss(linear(0.0), linear(1.0), nn.MSELoss(), [(x, y)], points=1)
    with pytest.raises(ValueError, match="once for every point"):
        interpolate_loss(linear(0.0), linear(1.0), nn.MSELoss(), iter([(x, y)]))
