"""Claims about losses."""

from collections.abc import Mapping

import torch
from torch import nn

from wellposed.claims.datasets import digits
from wellposed.claims.experiment import Claim
from wellposed.claims.training import fit, mlp, outputs
from wellposed.losses import CrossEntropy, LabelSmoothing, MaxSup


def _maxsup(seed: int, full: bool) -> Mapping[str, float]:
    """Share of the penultimate features' variance that lies within classes, after training with each loss."""
    x, y, x_test, y_test = digits(seed, 1200)
    found: dict[str, float] = {}
    arms: dict[str, nn.Module] = {
        "MaxSup": MaxSup(0.1),
        "label smoothing": LabelSmoothing(0.1),
        "cross-entropy": CrossEntropy(),
    }
    for arm, loss in arms.items():
        torch.manual_seed(seed)
        model = mlp(64, 10, width=256)
        fit(model, (x, y), loss, seed=seed, epochs=120 if full else 40)
        features = outputs(model[:-1], x_test)
        centred = torch.cat([features[y_test == c] - features[y_test == c].mean(0) for c in range(10)])
        total = features - features.mean(0)
        found[arm] = 100 * float(centred.square().sum() / total.square().sum())
    return found


maxsup = Claim(
    says="At the same alpha MaxSup leaves more of the features' variance within classes than label smoothing (digits).",
    run=_maxsup,
    method="MaxSup",
    baseline="label smoothing",
    metric="within-class share of the test features' variance, %",
    paper="larger intra-class variation and better linear transfer than label smoothing (ResNet-50, ImageNet)",
)
