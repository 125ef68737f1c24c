"""Mixout and DropConnect: exact means, the exact price on a quadratic, and their relation to dropout."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wellposed.weights import DropConnect, Mixout
from wellposed.weights.reparametrize import source


def layer(*shape):
    torch.manual_seed(0)
    made = nn.Conv2d(shape[1], shape[0], shape[2:]) if len(shape) > 2 else nn.Linear(shape[1], shape[0])
    return made.double()


def moved(method, *shape, by=1.0, **options):
    """A layer under ``method`` whose weights have left their reference, its reference and its weights."""
    made = layer(*shape)
    u = made.weight.detach().clone()
    method.apply(made, **options)
    with torch.no_grad():
        source(made).add_(by * torch.randn(*shape, dtype=torch.float64))
    return made, u, source(made).detach().clone()


def test_each_weight_is_one_of_two_values():
    made, u, w = moved(Mixout(0.25), 20, 30)
    drawn = made.weight.detach()
    kept = (drawn - (w - 0.25 * u) / 0.75).abs() < 1e-12
    torch.testing.assert_close(drawn[~kept], u[~kept])
    assert 0.65 < kept.double().mean().item() < 0.85


def test_the_mean_is_the_weight():
    made, u, w = moved(Mixout(0.6), 4, 3)
    mean = torch.stack([made.weight.detach() for _ in range(20000)]).mean(0)
    spread = (w - u).abs() * (0.6 / 0.4 / 20000) ** 0.5
    assert ((mean - w).abs() < 5 * spread).all()


def test_at_the_reference_every_mask_returns_it():
    made, u, _ = moved(Mixout(0.9), 20, 30, by=0.0)
    assert all(torch.equal(made.weight, u) for _ in range(5))


def test_the_expected_price_on_a_quadratic_is_exact():
    """Over all 2^6 masks, E L(w') - L(w) = p / (2 (1 - p)) sum_j H_jj (w_j - u_j)^2."""
    p, g = 0.3, torch.Generator().manual_seed(1)
    root = torch.randn(6, 6, generator=g, dtype=torch.float64)
    hessian = root @ root.T
    made, u, w = moved(Mixout(p), 2, 3)

    def loss(v):
        return (v.flatten() @ hessian @ v.flatten() / 2).item()

    mean = 0.0
    for mask in product((0, 1), repeat=6):
        chance = p ** mask.count(0) * (1 - p) ** mask.count(1)
        with pytest.MonkeyPatch.context() as patch:
            kept = torch.tensor(mask, dtype=torch.float64).view(2, 3)
            patch.setattr(F, "dropout", lambda v, rate, kept=kept: v * kept / (1 - rate))
            mean += chance * loss(made.weight.detach())
    price = p / (2 * (1 - p)) * (hessian.diag() * (w - u).flatten().square()).sum().item()
    assert mean - loss(w) == pytest.approx(price, abs=1e-12)


def test_with_a_reference_of_zero_it_is_dropout_of_the_weights():
    made = layer(20, 30)
    Mixout(0.4).apply(made, reference={"weight": torch.zeros(20, 30)})
    torch.manual_seed(3)
    drawn = made.weight
    torch.manual_seed(3)
    assert torch.equal(drawn, F.dropout(source(made), 0.4))
    other = DropConnect(0.4).apply(layer(20, 30))
    torch.manual_seed(3)
    assert torch.equal(other.weight, drawn)


def test_columns_go_together():
    made, u, _ = moved(Mixout(0.5, columns=True), 20, 30)
    back = (made.weight.detach() - u).abs() < 1e-12
    assert torch.equal(back.all(0), back.any(0))
    assert 0 < back.all(0).sum() < 30
    made, u, _ = moved(Mixout(0.5, columns=True), 4, 12, 3, 3)
    back = ((made.weight.detach() - u).abs() < 1e-12).transpose(0, 1).flatten(1)
    assert torch.equal(back.all(1), back.any(1))
    assert 0 < back.all(1).sum() < 12


def test_columns_are_dropout_of_the_inputs_around_the_reference():
    """With u = 0 the layer equals dropout of its inputs, with one mask for the batch."""
    made = layer(5, 8)
    Mixout(0.5, columns=True).apply(made, reference={"weight": torch.zeros(5, 8)})
    x = torch.randn(3, 8, dtype=torch.float64)
    torch.manual_seed(4)
    output = made(x)
    torch.manual_seed(4)
    mask = F.dropout(torch.ones(1, 8, dtype=torch.float64), 0.5)
    torch.testing.assert_close(output, F.linear(x * mask, source(made), made.bias))


def test_the_gradient_carries_the_scale_of_the_mask():
    made, u, _ = moved(Mixout(0.5), 6, 6)
    drawn = made.weight
    (gradient,) = torch.autograd.grad(drawn.sum(), source(made))
    torch.testing.assert_close(gradient, ((drawn - u).abs() > 1e-12).double() * 2)


def test_evaluation_uses_the_weights_and_draws_nothing():
    made, _, w = moved(Mixout(0.9), 6, 6)
    made.eval()
    state = torch.get_rng_state()
    assert torch.equal(made.weight, w)
    assert torch.equal(torch.get_rng_state(), state)


def test_removing_leaves_the_weights_even_in_training():
    method = Mixout(0.9)
    made, _, w = moved(method, 6, 6)
    method.remove(made.train())
    assert torch.equal(made.weight, w)


def test_the_reference_is_kept_and_loaded():
    made, _, _ = moved(Mixout(), 6, 6)
    other = Mixout().apply(layer(6, 6).apply(lambda m: nn.init.zeros_(m.weight)))
    other.load_state_dict(made.state_dict())
    torch.manual_seed(5)
    drawn = made.weight
    torch.manual_seed(5)
    assert torch.equal(other.weight, drawn)


def test_a_given_reference_is_copied_from_names_of_weights():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    pretrained = {k: torch.full_like(v, 0.5) for k, v in model.state_dict().items()}
    Mixout(0.999).apply(model, reference=pretrained)
    pretrained["0.weight"].zero_()
    assert ((model[0].weight - 0.5).abs() < 1e-6).any()
    with pytest.raises(ValueError, match=r"no '1\.weight', did you mean '1\.weights'"):
        Mixout().apply(nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), reference={"1.weights": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"\(3, 2\).*\(2, 3\)"):
        Mixout().apply(nn.Linear(3, 2), reference={"weight": torch.zeros(3, 2)})


@pytest.mark.parametrize("method", [Mixout(0.5), DropConnect(0.5)], ids=lambda m: type(m).__name__)
def test_the_rate_can_be_driven_after_applying(method):
    made, _, w = moved(method, 6, 6)
    assert not torch.equal(made.weight, w)
    method.p = 0.0
    assert torch.equal(made.weight, w)


@pytest.mark.parametrize("method", [Mixout, DropConnect])
def test_rates_out_of_range_are_refused(method):
    for p in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"p={p}"):
            method(p)
