"""Time the batch transforms and scores against the least work that each needs, and against kornia where installed.

OMP_NUM_THREADS=1 python benchmarks/data.py
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timing import Rows, compare, save, table
from wellposed.data import Cutout, FeatureMask, Mixup, RandAugment, el2n, grand


def images(size: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    n = 256 if size == 32 else 32
    return torch.rand(n, 3, size, size), torch.randint(10, (n,))


def cutout(size: int, rounds: int) -> Rows:
    x, y = images(size)
    ours = Cutout(size // 2)

    def slices() -> Tensor:
        out = x.clone()
        corners = (torch.randint(size, (2, len(x))) - size // 4).tolist()
        for i, (top, left) in enumerate(zip(*corners, strict=True)):
            out[i, :, max(top, 0) : max(top + size // 2, 0), max(left, 0) : max(left + size // 2, 0)] = 0
        return out

    cases = {"clone": x.clone, "Cutout": lambda: ours(x, y), "a slice an image": slices}
    return compare({**cases, **kornia("RandomErasing", x, p=1.0)}, rounds=rounds)


def randaugment(size: int, rounds: int) -> Rows:
    x, y = images(size)
    ours = RandAugment(num_ops=2, magnitude=9)

    def least() -> Tensor:
        angle = torch.rand(len(x)) - 0.5
        matrix = torch.zeros(len(x), 2, 3)
        matrix[:, 0, 0] = matrix[:, 1, 1] = angle.cos()
        matrix[:, 0, 1], matrix[:, 1, 0] = -angle.sin(), angle.sin()
        grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False).mul_(torch.rand(len(x), 1, 1, 1) + 0.5).clamp_(0, 1)

    cases = {"one warp and one product": least, "RandAugment, a draw an image": lambda: ours(x, y)}
    try:
        from kornia.augmentation.auto import RandAugment as Peer
    except ImportError:
        return compare(cases, rounds=rounds)
    peer = Peer(n=2, m=10)
    return compare({**cases, "kornia RandAugment, a draw a batch": lambda: peer(x)}, rounds=rounds)


def mixup(size: int, rounds: int) -> Rows:
    x, y = images(size)
    one, each = Mixup(1.0, num_classes=10), Mixup(1.0, per_sample=True, num_classes=10)
    hot = F.one_hot(y, 10).float()

    def plain() -> tuple[Tensor, Tensor]:
        ratio, partner = float(torch.rand(())), torch.randperm(len(x))
        return torch.lerp(x[partner], x, ratio), torch.lerp(hot[partner], hot, ratio)

    cases = {
        "two lerps": plain,
        "Mixup, a ratio a batch": lambda: one(x, y),
        "Mixup, a ratio a sample": lambda: each(x, y),
    }
    return compare({**cases, **kornia("RandomMixUpV2", x, y, p=1.0, data_keys=["input", "class"])}, rounds=rounds)


def feature_mask(rounds: int) -> Rows:
    x = torch.randn(512, 64)
    ours = FeatureMask(0.1)
    return compare({"dropout": lambda: F.dropout(x, 0.1), "FeatureMask": lambda: ours(x, x)}, rounds=rounds)


def scores(rounds: int) -> Rows:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    x, y = torch.randn(256, 64), torch.randint(10, (256,))
    outputs = model(x).detach()

    def backward() -> None:
        torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))

    def loop() -> None:
        for i in range(len(x)):
            torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), list(model.parameters()))

    cases = {
        "one gradient of the batch": backward,
        "el2n": lambda: el2n(outputs, y),
        "grand": lambda: grand(model, F.cross_entropy, x, y),
        "a gradient a sample, in a loop": loop,
    }
    return compare(cases, rounds=rounds)


def kornia(name: str, *batch: Tensor, **options: object) -> dict[str, Callable[[], object]]:
    try:
        import kornia.augmentation as peers
    except ImportError:
        return {}
    peer = getattr(peers, name)(**options)
    return {f"kornia {name}": lambda: peer(*batch)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    results: dict[str, Rows] = {}
    for size in (32, 224):
        results[f"cutout, {size} pixels"] = cutout(size, rounds)
        results[f"randaugment, {size} pixels"] = randaugment(size, rounds)
        results[f"mixup, {size} pixels"] = mixup(size, rounds)
    results["feature mask, 512 x 64"] = feature_mask(rounds)
    results["scores, 64-128-10, 256 samples"] = scores(rounds)
    for title, rows in results.items():
        print(table(title, rows))
    save(Path(__file__).parent / "results" / "data.json", results)


if __name__ == "__main__":
    main()
