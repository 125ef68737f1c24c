"""Label smoothing and MaxSup: their identities, against loops in float64 and against torch."""

import math

import pytest
import torch
import torch.nn.functional as F

from wellposed.losses import CrossEntropy, LabelSmoothing, MaxSup


def slow_maxsup(z: torch.Tensor, y: torch.Tensor, alpha: float) -> float:
    """MaxSup from its definition, one number at a time."""
    total = 0.0
    for row, target in zip(z.tolist(), y.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(v) for v in row))
        total += log_sum - row[target] + alpha * (max(row) - sum(row) / len(row))
    return total / len(z)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(16, 5, generator=g, dtype=torch.float64), torch.randint(5, (16,), generator=g)


def test_maxsup_equals_its_definition(batch):
    z, y = batch
    assert MaxSup(0.3)(z, y).item() == pytest.approx(slow_maxsup(z, y, 0.3), abs=1e-12)


def test_alpha_zero_is_cross_entropy_to_the_bit(batch):
    z, y = batch
    assert torch.equal(MaxSup(0.0)(z, y), F.cross_entropy(z, y, reduction="none").mean())
    assert torch.equal(LabelSmoothing(0.0)(z, y), CrossEntropy()(z, y))


def test_maxsup_is_label_smoothing_where_the_prediction_is_right(batch):
    z, _ = batch
    y = z.argmax(1)
    torch.testing.assert_close(MaxSup(0.2)(z, y), F.cross_entropy(z, y, label_smoothing=0.2))


def test_maxsup_charges_errors_that_label_smoothing_rewards(batch):
    z, y = batch
    wrong = z.argmax(1) != y
    gap = MaxSup(0.2, reduction="none")(z, y) - LabelSmoothing(0.2, reduction="none")(z, y)
    assert (gap[wrong] > 0).all()
    torch.testing.assert_close(gap[~wrong], torch.zeros_like(gap[~wrong]))


def test_maxsup_gradient_of_the_charge(batch):
    z, y = batch
    z = z.requires_grad_()
    charge = MaxSup(0.5, reduction="none")(z, y) - F.cross_entropy(z, y, reduction="none")
    (grad,) = torch.autograd.grad(charge.sum(), z)
    torch.testing.assert_close(grad, 0.5 * (F.one_hot(z.argmax(1), 5).double() - 1 / 5))


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"alpha=-0\.1"):
        MaxSup(-0.1)
    with pytest.raises(ValueError, match=r"alpha=1\.5.*\[0, 1\]"):
        LabelSmoothing(1.5)
    with pytest.raises(ValueError, match="'average'"):
        MaxSup(reduction="average")
