"""The whole spectrum: ranks that theory bounds, outliers that are planted."""

import pytest
import torch
from torch import nn

from wellposed.losses import CrossEntropy
from wellposed.measure import Spectrum, dense_hessian, spectrum


def spectrum_of(values: list[float]) -> Spectrum:
    return Spectrum(torch.tensor(sorted(values, reverse=True), dtype=torch.float64))


def net(width: int, outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, outputs)).double()


@pytest.mark.parametrize(("n", "outputs"), [(6, 1), (5, 2)])
def test_at_interpolation_all_but_n_times_outputs_eigenvalues_vanish(n, outputs):
    """Squared loss with targets the network meets exactly: the residual term is zero whatever the weights are."""
    model = net(10, outputs)
    x = torch.randn(n, 4, dtype=torch.float64)
    y = model(x).detach()
    found = spectrum(nn.functional.mse_loss(model(x), y), model.parameters())
    p = len(found.values)
    zero = (found.values.abs() < 1e-10 * found.top).sum().item()
    assert zero >= p - n * outputs
    assert zero < p - n * outputs + 2
    assert found.values.min() > -1e-10 * found.top


def test_without_residuals_the_hessian_is_the_gauss_newton_matrix():
    """2 / (nK) J'J with the Jacobian taken output by output; with residuals it is another matrix."""
    model = net(3, 2)
    x = torch.randn(7, 4, dtype=torch.float64)
    rows = [torch.autograd.grad(out, list(model.parameters()), retain_graph=True) for out in model(x).flatten()]
    jacobian = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
    y = model(x).detach()
    found = dense_hessian(nn.functional.mse_loss(model(x), y), model.parameters())
    torch.testing.assert_close(found, 2 / 14 * jacobian.T @ jacobian)
    moved = dense_hessian(nn.functional.mse_loss(model(x), y + 1), model.parameters())
    assert not torch.allclose(moved, found)


def test_softmax_shifts_are_flat_directions():
    """Adding a constant to all logits changes nothing: d + 1 directions of the last layer have no curvature."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    x, y = torch.randn(50, 4, dtype=torch.float64), torch.randint(3, (50,))
    values = spectrum(CrossEntropy()(model(x), y), model.parameters()).values
    assert (values.abs() < 1e-12).sum() == 5


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_planted_outliers_are_counted_whatever_the_scale(count, scale):
    g = torch.Generator().manual_seed(count)
    bulk = (0.3 * torch.randn(40, generator=g)).tolist()
    planted = [5.0 + 2 * i for i in range(count)]
    found = spectrum_of([scale * v for v in bulk + planted])
    assert found.outliers() == count
    assert found.bulk_edge == pytest.approx(scale * max(bulk))
    assert found.top == pytest.approx(scale * max(planted))


def test_more_zeros_change_neither_outliers_nor_their_edge():
    few, many = spectrum_of([9.0, 8.0, 0.5, 0.4, 0.0]), spectrum_of([9.0, 8.0, 0.5, 0.4] + [0.0] * 100)
    assert few.outliers() == many.outliers() == 2
    assert few.bulk_edge == many.bulk_edge == 0.5


def test_shares_by_hand():
    found = spectrum_of([8.0, 0.004, 0.0, -0.001, -2.0])
    assert found.near_zero == pytest.approx(3 / 5)
    assert found.negative_mass == pytest.approx(2.001 / 10.005)


@pytest.mark.parametrize("values", [[0.0, 0.0], [-1.0, -3.0], [2.0]])
def test_spectra_without_outliers(values):
    assert spectrum_of(values).outliers() == 0


def test_spectrum_is_in_descending_order_and_sums_to_the_trace():
    model = net(6, 3)
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randint(3, (20,))
    mean = CrossEntropy()(model(x), y)
    values = spectrum(mean, model.parameters()).values
    assert (values.diff() <= 0).all()
    torch.testing.assert_close(values.sum(), dense_hessian(mean, model.parameters()).trace())


def test_large_models_are_sent_elsewhere():
    w = torch.zeros(5001, requires_grad=True)
    with pytest.raises(ValueError, match=r"5001 parameters.*spectral_density"):
        spectrum((w**2).sum(), [w])
