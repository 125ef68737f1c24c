"""Virtual adversarial training: closed forms, the Fisher matrix, and what must stay untouched."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wellposed.penalties import VAT


class Recorded(nn.Module):
    """A model that keeps the inputs of every pass."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.seen = inner, []

    def forward(self, x):
        self.seen.append(x.detach())
        return self.inner(x)


def mlp(dtype=torch.float64, *middle):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), *middle, nn.Linear(16, 4)).to(dtype)


def inputs(n=8, dtype=torch.float64):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(1), dtype=dtype)


def step_of(penalty, model, x):
    """The move of the inputs that the penalty ends with."""
    recorded = Recorded(model)
    penalty(recorded, x)
    return recorded.seen[-1] - x


def fisher_directions(model, x):
    """Top eigenvector of J^T (diag p - p p^T) J for each sample, by dense linear algebra."""
    found = []
    for sample in x:
        jacobian = torch.autograd.functional.jacobian(model, sample)
        p = model(sample).softmax(0).detach()
        fisher = jacobian.T @ (p.diag() - p.outer(p)) @ jacobian
        found.append(torch.linalg.eigh(fisher).eigenvectors[:, -1])
    return torch.stack(found)


def test_two_linear_classes_in_closed_form():
    model = nn.Linear(6, 2).double()
    w = (model.weight[0] - model.weight[1]).detach()
    x = inputs()
    r = step_of(VAT(eps=1.5), model, x)
    along = r @ w / w.norm()
    torch.testing.assert_close(along.abs(), torch.full_like(along, 1.5))
    torch.testing.assert_close(r, along[:, None] * w / w.norm())


def test_many_iterations_end_at_the_top_eigenvector_of_the_fisher_matrix():
    model, x = mlp(), inputs()
    top = fisher_directions(model, x)
    one, many = (step_of(VAT(eps=1.0, xi=1e-4, iterations=k), model, x) for k in (1, 100))
    torch.testing.assert_close((many * top).sum(1).abs(), torch.ones(8, dtype=torch.float64), atol=1e-4, rtol=0)
    assert (one * top).sum(1).abs().mean() < 0.999


def test_value_and_gradient_are_those_of_the_divergence_at_the_step():
    model, x = mlp(), inputs()
    recorded = Recorded(model)
    value = VAT(0.7, eps=2.0)(recorded, x)
    p = model(x).softmax(1).detach()
    expected = 0.7 * F.kl_div(model(recorded.seen[-1]).log_softmax(1), p, reduction="batchmean")
    torch.testing.assert_close(value, expected)
    found, wanted = (torch.autograd.grad(v, list(model.parameters())) for v in (value, expected))
    torch.testing.assert_close(found, wanted)


def test_never_negative_and_nothing_without_a_step_or_a_slope():
    model, x = mlp(), inputs()
    assert VAT(eps=0.5)(model, x).item() > 0
    assert VAT(eps=0.0)(model, x).item() == 0
    for parameter in model[-1].parameters():
        nn.init.zeros_(parameter)
    assert VAT()(model, x).item() == 0


def test_the_default_xi_finds_the_direction_in_float32_and_the_papers_does_not():
    model, x = mlp(), inputs(64)
    d = torch.randn(64, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float32)

    def direction(dtype, xi):
        """One step from the same start."""
        torch.manual_seed(3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn_like", d.to)
            return step_of(VAT(eps=1.0, xi=xi), model.to(dtype), x.to(dtype)).double()

    exact = direction(torch.float64, 1e-6)
    near, lost = (F.cosine_similarity(direction(torch.float32, xi), exact).mean().item() for xi in (VAT().xi, 1e-6))
    assert near > 0.99
    assert lost < 0.9


def test_dropout_draws_the_same_masks_in_every_pass():
    model = mlp(torch.float32, nn.Dropout(0.5)).train()
    x = inputs(dtype=torch.float32)
    assert VAT(eps=0.0)(model, x).item() == 0
    torch.manual_seed(4)
    torch.randn_like(x)
    model(x)
    after_one_pass = torch.get_rng_state()
    torch.manual_seed(4)
    VAT()(model, x)
    assert torch.equal(torch.get_rng_state(), after_one_pass)


def test_running_statistics_modes_and_gradients_stay_as_they_were():
    model = mlp(torch.float32, nn.BatchNorm1d(16)).train()
    x = inputs(dtype=torch.float32).requires_grad_()
    model[0].weight.grad = torch.ones(16, 6)
    before = copy.deepcopy(model.state_dict())
    VAT(iterations=2)(model, x)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(model[0].weight.grad, torch.ones(16, 6))
    assert model[0].bias.grad is None
    assert x.grad is None
    assert all(module.training for module in model.modules())


def test_autocast_does_not_change_the_direction():
    model, x = mlp(torch.float32), inputs(dtype=torch.float32)
    torch.manual_seed(5)
    plain = step_of(VAT(), model, x)
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16):
        cast = step_of(VAT(), model, x)
    assert torch.equal(cast, plain)


def test_images_are_moved_by_eps_a_sample():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    r = step_of(VAT(eps=2.5), model, torch.randn(7, 3, 6, 6))
    torch.testing.assert_close(r.flatten(1).norm(dim=1), torch.full((7,), 2.5))


def test_works_on_a_frozen_model_and_without_gradients():
    model, x = mlp().requires_grad_(False), inputs()
    assert VAT()(model, x).item() > 0
    with torch.no_grad():
        assert VAT()(model.requires_grad_(True), x).item() > 0


def test_a_masked_class_keeps_the_value_finite():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            return torch.cat([self.inner(x), x.new_full((len(x), 1), -torch.inf)], 1)

    model, x = Masked(), inputs()
    torch.manual_seed(6)
    value = VAT()(model, x)
    torch.manual_seed(6)
    torch.testing.assert_close(value, VAT()(model.inner, x))
    value.backward()
    assert torch.isfinite(model.inner[0].weight.grad).all()


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="int64"):
        VAT()(nn.Embedding(3, 4), torch.tensor([0, 1]))
    for options, message in (({"eps": -1.0}, "eps=-1"), ({"xi": 0.0}, "xi=0"), ({"iterations": 0}, "iterations=0")):
        with pytest.raises(ValueError, match=message):
            VAT(**options)
