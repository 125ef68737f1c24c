"""Claims about losses."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from wellposed.claims.datasets import digits, flip_labels
from wellposed.claims.experiment import Claim
from wellposed.claims.training import accuracy, calibration_error, cnn, fit, mlp, outputs, tuned
from wellposed.data import Mixup
from wellposed.layers import sparsemax as to_sparsemax
from wellposed.losses import (
    ELR,
    CrossEntropy,
    DecoupledMixup,
    LabelSmoothing,
    MaxSup,
    PolyLoss,
    SparsemaxLoss,
    Squentropy,
)


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


def _squentropy(seed: int, full: bool) -> Mapping[str, float]:
    """Calibration error on the test digits after training on 300 with each loss, at the same settings."""
    x, y, x_test, y_test = digits(seed, 300)
    found: dict[str, float] = {}
    for arm, loss in {"squentropy": Squentropy(), "cross-entropy": CrossEntropy()}.items():
        torch.manual_seed(seed)
        model = mlp(64, 10)
        fit(model, (x, y), loss, seed=seed, epochs=360 if full else 120)
        found[arm] = calibration_error(model, x_test, y_test)
    return found


squentropy = Claim(
    says="At the same settings squentropy gives a smaller calibration error than cross-entropy (300 digits).",
    run=_squentropy,
    method="squentropy",
    baseline="cross-entropy",
    metric="expected calibration error on test, %",
    higher_is_better=False,
    paper="higher accuracy and lower calibration error on most of its data sets",
)


def _polyloss(seed: int, full: bool) -> Mapping[str, float]:
    """Test accuracy after training on imbalanced digits, with the coefficient chosen on a balanced validation part."""
    x, y, x_test, y_test = digits(seed, 1200)
    x, y, x_valid, y_valid = x[:900], y[:900], x[900:], y[900:]
    kept = torch.rand(900, generator=torch.Generator().manual_seed(seed)) < 0.1 ** (y / 9)
    epochs = 180 if full else 60

    def trained(loss: nn.Module) -> nn.Module:
        torch.manual_seed(seed)
        model = mlp(64, 10)
        fit(model, (x[kept], y[kept]), loss, seed=seed, epochs=epochs)
        return model

    return {
        "PolyLoss": tuned(
            lambda eps: trained(PolyLoss(eps)),
            (-1.0, 1.0, 2.0, 5.0),
            lambda model: accuracy(model, x_valid, y_valid),
            lambda model: accuracy(model, x_test, y_test),
        ),
        "cross-entropy": accuracy(trained(CrossEntropy()), x_test, y_test),
    }


polyloss = Claim(
    says="Poly-1, its coefficient chosen on a validation part, is more accurate than cross-entropy where the rarest"
    " training class is a tenth as frequent as the most frequent (digits).",
    run=_polyloss,
    method="PolyLoss",
    baseline="cross-entropy",
    metric="test accuracy, %",
    paper="a tuned coefficient beats cross-entropy in classification and focal loss in detection",
)


def _superposed(x: Tensor, y: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures of one or two digits, one over the other, and which classes are in them ``(N, 10)``."""
    g = torch.Generator().manual_seed(seed)
    first, second = (torch.randint(len(x), (count,), generator=g) for _ in range(2))
    second = torch.where(torch.rand(count, generator=g) < 0.5, second, first)
    there = nn.functional.one_hot(y[first], 10).maximum(nn.functional.one_hot(y[second], 10))
    return x[first].maximum(x[second]), there.bool()


def _f1(found: Tensor, there: Tensor) -> float:
    return 100 * 2 * float((found & there).sum()) / max(1.0, float(found.sum() + there.sum()))


