"""Losses that remember what the model used to say about every training sample."""

from typing import ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from wellposed.losses.targets import (
    Logits,
    Loss,
    Targets,
    check_classification,
    check_reduction,
    cross_entropy,
    promote,
    reduce,
)
from wellposed.space import LogUniform, Space, Uniform


class ELR(nn.Module):
    r"""Cross-entropy, and a pull towards what the model believed of each sample before it began to memorise.

    Every training sample :math:`i` has a target :math:`t_i`, a moving average of the model's probabilities on it that
    starts at 0. While wrong labels are still unlearned it points to the right class, and the second term keeps it so:

    .. math:: t_i \leftarrow \beta t_i + (1 - \beta) \frac{p_i}{\sum_k p_{ik}}, \qquad
        L = \mathrm{CE}(z_i, y_i) + \lambda \log(1 - \langle p_i, t_i \rangle)

    with :math:`p_i = \mathrm{softmax}(z_i)` clamped to :math:`[10^{-4}, 1 - 10^{-4}]`; the targets move before they are
    used and carry no gradient. They move in ``train()`` mode only. Given ``step``, they move once per sample and step,
    so that an optimizer that evaluates a batch twice meets the same targets twice; without it, at every call. Of a
    sample that occurs several times the first occurrence counts. Probabilities that are not finite are forgotten.

    Under ``torch.distributed`` all processes remember the samples of all, so each must call the loss equally often.

    Args:
        num_samples: size of the training data.
        num_classes: number of classes.
        strength: multiplier :math:`\lambda` of the pull, at least 0; 3 for CIFAR-10 and Clothing1M, 7 for CIFAR-100.
        beta: share of a target that survives an update, in ``[0, 1)``; 0.7 for CIFAR-10 and Clothing1M, 0.9 for
            CIFAR-100.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` over the batch.

    Shape:
        outputs ``(N, C)`` logits; targets ``(N,)`` int64 class indices or ``(N, C)`` probabilities; index ``(N,)``
        int64, positions in the training data.

    Raises:
        ValueError: if an argument is out of its range, for another ``reduction`` or shape, or if the outputs have
            another number of classes.

    Source:
        Liu, Niles-Weed, Razavian, Fernandez-Granda, "Early-Learning Regularization Prevents Memorization of Noisy
        Labels", 2020.
    """

    space: ClassVar[Space] = {"strength": LogUniform(1.0, 10.0), "beta": Uniform(0.5, 0.99)}
    suits: ClassVar[tuple[str, ...]] = ("classification",)

    memory: Tensor
    moved: Tensor

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        strength: float = 3.0,
        beta: float = 0.7,
        *,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if num_samples < 1 or num_classes < 1:
            raise ValueError(f"num_samples={num_samples}, num_classes={num_classes}: both must be positive")
        if strength < 0:
            raise ValueError(f"strength={strength}: must be at least 0")
        if not 0 <= beta < 1:
            raise ValueError(f"beta={beta}: must lie in [0, 1)")
        self.strength = strength
        self.beta = beta
        self.reduction = check_reduction(reduction)
        self.register_buffer("memory", torch.zeros(num_samples, num_classes))
        self.register_buffer("moved", torch.full((num_samples,), -1))  # the last step at which each target moved

    def forward(self, outputs: Logits, targets: Targets, *, index: Int[Tensor, " N"], step: int | None = None) -> Loss:
        """Return the loss of ``outputs`` at ``targets``, after moving the targets of the samples ``index``."""
        check_classification(outputs, targets)
        if outputs.shape[1] != self.memory.shape[1]:
            raise ValueError(f"the memory has {self.memory.shape[1]} classes, the outputs {outputs.shape[1]}")
        if index.shape != outputs.shape[:1]:
            raise ValueError(f"index must be ({outputs.shape[0]},), got {tuple(index.shape)}")
        z = promote(outputs)
        p = F.softmax(z, 1).clamp(1e-4, 1 - 1e-4)
        if self.training:
            self._remember(*_everywhere(index, p.detach()), step)
        t = self.memory[index].to(p.dtype)
        return reduce(cross_entropy(z, targets) + self.strength * torch.log1p(-(p * t).sum(1)), self.reduction)

    @torch.no_grad()
    def _remember(self, index: Int[Tensor, " N"], p: Float[Tensor, "N C"], step: int | None) -> None:
        order = index.argsort(stable=True)
        first = order[torch.searchsorted(index[order], index)]  # where each row's sample occurs first
        p = (p / p.sum(1, keepdim=True))[first].to(self.memory.dtype)
        moves = p.isfinite().all(1)
        if step is not None:
            moves &= self.moved[index] != step
            self.moved[index] = step
        t = self.memory[index]
        self.memory[index] = torch.where(moves[:, None], self.beta * t + (1 - self.beta) * p, t)


def _everywhere(index: Int[Tensor, " N"], p: Float[Tensor, "N C"]) -> tuple[Int[Tensor, " M"], Float[Tensor, "M C"]]:
    """The rows of all processes, in the order of their ranks; processes may have different numbers of rows."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return index, p
    length = torch.tensor([len(index)], device=index.device)
    lengths = [torch.empty_like(length) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, length)
    most = int(torch.cat(lengths).max())

    def gathered(rows: Tensor) -> Tensor:
        padded = F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, most - len(rows)))
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        return torch.cat([part[: int(n)] for part, n in zip(parts, lengths, strict=True)])

    return gathered(index), gathered(p)
