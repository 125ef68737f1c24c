"""Claims about what changes the data before the model sees it."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wellposed.claims.datasets import digits
from wellposed.claims.experiment import Claim
from wellposed.claims.training import accuracy, cnn, fit, mlp, outputs
from wellposed.data import Cutout, RandAugment, keep_hardest
from wellposed.data import el2n as el2n_scores
from wellposed.data.draws import device_of
from wellposed.losses import CrossEntropy


class _Shift(nn.Module):
    """The usual augmentation at this size: every image moved by at most one pixel each way, its border repeated."""

    generator: torch.Generator | None = None

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            return inputs, targets
        n, _, h, w = inputs.shape
        moved = torch.randint(3, (2, n), generator=self.generator, device=device_of(self.generator))
        rows = moved[0, :, None] + torch.arange(h)
        columns = moved[1, :, None] + torch.arange(w)
        padded = F.pad(inputs, (1, 1, 1, 1), mode="replicate")
        samples = torch.arange(n)[:, None, None]
        return padded.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2), targets


def _trained_cnn(seed: int, data: tuple[Tensor, Tensor], transforms: Sequence[nn.Module], epochs: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = cnn()
    fit(model, data, CrossEntropy(), seed=seed, transforms=transforms, epochs=epochs)
    return model


def _cutout(seed: int, full: bool) -> Mapping[str, float]:
    """Test accuracy with and without a square of 3 x 3 pixels cut out of each 8 x 8 image."""
    x, y, x_test, y_test = digits(seed, images=True)
    mean, spread = x.mean(), x.std()
    x, x_test = (x - mean) / spread, (x_test - mean) / spread
    arms: dict[str, list[nn.Module]] = {"Cutout": [_Shift(), Cutout(3)], "shifts alone": [_Shift()]}
    return {
        arm: accuracy(_trained_cnn(seed, (x, y), transforms, 200 if full else 60), x_test, y_test)
        for arm, transforms in arms.items()
    }


cutout = Claim(
    says="Cutout on top of random shifts gives a higher test accuracy than shifts alone (digits, convolutional net).",
    run=_cutout,
    method="Cutout",
    baseline="shifts alone",
    metric="test accuracy, %",
    paper="2.56 % test error on CIFAR-10, 15.20 % on CIFAR-100, 1.30 % on SVHN, below standard augmentation alone",
)


def _randaugment(seed: int, full: bool) -> Mapping[str, float]:
    """Test accuracy with the magnitude that is best on validation digits, the mean where several are."""
    x, y, x_rest, y_rest = digits(seed, 600, images=True)
    epochs = 200 if full else 50
    tried: list[tuple[float, float]] = []
    for magnitude in (2, 5, 9):
        model = _trained_cnn(seed, (x, y), [_Shift(), RandAugment(1, magnitude)], epochs)
        tried.append((accuracy(model, x_rest[:400], y_rest[:400]), accuracy(model, x_rest[400:], y_rest[400:])))
    best = max(valid for valid, _ in tried)
    chosen = [test for valid, test in tried if valid == best]
    plain = _trained_cnn(seed, (x, y), [_Shift()], epochs)
    return {
        "RandAugment": sum(chosen) / len(chosen),
        "shifts alone": accuracy(plain, x_rest[400:], y_rest[400:]),
    }


randaugment = Claim(
    says="RandAugment, its magnitude chosen on validation data, gives a higher accuracy than random shifts (digits).",
    run=_randaugment,
    method="RandAugment",
    baseline="shifts alone",
    metric="test accuracy, %",
    paper="ImageNet: 85.0 % top-1, 1.0 points above the baseline augmentation",
)


def _el2n(seed: int, full: bool) -> Mapping[str, float]:
    """Test accuracy after training on half of the digits: the hardest by EL2N, or a random half."""
    x, y, x_test, y_test = digits(seed, 1200)
    scores = torch.zeros(len(x))
    for start in range(10 if full else 5):
        torch.manual_seed(1000 * (seed + 1) + start)
        model = mlp(64, 10)
        fit(model, (x, y), CrossEntropy(), seed=1000 * (seed + 1) + start, epochs=8)
        scores += el2n_scores(outputs(model, x), y)
    random = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: len(x) // 2]
    halves = {"hardest half by EL2N": keep_hardest(scores, 0.5), "random half": random, "all": torch.arange(len(x))}
    found: dict[str, float] = {}
    for arm, kept in halves.items():
        torch.manual_seed(seed)
        model = mlp(64, 10)
        fit(model, (x[kept], y[kept]), CrossEntropy(), seed=seed, epochs=400 if full else 80)
        found[arm] = accuracy(model, x_test, y_test)
    return found


el2n = Claim(
    says="Training on the half with the highest EL2N scores gives a higher accuracy than on a random half (digits).",
    run=_el2n,
    method="hardest half by EL2N",
    baseline="random half",
    metric="test accuracy, %",
    paper="half of CIFAR-10 pruned with test accuracy slightly improved",
)
