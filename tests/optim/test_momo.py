"""MoMo and MoMo-Adam: their limits, the problem they solve, slow references in float64, the authors' package."""

import copy
import math

import pytest
import torch
from torch import nn

from wellposed.optim import MoMo, MoMoAdam

both = pytest.mark.parametrize("method", [MoMo, MoMoAdam])


class Regression:
    """Noisy batches of a small network's regression, always the same ones."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        torch.manual_seed(0)
        self.x = torch.randn(64, 5, dtype=dtype)
        self.y = (2 * self.x[:, :1] - self.x[:, 1:2]).tanh() + 0.3
        self.model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)
        self.batches = torch.Generator().manual_seed(1)

    def closure(self) -> torch.Tensor:
        i = torch.randint(64, (16,), generator=self.batches)
        self.model.zero_grad()
        loss = (self.model(self.x[i]) - self.y[i]).square().mean()
        loss.backward()
        return loss

    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def train(self, optimizer, steps: int) -> torch.Tensor:
        for _ in range(steps):
            optimizer.step(self.closure)
        return self.weights()


def slow(x, batches, *, lr, beta=0.9, beta2=None, eps=1e-8, lam=0.0, bound=0.0, online=False):
    """Either method from its definition, one number at a time; ``batches`` holds losses and gradients."""
    n = len(x)
    x, d, v, fbar, gamma, fstar = list(x), [0.0] * n, [0.0] * n, 0.0, 0.0, bound
    for k, (f, g) in enumerate(batches, start=1):
        keep = 0.0 if beta2 is None and k == 1 else beta
        rho = 1.0 if beta2 is None else 1 - beta**k
        fbar = keep * fbar + (1 - keep) * f
        gamma = keep * gamma + (1 - keep) * sum(gi * xi for gi, xi in zip(g, x, strict=True))
        d = [keep * di + (1 - keep) * gi for di, gi in zip(d, g, strict=True)]
        D = [1.0] * n
        if beta2 is not None:
            v = [beta2 * vi + (1 - beta2) * gi * gi for vi, gi in zip(v, g, strict=True)]
            D = [eps + math.sqrt(vi / (1 - beta2**k)) for vi in v]
        dx, dd = sum(a * b for a, b in zip(d, x, strict=True)), sum(a * a / b for a, b in zip(d, D, strict=True))
        if online:
            cap = (1 + lr * lam) * fbar + dx - (1 + lr * lam) * gamma
            if cap < (1 + lr * lam) * rho * fstar:
                fstar = max(cap / (2 * (1 + lr * lam) * rho), bound)
        top = (1 + lr * lam) * (fbar - rho * fstar) + dx - (1 + lr * lam) * gamma
        tau = min(lr / rho, max(top, 0.0) / dd)
        if online:
            fstar = max((fbar + dx - gamma - tau * dd / 2) / rho, bound)
        x = [(xi - tau * di / Di) / (1 + lr * lam) for xi, di, Di in zip(x, d, D, strict=True)]
    return x


SETTINGS = [
    {"lr": 0.05},
    {"lr": 50.0},
    {"lr": 2.0, "weight_decay": 0.1},
    {"lr": 5.0, "online_bound": True},
    {"lr": 5.0, "online_bound": True, "weight_decay": 0.02, "lower_bound": -0.5},
    {"lr": 5.0, "lower_bound": 0.05},
]


@both
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_equals_its_definition(method, settings):
    gen = torch.Generator().manual_seed(0)
    losses = (1 + torch.rand(8, generator=gen, dtype=torch.float64)).tolist()
    grads = torch.randn(8, 5, generator=gen, dtype=torch.float64)
    start = torch.randn(5, generator=gen, dtype=torch.float64)
    w, v = nn.Parameter(start[:2].clone()), nn.Parameter(start[2:].clone())
    optimizer = method([w, v], **settings)
    for f, g in zip(losses, grads, strict=True):
        w.grad, v.grad = g[:2].clone(), g[2:].clone()
        assert optimizer.step(loss=torch.tensor(f, dtype=torch.float64)).item() == f
    given = {"lr": settings["lr"], "lam": settings.get("weight_decay", 0.0), "bound": settings.get("lower_bound", 0.0)}
    expected = slow(
        start.tolist(),
        list(zip(losses, grads.tolist(), strict=True)),
        **given,
        beta2=None if method is MoMo else 0.999,
        online=settings.get("online_bound", False),
    )
    assert [*w.tolist(), *v.tolist()] == pytest.approx(expected, rel=1e-10)


@both
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_agrees_with_the_authors_package_over_50_steps(method, settings):
    peers = pytest.importorskip("momo")
    a, b = Regression(), Regression()
    theirs = {"lr": settings["lr"], "weight_decay": settings.get("weight_decay", 0.0)}
    theirs |= {"lb": settings.get("lower_bound", 0.0), "use_fstar": settings.get("online_bound", False)}
    peer = peers.Momo if method is MoMo else peers.MomoAdam
    torch.set_default_dtype(torch.float64)  # in which theirs keeps MomoAdam's products
    try:
        end = b.train(peer(b.model.parameters(), **theirs), 50)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(a.train(method(a.model.parameters(), **settings), 50), end, rtol=1e-8, atol=1e-10)


def test_without_momentum_it_is_the_polyak_step():
    w = nn.Parameter(torch.tensor([3.0, -1.0], dtype=torch.float64))
    for lr, capped in ((0.01, True), (10.0, False)):
        before = w.detach().clone()
        w.grad = torch.tensor([1.0, 2.0], dtype=torch.float64)
        MoMo([w], lr=lr, beta=0.0, lower_bound=0.4).step(loss=torch.tensor(0.9, dtype=torch.float64))
        step = 0.01 if capped else (0.9 - 0.4) / 5
        torch.testing.assert_close(w.detach(), before - step * w.grad)


def test_far_above_its_bound_momo_is_momentum_descent():
    a, b = Regression(), Regression()
    end = a.train(MoMo(a.model.parameters(), lr=0.05, lower_bound=-1e6), 20)
    optimizer = torch.optim.SGD(b.model.parameters(), lr=0.05, momentum=0.9, dampening=0.9)
    torch.testing.assert_close(end, b.train(optimizer, 20), rtol=1e-12, atol=1e-13)


def test_far_above_its_bound_momo_adam_is_adam():
    a, b = Regression(), Regression()
    end = a.train(MoMoAdam(a.model.parameters(), lr=0.01, lower_bound=-1e6), 20)
    torch.testing.assert_close(end, b.train(torch.optim.Adam(b.model.parameters(), lr=0.01), 20))


def test_with_any_rate_momo_solves_what_momentum_descent_cannot():
    def run(make):
        x = torch.randn(20, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        w = nn.Parameter(torch.zeros(8, dtype=torch.float64))
        optimizer = make([w])
        for k in range(300):
            rows = x[[k % 20, (k * 7 + 3) % 20]]
            w.grad = None
            loss = (rows @ w - rows.sum(1)).square().mean()
            loss.backward()
            optimizer.step(loss=loss) if isinstance(optimizer, MoMo) else optimizer.step()
        return (x @ w - x.sum(1)).square().mean().item()

    assert run(lambda p: MoMo(p, lr=100.0)) < 1e-6
    assert not run(lambda p: torch.optim.SGD(p, lr=100.0, momentum=0.9, dampening=0.9)) < 1e6


def test_groups_with_their_own_rates_minimise_the_model_together():
    """The step minimises max(model, bound) + distances weighted by the rates + decays; nothing nearby is lower."""
    gen = torch.Generator().manual_seed(0)
    x, d = torch.randn(2, 6, generator=gen, dtype=torch.float64)
    lr = torch.tensor([3.0, 3.0, 0.5, 0.5, 0.5, 0.5], dtype=torch.float64)
    lam = torch.tensor([0.2, 0.2, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    for f in (0.5, 2.0, 100.0):
        w, v = nn.Parameter(x[:2].clone()), nn.Parameter(x[2:].clone())
        groups = [{"params": [w], "lr": 3.0, "weight_decay": 0.2}, {"params": [v], "lr": 0.5}]
        w.grad, v.grad = d[:2].clone(), d[2:].clone()
        MoMo(groups, lower_bound=0.1).step(loss=torch.tensor(f, dtype=torch.float64))

        def objective(y, f=f):
            model = (f + (y - x) @ d).clamp_min(0.1)
            return model + ((y - x).square() / (2 * lr) + lam * y.square() / 2).sum(-1)

        y = torch.cat([w, v]).detach()
        for size in (1e-3, 1e-1, 1.0):
            around = y + size * torch.randn(2000, 6, generator=gen, dtype=torch.float64)
            assert (objective(around) >= objective(y)).all()


@both
def test_the_online_bound_rises_from_the_given_one_and_not_above_the_loss(method):
    w = nn.Parameter(torch.full((4,), 3.0, dtype=torch.float64))
    optimizer = method([w], lr=0.5, lower_bound=-1.0, online_bound=True)
    bounds = []
    for _ in range(100):
        w.grad = None
        loss = 2 + w.square().sum()
        loss.backward()
        optimizer.step(loss=loss)
        bounds.append(optimizer.state["model"]["bound"].item())
    assert min(bounds) >= -1.0
    assert 1.9 < bounds[-1] <= loss.item()


@both
def test_nothing_is_read_from_the_device(method, monkeypatch):
    p = Regression()
    optimizer = method(p.model.parameters(), weight_decay=0.1, online_bound=True)
    for _ in range(3):
        loss = p.closure()

        def refuse(*_):
            raise AssertionError("a tensor was read")

        with monkeypatch.context() as patch:
            for name in ("item", "__bool__", "__float__", "tolist"):
                patch.setattr(torch.Tensor, name, refuse)
            optimizer.step(loss=loss)


@both
def test_a_weight_without_gradient_stays_and_counts_as_one_with_gradient_zero(method):
    gen = torch.Generator().manual_seed(0)
    grads = torch.randn(6, 4, generator=gen, dtype=torch.float64)
    ends = []
    for absent in (True, False):
        w, v = nn.Parameter(torch.ones(2, dtype=torch.float64)), nn.Parameter(torch.ones(2, dtype=torch.float64))
        optimizer = method([w, v], lr=0.5)
        for k, g in enumerate(grads):
            w.grad, v.grad = g[:2].clone(), g[2:].clone()
            before = v.detach().clone()
            if k in (0, 3):
                v.grad = None if absent else torch.zeros_like(v)
            optimizer.step(loss=torch.tensor(1.0, dtype=torch.float64))
            if k in (0, 3) and absent:
                assert torch.equal(v.detach(), before)
            if k == 0:
                ends.append(torch.cat([w, v]).detach())
        assert torch.isfinite(w).all()
        average = optimizer.state[v]["average"]
    torch.testing.assert_close(*ends)
    fresh = [1.0 if method is MoMo else 0.1, *[0.1] * 5]
    expected = torch.zeros(2, dtype=torch.float64)
    for k, g in enumerate(grads):
        expected = (1 - fresh[k]) * expected + fresh[k] * (0 if k in (0, 3) else g[2:])
    torch.testing.assert_close(average, expected)


def test_a_resting_weight_stays_in_the_model_of_the_loss():
    w, v = (nn.Parameter(torch.tensor([x], dtype=torch.float64)) for x in (2.0, 3.0))
    optimizer = MoMo([w, v], lr=10.0, beta=0.5)
    w.grad, v.grad = torch.full_like(w, 0.3), torch.full_like(v, 0.1)
    optimizer.step(loss=torch.tensor(0.01, dtype=torch.float64))
    x, y = w.item(), v.item()
    w.grad, v.grad = torch.full_like(w, 0.5), None
    optimizer.step(loss=torch.tensor(0.2, dtype=torch.float64))
    d, rest = (0.3 + 0.5) / 2, 0.1 / 2
    gamma = (0.3 * 2.0 + 0.1 * 3.0 + 0.5 * x) / 2
    tau = ((0.01 + 0.2) / 2 - gamma + d * x + rest * y) / d**2
    assert 0 < tau < 10
    assert w.item() == pytest.approx(x - tau * d)
    assert v.item() == y


@both
@pytest.mark.parametrize("loss", [0.0, 1.0])
def test_zero_gradients_move_nothing(method, loss):
    w = nn.Parameter(torch.ones(2))
    w.grad = torch.zeros(2)
    method([w]).step(loss=torch.tensor(loss))
    assert torch.equal(w.detach(), torch.ones(2))


@both
@pytest.mark.parametrize("online", [False, True])
def test_saved_state_and_copies_continue_to_the_same_bits(method, online):
    p = Regression(torch.float32)
    optimizer = method(p.model.parameters(), lr=0.3, weight_decay=0.01, online_bound=online)
    p.train(optimizer, 5)
    state, weights, batches = copy.deepcopy(optimizer.state_dict()), p.model.state_dict(), p.batches.get_state()
    fresh = Regression(torch.float32)
    fresh.model.load_state_dict(weights)
    fresh.batches.set_state(batches)
    restored = method(fresh.model.parameters())
    restored.load_state_dict(state)
    model, twin = copy.deepcopy((p.model, optimizer))
    expected = p.train(optimizer, 5)
    assert torch.equal(fresh.train(restored, 5), expected)
    p.model = model
    p.batches.set_state(batches)
    assert torch.equal(p.train(twin, 5), expected)


@both
def test_half_precision_weights_train(method):
    p = Regression(torch.bfloat16)
    before = p.closure().item()
    p.train(method(p.model.parameters(), lr=0.1), 30)
    assert p.closure().item() < before


@both
def test_data_parallel_processes_use_their_mean_loss(method, monkeypatch):
    ends = []
    for own, other in ((0.2, 0.6), (0.4, None)):
        w = nn.Parameter(torch.ones(2, dtype=torch.float64))
        w.grad = torch.tensor([0.5, 1.0], dtype=torch.float64)
        with monkeypatch.context() as patch:
            if other is not None:
                patch.setattr(torch.distributed, "is_initialized", lambda: True)
                patch.setattr(torch.distributed, "get_world_size", lambda: 2)
                patch.setattr(torch.distributed, "all_reduce", lambda total, other=other: total.add_(other))
            loss = torch.tensor(own, dtype=torch.float64)
            assert method([w], lr=10.0).step(loss=loss).item() == own
        ends.append(w.detach())
    torch.testing.assert_close(*ends)


@both
def test_the_loss_is_needed_once(method):
    w = nn.Parameter(torch.ones(1))
    w.grad = torch.ones(1)
    optimizer = method([w])
    with pytest.raises(ValueError, match="needs the loss"):
        optimizer.step()
    with pytest.raises(ValueError, match="not both"):
        optimizer.step(w.sum, loss=w.sum())


@both
def test_settings_of_the_model_are_one_for_all_groups(method):
    optimizer = method([nn.Parameter(torch.ones(1))])
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.5, "weight_decay": 0.1})
    with pytest.raises(ValueError, match=r"lower_bound.*same in every group"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lower_bound": 1.0})


@both
def test_arguments_out_of_range_are_refused(method):
    w = [nn.Parameter(torch.ones(1))]
    with pytest.raises(ValueError, match="must be at least 0"):
        method(w, lr=-1.0)
    with pytest.raises(ValueError, match="must lie in"):
        method(w, **({"beta": 1.0} if method is MoMo else {"betas": (0.9, 1.0)}))
