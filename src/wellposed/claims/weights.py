"""Claims about what the weights may be."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import nn

from wellposed.claims.datasets import digits
from wellposed.claims.experiment import Claim
from wellposed.claims.training import accuracy, fit, mlp, outputs
from wellposed.losses import CrossEntropy
from wellposed.weights import Mixout, ScheduledDropout, WeightCompander


def _weight_compander(seed: int, full: bool) -> Mapping[str, float]:
    """Test accuracy after training on 200 digits with dropout and weight decay, with and without companding."""
    x, y, x_test, y_test = digits(seed, 200)
    found: dict[str, float] = {}
    for arm in ("companded", "plain"):
        torch.manual_seed(seed)
        model = mlp(64, 10, width=256, dropout=0.2)
        if arm == "companded":
            WeightCompander().apply(model)
        fit(
            model,
            (x, y),
            CrossEntropy(),
            seed=seed,
            optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.01),
            epochs=300 if full else 100,
        )
        found[arm] = accuracy(model, x_test, y_test)
    return found


weight_compander = Claim(
    says="On top of dropout and weight decay, weights that are an arctangent of what is trained raise test accuracy"
    " (200 digits).",
    run=_weight_compander,
    method="companded",
    baseline="plain",
    metric="test accuracy, %",
    paper="added to standard regularisation it raises test accuracy",
)


def _mixout(seed: int, full: bool) -> Mapping[str, float]:
    """Spread of test accuracy over fine-tunings that differ in head and order: digits 0 to 4, then 50 of 5 to 9."""
    x, y, x_test, y_test = digits(seed)
    torch.manual_seed(seed)
    pretrained = mlp(64, 5, dropout=0.1)
    fit(pretrained, (x[y < 5], y[y < 5]), CrossEntropy(), seed=seed, epochs=30)
    few = (x[y >= 5][:50], y[y >= 5][:50] - 5)
    test = (x_test[y_test >= 5], y_test[y_test >= 5] - 5)
    found: dict[str, float] = {}
    for arm in ("mixout", "dropout"):
        ends = []
        for run in range(20 if full else 8):
            torch.manual_seed(1000 * seed + run)
            model = deepcopy(pretrained)
            model[-1] = nn.Linear(128, 5)
            if arm == "mixout":
                model[2] = nn.Identity()
                Mixout(0.9).apply(model, where=lambda name, _: name != "6")
            fit(
                model,
                few,
                CrossEntropy(),
                seed=1000 * seed + run,
                optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.01),
                epochs=40,
                batch_size=16,
            )
            ends.append(accuracy(model, *test))
        found[arm] = float(np.std(ends, ddof=1))
    return found


mixout = Claim(
    says="Fine-tuning on 50 samples varies less from run to run with mixout at 0.9 towards the pretrained weights than"
    " with dropout at 0.1, weight decay in both (digits 0 to 4, then 5 to 9).",
    run=_mixout,
    method="mixout",
    baseline="dropout",
    metric="standard deviation of test accuracy over fine-tunings, points",
    higher_is_better=False,
    paper="fewer failed runs and a higher mean than with dropout and weight decay (BERT-large)",
)


def _scheduled_dropout(seed: int, full: bool) -> Mapping[str, float]:
    """Training loss, without dropout, of a net that is too small for the digits."""
    x, y, _, _ = digits(seed, 1500)
    found: dict[str, float] = {}
    arms: dict[str, tuple[float, list[Any]]] = {
        "early dropout": (0.1, [ScheduledDropout(0.1, "early")]),
        "no dropout": (0.0, []),
        "dropout": (0.1, []),
    }
    for arm, (rate, callbacks) in arms.items():
        torch.manual_seed(seed)
        model = mlp(64, 10, width=8, dropout=rate)
        fit(model, (x, y), CrossEntropy(), seed=seed, callbacks=callbacks, epochs=120 if full else 40)
        found[arm] = float(CrossEntropy()(outputs(model, x), y))
    return found


scheduled_dropout = Claim(
    says="In a net that underfits, dropout during the first sixth of the run ends at a lower training loss than no"
    " dropout (digits, 8 hidden units a layer).",
    run=_scheduled_dropout,
    method="early dropout",
    baseline="no dropout",
    metric="final training loss, nats",
    higher_is_better=False,
    paper="early dropout lowers the final training loss and raises test accuracy of underfitting models",
)
