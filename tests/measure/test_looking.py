"""What a measurement must leave as it was."""

import pytest
import torch
from torch import nn

from wellposed.measure import unchanged


def test_modes_statistics_and_random_state_come_back_even_after_an_exception():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))
    model[1].eval()
    statistics = model[0].running_mean.clone()
    state = torch.get_rng_state()

    def look() -> None:
        with unchanged(model):
            model.train()
            model(torch.randn(8, 3))
            assert not torch.equal(model[0].running_mean, statistics)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        look()
    assert [m.training for m in model] == [True, False, True]
    assert torch.equal(model[0].running_mean, statistics)
    assert model[0].num_batches_tracked == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_a_graph_that_waits_for_its_backward_pass_stays_valid():
    """In eval mode batch norm saves its statistics for the backward pass; writing them back would break it."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)).eval()
    waiting = model(torch.randn(4, 3)).sum()
    (expected,) = torch.autograd.grad(waiting, model[0].weight, retain_graph=True)
    with unchanged(model):
        model.train()(torch.randn(4, 3))
    waiting.backward()
    assert torch.equal(model[0].weight.grad, expected)
