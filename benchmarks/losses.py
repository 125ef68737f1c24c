"""Time sparsemax against softmax and the losses against cross-entropy, next to entmax where it is installed.

OMP_NUM_THREADS=1 python benchmarks/losses.py
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from timing import Rows, compare, save, table
from wellposed.layers import sparsemax
from wellposed.losses import (
    ELR,
    CrossEntropy,
    DecoupledMixup,
    Focal,
    LabelSmoothing,
    MaxSup,
    PolyLoss,
    SparsemaxLoss,
    SquareLoss,
    Squentropy,
)

try:
    import entmax
except ImportError:
    entmax = None


def simplex(rows: int, classes: int, scale: float, rounds: int) -> Rows:
    """Forward and backward of maps onto the simplex; the least work is softmax."""
    logits = scale * torch.randn(rows, classes)
    weights = torch.randn(rows, classes)

    def case(transform: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        def run() -> None:
            z = logits.detach().requires_grad_()
            transform(z).backward(weights)

        return run

    cases = {"torch softmax": case(lambda z: z.softmax(-1)), "sparsemax": case(sparsemax)}
    if entmax is not None:
        cases["entmax.sparsemax, k=32"] = case(lambda z: entmax.sparsemax(z, -1, k=32))
        cases["entmax.sparsemax"] = case(lambda z: entmax.sparsemax(z, -1))
        cases["entmax.sparsemax_bisect"] = case(lambda z: entmax.sparsemax_bisect(z, -1))
    return compare(cases, rounds=rounds)


def losses(rows: int, classes: int, rounds: int) -> Rows:
    """Forward and backward at class indices, and of the mixing loss at mixtures; the least work is cross-entropy."""
    logits = torch.randn(rows, classes)
    y = torch.randint(classes, (rows,))
    q = 0.3 * F.one_hot(y, classes).float() + 0.7 * F.one_hot(y.roll(1), classes)
    index = torch.arange(rows)

    def case(loss: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        return lambda: loss(logits.detach().requires_grad_()).backward()

    elr = ELR(rows, classes)
    cases = {"torch cross_entropy": case(lambda z: F.cross_entropy(z, y))}
    for loss in (CrossEntropy(), LabelSmoothing(), MaxSup(), PolyLoss(), Focal(), Squentropy(), SquareLoss()):
        cases[type(loss).__name__] = case(lambda z, loss=loss: loss(z, y))
    cases["ELR"] = case(lambda z: elr(z, y, index=index))
    cases["SparsemaxLoss"] = case(lambda z: SparsemaxLoss()(z, y))
    if entmax is not None:
        cases["entmax.sparsemax_loss, k=32"] = case(lambda z: entmax.sparsemax_loss(z, y, k=32).mean())
    cases["torch cross_entropy, mixtures"] = case(lambda z: F.cross_entropy(z, q))
    cases["DecoupledMixup, mixtures"] = case(lambda z: DecoupledMixup()(z, q))
    return compare(cases, rounds=rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    shapes = [(4096, 1000, 1.0), (64, 32000, 1.0), (4096, 1000, 0.1), (4096, 10, 1.0)]
    results = {f"simplex, {n} x {c}, deviation {scale:g}": simplex(n, c, scale, rounds) for n, c, scale in shapes}
    results |= {f"losses, {n} x {c}": losses(n, c, rounds) for n, c in [(4096, 1000), (256, 10)]}
    for title, rows in results.items():
        print(table(title, rows))
    save(Path(__file__).parent / "results" / "losses.json", results)


if __name__ == "__main__":
    main()
