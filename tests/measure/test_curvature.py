"""The Hessian by its products: against the matrix itself, its moments, and quadratics."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wellposed.measure import Hessian, dense_hessian, spectral_density, top_eigenvalues, trace
from wellposed.measure.curvature import lanczos

Problem = tuple[nn.Module, torch.Tensor, torch.Tensor]


@pytest.fixture
def problem() -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return model, torch.randn(32, 5, dtype=torch.float64), torch.randint(3, (32,))


def matrix(problem: Problem) -> torch.Tensor:
    """The Hessian entry by entry, from torch's own function of functions."""
    model, x, y = problem
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([s.numel() for s in shapes.values()])
        weights = {name: part.view(s) for (name, s), part in zip(shapes.items(), parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, weights, (x,)), y)

    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return torch.autograd.functional.hessian(loss, flat)


def quadratic(h: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A loss whose Hessian is ``h``, over two parameters of different shapes."""
    p = len(h)
    parts = [
        torch.randn(2, 2, dtype=h.dtype, requires_grad=True),
        torch.randn(p - 4, dtype=h.dtype, requires_grad=True),
    ]
    w = torch.cat([part.reshape(-1) for part in parts])
    return w @ h @ w / 2 + w.sum(), parts


def symmetric(values: list[float]) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=g, dtype=torch.float64))
    return q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T


def test_products_and_the_matrix_agree_with_autograds(problem):
    model, x, y = problem
    h = matrix(problem)
    mean = F.cross_entropy(model(x), y)
    v = torch.randn(len(h), dtype=torch.float64)
    torch.testing.assert_close(Hessian(mean, model.parameters()) @ v, h @ v)
    torch.testing.assert_close(dense_hessian(mean, model.parameters()), h)
    torch.testing.assert_close(dense_hessian(mean, model.parameters(), block=7), h)


def batches(problem: Problem, sizes: list[int]):
    model, x, y = problem

    def terms() -> Iterator[tuple[torch.Tensor, int]]:
        for inputs, targets in zip(x.split(sizes), y.split(sizes), strict=True):
            yield F.cross_entropy(model(inputs), targets), len(targets)

    return terms


@pytest.mark.parametrize("sizes", [[32], [30, 2], [1, 5, 26]])
def test_unequal_batches_weigh_by_their_size(problem, sizes):
    model, _, _ = problem
    h = matrix(problem)
    terms = batches(problem, sizes)
    v = torch.randn(len(h), dtype=torch.float64)
    torch.testing.assert_close(Hessian(terms, model.parameters()) @ v, h @ v)
    torch.testing.assert_close(dense_hessian(terms, model.parameters()), h)
    found = top_eigenvalues(terms, model.parameters(), tol=1e-9, iterations=60)
    torch.testing.assert_close(found.values[0], torch.linalg.eigvalsh(h)[-1])


def test_frozen_unused_and_linear_parameters(problem):
    model, x, y = problem
    model[0].weight.requires_grad_(False)
    unused = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    linear = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    mean = F.cross_entropy(model(x), y) + linear.sum()
    hessian = Hessian(mean, [*model.parameters(), unused, linear])
    keep = [i for i, p in enumerate(model.parameters()) for _ in range(p.numel()) if i != 0]
    assert hessian.size == len(keep) + 5
    dense = dense_hessian(mean, [*model.parameters(), unused, linear])
    torch.testing.assert_close(dense[:-5, :-5], matrix(problem)[40:, 40:])
    assert dense[-5:].abs().max() == 0
    v = torch.randn(hessian.size, dtype=torch.float64)
    torch.testing.assert_close(hessian @ v, dense @ v)


def test_a_linear_loss_has_no_curvature():
    w = torch.ones(4, requires_grad=True)
    assert torch.equal(Hessian(w.sum(), [w]) @ torch.randn(4), torch.zeros(4))
    assert top_eigenvalues(w.sum(), [w]).values.item() == 0
    assert trace(w.sum(), [w]) == (0, 0)
    assert torch.equal(dense_hessian(w.sum(), [w]), torch.zeros(4, 4))


def test_losses_without_a_graph_or_with_a_shape_are_refused(problem):
    model, x, y = problem
    with pytest.raises(ValueError, match="scalar with its graph"):
        Hessian(F.cross_entropy(model(x), y).detach(), model.parameters())
    with pytest.raises(ValueError, match=r"shape \(32,\)"):
        Hessian(F.cross_entropy(model(x), y, reduction="none"), model.parameters())
    with pytest.raises(ValueError, match="no parameter"):
        Hessian(F.cross_entropy(model(x), y), [])


@pytest.mark.parametrize("k", [1, 3, 6])
def test_top_eigenvalues_of_a_network_against_eigvalsh(problem, k):
    model, x, y = problem
    values, vectors = torch.linalg.eigh(matrix(problem))
    found = top_eigenvalues(F.cross_entropy(model(x), y), model.parameters(), k, iterations=75, tol=1e-8)
    torch.testing.assert_close(found.values, values[-k:].flip(0), rtol=1e-9, atol=1e-12)
    overlap = (found.vectors @ vectors[:, -k:].flip(1)).diagonal().abs()
    torch.testing.assert_close(overlap, torch.ones(k, dtype=torch.float64))


def test_the_default_tolerance_is_far_within_one_percent_and_stops_early(problem):
    model, x, y = problem
    truth = torch.linalg.eigvalsh(matrix(problem))[-1].item()
    mean = F.cross_entropy(model(x), y)
    found = top_eigenvalues(mean, model.parameters())
    assert found.values[0].item() == pytest.approx(truth, rel=1e-4)
    rough = top_eigenvalues(mean, model.parameters(), iterations=4)
    assert abs(rough.values[0].item() - truth) > abs(found.values[0].item() - truth)
    assert abs(rough.values[0].item() - truth) <= rough.bounds[0].item()


def test_single_precision_models_are_measured_to_single_precision(problem):
    model, x, y = problem
    truth = torch.linalg.eigvalsh(matrix(problem))[-1].item()
    model, x = model.float(), x.float()
    found = top_eigenvalues(F.cross_entropy(model(x), y), model.parameters(), tol=0.0)
    assert found.values[0].item() == pytest.approx(truth, rel=1e-5)
    assert found.vectors.dtype == torch.float32


def test_a_quadratic_exactly_with_negative_values_and_rank_deficiency():
    h = symmetric([7.0, 3.0, 1.0, 0.0, 0.0, 0.0, -2.0, -9.0])
    loss, params = quadratic(h)
    found = top_eigenvalues(loss, params, 3, tol=1e-10)
    torch.testing.assert_close(found.values, torch.tensor([7.0, 3.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(h @ found.vectors.T, found.vectors.T * found.values)


def test_the_identity_is_exhausted_at_once_and_started_anew():
    loss, params = quadratic(5 * torch.eye(8, dtype=torch.float64))
    found = top_eigenvalues(loss, params, 3)
    torch.testing.assert_close(found.values, torch.full((3,), 5.0, dtype=torch.float64))


def test_a_scale_measures_the_preconditioned_hessian():
    h = symmetric([4.0, 2.5, 1.0, 0.5, 0.3, 0.2, 0.1, -1.0])
    loss, params = quadratic(h)
    precondition = [torch.rand_like(p) + 0.1 for p in params]
    p = torch.cat([t.reshape(-1) for t in precondition])
    expected = torch.linalg.eigvals(h / p[:, None]).real.sort(descending=True).values
    found = top_eigenvalues(loss, params, 2, scale=[t.rsqrt() for t in precondition], tol=1e-10)
    torch.testing.assert_close(found.values, expected[:2])


@pytest.mark.parametrize("k", [0, 9])
def test_impossible_numbers_of_eigenvalues_are_refused(k):
    loss, params = quadratic(torch.eye(8, dtype=torch.float64))
    with pytest.raises(ValueError, match=f"k={k}"):
        top_eigenvalues(loss, params, k)


def test_lanczos_builds_an_orthonormal_basis_and_its_tridiagonal(problem):
    h = matrix(problem)
    g = torch.Generator().manual_seed(1)
    t, q, _ = lanczos(h.__matmul__, lambda: torch.randn(len(h), generator=g, dtype=torch.float64), 40)
    torch.testing.assert_close(q @ q.T, torch.eye(40, dtype=torch.float64))
    torch.testing.assert_close(q @ h @ q.T, t, atol=1e-12, rtol=1e-9)


def test_the_trace_of_a_diagonal_is_exact_with_any_signs():
    d = torch.tensor([3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0, 6.0], dtype=torch.float64)
    loss, params = quadratic(torch.diag(d))
    found = trace(loss, params, probes=2)
    assert found.value == pytest.approx(19.0, abs=1e-12)
    assert found.standard_error == pytest.approx(0.0, abs=1e-12)


def test_the_trace_is_within_its_standard_error_and_that_is_right(problem):
    """Over 60 estimates: errors over stated standard errors have deviation 1, and the variance is Hutchinson's."""
    model, x, y = problem
    h = matrix(problem)
    mean = F.cross_entropy(model(x), y)
    truth = h.trace().item()
    variance = 2 * (h.square().sum() - h.diagonal().square().sum()).item()
    g = torch.Generator().manual_seed(0)
    found = [trace(mean, model.parameters(), probes=20, generator=g) for _ in range(60)]
    z = torch.tensor([(f.value - truth) / f.standard_error for f in found])
    assert abs(z.mean().item()) < 4 / math.sqrt(60)
    assert 0.75 < z.std().item() < 1.4
    stated = sum(f.standard_error**2 for f in found) / 60 * 20
    assert stated == pytest.approx(variance, rel=0.3)


def test_the_quadrature_is_exact_for_moments_below_twice_its_length(problem):
    model, x, y = problem
    h = matrix(problem)
    g = torch.Generator().manual_seed(3)
    density = spectral_density(F.cross_entropy(model(x), y), model.parameters(), probes=2, iterations=4, generator=g)
    g = torch.Generator().manual_seed(3)
    zs = [torch.randn(len(h), generator=g).double() for _ in range(2)]
    for power in range(8):
        powered = torch.linalg.matrix_power(h, power)
        expected = sum((z @ powered @ z / (z @ z)).item() for z in zs) / 2
        assert density.moment(power) == pytest.approx(expected, rel=1e-6)
    wrong = sum((z @ torch.linalg.matrix_power(h, 9) @ z / (z @ z)).item() for z in zs) / 2
    assert density.moment(9) != pytest.approx(wrong, rel=1e-6)


def test_the_density_integrates_to_one_and_puts_mass_where_eigenvalues_are():
    loss, params = quadratic(symmetric([10.0] * 2 + [0.0] * 18))
    density = spectral_density(loss, params, probes=200, iterations=5)
    grid = torch.linspace(-5, 15, 4001, dtype=torch.float64)
    curve = density.at(grid, 0.2)
    assert torch.trapezoid(curve, grid).item() == pytest.approx(1.0, abs=1e-6)
    high = torch.trapezoid(curve * (grid > 5), grid).item()
    assert high == pytest.approx(0.1, abs=0.02)


def test_measuring_leaves_gradients_weights_and_the_global_generator_alone(problem):
    model, x, y = problem
    mean = F.cross_entropy(model(x), y)
    before = [p.detach().clone() for p in model.parameters()]
    state = torch.get_rng_state()
    top_eigenvalues(mean, model.parameters())
    trace(mean, model.parameters(), probes=2)
    spectral_density(mean, model.parameters(), probes=1, iterations=3)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, p) for a, p in zip(before, model.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    mean.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_measurements_repeat_and_generators_vary_them(problem):
    model, x, y = problem
    mean = F.cross_entropy(model(x), y)
    assert trace(mean, model.parameters()) == trace(mean, model.parameters())
    assert trace(mean, model.parameters()) != trace(
        mean, model.parameters(), generator=torch.Generator().manual_seed(5)
    )


def test_counts_out_of_range_are_refused(problem):
    model, x, y = problem
    mean = F.cross_entropy(model(x), y)
    with pytest.raises(ValueError, match="probes=1"):
        trace(mean, model.parameters(), probes=1)
    with pytest.raises(ValueError, match="iterations=0"):
        spectral_density(mean, model.parameters(), iterations=0)


def test_a_diverged_model_is_measured_as_nan(problem):
    model, x, y = problem
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    found = top_eigenvalues(F.cross_entropy(model(x), y), model.parameters(), 2)
    assert found.values.isnan().all()
    assert found.bounds.isnan().all()
    assert found.vectors.shape == (2, sum(p.numel() for p in model.parameters()))
