"""The exact gradient norm penalty: quadratics in closed form, and differences in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wellposed.penalties import GradientNorm


class Quadratic(nn.Module):
    """w^T A w / 2 for a fixed symmetric A."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        root = torch.randn(5, 5, generator=g, dtype=torch.float64)
        self.register_buffer("A", root @ root.T)
        self.w = nn.Parameter(torch.randn(5, generator=g, dtype=torch.float64))

    def forward(self):
        return self.w @ self.A @ self.w / 2


def test_quadratic_value_and_gradient():
    model = Quadratic()
    value = GradientNorm(0.3)(model, model())
    g = model.A @ model.w.detach()
    torch.testing.assert_close(value.detach(), 0.15 * g @ g)
    (gradient,) = torch.autograd.grad(value, model.w)
    torch.testing.assert_close(gradient, 0.3 * model.A @ g)


@pytest.mark.parametrize("eps", [0.1, 10.0])
def test_quadratic_gradient_is_the_difference_of_gradients_for_every_step(eps):
    """The finite-difference form is exact on quadratics, ascending and descending."""
    model = Quadratic()
    (gradient,) = torch.autograd.grad(GradientNorm(1.0)(model, model()), model.w)
    w = model.w.detach()
    g = model.A @ w
    torch.testing.assert_close(gradient, (model.A @ (w + eps * g) - g) / eps)
    torch.testing.assert_close(gradient, (g - model.A @ (w - eps * g)) / eps)


def test_value_equals_the_squared_norm_of_the_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    value = GradientNorm(0.5)(model, F.cross_entropy(model(x), y))
    F.cross_entropy(model(x), y).backward()
    slow = sum(v**2 for p in model.parameters() for v in p.grad.flatten().tolist())
    assert value.item() == pytest.approx(0.25 * slow, abs=1e-14)


def test_gradients_of_the_model_are_untouched_and_the_loss_can_still_be_differentiated():
    model = nn.Linear(3, 1)
    loss = model(torch.randn(5, 3)).square().mean()
    value = GradientNorm()(model, loss)
    assert model.weight.grad is None
    (loss + value).backward()
    assert model.weight.grad is not None


def test_frozen_and_unused_parameters_are_left_out():
    model = nn.ModuleDict({"used": nn.Linear(3, 1), "unused": nn.Linear(3, 1), "frozen": nn.Linear(3, 3)})
    model["frozen"].requires_grad_(False)
    x = torch.randn(5, 3)
    loss = model["used"](model["frozen"](x)).square().mean()
    alone = GradientNorm()(model["used"], loss)
    torch.testing.assert_close(GradientNorm()(model, loss), alone)


def test_a_loss_that_does_not_depend_on_the_model_is_refused():
    model = nn.Linear(3, 1)
    for loss in (torch.tensor(1.0), torch.ones((), requires_grad=True) * 2):
        with pytest.raises(ValueError, match="Linear"):
            GradientNorm()(model, loss)
    with pytest.raises(ValueError, match="Linear"):
        GradientNorm()(model.requires_grad_(False), torch.ones((), requires_grad=True) * 2)
