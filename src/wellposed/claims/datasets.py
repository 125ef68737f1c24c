"""Real data that packages ship, as tensors, for the claims' experiments."""

from functools import cache

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor


@cache
def _digits() -> tuple[Tensor, Tensor]:
    x, y = datasets.load_digits(return_X_y=True)
    return torch.from_numpy((x / 16).astype(np.float32)), torch.from_numpy(y.astype(np.int64))


def digits(seed: int, train: int = 1000, *, images: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The 1,797 handwritten digits of scikit-learn, split by ``seed``.

    Args:
        seed: of the split.
        train: how many are for training; the rest is the test part.
        images: ``(N, 1, 8, 8)`` instead of ``(N, 64)``.

    Returns:
        Training inputs in [0, 1] and classes, test inputs and classes.
    """
    x, y = _digits()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x = x.reshape(-1, 1, 8, 8) if images else x
    return x[order[:train]], y[order[:train]], x[order[train:]], y[order[train:]]


def flip_labels(y: Tensor, share: float, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Give a ``share`` of the labels another class, uniformly.

    Returns:
        The noisy labels, and which of them are false ``(N,)`` bool.
    """
    g = torch.Generator().manual_seed(seed + 10_000)
    false = torch.rand(len(y), generator=g) < share
    shift = torch.randint(1, num_classes, (len(y),), generator=g)
    return torch.where(false, (y + shift) % num_classes, y), false
