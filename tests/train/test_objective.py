"""The objective of a batch: losses, weights, penalties, and what they are charged."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wellposed.train.batches import Batch
from wellposed.train.objective import Clock, Objective

CLOCK = Clock(0, 0, 0.0)


@pytest.fixture
def batch(table):
    return Batch(table[0].double(), table[1], torch.arange(26))


@pytest.fixture
def model(mlp):
    return mlp(torch.float64)


class WeightNorm(nn.Module):
    def __init__(self, strength=0.1):
        super().__init__()
        self.strength = strength
        self.calls = 0

    def forward(self, model):
        self.calls += 1
        return self.strength * sum(p.square().sum() for p in model.parameters())


class OutputNorm(nn.Module):
    def forward(self, outputs):
        return 0.2 * outputs.square().sum(1).mean()


def gradients(objective, batch, **options):
    objective.model.zero_grad()
    value = objective(batch, CLOCK, **options)
    value.backward()
    return value.detach(), [p.grad.clone() for p in objective.model.parameters()]


def assert_same(a, b):
    torch.testing.assert_close(a[0], b[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a[1], b[1], rtol=1e-10, atol=1e-12)


def test_is_the_loss_plus_the_penalties(model, batch):
    objective = Objective(model, model, nn.CrossEntropyLoss(), [WeightNorm(), OutputNorm()])
    z = model(batch.inputs)
    norm = sum(float((p.detach() ** 2).sum()) for p in model.parameters())
    expected = F.cross_entropy(z, batch.targets) + 0.2 * (z**2).sum(1).mean() + 0.1 * norm
    torch.testing.assert_close(objective(batch, CLOCK), expected)


@pytest.mark.parametrize("penalty", [WeightNorm(0.0)], ids=["strength 0"])
def test_a_penalty_without_strength_is_not_called(model, batch, penalty):
    plain = gradients(Objective(model, model, nn.CrossEntropyLoss()), batch)
    with_it = gradients(Objective(model, model, nn.CrossEntropyLoss(), [penalty]), batch)
    assert penalty.calls == 0
    assert torch.equal(plain[0], with_it[0])
    assert all(torch.equal(a, b) for a, b in zip(plain[1], with_it[1], strict=True))
    penalty.strength = 0.1
    assert not torch.equal(plain[0], gradients(Objective(model, model, nn.CrossEntropyLoss(), [penalty]), batch)[0])


def test_a_share_scales_what_depends_on_the_batch_only(model, batch):
    objective = Objective(model, model, nn.CrossEntropyLoss(), [WeightNorm(), OutputNorm()])
    whole, half = objective(batch, CLOCK), objective(batch, CLOCK, 0.5)
    rest = objective(batch, CLOCK, 0.5, once=False)
    torch.testing.assert_close(half - rest, WeightNorm()(model))
    torch.testing.assert_close(whole - WeightNorm()(model), 2 * rest)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
class TestWeights:
    def test_whole_numbers_equal_repeated_rows(self, model, batch, reduction):
        counts = torch.arange(26) % 3
        rows = torch.repeat_interleave(torch.arange(26), counts)
        loss = nn.CrossEntropyLoss(reduction=reduction)
        weighted = Batch(batch.inputs, batch.targets, weight=counts.double())
        repeated = Batch(batch.inputs[rows], batch.targets[rows])
        objective = Objective(model, model, loss, weighted=True)
        assert_same(gradients(objective, weighted), gradients(Objective(model, model, loss), repeated))

    def test_zero_equals_absence(self, model, batch, reduction):
        kept = torch.arange(26) >= 10
        loss = nn.CrossEntropyLoss(reduction=reduction)
        weighted = Batch(batch.inputs, batch.targets, weight=kept.double())
        without = Batch(batch.inputs[kept], batch.targets[kept])
        objective = Objective(model, model, loss, weighted=True)
        assert_same(gradients(objective, weighted), gradients(Objective(model, model, loss), without))

    def test_one_equals_none(self, model, batch, reduction):
        loss = nn.CrossEntropyLoss(reduction=reduction)
        weighted = Batch(batch.inputs, batch.targets, weight=torch.ones(26, dtype=torch.float64))
        objective = Objective(model, model, loss, weighted=True)
        assert_same(gradients(objective, weighted), gradients(Objective(model, model, loss), batch))

    def test_one_equals_none_for_several_outputs_a_sample(self, model, batch, reduction):
        loss = nn.MSELoss(reduction=reduction)
        targets = torch.randn(26, 3, dtype=torch.float64)
        weighted = Batch(batch.inputs, targets, weight=torch.ones(26, dtype=torch.float64))
        objective = Objective(model, model, loss, weighted=True)
        assert_same(
            gradients(objective, weighted), gradients(Objective(model, model, loss), Batch(batch.inputs, targets))
        )

    def test_of_one_batch_only_count_too(self, model, batch, reduction):
        """What a loader yields may carry weights that nobody announced."""
        loss = nn.CrossEntropyLoss(reduction=reduction)
        weighted = Batch(batch.inputs, batch.targets, weight=torch.rand(26, dtype=torch.float64))
        announced = gradients(Objective(model, model, loss, weighted=True), weighted)
        assert_same(gradients(Objective(model, model, loss), weighted), announced)
        assert not torch.equal(gradients(Objective(model, model, loss), batch)[0], announced[0])


def test_weights_that_are_all_zero_give_no_gradient(model, batch):
    weighted = Batch(batch.inputs, batch.targets, weight=torch.zeros(26, dtype=torch.float64))
    value, grads = gradients(Objective(model, model, nn.CrossEntropyLoss(), weighted=True), weighted)
    assert value == 0
    assert all((g == 0).all() for g in grads)


def test_weights_need_a_loss_per_sample(model, batch):
    class Scalar(nn.Module):
        def forward(self, outputs, targets):
            return outputs.square().mean() + 0 * targets.sum()

    with pytest.raises(TypeError, match="Scalar has no reduction"):
        Objective(model, model, Scalar(), weighted=True)
    weighted = Batch(batch.inputs, batch.targets, weight=torch.ones(26))
    with pytest.raises(TypeError, match="Scalar has no reduction"):
        Objective(model, model, Scalar())(weighted, CLOCK)


def test_a_loss_that_is_no_scalar_is_refused(model):
    with pytest.raises(ValueError, match="reduction='none'"):
        Objective(model, model, nn.CrossEntropyLoss(reduction="none"))
