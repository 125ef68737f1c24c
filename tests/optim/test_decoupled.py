"""AdamW and SGDW: equal to PyTorch's kernels where they should be, to the paper's update where PyTorch is not."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from wellposed.optim import SGDW, AdamW, normalized_weight_decay

X, Y = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5, scheduler: LambdaLR | None = None):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X.to(next(model.parameters()).dtype)), Y).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("maximize", [False, True])
def test_adamw_is_torch_s_to_the_bit(dtype, maximize):
    a, b = network(dtype), network(dtype)
    groups = [[{"params": m[0].parameters(), "lr": 0.1}, {"params": m[2].parameters()}] for m in (a, b)]
    ours = AdamW(groups[0], 1e-2, (0.8, 0.99), 1e-6, 0.3, maximize=maximize)
    theirs = torch.optim.AdamW(groups[1], 1e-2, (0.8, 0.99), 1e-6, 0.3, maximize=maximize, fused=True)
    assert torch.equal(train(a, ours), train(b, theirs))


def slow_adamw(grads: list[list[float]], start: list[float], alpha: float, etas: list[float], decay: float):
    """The paper's Algorithm 2, one number at a time."""
    theta, m, v = list(start), [0.0] * len(start), [0.0] * len(start)
    for t, (g, eta) in enumerate(zip(grads, etas, strict=True), start=1):
        for i in range(len(theta)):
            m[i] = 0.9 * m[i] + 0.1 * g[i]
            v[i] = 0.999 * v[i] + 0.001 * g[i] ** 2
            step = alpha * (m[i] / (1 - 0.9**t)) / (math.sqrt(v[i] / (1 - 0.999**t)) + 1e-8)
            theta[i] -= eta * (step + decay * theta[i])
    return theta


@pytest.mark.parametrize("decoupled", ["lr", "schedule"])
def test_adamw_equals_the_algorithm(decoupled):
    grads = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    etas = [1.0, 0.7, 0.5, 0.3, 0.2, 0.1]
    w = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    decay = 0.05 if decoupled == "schedule" else 0.02 * 0.05
    expected = slow_adamw(grads.tolist(), w.tolist(), 0.02, etas, decay)
    optimizer = AdamW([w], lr=0.02, weight_decay=0.05, decoupled=decoupled)
    scheduler = LambdaLR(optimizer, [*etas, 0.0].__getitem__)
    for g in grads:
        w.grad = g.clone()
        optimizer.step()
        scheduler.step()
    assert w.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgdw_equals_the_algorithm(nesterov):
    grads = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    w = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    theta, m = w.tolist(), [0.0] * 3
    optimizer = SGDW([w], lr=0.2, momentum=0.8, weight_decay=0.05, nesterov=nesterov, decoupled="schedule")
    for t, g in enumerate(grads):
        optimizer.param_groups[0]["lr"] = 0.2 * 0.5**t
        w.grad = g.clone()
        optimizer.step()
        for i, gi in enumerate(g.tolist()):
            m[i] = 0.8 * m[i] + gi
            along = gi + 0.8 * m[i] if nesterov else m[i]
            theta[i] -= 0.5**t * (0.2 * along + 0.05 * theta[i])
    assert w.tolist() == pytest.approx(theta, abs=1e-13)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgdw_without_decay_is_sgd_to_the_bit(nesterov):
    a, b = network(), network()
    ours = SGDW(a.parameters(), lr=0.1, momentum=0.9, weight_decay=0.0, nesterov=nesterov)
    theirs = torch.optim.SGD(b.parameters(), lr=0.1, momentum=0.9, nesterov=nesterov, fused=True)
    assert torch.equal(train(a, ours), train(b, theirs))


def test_for_plain_descent_decoupled_decay_is_an_l2_penalty_divided_by_the_rate():
    a, b = network(torch.float64), network(torch.float64)
    ours = SGDW(a.parameters(), lr=0.3, momentum=0.0, weight_decay=0.06, decoupled="schedule")
    theirs = torch.optim.SGD(b.parameters(), lr=0.3, weight_decay=0.06 / 0.3)
    torch.testing.assert_close(train(a, ours), train(b, theirs))


def test_for_adam_they_differ():
    a, b = network(torch.float64), network(torch.float64)
    ours = train(a, AdamW(a.parameters(), lr=0.01, weight_decay=0.1))
    theirs = train(b, torch.optim.Adam(b.parameters(), lr=0.01, weight_decay=0.1))
    assert (ours - theirs).abs().max() > 1e-3


