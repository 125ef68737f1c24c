"""Decoupled mixup: a loop over the mixed classes, and what partners must not do to one another."""

import math

import pytest
import torch
import torch.nn.functional as F

from wellposed.losses import CrossEntropy, DecoupledMixup


@pytest.fixture
def z():
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def mixture(*shares):
    """Eight equal target distributions over five classes."""
    return torch.tensor([shares], dtype=torch.float64).expand(8, 5).clone()


def slow(row, q, eta):
    """From the definition, for any number of mixed classes."""
    mixed = [k for k, share in enumerate(q) if share > 0]
    log_sum = math.log(sum(math.exp(v) for v in row))
    total = -sum(q[k] * (row[k] - log_sum) for k in mixed)
    if len(mixed) > 1:
        rivals = sum(math.exp(v) for c, v in enumerate(row) if c not in mixed)
        total -= eta * sum(math.log(math.exp(row[a]) / (math.exp(row[a]) + rivals)) for a in mixed)
    return total


@pytest.mark.parametrize(
    "q",
    [
        (0.3, 0.0, 0.7, 0.0, 0.0),
        (0.5, 0.5, 0.0, 0.0, 0.0),
        (0.2, 0.0, 0.3, 0.0, 0.5),
        (0.1, 0.2, 0.3, 0.4, 0.0),
        (0.0, 0.0, 0.0, 1.0, 0.0),
    ],
)
@pytest.mark.parametrize("eta", [0.1, 2.0])
def test_equals_its_definition(z, q, eta):
    got = DecoupledMixup(eta, reduction="none")(z, mixture(*q))
    assert got.tolist() == pytest.approx([slow(row, q, eta) for row in z.tolist()], rel=1e-12)


def test_without_the_term_it_is_mixup_s_cross_entropy(z):
    q = mixture(0.3, 0.0, 0.7, 0.0, 0.0)
    assert torch.equal(DecoupledMixup(0.0)(z, q), CrossEntropy()(z, q))


def test_class_indices_and_pairs_of_one_class_give_cross_entropy(z):
    y = torch.arange(8) % 5
    assert torch.equal(DecoupledMixup()(z, y), CrossEntropy()(z, y))
    assert torch.equal(DecoupledMixup()(z, F.one_hot(y, 5).double()), CrossEntropy()(z, F.one_hot(y, 5).double()))


def test_no_competitors_no_term(z):
    two = torch.tensor([[0.3, 0.7]], dtype=torch.float64).expand(8, 2)
    torch.testing.assert_close(DecoupledMixup(5.0)(z[:, :2], two), CrossEntropy()(z[:, :2], two))
    smooth = mixture(0.92, 0.02, 0.02, 0.02, 0.02)
    torch.testing.assert_close(DecoupledMixup(5.0)(z, smooth), CrossEntropy()(z, smooth))
    masked = torch.cat([z[:, :2], torch.full((8, 3), -torch.inf, dtype=z.dtype)], 1).requires_grad_()
    got = DecoupledMixup(5.0)(masked, mixture(0.3, 0.7, 0.0, 0.0, 0.0))
    torch.testing.assert_close(got, CrossEntropy()(z[:, :2], two))
    assert torch.autograd.grad(got, masked)[0].isfinite().all()


def test_partners_do_not_compete(z):
    """Raising a partner's logit by x changes the term by that partner's own lead alone."""
    q = mixture(0.3, 0.0, 0.7, 0.0, 0.0)

    def term(v):
        return DecoupledMixup(1.0, reduction="sum")(v, q) - CrossEntropy(reduction="sum")(v, q)

    hessian = torch.autograd.functional.hessian(lambda v: term(v.expand(8, 5)), z[:1])[0, :, 0]
    assert hessian[0, 2].abs() < 1e-12
    assert hessian[0, 1].abs() > 1e-3


def test_the_share_does_not_weigh_the_term(z):
    def term(*q):
        return DecoupledMixup(1.0)(z, mixture(*q)) - CrossEntropy()(z, mixture(*q))

    torch.testing.assert_close(term(0.1, 0.9, 0.0, 0.0, 0.0), term(0.8, 0.2, 0.0, 0.0, 0.0))


def test_a_negative_multiplier_is_refused():
    with pytest.raises(ValueError, match=r"eta=-1\.0"):
        DecoupledMixup(-1.0)
