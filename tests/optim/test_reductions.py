"""Norms and inner products over lists of tensors, small and large, of any layout and type."""

import pytest
import torch

from wellposed.optim.reductions import SMALL, inner, norm


def tensors(dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    shapes = [(3,), (), (SMALL // 64, 64), (SMALL + 1,), (70, 71)]
    a, b = [[torch.randn(s, generator=g).to(dtype) for s in shapes] for _ in range(2)]
    return [*a, torch.randn(90, 80, generator=g).to(dtype).t()], [*b, torch.randn(80, 90, generator=g).to(dtype)]


@pytest.mark.parametrize("pick", [slice(None), slice(0, 3), slice(3, None)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_sums_over_all_numbers(pick, dtype):
    a, b = (ts[pick] for ts in tensors(dtype))
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    squares = sum((t.double() ** 2).sum() for t in a)
    products = sum((s.double() * t.double()).sum() for s, t in zip(a, b, strict=True))
    assert norm(a).dtype == inner(a, b).dtype == wide
    torch.testing.assert_close(norm(a).double(), squares.sqrt(), rtol=1e-5, atol=0)
    torch.testing.assert_close(inner(a, b).double(), products, rtol=1e-4, atol=1e-3)


def test_half_precision_does_not_overflow():
    large = [torch.full((4,), 6e4, dtype=torch.float16)]
    assert norm(large).item() == pytest.approx(12e4, rel=1e-3)
    assert inner(large, large).item() == pytest.approx(4 * 36e8, rel=1e-2)
