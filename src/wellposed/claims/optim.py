"""Claims about optimizers and schedules."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from wellposed.claims.datasets import digits, flip_labels
from wellposed.claims.experiment import Claim
from wellposed.claims.training import accuracy, cnn, descend, fit, mlp, outputs
from wellposed.losses import CrossEntropy
from wellposed.optim import AMP, SAM, WSD, AdamW, Cosine, MoMo

Making: TypeAlias = Callable[[list[nn.Parameter]], Optimizer]


def _sam(seed: int, full: bool) -> Mapping[str, float]:
    """Accuracy on clean test digits after training with two fifths of the labels false."""
    x, y, x_test, y_test = digits(seed)
    noisy, _ = flip_labels(y, 0.4, 10, seed)
    arms: dict[str, Making] = {
        "SAM": lambda params: SAM(SGD(params, lr=0.1, momentum=0.9), rho=0.1),
        "SGD": lambda params: SGD(params, lr=0.1, momentum=0.9),
    }
    found: dict[str, float] = {}
    for arm, making in arms.items():
        torch.manual_seed(seed)
        model = mlp(64, 10)
        fit(
            model,
            (x, noisy),
            CrossEntropy(),
            seed=seed,
            optimizer=making,
            schedule=Cosine(),
            epochs=200 if full else 60,
        )
        found[arm] = accuracy(model, x_test, y_test)
    return found


sam = Claim(
    says="With 40 % false labels SAM's test accuracy is above that of SGD, the optimizer it wraps (digits).",
    run=_sam,
    method="SAM",
    baseline="SGD",
    metric="test accuracy, %",
    paper="lower test error than SGD; robustness to label noise comparable with dedicated methods",
)


def _amp(seed: int, full: bool) -> Mapping[str, float]:
    """Test accuracy of a convolutional net trained on few digits, with the paper's settings."""
    x, y, x_test, y_test = digits(seed, 300, images=True)
    arms: dict[str, Making] = {
        "AMP": lambda params: AMP(SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-4)),
        "SGD": lambda params: SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-4),
    }
    found: dict[str, float] = {}
    for arm, making in arms.items():
        torch.manual_seed(seed)
        model = cnn()
        fit(
            model,
            (x, y),
            CrossEntropy(),
            seed=seed,
            optimizer=making,
            schedule=Cosine(),
            epochs=200 if full else 60,
            batch_size=50,
        )
        found[arm] = accuracy(model, x_test, y_test)
    return found


amp = Claim(
    says="AMP's test accuracy is above that of plain training with the same optimizer (300 digits, convolutional net).",
    run=_amp,
    method="AMP",
    baseline="SGD",
    metric="test accuracy, %",
    paper="lower test error than plain training on CIFAR and SVHN with several architectures",
)

_DECAYS = {"AdamW": (1e-2, 1e-1, 1.0, 10.0), "Adam with L2": (1e-5, 1e-4, 1e-3, 1e-2)}


def _adamw(seed: int, full: bool) -> Mapping[str, float]:
    """Test accuracy with the decay that is best on validation digits, the mean where several are."""
    x, y, x_rest, y_rest = digits(seed, 300)
    found: dict[str, float] = {}
    for arm, decays in _DECAYS.items():
        tried: list[tuple[float, float]] = []
        for decay in decays:
            torch.manual_seed(seed)
            model = mlp(64, 10)

            def making(params: list[nn.Parameter], decay: float = decay, decoupled: bool = arm == "AdamW") -> Optimizer:
                return AdamW(params, weight_decay=decay) if decoupled else Adam(params, weight_decay=decay)

            fit(
                model,
                (x, y),
                CrossEntropy(),
                seed=seed,
                optimizer=making,
                schedule=Cosine(),
                epochs=300 if full else 100,
            )
            tried.append((accuracy(model, x_rest[:300], y_rest[:300]), accuracy(model, x_rest[300:], y_rest[300:])))
        best = max(valid for valid, _ in tried)
        chosen = [test for valid, test in tried if valid == best]
        found[arm] = sum(chosen) / len(chosen)
    return found


adamw = Claim(
    says="With the decay chosen on validation data, AdamW's test accuracy is above that of Adam with L2 (300 digits).",
    run=_adamw,
    method="AdamW",
    baseline="Adam with L2",
    metric="test accuracy, %",
    paper="decoupled decay generalises better than Adam with L2",
)


