"""EL2N and GraNd: the scores' identities, the window, and a sampler that resumes to the bit."""

import copy
import multiprocessing
import socket
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from wellposed.data import EL2N, el2n, grand, keep_hardest
from wellposed.losses import CrossEntropy


@pytest.fixture
def problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return model, torch.randn(9, 4, dtype=torch.float64), torch.randint(3, (9,))


def one_by_one(model: nn.Module, x: torch.Tensor, y: torch.Tensor, which: list[torch.Tensor]) -> torch.Tensor:
    """Gradient lengths from a loop over samples and a plain backward pass."""
    lengths = []
    for i in range(len(x)):
        grads = torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), which)
        lengths.append(sum((g**2).sum() for g in grads) ** 0.5)
    return torch.stack(lengths)


def test_el2n_is_the_gradient_by_the_last_bias(problem):
    model, x, y = problem
    torch.testing.assert_close(el2n(model(x), y), one_by_one(model, x, y, [model[2].bias]))


def test_the_gradient_by_the_last_weight_is_el2n_times_the_features(problem):
    model, x, y = problem
    features = model[:2](x)
    expected = one_by_one(model, x, y, [model[2].weight])
    torch.testing.assert_close(el2n(model(x), y) * features.norm(dim=1), expected)


@pytest.mark.parametrize("block", [1, 4, 64])
def test_grand_is_the_gradient_by_everything(problem, block):
    model, x, y = problem
    expected = one_by_one(model, x, y, list(model.parameters()))
    torch.testing.assert_close(grand(model, CrossEntropy(), x, y, block=block), expected)


def test_grand_counts_trainable_parameters_only(problem):
    model, x, y = problem
    for p in model[0].parameters():
        p.requires_grad_(False)
    model[2].weight.requires_grad_(False)
    torch.testing.assert_close(grand(model, F.cross_entropy, x, y), el2n(model(x), y))


def test_grand_takes_regression_losses(problem):
    model, x, _ = problem
    y = torch.randn(9, 3, dtype=torch.float64)
    for p in [*model[0].parameters(), model[2].weight]:
        p.requires_grad_(False)
    expected = 2 / 3 * (model(x) - y).norm(dim=1)
    torch.testing.assert_close(grand(model, F.mse_loss, x, y), expected.detach())


