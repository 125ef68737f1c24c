"""A table, a network and the orders in which a loop draws, for the tests of the loop."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture
def table() -> tuple[Tensor, Tensor]:
    """26 samples with 6 inputs, 3 classes; a batch size of 8 leaves 2 for the last batch."""
    g = torch.Generator().manual_seed(5)
    return torch.randn(26, 6, generator=g), torch.randint(3, (26,), generator=g)


@pytest.fixture
def mlp() -> Callable[..., nn.Sequential]:
    """The same small network at every call."""

    def build(dtype: torch.dtype = torch.float32) -> nn.Sequential:
        kept = torch.get_rng_state()
        torch.manual_seed(11)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
        torch.set_rng_state(kept)
        return model

    return build
