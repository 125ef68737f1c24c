"""Squentropy and the rescaled square loss, against loops and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from wellposed.losses import CrossEntropy, SquareLoss, Squentropy


@pytest.fixture
def z():
    return 2 * torch.randn(10, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def y():
    return torch.randint(4, (10,), generator=torch.Generator().manual_seed(1))


def slow_squentropy(row, target):
    wrong = [v for j, v in enumerate(row) if j != target]
    return math.log(sum(math.exp(v) for v in row)) - row[target] + sum(v * v for v in wrong) / len(wrong)


def slow_square(row, target, k, M):
    return sum(k * (v - M) ** 2 if j == target else v * v for j, v in enumerate(row)) / len(row)


def test_squentropy_equals_its_definition(z, y):
    by_hand = [slow_squentropy(row, t) for row, t in zip(z.tolist(), y.tolist(), strict=True)]
    torch.testing.assert_close(Squentropy(reduction="none")(z, y), torch.tensor(by_hand, dtype=torch.float64))


def test_squentropy_gradient(z, y):
    z = z.requires_grad_()
    (grad,) = torch.autograd.grad(Squentropy(reduction="sum")(z, y), z)
    p = z.detach().softmax(1)
    right = F.one_hot(y, 4).bool()
    torch.testing.assert_close(grad, torch.where(right, p - 1, p + 2 * z.detach() / 3))


def test_squentropy_of_two_classes_charges_the_other_logit(z):
    z, y = z[:, :2], torch.zeros(10, dtype=torch.int64)
    torch.testing.assert_close(Squentropy()(z, y), CrossEntropy()(z, y) + (z[:, 1] ** 2).mean())


def test_squentropy_sees_a_constant_added_to_the_logits(z, y):
    assert not torch.isclose(Squentropy()(z + 1, y), Squentropy()(z, y))


def test_squentropy_of_a_single_class_is_zero():
    assert Squentropy()(torch.tensor([[3.0]]), torch.tensor([0])) == 0


@pytest.mark.parametrize(("k", "M"), [(1.0, 1.0), (15.0, 1.0), (1.0, 30.0)])
def test_square_loss_equals_its_definition(z, y, k, M):
    by_hand = [slow_square(row, t, k, M) for row, t in zip(z.tolist(), y.tolist(), strict=True)]
    got = SquareLoss(k, M, reduction="none")(z, y)
    torch.testing.assert_close(got, torch.tensor(by_hand, dtype=torch.float64))


def test_plain_square_loss_is_mean_squared_error(z, y):
    torch.testing.assert_close(SquareLoss()(z, y), F.mse_loss(z, F.one_hot(y, 4).double()))


@pytest.mark.parametrize("loss", [Squentropy(), SquareLoss(3.0, 5.0)])
def test_linear_in_the_target_distribution(z, y, loss):
    other, share = y.roll(1), 0.3
    q = share * F.one_hot(y, 4).double() + (1 - share) * F.one_hot(other, 4)
    torch.testing.assert_close(loss(z, q), share * loss(z, y) + (1 - share) * loss(z, other))


@pytest.mark.parametrize("options", [(0.0, 1.0), (1.0, -2.0)])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="must be positive"):
        SquareLoss(*options)