def test_grand_leaves_the_model_as_it_was_even_when_it_fails(problem):
    _, x, y = problem
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())

    def broken(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("on purpose")

    assert torch.isfinite(grand(model, F.cross_entropy, x, y)).all()
    with pytest.raises(RuntimeError, match="on purpose"):
        grand(model, broken, x, y)
    assert [m.training for m in model] == [True, False, True, True]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_el2n_takes_probabilities_and_half_precision():
    z, y = torch.randn(5, 4).half(), torch.tensor([0, 1, 2, 3, 0])
    scores = el2n(z, y)
    assert scores.dtype == torch.float32
    assert torch.equal(el2n(z, F.one_hot(y, 4).float()), scores)


def test_el2n_is_zero_when_sure_and_right_and_root_two_when_sure_and_wrong():
    z = torch.tensor([[200.0, 0, 0], [200.0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(el2n(z, torch.tensor([0, 1])), torch.tensor([0.0, 2**0.5], dtype=torch.float64))


def test_the_kept_window_against_a_sorted_list():
    scores = torch.rand(37, generator=torch.Generator().manual_seed(0))
    ranked = sorted(range(37), key=lambda i: -scores[i].item())
    assert keep_hardest(scores, 0.5).tolist() == sorted(ranked[:18])
    assert keep_hardest(scores, 0.5, drop_top=0.1).tolist() == sorted(ranked[4 : 4 + 18])
    assert keep_hardest(scores, 1.0).tolist() == list(range(37))
    assert set(keep_hardest(scores, 0.9, drop_top=0.1).tolist()) == set(ranked[4:])


@pytest.mark.parametrize(("keep", "drop_top"), [(0.0, 0.0), (0.8, 0.3), (0.5, -0.1), (1.1, 0.0)])
def test_impossible_windows_are_refused(keep, drop_top):
    with pytest.raises(ValueError, match=f"keep={keep}, drop_top={drop_top}"):
        keep_hardest(torch.rand(10), keep, drop_top)
    with pytest.raises(ValueError, match=f"keep={keep}, drop_top={drop_top}"):
        EL2N(keep, drop_top=drop_top, num_samples=10)


def logits_scoring(sampler: EL2N, index: torch.Tensor, noise: torch.Generator | None = None) -> None:
    """Update with logits that make sample ``i`` harder the larger ``i`` is, class 0 being right."""
    margin = -index.double() / sampler.num_samples * 4
    if noise is not None:
        margin = margin + torch.randn(len(index), generator=noise, dtype=torch.float64)
    outputs = torch.stack([margin, torch.zeros_like(margin)], 1)
    sampler.update(index=index, outputs=outputs, targets=torch.zeros_like(index))


def run(sampler: EL2N, epochs: int, size: int = 7) -> list[list[int]]:
    noise = torch.Generator().manual_seed(9)
    served = []
    for _ in range(epochs):
        order = sampler.indices()
        for part in order.split(size):
            logits_scoring(sampler, part, noise)
        served.append(order.tolist())
    return served


def run_quietly(sampler: EL2N, epochs: int) -> list[list[int]]:
    served = []
    for _ in range(epochs):
        order = sampler.indices()
        logits_scoring(sampler, order)
        served.append(order.tolist())
    return served


def test_all_samples_are_served_first_then_the_hard_ones():
    sampler = EL2N(keep=0.4, epochs=2, drop_top=0.1, num_samples=20, generator=torch.Generator().manual_seed(0))
    for epoch in range(4):
        assert len(sampler) == sampler.epoch_length(epoch)
        order = sampler.indices()
        assert len(order) == sampler.epoch_length(epoch)
        for part in order.split(6):
            logits_scoring(sampler, part)
        assert sorted(order.tolist()) == (list(range(20)) if epoch < 2 else list(range(10, 18)))
    assert sampler.epoch == 4


def test_a_score_is_the_mean_over_the_scoring_epochs():
    sampler = EL2N(epochs=2, num_samples=4)
    outputs = [torch.randn(4, 3, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    y = torch.tensor([0, 1, 2, 0])
    for z in outputs[:2]:
        sampler.indices()
        for i in range(4):
            sampler.update(index=torch.tensor([i]), outputs=z[i : i + 1], targets=y[i : i + 1])
    expected = (el2n(outputs[0], y) + el2n(outputs[1], y)).double() / 2
    torch.testing.assert_close(sampler.scores, expected)
    kept = sampler.indices()
    sampler.update(index=torch.arange(4), outputs=outputs[2] * 100, targets=y)
    torch.testing.assert_close(sampler.scores, expected)
    assert sorted(kept.tolist()) == keep_hardest(expected, 0.5).tolist()


def test_a_sample_twice_in_a_batch_counts_twice():
    sampler = EL2N(epochs=1, num_samples=2)
    z = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    sampler.update(index=torch.tensor([0, 1, 1]), outputs=z, targets=torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(sampler.scores[1], el2n(z[1:], torch.zeros(2, dtype=torch.int64)).double().mean())


def test_samples_without_a_score_count_as_average():
    sampler = EL2N(keep=0.5, epochs=1, num_samples=4)
    sampler.indices()
    z = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    sampler.update(index=torch.tensor([0, 3]), outputs=z, targets=torch.zeros(2, dtype=torch.int64))
    assert sampler.scores[0] < sampler.scores[1] == sampler.scores[2] < sampler.scores[3]


def test_without_any_score_the_choice_is_refused():
    sampler = EL2N(epochs=1, num_samples=4)
    sampler.indices()
    with pytest.raises(RuntimeError, match="update"):
        sampler.indices()


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_resumed_run_serves_the_same_to_the_bit(stop):
    def fresh(seed: int) -> EL2N:
        return EL2N(keep=0.5, epochs=3, num_samples=23, generator=torch.Generator().manual_seed(seed))

    straight = fresh(0)
    noise = torch.Generator().manual_seed(9)
    first = []
    for _ in range(stop):
        order = straight.indices()
        first.append(order)
        logits_scoring(straight, order[:10], noise)
    state = copy.deepcopy(straight.state_dict())
    resumed = fresh(1)
    resumed.load_state_dict(state)
    left = copy.deepcopy(noise)
    logits_scoring(straight, first[-1][10:], noise)
    logits_scoring(resumed, first[-1][10:], left)
    assert run(straight, 4) == run(resumed, 4)
    assert torch.equal(straight.scores, resumed.scores)


def test_the_state_loads_without_executing_anything(tmp_path):
    sampler = EL2N(epochs=1, num_samples=5, generator=torch.Generator())
    run(sampler, 2)
    torch.save(sampler.state_dict(), tmp_path / "state.pt")
    other = EL2N(epochs=1, num_samples=5, generator=torch.Generator().manual_seed(8))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert run(sampler, 2) == run(other, 2)


def test_a_state_of_other_data_is_refused():
    with pytest.raises(ValueError, match="5 samples, the sampler 6"):
        EL2N(num_samples=6).load_state_dict(EL2N(num_samples=5).state_dict())


def test_it_drives_a_data_loader():
    x = torch.arange(12.0)[:, None]
    sampler = EL2N(keep=0.25, epochs=1, num_samples=12, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(x, torch.arange(12)), batch_size=5, sampler=sampler)
    for lengths in (3, 1):
        assert len(loader) == lengths
        seen = []
        for _, index in loader:
            logits_scoring(sampler, index)
            seen += index.tolist()
    assert sorted(seen) == [9, 10, 11]


def _half(rank: int, port: int, found: Any) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    sampler = EL2N(keep=0.5, epochs=2, num_samples=11, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        logits_scoring(sampler, sampler.indices()[rank::2])
    found.put((rank, sampler.indices().tolist()))
    dist.destroy_process_group()


def test_two_processes_that_score_half_each_choose_as_one_does():
    sampler = EL2N(keep=0.5, epochs=2, num_samples=11, generator=torch.Generator().manual_seed(0))
    *_, alone = run_quietly(sampler, 3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    processes = [context.Process(target=_half, args=(rank, port, found), daemon=True) for rank in (0, 1)]
    for process in processes:
        process.start()
    orders = dict(found.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    assert orders == {0: alone, 1: alone}


def test_the_generator_decides_the_order():
    orders = [EL2N(num_samples=30, generator=torch.Generator().manual_seed(s)).indices().tolist() for s in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_flipped_labels_score_highest():
    """A tenth of the labels of separable clusters flipped: the scores after a short training find them."""
    torch.manual_seed(0)
    y = torch.arange(300) % 3
    x = 2 * torch.randn(3, 8)[y] + torch.randn(300, 8)
    flipped = torch.zeros(300, dtype=torch.bool)
    flipped[torch.randperm(300)[:30]] = True
    labels = torch.where(flipped, (y + 1) % 3, y)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    descent = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(15):
        descent.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        descent.step()
    scores = el2n(model(x), labels)
    above = (scores[flipped][:, None] > scores[~flipped]).double().mean().item()
    assert above > 0.95
