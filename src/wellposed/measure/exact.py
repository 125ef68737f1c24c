"""The whole spectrum of a small model's Hessian: a bulk at zero and a few eigenvalues outside it."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from wellposed.measure.curvature import Hessian, Terms

LARGEST = 5000
"""Parameters up to which the matrix is built: 200 MB in double precision, and a minute to decompose."""


def dense_hessian(loss: Tensor | Terms, params: Iterable[Tensor], *, block: int = 64) -> Float[Tensor, "p p"]:
    """Build a loss's Hessian as a matrix, symmetric to the last digit.

    Args:
        loss: a scalar with its graph, or a function over batches as :class:`~wellposed.measure.Hessian` takes it.
        params: what to differentiate by.
        block: rows computed at once.

    Raises:
        ValueError: for more than :data:`LARGEST` parameters.
    """
    hessian = Hessian(loss, params)
    p = hessian.size
    if p > LARGEST:
        raise ValueError(f"{p} parameters, more than {LARGEST}: use spectral_density or top_eigenvalues")
    matrix = torch.zeros(p, p, dtype=hessian.dtype, device=hessian.device)
    count = 0
    for gradient, size in hessian.gradients():
        count += size
        flat = torch.cat([g.reshape(-1) for g in gradient])
        if not flat.requires_grad:
            continue
        for start in range(0, p, block):
            rows = torch.eye(min(block, p - start), p, dtype=flat.dtype, device=flat.device).roll(start, 1)
            products = torch.autograd.grad(
                flat, hessian.params, rows, retain_graph=True, is_grads_batched=True, allow_unused=True
            )
            used = [
                rows.new_zeros(len(rows), w.numel()) if t is None else t.reshape(len(rows), -1)
                for t, w in zip(products, hessian.params, strict=True)
            ]
            joined = torch.cat(used, 1)
            matrix[start : start + len(rows)].add_(joined, alpha=size)
    matrix.div_(count)
    return (matrix + matrix.T) / 2


@dataclass(frozen=True)
class Spectrum:
    """All eigenvalues of a Hessian and what they are usually asked.

    Args:
        values: in descending order.
    """

    values: Float64[Tensor, " p"]

    @property
    def top(self) -> float:
        """The largest eigenvalue."""
        return float(self.values[0])

    @property
    def near_zero(self) -> float:
        """The share of eigenvalues below a thousandth of the largest magnitude."""
        return float((self.values.abs() < 1e-3 * self.values.abs().max()).double().mean())

    @property
    def negative_mass(self) -> float:
        """The share of the negative eigenvalues in the sum of all magnitudes; 0 if that is 0."""
        total = self.values.abs().sum()
        return float(self.values.clamp(max=0).abs().sum() / total) if total > 0 else 0.0

    @property
    def bulk_edge(self) -> float:
        """The largest eigenvalue that is no outlier."""
        return float(self.values[self.outliers()])

    def outliers(self) -> int:
        """Count the eigenvalues above the bulk: those before the largest gap.

        A gap is the ratio of one eigenvalue to the next, where everything below a hundredth of the largest stands for
        that hundredth. A single eigenvalue, or none above zero, makes no outlier.
        """
        if len(self.values) < 2 or self.top <= 0:
            return 0
        height = self.values.clamp(min=0.01 * self.top).log()
        return int((height[:-1] - height[1:]).argmax()) + 1


def spectrum(loss: Tensor | Terms, params: Iterable[Tensor]) -> Spectrum:
    r"""Compute all eigenvalues of a loss's Hessian exactly.

    For :math:`n` samples with :math:`K` outputs, near a minimum that fits them,

    .. math:: H = \frac1n \sum_i \nabla f_i\, \ell''_i\, \nabla f_i^\top + \frac1n \sum_i \ell'_i\, \nabla^2 f_i

    loses its second term, so that at least :math:`p - nK` eigenvalues vanish; of the others a few, about as many as
    there are classes, stand out.

    Args:
        loss: a scalar with its graph, or a function over batches as :class:`~wellposed.measure.Hessian` takes it.
        params: what to differentiate by, at most :data:`LARGEST` numbers.

    Raises:
        ValueError: for more parameters than that.

    Source:
        Sagun, Evci, Guney, Dauphin, Bottou, "Empirical Analysis of the Hessian of Over-Parametrized Neural Networks",
        2017.
    """
    return Spectrum(torch.linalg.eigvalsh(dense_hessian(loss, params).double()).flip(0))
