"""Sparsemax: the nearest point of the simplex by a certificate, by bisection and by entmax, and its derivatives."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wellposed.layers import Sparsemax, sparsemax
from wellposed.layers.simplex import _project


def rows(*shape, scale=1.0, seed=0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_nearest(z, p, atol=1e-12):
    """The projection p of z onto a convex set is the point with (z - p).(v - p) <= 0 for all v: here, all vertices."""
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(-1), torch.ones_like(p.sum(-1)), rtol=0, atol=atol)
    outward = z - z.amax(-1, keepdim=True) - p
    assert (outward.amax(-1) <= (outward * p).sum(-1) + atol).all()


def slow(row):
    """The threshold by bisection, one number at a time."""
    low, high = max(row) - 1, max(row)
    for _ in range(200):
        middle = (low + high) / 2
        if math.fsum(max(v - middle, 0.0) for v in row) > 1:
            low = middle
        else:
            high = middle
    return [max(v - low, 0.0) for v in row]


@pytest.mark.parametrize("scale", [0.0, 1e-3, 0.1, 1.0, 30.0, 1e6])
@pytest.mark.parametrize("size", [1, 2, 7, 300, 1024, 1500])
def test_the_nearest_point_of_the_simplex(size, scale):
    z = rows(5, size, scale=scale)
    assert_nearest(z, sparsemax(z))


def test_agrees_with_bisection():
    z = rows(20, 9)
    torch.testing.assert_close(sparsemax(z), torch.tensor([slow(row) for row in z.tolist()], dtype=z.dtype))


@pytest.mark.parametrize("shape", [(6, 40), (3, 2000)])
def test_agrees_with_entmax(shape):
    entmax = pytest.importorskip("entmax")
    z = rows(*shape)
    torch.testing.assert_close(sparsemax(z), entmax.sparsemax(z))


@pytest.mark.parametrize("n", [60, 4000])
def test_rows_that_take_newton_s_method_longest(n):
    """Supports that shrink a little at every step: logits falling geometrically at many rates, and with plateaus."""
    k = torch.arange(n, dtype=torch.float64)
    z = torch.stack(
        [-(ratio**k) for ratio in (0.5, 0.9, 0.99, 1.01)] + [-k.sqrt(), -k.log1p(), -(k // 7) / n, -1 / (n - k)]
    )
    assert_nearest(z, sparsemax(z))
    assert_nearest(z.float(), sparsemax(z.float()), atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.floats(-3, 3), st.sampled_from([0.0, 1.0, -1e9, 1e9])), min_size=1, max_size=12))
def test_any_list_of_numbers(numbers):
    z = torch.tensor(numbers, dtype=torch.float64)
    assert_nearest(z, sparsemax(z))


def test_more_rows_than_a_block_holds():
    z = rows(400, 1200)
    assert torch.equal(sparsemax(z)[397:], sparsemax(z[397:]))
    assert_nearest(z, sparsemax(z))


def test_ties_share_alike():
    assert sparsemax(torch.tensor([2.0, 2.0, -1.0, 2.0, 2.0])).tolist() == [0.25, 0.25, 0.0, 0.25, 0.25]
    assert sparsemax(torch.tensor([1.0, 0.0])).tolist() == [1.0, 0.0]
    assert torch.equal(sparsemax(torch.zeros(2, 2048)), torch.full((2, 2048), 1 / 2048))


def test_a_constant_changes_nothing():
    z = torch.tensor([[0.75, 0.5, -0.25]])
    assert torch.equal(sparsemax(z + 2**20), sparsemax(z))
    assert torch.equal(sparsemax(z - 2**20), sparsemax(z))


def test_cold_logits_give_the_largest():
    z = rows(8, 6)
    assert torch.equal(sparsemax(1e6 * z), torch.nn.functional.one_hot(z.argmax(1), 6).double())


def test_two_logits_give_a_clipped_line():
    gap = torch.linspace(-2, 2, 41, dtype=torch.float64)
    z = torch.stack([gap, torch.zeros_like(gap)], 1)
    torch.testing.assert_close(sparsemax(z)[:, 0], ((gap + 1) / 2).clamp(0, 1))


def test_masked_logits_are_as_good_as_absent():
    z = torch.cat([rows(4, 5), torch.full((4, 2000), -torch.inf, dtype=torch.float64)], 1).requires_grad_()
    p = sparsemax(z)
    torch.testing.assert_close(p[:, :5], sparsemax(z[:, :5]))
    assert p[:, 5:].eq(0).all()
    (grad,) = torch.autograd.grad((p**2).sum(), z)
    assert grad.isfinite().all()


def test_rows_without_an_answer_give_nan_and_leave_the_others_alone():
    z = torch.tensor([[-torch.inf] * 3, [torch.nan, 0.0, 0.0], [torch.inf, 0.0, 0.0], [0.5, 0.0, 0.0]])
    p = sparsemax(z)
    assert p[:3].isnan().all()
    assert torch.equal(p[3], sparsemax(z[3]))


@pytest.mark.parametrize("dim", [0, 1, 2, -2])
def test_any_dimension(dim):
    z = rows(3, 4, 5).requires_grad_()
    last = sparsemax(z.movedim(dim, -1).contiguous()).movedim(-1, dim)
    assert torch.equal(sparsemax(z, dim), last)
    assert torch.equal(Sparsemax(dim)(z), last)
    v = rows(3, 4, 5, seed=1)
    torch.testing.assert_close(*(torch.autograd.grad(p, z, v)[0] for p in (sparsemax(z, dim), last)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types_are_kept_and_half_precision_is_computed_in_single(dtype):
    z = rows(3, 3000).to(dtype)
    assert torch.equal(sparsemax(z), sparsemax(z.float()).to(dtype))


def test_strided_and_expanded_inputs():
    z = rows(6, 8)
    assert torch.equal(sparsemax(z[::2, ::2]), sparsemax(z[::2, ::2].contiguous()))
    assert torch.equal(sparsemax(z[:1].expand(4, 8)), sparsemax(z[:1]).expand(4, 8))


def test_the_jacobian_is_the_closed_form():
    for z in rows(5, 6):
        p = sparsemax(z)
        s = (p > 0).double()
        closed = torch.diag(s) - torch.outer(s, s) / s.sum()
        torch.testing.assert_close(torch.autograd.functional.jacobian(sparsemax, z), closed)


def test_derivatives_of_both_orders():
    z = rows(3, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: sparsemax(v, 1), z)
    assert torch.autograd.gradgradcheck(lambda v: sparsemax(v, 1), z)


def test_function_transforms():
    z = rows(4, 5)
    torch.testing.assert_close(torch.func.vmap(sparsemax, in_dims=1, out_dims=1)(z), sparsemax(z, 0))
    each = torch.func.vmap(torch.func.grad(lambda v: (sparsemax(v) ** 2).sum()))(z)
    v = z.clone().requires_grad_()
    torch.testing.assert_close(each, torch.autograd.grad((sparsemax(v) ** 2).sum(), v)[0])
    cubes = torch.func.jacrev(torch.func.grad(lambda u: (sparsemax(u) ** 3).sum()))(z[0])
    torch.testing.assert_close(cubes, torch.autograd.functional.hessian(lambda u: (sparsemax(u) ** 3).sum(), z[0]))


def test_forward_mode_is_refused_rather_than_wrong():
    with pytest.raises(NotImplementedError):
        torch.func.jvp(sparsemax, (rows(3),), (rows(3),))


def test_the_operator_keeps_torch_s_rules():
    torch.library.opcheck(_project, (rows(3, 4),))
    torch.library.opcheck(_project, (rows(4, 3).T.half(),))


def test_what_has_no_simplex_is_refused():
    for z in (torch.zeros(3, dtype=torch.int64), torch.tensor(1.0), torch.zeros(2, 0)):
        with pytest.raises((ValueError, TypeError)):
            sparsemax(z)
    assert sparsemax(torch.zeros(0, 3)).shape == (0, 3)