def _sparsemax(seed: int, full: bool) -> Mapping[str, float]:
    """F1 of the classes found in pictures of one or two digits, by a threshold chosen on a validation part."""
    x, y, x_test, y_test = digits(seed, 1200)
    pictures, there = _superposed(x[:900], y[:900], 6000 if full else 2000, seed)
    valid, in_valid = _superposed(x[900:], y[900:], 1000, seed + 1)
    test, in_test = _superposed(x_test, y_test, 2000, seed + 2)
    thresholds = [i / 40 for i in range(20)]
    found: dict[str, float] = {}
    arms: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {
        "sparsemax": (SparsemaxLoss(), to_sparsemax),
        "softmax": (CrossEntropy(), lambda z: z.softmax(1)),
    }
    for arm, (loss, to_simplex) in arms.items():
        torch.manual_seed(seed)
        model = mlp(64, 10, width=256)
        fit(model, (pictures, there / there.sum(1, keepdim=True)), loss, seed=seed, epochs=90 if full else 30)
        p = to_simplex(outputs(model, valid))
        best = max(thresholds, key=lambda threshold: _f1(p > threshold, in_valid))
        found[arm] = _f1(to_simplex(outputs(model, test)) > best, in_test)
    return found


sparsemax = Claim(
    says="Sparsemax, whose probabilities are mostly exact zeros, finds the classes in pictures of one or two digits as"
    " well as softmax: its F1 is less than 1 point lower.",
    run=_sparsemax,
    method="sparsemax",
    baseline="softmax",
    metric="micro-averaged F1 on test, %",
    paper="similar to softmax in multi-label classification and attention, with sparse weights",
    margin=-1.0,
)


def _elr(seed: int, full: bool) -> Mapping[str, float]:
    """Test accuracy at the end of a long training on digits of which 40 % have a wrong label."""
    x, y, x_test, y_test = digits(seed)
    noisy, _ = flip_labels(y, 0.4, 10, seed)
    found: dict[str, float] = {}
    arms: dict[str, nn.Module] = {"ELR": ELR(len(x), 10), "cross-entropy": CrossEntropy()}
    for arm, loss in arms.items():
        torch.manual_seed(seed)
        model = mlp(64, 10, width=256)
        fit(model, (x, noisy), loss, seed=seed, epochs=240 if full else 80, batch_size=125)
        found[arm] = accuracy(model, x_test, y_test)
    return found


elr = Claim(
    says="With 40 % of the training labels wrong, ELR at its CIFAR-10 settings ends at a higher test accuracy than"
    " cross-entropy, which memorises them (digits).",
    run=_elr,
    method="ELR",
    baseline="cross-entropy",
    metric="test accuracy after the last epoch, %",
    paper="stays at the accuracy of early learning while cross-entropy memorises the wrong labels (CIFAR, Clothing1M)",
)


def _decoupled_mixup(seed: int, full: bool) -> Mapping[str, float]:
    """Test accuracy of a convolutional net on 600 digits with mixup, with and without the decoupled term."""
    x, y, x_test, y_test = digits(seed, 600, images=True)
    found: dict[str, float] = {}
    arms: dict[str, tuple[nn.Module, list[nn.Module]]] = {
        "mixup, decoupled": (DecoupledMixup(0.1), [Mixup(1.0, num_classes=10)]),
        "mixup": (CrossEntropy(), [Mixup(1.0, num_classes=10)]),
        "cross-entropy": (CrossEntropy(), []),
    }
    for arm, (loss, transforms) in arms.items():
        torch.manual_seed(seed)
        model = cnn()
        fit(model, (x, y), loss, seed=seed, transforms=transforms, epochs=180 if full else 60)
        found[arm] = accuracy(model, x_test, y_test)
    return found


decoupled_mixup = Claim(
    says="Mixup with the decoupled term (eta 0.1) is more accurate than mixup alone (600 digits).",
    run=_decoupled_mixup,
    method="mixup, decoupled",
    baseline="mixup",
    metric="test accuracy, %",
    paper="plain mixtures with the decoupled term reach or beat optimised ones at no extra cost",
)
