"""Claims about what can be measured of a model or a run."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from wellposed.claims.datasets import digits
from wellposed.claims.experiment import Claim
from wellposed.claims.training import descend, outputs
from wellposed.measure import GradientNoiseScale, fit_batch_tradeoff, spectrum, top_eigenvalues


def _deep(*, batch_norm: bool) -> nn.Sequential:
    """Four hidden layers of 64 rectified units with He's initialisation, with batch normalisation or without."""
    layers: list[nn.Module] = []
    for inputs in (64, 64, 64, 64):
        linear = nn.Linear(inputs, 64)
        nn.init.kaiming_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.BatchNorm1d(64), nn.ReLU()] if batch_norm else [linear, nn.ReLU()]
    last = nn.Linear(64, 10)
    nn.init.kaiming_normal_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


def _curvature(seed: int, full: bool) -> Mapping[str, float]:
    """Largest learning rate, as a power of two times 2 / (top eigenvalue at the start), from which training succeeds.

    It succeeds if gradient descent on all samples ends with a tenth of the loss that equal probabilities have.
    """
    x, y, _, _ = digits(seed, 300)
    x = (x - x.mean(0)) / (x.std(0) + 0.1)
    steps = 2000 if full else 600
    warmup = steps // 2
    torch.manual_seed(seed)
    model = _deep(batch_norm=False)
    loss = nn.functional.cross_entropy(model(x), y)
    threshold = 2 / float(top_eigenvalues(loss, list(model.parameters())).values[0])
    ramps = {
        "warm-up": [min(1.0, (step + 1) / warmup) for step in range(steps)],
        "no warm-up": [1.0] * steps,
        "batch normalisation": [1.0] * steps,
    }
    found: dict[str, float] = {}
    for arm, factors in ramps.items():
        found[arm] = -1.0
        for power in range(7, -1, -1):
            torch.manual_seed(seed)
            model = _deep(batch_norm=arm.startswith("batch"))
            optimizer = torch.optim.SGD(model.parameters(), lr=threshold * 2.0**power)
            if _ends_below(model, (x, y), optimizer, factors, 0.1 * math.log(10)):
                found[arm] = float(power)
                break
    return found


def _ends_below(
    model: nn.Module, data: tuple[Tensor, Tensor], optimizer: torch.optim.Optimizer, factors: list[float], goal: float
) -> bool:
    """Whether gradient descent on all samples ends below ``goal``."""
    x, y = data
    rate = optimizer.param_groups[0]["lr"]
    for factor in factors:
        optimizer.param_groups[0]["lr"] = rate * factor
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        if not math.isfinite(float(loss.detach())):
            return False
        loss.backward()
        optimizer.step()
    return float(nn.functional.cross_entropy(model(x), y).detach()) < goal


curvature_instability = Claim(
    says="With a warm-up over half the run, a net without normalisation trains at learning rates as high as one with "
    "batch normalisation does without warm-up, or less than a factor of two lower (digits).",
    run=_curvature,
    method="warm-up",
    baseline="batch normalisation",
    metric="log2 of the largest learning rate that trains, in units of 2 / (largest Hessian eigenvalue at the start)",
    margin=-1.0,
    paper="with a long enough warm-up, nets without normalisation train at the learning rates that normalised ones do",
)


def _outliers(seed: int, full: bool) -> Mapping[str, float]:
    """How much the number of outlying eigenvalues changes with twice the classes, and with four times the width."""
    x, y, _, _ = digits(seed, 1500)
    _, _, directions = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    x = (x - x.mean(0)) @ directions[:10].T

    def count(classes: int, width: int) -> int:
        here = y < classes
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, classes))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
        descend(
            model,
            (x[here], y[here]),
            optimizer,
            factors=[1.0] * (3000 if full else 600),
            generator=torch.Generator().manual_seed(seed),
        )
        loss = nn.functional.cross_entropy(model(x[here]), y[here])
        return spectrum(loss, model.parameters()).outliers()

    base = count(4, 10)
    changes = {"classes doubled": count(8, 10) - base, "width times four": count(4, 40) - base}
    return {arm: float(abs(change)) for arm, change in changes.items()}


hessian_spectrum = Claim(
    says="Twice the classes change the number of outlying Hessian eigenvalues more than four times the width (digits).",
    run=_outliers,
    method="classes doubled",
    baseline="width times four",
    metric="change of the number of eigenvalues above the bulk",
    paper="parameters only enlarge the bulk at zero; the outliers are set by the data, about one a class",
)


def _noise_scale(seed: int, full: bool) -> Mapping[str, float]:
    """Distance of the noise scale, averaged over a run, from the critical batch size fitted to runs of many sizes."""
    x, y, _, _ = digits(seed, 1500)
    goal = 0.2
    batches = (4, 8, 16, 32, 64, 128, 256) if full else (4, 16, 64, 256)
    runs = [_steps_to(goal, x, y, batch, seed) for batch in batches]
    steps = [taken for taken, _ in runs]
    critical = fit_batch_tradeoff(steps, [s * b for s, b in zip(steps, batches, strict=True)]).critical_batch
    ratio = _mean_noise_scale(goal, x, y, runs[-1][1], seed) / critical
    return {"noise scale": abs(math.log10(ratio)), "an order of magnitude": 1.0}


def _steps_to(goal: float, x: Tensor, y: Tensor, batch: int, seed: int) -> tuple[int, float]:
    """Steps that softmax regression takes to a training loss of ``goal`` at the best of twelve rates, and that rate."""
    rates = 2.0 ** torch.arange(-6, 6)
    weights = torch.zeros(len(rates), 64, 10)
    onehot = nn.functional.one_hot(y, 10).float()
    g = torch.Generator().manual_seed(seed)
    for step in range(1, 20_001):
        drawn = torch.randint(len(x), (batch,), generator=g)
        error = (x[drawn] @ weights).softmax(2) - onehot[drawn]
        weights -= rates[:, None, None] * (x[drawn].T @ error) / batch
        logits = x @ weights
        losses = logits.logsumexp(2).mean(1) - (logits * onehot).sum(2).mean(1)
        if bool((losses < goal).any()):
            return step, float(rates[losses.argmin()])
    raise RuntimeError(f"no learning rate reaches a loss of {goal} with batches of {batch}")


def _mean_noise_scale(goal: float, x: Tensor, y: Tensor, rate: float, seed: int) -> float:
    """The noise scale of softmax regression, measured at every step of a run on 256 samples a step to ``goal``."""
    model = nn.Linear(64, 10, bias=False)
    nn.init.zeros_(model.weight)
    g = torch.Generator().manual_seed(seed)
    scale = GradientNoiseScale(decay=0.9)
    measured: list[float] = []
    while float(nn.functional.cross_entropy(outputs(model, x), y)) >= goal:
        parts = torch.randint(len(x), (8, 32), generator=g)
        gradients = [
            torch.autograd.grad(nn.functional.cross_entropy(model(x[part]), y[part]), [model.weight]) for part in parts
        ]
        scale.observe(gradients, [32] * 8)
        measured.append(scale.value)
        with torch.no_grad():
            model.weight -= rate * torch.stack([gradient for (gradient,) in gradients]).mean(0)
    return sum(measured) / len(measured)


gradient_noise_scale = Claim(
    says="The mean noise scale is within a factor of ten of the critical batch size fitted to runs (digits, softmax).",
    run=_noise_scale,
    method="noise scale",
    baseline="an order of magnitude",
    metric="distance from the critical batch size, powers of ten",
    higher_is_better=False,
    paper="one statistic predicts the useful batch size from MNIST to Dota 2 (tens of thousands to millions)",
)
