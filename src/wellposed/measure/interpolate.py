"""The loss on the straight line between two models."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.func import functional_call

from wellposed.measure.looking import unchanged


class Interpolation(NamedTuple):
    """The loss at evenly spaced places between two models."""

    alphas: Float64[Tensor, " n"]
    losses: Float64[Tensor, " n"]

    @property
    def barrier(self) -> float:
        """How far the loss rises above the straight line between its ends; 0 if it never does."""
        chord = torch.lerp(self.losses[0], self.losses[-1], self.alphas)
        return float((self.losses - chord).max())


def interpolate_loss(
    model_a: nn.Module,
    model_b: nn.Module,
    loss: Callable[[Any, Tensor], Tensor],
    batches: Iterable[tuple[Any, Tensor]],
    *,
    points: int = 11,
) -> Interpolation:
    r"""Evaluate the loss along the line between two models of the same make.

    .. math:: \theta(\alpha) = (1 - \alpha)\, \theta_a + \alpha\, \theta_b, \qquad 0 \le \alpha \le 1

    Floating-point buffers, such as running statistics, are interpolated too; other buffers are the first model's. The
    models are evaluated in eval mode and left as they were; batches weigh by their size.

    Args:
        model_a: the model at 0.
        model_b: the model at 1.
        loss: of (outputs, targets), the mean over the batch.
        batches: pairs (inputs, targets), on the models' device; gone through once for every point.
        points: places, both ends included, at least 2.

    Raises:
        ValueError: if ``points`` is below 2, there is no batch, or the models differ in their parameters.

    Source:
        Sagun, Evci, Guney, Dauphin, Bottou, "Empirical Analysis of the Hessian of Over-Parametrized Neural Networks",
        2017.
    """
    if points < 2:
        raise ValueError(f"points={points}: must be at least 2")
    a, b = _state(model_a), _state(model_b)
    if {name: t.shape for name, t in a.items()} != {name: t.shape for name, t in b.items()}:
        raise ValueError("the models differ in the names or shapes of their parameters")
    alphas = torch.linspace(0, 1, points, dtype=torch.float64)
    with unchanged(model_a), torch.no_grad():
        model_a.eval()
        losses = [_mean_loss(model_a, _between(a, b, alpha), loss, batches) for alpha in alphas.tolist()]
    return Interpolation(alphas, torch.tensor(losses, dtype=torch.float64))


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers())}


def _between(a: dict[str, Tensor], b: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    return {name: torch.lerp(t, b[name].to(t), alpha) if t.is_floating_point() else t for name, t in a.items()}


def _mean_loss(
    model: nn.Module,
    state: dict[str, Tensor],
    loss: Callable[[Any, Tensor], Tensor],
    batches: Iterable[tuple[Any, Tensor]],
) -> float:
    total, count = 0.0, 0
    for inputs, targets in batches:
        total += float(loss(functional_call(model, state, (inputs,)), targets)) * len(targets)
        count += len(targets)
    if count == 0:
        raise ValueError("there is no batch to evaluate the loss on; batches are gone through once for every point")
    return total / count