@pytest.mark.parametrize("method", [AdamW, SGDW])
class TestBoth:
    @pytest.mark.parametrize("decoupled", ["lr", "schedule"])
    def test_with_zero_gradients_the_weights_shrink_by_the_product(self, method, decoupled):
        etas = [1.0, 0.5, 0.25, 0.125]
        for lr in (0.1, 0.4):
            w = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
            optimizer = method([w], lr=lr, weight_decay=0.2, decoupled=decoupled)
            scheduler = LambdaLR(optimizer, [*etas, 0.0].__getitem__)
            for _ in etas:
                w.grad = torch.zeros_like(w)
                optimizer.step()
                scheduler.step()
            rate = 0.2 if decoupled == "schedule" else 0.2 * lr
            assert w.item() == pytest.approx(2 * math.prod(1 - eta * rate for eta in etas), abs=1e-12)

    def test_weights_without_gradient_do_not_decay(self, method):
        w = nn.Parameter(torch.ones(2))
        method([w], lr=0.1, weight_decay=0.5).step()
        assert torch.equal(w.detach(), torch.ones(2))

    def test_weights_and_gradients_laid_out_differently_are_paired_by_index(self, method):
        """Fused kernels on the CPU pair them by place in memory."""
        values, g = torch.randn(4, 6), torch.randn(4, 6)

        def images(t):
            return t.reshape(2, 2, 2, 3).clone()

        layouts = {
            "plain": (values.clone(), g.clone()),
            "transposed gradient": (values.clone(), g.t().contiguous().t()),
            "transposed weight": (values.t().contiguous().t(), g.clone()),
            "part of a larger tensor": (torch.cat([values, values], 1)[:, :6], g.clone()),
            "parts of larger tensors": (torch.cat([values, values], 1)[:, :6], torch.cat([g, g], 1)[:, :6]),
            "channels": (
                values[..., None, None].clone().to(memory_format=torch.channels_last),
                g[..., None, None].clone(),
            ),
        }
        ends = []
        for weight, gradient in layouts.values():
            w = nn.Parameter(weight)
            optimizer = method([w], lr=0.1)
            for _ in range(2):
                w.grad = gradient
                optimizer.step()
            ends.append(w.detach().reshape(4, 6))
        for end in ends[1:]:
            torch.testing.assert_close(end, ends[0])

    def test_a_weight_may_join_later(self, method):
        w, v = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        optimizer = method([w, v], lr=0.1)
        w.grad = torch.ones(2)
        optimizer.step()
        v.grad = torch.ones(2)
        optimizer.step()
        alone = nn.Parameter(torch.ones(2))
        alone.grad = torch.ones(2)
        method([alone], lr=0.1).step()
        torch.testing.assert_close(v, alone)

    @pytest.mark.parametrize("decoupled", ["lr", "schedule"])
    def test_saved_state_and_copies_continue_to_the_same_bits(self, method, decoupled):
        model = network()
        optimizer = method(model.parameters(), lr=0.1, decoupled=decoupled)
        train(model, optimizer)
        optimizer.param_groups[0]["lr"] = 0.03
        twin, its = copy.deepcopy((model, optimizer))
        fresh = copy.deepcopy(model)
        restored = method(fresh.parameters(), lr=0.5)
        restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        expected = train(model, optimizer)
        assert torch.equal(train(twin, its), expected)
        assert torch.equal(train(fresh, restored), expected)

    def test_sparse_and_complex_gradients_are_refused(self, method):
        table = nn.Embedding(4, 2, sparse=True)
        table(torch.tensor([1])).sum().backward()
        z = nn.Parameter(torch.ones(2, dtype=torch.complex64))
        z.grad = torch.ones_like(z)
        for w in (table.weight, z):
            with pytest.raises(TypeError, match="dense real gradients"):
                method([w]).step()

    def test_step_returns_the_closure_s_loss(self, method):
        w = nn.Parameter(torch.ones(2))
        optimizer = method([w])

        def closure():
            optimizer.zero_grad()
            loss = (w * w).sum()
            loss.backward()
            return loss

        assert optimizer.step(closure).item() == 2.0
        assert (w < 1).all()
        assert optimizer.step() is None

    def test_arguments_out_of_range_are_refused(self, method):
        w = [nn.Parameter(torch.ones(1))]
        for wrong in ({"lr": -1.0}, {"weight_decay": -1.0}):
            with pytest.raises(ValueError, match="must be at least 0"):
                method(w, **wrong)
        with pytest.raises(ValueError, match="'l2'"):
            method(w, decoupled="l2")
        with pytest.raises(ValueError, match="above 0 to start with"):
            method(w, lr=0.0, decoupled="schedule")


def test_further_arguments_out_of_range_are_refused():
    w = [nn.Parameter(torch.ones(1))]
    with pytest.raises(ValueError, match="betas"):
        AdamW(w, betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="eps"):
        AdamW(w, eps=-1.0)
    with pytest.raises(ValueError, match="momentum"):
        SGDW(w, momentum=1.0)
    with pytest.raises(ValueError, match="nesterov"):
        SGDW(w, momentum=0.0, nesterov=True)


@pytest.mark.parametrize("decoupled", ["lr", "schedule"])
def test_states_pass_between_adamw_and_torch_s(decoupled):
    decay = {"weight_decay": 0.1 if decoupled == "lr" else 0.01, "decoupled": decoupled}
    a, b = network(), network()
    theirs = torch.optim.AdamW(b.parameters(), lr=0.1, weight_decay=0.1)
    train(b, theirs)
    a.load_state_dict(b.state_dict())
    ours = AdamW(a.parameters(), lr=0.1, **decay)
    state = copy.deepcopy(theirs.state_dict())
    state["param_groups"][0]["weight_decay"] = decay["weight_decay"]
    ours.load_state_dict(state)
    torch.testing.assert_close(train(a, ours), train(b, theirs), rtol=1e-4, atol=1e-5)
    if decoupled == "lr":
        b.load_state_dict(a.state_dict())
        theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
        torch.testing.assert_close(train(b, theirs), train(a, ours), rtol=1e-4, atol=1e-5)


def test_normalized_decay_does_not_depend_on_how_training_is_cut_into_steps():
    for batch, epochs in ((64, 10.0), (128, 10.0), (64, 40.0)):
        steps = 1000 * epochs / batch
        assert normalized_weight_decay(0.05, batch, 1000, epochs) * math.sqrt(steps) == pytest.approx(0.05)