def _wsd(seed: int, full: bool) -> Mapping[str, float]:
    """Training loss at three budgets, averaged; every step taken counts, those of decays thrown away too."""
    x, y, _, _ = digits(seed, 1500)
    ends = (1200, 2400, 4800) if full else (300, 600, 1200)
    total = ends[-1]
    schedule = WSD(budgets=tuple(end / total for end in ends), warmup=0.02).over(total)
    factors = [schedule(step) for step in range(total)]
    segments = list(zip((0, *ends[:-1]), ends, strict=True))

    def start() -> tuple[nn.Module, Optimizer, torch.Generator]:
        torch.manual_seed(seed)
        model = mlp(64, 10, width=64)
        return model, AdamW(model.parameters(), lr=3e-3, weight_decay=0.0), torch.Generator().manual_seed(seed)

    def loss(model: nn.Module) -> float:
        return float(nn.functional.cross_entropy(outputs(model, x), y))

    found: dict[str, float] = {}
    cosine = Cosine(end=0.1)
    for arm in ("WSD-S", "cyclic cosine"):
        model, optimizer, generator = start()
        at_budgets: list[float] = []
        for begin, end in segments:
            cycle = cosine.over(end - begin)
            part = factors[begin:end] if arm == "WSD-S" else [cycle(step) for step in range(end - begin)]
            if arm == "cyclic cosine" and begin == 0:
                part = [min(a, b) for a, b in zip(part, factors[: end - begin], strict=True)]
            descend(model, (x, y), optimizer, factors=part, generator=generator)
            at_budgets.append(loss(model))
        found[arm] = sum(at_budgets) / len(at_budgets)

    model, optimizer, generator = start()
    at_budgets = []
    for begin, end in segments:
        decay = round(0.1 * (end - begin))
        descend(model, (x, y), optimizer, factors=factors[begin : end - decay], generator=generator)
        branch, branched = _copied(model, optimizer)
        descend(branch, (x, y), branched, factors=factors[end - decay : end], generator=generator)
        at_budgets.append(loss(branch))
    found["WSD"] = sum(at_budgets) / len(at_budgets)
    return found


def _copied(model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
    """A model and its optimizer, to go on from here without moving the originals."""
    together: dict[int, Tensor] = {}
    return deepcopy(model, together), deepcopy(optimizer, together)


wsd = Claim(
    says="At equal total steps WSD-S has a lower loss at its budgets than WSD, whose decays are thrown away (digits).",
    run=_wsd,
    method="WSD-S",
    baseline="WSD",
    metric="training loss, mean over three budgets, nats",
    higher_is_better=False,
    paper="WSD-S beats WSD and cyclic cosine at several budgets in one run (language models, 0.1B to 1.2B parameters)",
)


def _momo(seed: int, full: bool) -> Mapping[str, float]:
    """Test accuracy, averaged over largest learning rates from 0.001 to 100."""
    x, y, x_test, y_test = digits(seed)
    steps = 2000 if full else 300
    arms: dict[str, Callable[[list[nn.Parameter], float], Optimizer]] = {
        "MoMo": lambda params, lr: MoMo(params, lr=lr),
        "SGD with momentum": lambda params, lr: SGD(params, lr=lr, momentum=0.9, dampening=0.9),
    }
    found: dict[str, float] = {}
    for arm, making in arms.items():
        reached: list[float] = []
        for power in range(-3, 3):
            torch.manual_seed(seed)
            model = mlp(64, 10)
            optimizer = making(list(model.parameters()), 10.0**power)
            generator = torch.Generator().manual_seed(seed)
            descend(model, (x, y), optimizer, factors=[1.0] * steps, generator=generator, batch_size=64)
            reached.append(accuracy(model, x_test, y_test))
        found[arm] = sum(reached) / len(reached)
    return found


momo = Claim(
    says="Over learning rates from 0.001 to 100, MoMo's mean accuracy is above that of SGD with momentum (digits).",
    run=_momo,
    method="MoMo",
    baseline="SGD with momentum",
    metric="test accuracy, mean over six learning rates, %",
    paper="near-best accuracy over a wider range of learning rates than SGD with momentum",
)
