"""The sparsemax loss: its gradient, its margin, its binary form, the projection it comes from, and entmax's."""

import pytest
import torch
import torch.nn.functional as F

from wellposed.layers import sparsemax
from wellposed.losses import SparsemaxLoss


@pytest.fixture
def z():
    return 2 * torch.randn(12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def y():
    return torch.randint(6, (12,), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def q():
    return torch.rand(12, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64).softmax(1)


@pytest.mark.parametrize("soft", [False, True])
def test_the_gradient_is_sparsemax_minus_the_target_to_the_bit(z, y, q, soft):
    z = z.requires_grad_()
    target = q if soft else F.one_hot(y, 6).double()
    (grad,) = torch.autograd.grad(SparsemaxLoss(reduction="sum")(z, q if soft else y), z)
    shifted = z.detach() - z.detach().amax(1, keepdim=True)
    assert torch.equal(grad, sparsemax(shifted) - target)


@pytest.mark.parametrize("soft", [False, True])
def test_the_hessian_is_the_jacobian_of_sparsemax(z, y, q, soft):
    z, target = z[0], (q if soft else y)[:1]
    hessian = torch.autograd.functional.hessian(lambda v: SparsemaxLoss()(v[None], target), z)
    torch.testing.assert_close(hessian, torch.autograd.functional.jacobian(sparsemax, z))


def test_the_loss_is_a_difference_of_distances(z, q):
    """L = |z - q|^2 / 2 - min over the simplex of |z - p|^2 / 2."""
    p = sparsemax(z)
    by_distance = ((z - q) ** 2).sum(1) / 2 - ((z - p) ** 2).sum(1) / 2
    torch.testing.assert_close(SparsemaxLoss(reduction="none")(z, q), by_distance)


def test_the_paper_s_formula(z, y):
    got = SparsemaxLoss(reduction="none")(z, y)
    for row, target, value in zip(z.tolist(), y.tolist(), got.tolist(), strict=True):
        ordered = sorted(row, reverse=True)
        size = max(k for k in range(1, 7) if 1 + k * ordered[k - 1] > sum(ordered[:k]))
        tau = (sum(ordered[:size]) - 1) / size
        assert value == pytest.approx(sum(v * v - tau * tau for v in ordered[:size]) / 2 + 0.5 - row[target], abs=1e-12)


def test_zero_exactly_from_a_margin_of_one_on():
    y = torch.tensor([0])
    assert SparsemaxLoss()(torch.tensor([[3.0, 2.0, 1.0]]), y) == 0
    assert SparsemaxLoss()(torch.tensor([[1e4, -1e4, 0.0]]), y) == 0
    assert SparsemaxLoss()(torch.tensor([[3.0, 2.001, 1.0]]), y) > 0


def test_two_classes_give_the_modified_huber_loss():
    for s in (-3.0, -1.0, -0.4, 0.0, 0.7, 1.0, 2.5):
        huber = 0.0 if s >= 1 else -s if s <= -1 else (1 - s) ** 2 / 4
        z = torch.tensor([[0.3 + s, 0.3]], dtype=torch.float64)
        assert SparsemaxLoss()(z, torch.tensor([0])).item() == pytest.approx(huber, abs=1e-12)


def test_never_negative_and_zero_only_at_the_target(z, q):
    assert (SparsemaxLoss(reduction="none")(z, q) > 0).all()
    torch.testing.assert_close(SparsemaxLoss()(q + 7, q), torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_large_offset_costs_no_digits():
    z, y = torch.tensor([[0.5, 0.25, 0.0]]), torch.tensor([1])
    assert torch.equal(SparsemaxLoss()(z + 2**18, y), SparsemaxLoss()(z, y))


def test_per_sample_gradients_under_vmap(z, y):
    each = torch.func.vmap(torch.func.grad(lambda v, t: SparsemaxLoss()(v[None], t[None])))(z, y)
    torch.testing.assert_close(each, sparsemax(z) - F.one_hot(y, 6))


def test_agrees_with_entmax(z, y):
    entmax = pytest.importorskip("entmax")
    torch.testing.assert_close(SparsemaxLoss(reduction="none")(z, y), entmax.sparsemax_loss(z, y))
