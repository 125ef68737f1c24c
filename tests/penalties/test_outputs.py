"""Penalties on the outputs: closed forms, and loops in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import brentq

from wellposed.penalties import ClassSpectralDecoupling, OutputEntropy, SpectralDecoupling


@pytest.fixture
def z():
    return torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_spectral_decoupling_equals_its_definition(z):
    slow = sum((v - 0.5) ** 2 for row in z.tolist() for v in row) / 12
    assert SpectralDecoupling(0.3, offset=0.5)(z).item() == pytest.approx(0.15 * slow, abs=1e-12)


def test_with_one_logit_it_is_half_of_the_authors_mean_square():
    y = torch.randn(9, 1, dtype=torch.float64)
    torch.testing.assert_close(SpectralDecoupling(0.2)(y), 0.1 * (y**2).mean())
    torch.testing.assert_close(SpectralDecoupling(0.2)(y[:, 0]), 0.1 * (y**2).mean())


def test_its_gradient_is_proportional_to_the_logits(z):
    z.requires_grad_()
    SpectralDecoupling(0.3)(z).backward()
    torch.testing.assert_close(z.grad, 0.3 * z.detach() / 12)


@pytest.mark.parametrize("strength", [0.01, 0.1, 1.0])
def test_the_best_margin_is_finite(strength):
    """The logistic loss with the penalty is stationary where sigmoid(-m) = strength * m."""
    root = brentq(lambda v: 1 / (1 + math.exp(v)) - strength * v, 0, 100, xtol=1e-14)
    m = torch.tensor([[root]], dtype=torch.float64, requires_grad=True)
    (F.softplus(-m).sum() + SpectralDecoupling(strength)(m)).backward()
    assert abs(m.grad.item()) < 1e-12


def test_class_form_equals_its_definition(z):
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 0, 1, 1, 2])
    offsets, weights = (0.5, 2.0, -1.0), (1.0, 3.0, 0.5)
    slow = 0.0
    for c in range(3):
        rows = [row for row, target in zip(z.tolist(), y.tolist(), strict=True) if target == c]
        slow += weights[c] * sum((v - offsets[c]) ** 2 for row in rows for v in row) / len(rows)
    penalty = ClassSpectralDecoupling(0.3, offsets, weights, num_classes=3)
    assert penalty(z, y).item() == pytest.approx(0.15 * slow, abs=1e-12)


def test_class_form_on_balanced_classes_is_the_plain_one(z):
    y = torch.arange(12) % 4
    balanced = ClassSpectralDecoupling(0.3, 0.5, 0.25, num_classes=4)
    torch.testing.assert_close(balanced(z, y), SpectralDecoupling(0.3, offset=0.5)(z))


def test_an_absent_class_adds_nothing(z):
    y = torch.zeros(12, dtype=torch.int64)
    torch.testing.assert_close(
        ClassSpectralDecoupling(0.3, (0.0, 9.0), num_classes=2)(z, y), SpectralDecoupling(0.3)(z)
    )


def test_class_options_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"offsets=\(0.0, 1.0\).*3"):
        ClassSpectralDecoupling(0.1, (0.0, 1.0), num_classes=3)
    with pytest.raises(ValueError, match="weights"):
        ClassSpectralDecoupling(0.1, 0.0, (-1.0, 1.0), num_classes=2)


def test_entropy_equals_that_of_the_distribution(z):
    expected = torch.distributions.Categorical(logits=z).entropy().mean()
    torch.testing.assert_close(OutputEntropy(0.7)(z), 0.7 * expected)


def test_entropy_is_largest_for_equal_logits_and_none_for_a_sure_prediction():
    assert OutputEntropy()(torch.zeros(3, 5, dtype=torch.float64)).item() == pytest.approx(math.log(5))
    assert OutputEntropy()(torch.tensor([[200.0, 0.0]])).item() == 0


def test_a_masked_class_counts_nothing_in_the_entropy():
    z = torch.tensor([[0.3, -0.7, -torch.inf]], dtype=torch.float64, requires_grad=True)
    value = OutputEntropy()(z)
    torch.testing.assert_close(value, OutputEntropy()(z[:, :2]))
    value.backward()
    assert torch.isfinite(z.grad).all()


def test_half_precision_is_promoted():
    z = torch.full((2, 4), 300.0, dtype=torch.float16)
    assert SpectralDecoupling(2.0)(z).item() == 4 * 300.0**2
    assert OutputEntropy()(z).dtype == torch.float32
