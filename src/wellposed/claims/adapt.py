"""Claims about keeping a model able to learn."""

from collections.abc import Mapping

import torch
from torch import nn

from wellposed.adapt import ContinualBackprop
from wellposed.claims.datasets import digits
from wellposed.claims.experiment import Claim
from wellposed.claims.training import mlp


def _continual(seed: int, full: bool) -> Mapping[str, float]:
    """Online accuracy over the last fifth of a sequence of tasks, each the digits with their pixels permuted anew.

    A task has 28 steps instead of the paper's 60,000, hence ten times its share of units to replace.
    """
    x, y, _, _ = digits(seed, 1792)
    tasks = 1000 if full else 60
    found: dict[str, float] = {}
    for arm in ("continual backprop", "backprop"):
        torch.manual_seed(seed)
        model = mlp(64, 10)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        renewal = ContinualBackprop(rho=1e-3)
        if arm == "continual backprop":
            renewal.attach(model, optimizer)
        g = torch.Generator().manual_seed(seed)
        right: list[int] = []
        for _ in range(tasks):
            pixels, order = torch.randperm(64, generator=g), torch.randperm(len(x), generator=g)
            hits = torch.zeros((), dtype=torch.int64)
            for drawn in order.split(64):
                inputs, targets = x[drawn][:, pixels], y[drawn]
                logits = model(inputs)
                hits += (logits.detach().argmax(1) == targets).sum()
                optimizer.zero_grad()
                nn.functional.cross_entropy(logits, targets).backward()
                optimizer.step()
                if arm == "continual backprop":
                    renewal.step()
            right.append(int(hits))
        fifth = tasks // 5
        found[arm] = 100 * sum(right[-fifth:]) / (fifth * len(x))
        found[f"{arm}, first fifth"] = 100 * sum(right[:fifth]) / (fifth * len(x))
    return found


continual_backprop = Claim(
    says="Late in 60 tasks of permuted digits, accuracy with Adam is higher with continual backprop than without.",
    run=_continual,
    method="continual backprop",
    baseline="backprop",
    metric="online accuracy over the last fifth of the tasks, %",
    paper="ImageNet, two classes at a time, without it: from 89 % on an early task to 77 % by the 2000th",
)
