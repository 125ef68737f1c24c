"""Time the curvature measurements against as many products on one graph, and against other libraries where installed.

OMP_NUM_THREADS=1 python benchmarks/measure.py
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timing import Rows, compare, save, table
from wellposed.measure import dense_hessian, spectral_density, top_eigenvalues, trace

Case = Callable[[], object]


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return mlp, torch.randn(128, 784), torch.randint(10, (128,))


def products(count: int) -> dict[str, Case]:
    """The least work: the gradient's graph once, and one more differentiation a product."""
    model, x, y = problem()
    params = list(model.parameters())
    vectors = [torch.randn_like(p) for p in params]

    def least() -> None:
        gradient = torch.autograd.grad(F.cross_entropy(model(x), y), params, create_graph=True)
        for _ in range(count):
            torch.autograd.grad(gradient, params, vectors, retain_graph=True)

    return {f"{count} products on one graph": least}


def top(count: int, rounds: int) -> Rows:
    model, x, y = problem()

    def ours() -> object:
        loss = F.cross_entropy(model(x), y)
        return top_eigenvalues(loss, model.parameters(), iterations=count, tol=0.0)

    cases = {**products(count), f"top_eigenvalues, {count} iterations": ours, **eigenvalue_peers(model, x, y, count)}
    return compare(cases, rounds=rounds)


def eigenvalue_peers(model: nn.Module, x: Tensor, y: Tensor, count: int) -> dict[str, Case]:
    loss, params = nn.CrossEntropyLoss(), list(model.parameters())
    start = torch.randn(sum(p.numel() for p in params))
    peers: dict[str, Case] = {}
    try:
        import hessian_eigenthings as eigenthings
    except ImportError:
        pass
    else:
        operator = eigenthings.HessianOperator(model, [(x, y)], eigenthings.supervised_loss(loss))
        peers["hessian-eigenthings, power iteration"] = lambda: eigenthings.power_iteration_one(
            operator, max_iter=count, tol=0.0, init=start
        )
    try:
        from curvlinops import HessianLinearOperator
    except ImportError:
        return peers
    hessian = HessianLinearOperator(model, loss, params, [(x, y)], check_deterministic=False, num_data=len(x))

    def power() -> None:
        v = start / start.norm()
        for _ in range(count):
            w = hessian @ v
            v = w / w.norm()

    return {**peers, "curvlinops, power iteration": power}


def traces(count: int, rounds: int) -> Rows:
    model, x, y = problem()
    loss, params = nn.CrossEntropyLoss(), list(model.parameters())
    cases = {**products(count), f"trace, {count} probes": lambda: trace(loss(model(x), y), params, probes=count)}
    try:
        import hessian_eigenthings as eigenthings
    except ImportError:
        pass
    else:
        operator = eigenthings.HessianOperator(model, [(x, y)], eigenthings.supervised_loss(loss))
        cases["hessian-eigenthings, hutchinson"] = lambda: eigenthings.hutchinson(operator, num_samples=count)
    try:
        import curvlinops
    except ImportError:
        return compare(cases, rounds=rounds)
    hessian = curvlinops.HessianLinearOperator(
        model, loss, params, [(x, y)], check_deterministic=False, num_data=len(x)
    )
    cases["curvlinops, hutchinson_trace"] = lambda: curvlinops.hutchinson_trace(hessian, count)
    return compare(cases, rounds=rounds)


def density(count: int, rounds: int) -> Rows:
    model, x, y = problem()

    def ours() -> object:
        loss = F.cross_entropy(model(x), y)
        return spectral_density(loss, model.parameters(), probes=1, iterations=count)

    return compare({**products(count), f"spectral_density, {count} iterations": ours}, rounds=rounds)


def dense(rounds: int) -> Rows:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 5))
    x, y = torch.randn(100, 10), torch.randint(5, (100,))
    params = list(model.parameters())
    size = sum(p.numel() for p in params)

    def row_by_row() -> None:
        gradient = torch.autograd.grad(F.cross_entropy(model(x), y), params, create_graph=True)
        flat = torch.cat([g.reshape(-1) for g in gradient])
        for i in range(size):
            torch.autograd.grad(flat[i], params, retain_graph=True)

    cases = {
        f"{size} rows one by one": row_by_row,
        "dense_hessian": lambda: dense_hessian(F.cross_entropy(model(x), y), params),
    }
    return compare(cases, rounds=rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    results = {
        "top eigenvalue, MLP": top(20, rounds),
        "trace, MLP": traces(20, rounds),
        "spectral density, MLP": density(20, rounds),
        "whole Hessian, 325 parameters": dense(rounds),
    }
    for title, rows in results.items():
        print(table(title, rows))
    save(Path(__file__).parent / "results" / "measure.json", results)


if __name__ == "__main__":
    main()
