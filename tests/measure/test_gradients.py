"""Gradient direction statistics: exact values, loops over pairs, and a model left without a trace."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wellposed.measure import direction_error, direction_variance, gradient_direction_statistics


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


@pytest.fixture
def gradients():
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_exact_values():
    g = torch.randn(9, dtype=torch.float64)
    assert direction_variance(g.expand(4, 9) * torch.tensor([[1.0], [2], [3], [4]])).item() == pytest.approx(0)
    assert direction_variance(torch.stack([g, -3 * g])).item() == pytest.approx(1)
    assert direction_variance(torch.eye(6)).item() == pytest.approx(0.5)
    assert direction_error(torch.stack([g, -g]), g).item() == pytest.approx(0.5)
    assert direction_error(torch.stack([-g, -2 * g]), g).item() == pytest.approx(1)


def test_unrelated_directions_are_about_a_half_apart():
    g = torch.randn(20, 20000, generator=torch.Generator().manual_seed(0))
    assert direction_variance(g).item() == pytest.approx(0.5, abs=0.003)


def test_equal_their_definitions(gradients):
    rows = gradients.tolist()
    pairs = [(1 - cosine(rows[i], rows[j])) / 2 for i in range(5) for j in range(i)]
    assert direction_variance(gradients).item() == pytest.approx(sum(pairs) / 10)
    reference = gradients.sum(0)
    slow = sum((1 - cosine(row, reference.tolist())) / 2 for row in rows) / 5
    assert direction_error(gradients, reference).item() == pytest.approx(slow)


def test_a_zero_gradient_is_orthogonal_to_all():
    g = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    assert direction_variance(g).item() == pytest.approx((0 + 0.5 + 0.5) / 3)


def test_a_single_gradient_is_refused():
    with pytest.raises(ValueError, match="two gradients"):
        direction_variance(torch.ones(1, 3))
    with pytest.raises(ValueError, match="two batches"):
        gradient_direction_statistics(nn.Linear(2, 1), F.mse_loss, [(torch.ones(1, 2), torch.ones(1, 1))])
    with pytest.raises(ValueError, match="no trainable"):
        gradient_direction_statistics(nn.ReLU(), F.mse_loss, [])


def test_of_a_model_on_batches_of_different_sizes():
    """The reference is the gradient on all samples at once, not a mean over batches."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.arange(12) % 4
    batches = [(x[:9], y[:9]), (x[9:11], y[9:11]), (x[11:], y[11:])]

    def gradient(inputs, targets):
        found = torch.autograd.grad(F.cross_entropy(model(inputs), targets), list(model.parameters()))
        return torch.cat([g.flatten() for g in found])

    each = torch.stack([gradient(*batch) for batch in batches])
    statistics = gradient_direction_statistics(model, F.cross_entropy, batches)
    assert statistics.variance == pytest.approx(direction_variance(each).item(), abs=1e-12)
    assert statistics.error == pytest.approx(direction_error(each, gradient(x, y)).item(), abs=1e-12)


def test_dropout_acts_on_the_batches_and_not_on_the_reference():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5), nn.Linear(50, 4)).eval()
    x, y = torch.randn(12, 3), torch.arange(12) % 4
    same = gradient_direction_statistics(model, F.cross_entropy, [(x, y), (x, y)])
    assert same.variance > 1e-3
    model[1].p = 0.0
    assert gradient_direction_statistics(model, F.cross_entropy, [(x, y), (x, y)]) == pytest.approx((0, 0), abs=1e-9)


def test_leaves_no_trace():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2))
    model[1].eval()
    model[0].weight.grad = torch.ones(6, 3)
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    x, y = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    with torch.no_grad():
        gradient_direction_statistics(model, F.cross_entropy, [(x, y), (x, y)])
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(model[0].weight.grad, torch.ones(6, 3))
    assert model[3].weight.grad is None
    assert [m.training for m in model] == [True, False, True, True]


def test_parameters_that_take_no_part_count_zero():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, x):
            return self.used(x)

    model = Net()
    model.used.bias.requires_grad_(False)
    x = torch.randn(4, 2)
    found = gradient_direction_statistics(model, F.mse_loss, [(x[:2], x[:2, :1]), (x[2:], x[2:, :1])])
    assert 0 <= found.variance <= 1
