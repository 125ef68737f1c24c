"""Serving training data: in-memory tables by slices, anything else through the loader the caller built."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from wellposed.train.checkpoint import random_state, set_random_state

EPOCH_COPY_BYTES = 64 * 2**20
"""Tables up to this size are reordered once an epoch, so that a batch is a view; larger ones are gathered by batch."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch as the loop hands it on; what the data does not carry is ``None``."""

    inputs: Any
    targets: Any
    index: Tensor | None = None
    group: Tensor | None = None
    weight: Tensor | None = None

    def __len__(self) -> int:
        return int(self.targets.shape[0])

    def fields(self) -> tuple[Any, Any, Tensor | None, Tensor | None, Tensor | None]:
        """Inputs, targets, index, group, weight."""
        return self.inputs, self.targets, self.index, self.group, self.weight


@dataclass(frozen=True)
class Tensors:
    """A data set that fits in memory.

    Args:
        inputs: ``(N, ...)``.
        targets: ``(N,)`` int64 class indices, ``(N, C)`` probabilities or ``(N, K)`` values.
        group: ``(N,)`` int64, for methods that ask for ``group``.
        weight: ``(N,)`` non-negative, each sample's share in the loss.

    Raises:
        ValueError: if the lengths differ or a weight is negative.
    """

    inputs: Tensor
    targets: Tensor
    group: Tensor | None = None
    weight: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.inputs)
        for name in ("targets", "group", "weight"):
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise ValueError(f"{name} has {len(value)} rows, inputs have {n}")
        if self.weight is not None and bool((self.weight < 0).any()):
            raise ValueError("weight has negative entries")

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device) -> "Tensors":
        """Return the same data on ``device``."""
        return Tensors(*(None if t is None else t.to(device) for t in self._fields()))  # type: ignore[arg-type]

    def take(self, index: Tensor) -> Batch:
        """Gather the samples at ``index``."""
        x, y, g, w = self._fields()
        return Batch(x[index], y[index], index, None if g is None else g[index], None if w is None else w[index])

    def _fields(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return self.inputs, self.targets, self.group, self.weight


Data: TypeAlias = Tensors | tuple[Tensor, Tensor] | DataLoader[Any] | Iterable[Any]


def as_tensors(data: Data) -> Tensors | None:
    """``data`` as :class:`Tensors` when it is a pair of tensors or one already, else ``None``."""
    if isinstance(data, Tensors):
        return data
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        return Tensors(*data)
    return None


def as_batch(item: Any) -> Batch:
    """What a loader yields as a :class:`Batch`: ``(inputs, targets)``, with ``index`` and ``group`` after them."""
    if isinstance(item, Batch):
        return item
    if not isinstance(item, tuple | list) or not 2 <= len(item) <= 5:
        raise TypeError(f"a batch must be (inputs, targets[, index[, group[, weight]]]), got {type(item).__name__}")
    return Batch(*item)


class Feed:
    """What serves an epoch after the other, and can start in the middle of one as if it had served the beginning.

    Args:
        data: training data; in-memory tables go to ``device`` whole, loaders' batches one by one.
        batch_size: samples of a batch of in-memory data.
        sampler: which samples an epoch serves; a permutation of all by default.
        generator: draws the permutations.
        device: where batches are wanted.

    Raises:
        TypeError: if the data has no length.
    """

    def __init__(
        self,
        data: Data,
        batch_size: int,
        sampler: Sampler[int] | None,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        table = as_tensors(data)
        self.table = None if table is None else table.to(device)
        self.loader: Any = data
        self.batch_size, self.sampler, self.generator, self.device = batch_size, sampler, generator, device
        self.batches = self._count()
        self._start: dict[str, Any] = {}

    @property
    def weighted(self) -> bool:
        """Whether batches carry sample weights."""
        return self.table is not None and self.table.weight is not None

    def epoch(self, skip: int = 0) -> Iterator[Batch]:
        """The batches of one epoch without the first ``skip``, drawn as they were when that epoch began."""
        if skip == 0:
            self._start = {"random": random_state(), "generator": self.generator.get_state()}
            return self._draw(0)
        now = random_state(), self.generator.get_state()
        set_random_state(self._start["random"])
        self.generator.set_state(self._start["generator"])
        try:
            return self._draw(skip)
        finally:
            set_random_state(now[0])
            self.generator.set_state(now[1])

    def state_dict(self) -> dict[str, Any]:
        """Return what it takes to serve the rest of this epoch."""
        return dict(self._start)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._start = dict(state)

    def _draw(self, skip: int) -> Iterator[Batch]:
        if self.table is None:
            served = iter(self.loader)
            for _ in range(skip):
                next(served)
            return (_moved(as_batch(item), self.device) for item in served)
        if self.sampler is None:
            order = torch.randperm(len(self.table), generator=self.generator)
        elif skip:
            order = self._start["order"]
        else:
            order = self._start["order"] = _order(self.sampler)
        return _slices(self.table, order, self.batch_size, skip)

    def _count(self) -> int:
        if self.table is not None:
            served = len(self.table) if self.sampler is None else len(self.sampler)  # type: ignore[arg-type]
            return -(-served // self.batch_size)
        if not hasattr(self.loader, "__len__"):
            raise TypeError("training data needs a length: a pair of tensors, a sized loader or a list of batches")
        return len(self.loader)


def _order(sampler: Sampler[int]) -> Tensor:
    indices = getattr(sampler, "indices", None)
    order: Tensor = indices() if callable(indices) else torch.tensor(list(sampler), dtype=torch.int64)
    if order.numel() == 0:
        raise ValueError(f"{type(sampler).__name__} served no sample")
    return order


def _slices(data: Tensors, order: Tensor, size: int, skip: int) -> Iterator[Batch]:
    order = order.to(data.inputs.device)
    if data.inputs.element_size() * data.inputs[:1].numel() * len(order) > EPOCH_COPY_BYTES:
        yield from (data.take(part) for part in order.split(size)[skip:])
        return
    count = -(-len(order) // size)
    parts = [[None] * count if t is None else t.split(size) for t in data.take(order).fields()]
    yield from (Batch(*fields) for fields in zip(*(part[skip:] for part in parts), strict=True))


def _moved(batch: Batch, device: torch.device) -> Batch:
    moved: Batch = move_data_to_device(batch, device)
    return moved


def shard(batch: Batch, rank: int, world: int) -> tuple[Batch, float]:
    """This process's part of ``batch`` and its share of it, scaled so that an average over processes is the mean.

    A process that would get no sample repeats one at share 0: every process must take part in the collective calls.
    """
    n = len(batch)
    mine = torch.arange(rank, n, world)
    part = mine if len(mine) else torch.zeros(1, dtype=torch.int64)
    return Batch(*(None if t is None else t[part.to(t.device)] for t in batch.fields())), len(mine) * world / n


def shares(part: list[Batch], reduction: str, world: int) -> list[float | Tensor]:
    """Each batch's share of a step, so that the sum over batches is the figure of the joined batch."""
    if reduction == "sum":
        return [float(world)] * len(part)
    if len(part) == 1:
        return [1.0]
    if part[0].weight is not None:
        sums = [batch.weight.sum() for batch in part if batch.weight is not None]
        whole = torch.stack(sums).sum()
        return [s / whole for s in sums]
    sizes = [len(batch) for batch in part]
    return [size / sum(sizes) for size in sizes]
