"""Mixup: the ratio's distribution, the partner, and targets of every kind."""

import math

import pytest
import torch
import torch.nn.functional as F

from wellposed.data import Mixup
from wellposed.data.draws import beta


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    g = seeded(1)
    return torch.randn(40, 6, generator=g, dtype=torch.float64), torch.randint(4, (40,), generator=g)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 2.5])
def test_the_ratio_has_the_moments_of_beta(alpha):
    n = 40000
    draws = beta(alpha, n, seeded())
    variance = 1 / (4 * (2 * alpha + 1))
    fourth = 3 * variance**2 * (2 * alpha + 1) / (2 * alpha + 3)  # central, from the excess kurtosis -6 / (2 alpha + 3)
    assert draws.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(variance / n))
    assert draws.var().item() == pytest.approx(variance, abs=4 * math.sqrt((fourth - variance**2) / n))


def test_beta_is_uniform_at_one_and_an_arcsine_at_a_half():
    """Against the two distribution functions that are elementary: x, and 2 arcsin(sqrt x) / pi."""
    n = 20000
    grid = torch.arange(1, n + 1, dtype=torch.float64) / n
    uniform = beta(1.0, n, seeded()).sort().values
    arcsine = 2 / math.pi * beta(0.5, n, seeded()).sort().values.sqrt().asin()
    for cumulative in (uniform, arcsine):
        assert (cumulative - grid).abs().max().item() < 1.95 / math.sqrt(n)  # 99.9 % of Kolmogorov's distance


def test_a_tiny_alpha_draws_zeros_and_ones_and_never_nan():
    draws = beta(1e-4, 5000, seeded())
    assert torch.isfinite(draws).all()
    assert ((draws < 1e-6) | (draws > 1 - 1e-6)).double().mean() > 0.99
    assert draws.mean().item() == pytest.approx(0.5, abs=0.05)


def recover(x: torch.Tensor, mixed: torch.Tensor, i: int) -> list[tuple[int, float]]:
    """Partners and ratios that explain row ``i``, by trying every partner; a row left as it was has itself."""
    if torch.allclose(mixed[i], x[i]):
        return [(i, 1.0)]
    found = []
    for j in set(range(len(x))) - {i}:
        direction = x[i] - x[j]
        ratio = ((mixed[i] - x[j]) @ direction / (direction @ direction)).item()
        if torch.allclose(ratio * x[i] + (1 - ratio) * x[j], mixed[i]):
            found.append((j, ratio))
    return found


@pytest.mark.parametrize("per_sample", [False, True])
def test_inputs_and_targets_lie_on_the_same_place_of_the_same_line(batch, per_sample):
    x, y = batch
    mixed, targets = Mixup(2.0, per_sample=per_sample, num_classes=4, generator=seeded())(x, y)
    ratios, partners = [], []
    for i in range(len(x)):
        ((j, ratio),) = recover(x, mixed, i)
        expected = ratio * F.one_hot(y[i], 4) + (1 - ratio) * F.one_hot(y[j], 4)
        torch.testing.assert_close(targets[i], expected.double())
        partners.append(j)
        if j != i:
            ratios.append(ratio)
    assert sorted(partners) == list(range(len(x)))
    assert all(0 <= ratio <= 1 for ratio in ratios)
    spread = max(ratios) - min(ratios)
    assert spread > 0.1 if per_sample else spread < 1e-9


def test_probabilities_agree_with_indices_and_stay_probabilities(batch):
    x, y = batch
    from_indices = Mixup(1.0, num_classes=4, generator=seeded())(x, y)[1]
    from_rows = Mixup(1.0, generator=seeded())(x, F.one_hot(y, 4).double())[1]
    assert torch.equal(from_indices, from_rows)
    torch.testing.assert_close(from_rows.sum(1), torch.ones(40, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(40,), (40, 3)])
def test_real_targets_are_mixed_as_the_inputs_are(batch, shape):
    x, _ = batch
    weights = torch.randn(6, *shape[1:], dtype=torch.float64)
    mixed, targets = Mixup(1.0, generator=seeded())(x, x @ weights)
    torch.testing.assert_close(targets, mixed @ weights)


def test_a_batch_keeps_its_mean(batch):
    """A permutation and one ratio move mass between samples, not in or out of the batch."""
    x, y = batch
    mixed, targets = Mixup(1.0, num_classes=4, generator=seeded())(x, y)
    torch.testing.assert_close(mixed.mean(0), x.mean(0))
    torch.testing.assert_close(targets.mean(0), F.one_hot(y, 4).double().mean(0))


def test_half_precision_inputs_get_single_precision_probabilities(batch):
    x, y = batch
    mixed, targets = Mixup(1.0, num_classes=4)(x.bfloat16(), y)
    assert (mixed.dtype, targets.dtype) == (torch.bfloat16, torch.float32)


def test_alpha_zero_changes_nothing(batch):
    assert Mixup(0.0)(*batch)[0] is batch[0]


def test_indices_without_the_number_of_classes_are_refused(batch):
    with pytest.raises(ValueError, match="num_classes"):
        Mixup()(*batch)


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises((ValueError, TypeError)):
        Mixup(num_classes=2)(torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"alpha=-1\.0"):
        Mixup(-1.0)
