"""The loop that joins the terms of the objective; its signature is the objective."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric.strategies.single_device import SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Sampler

from wellposed.errors import nearest
from wellposed.train import checkpoint as files
from wellposed.train.batches import Batch, Data, Feed, shard, shares
from wellposed.train.evaluation import Metric, figures, outputs_of
from wellposed.train.needs import needs_of
from wellposed.train.objective import Clock, Objective
from wellposed.train.scaling import GradientOverflowError, LossScale
from wellposed.train.stopping import BestWeights
from wellposed.train.wiring import Schedule, handlers, launched_fabric, rate_factor, write

History = list[dict[str, float]]


class DivergedError(FloatingPointError):
    """The training loss is not a finite number any more."""


class Trainer:
    r"""Minimise ``mean loss + sum of penalties`` over the parameters of ``model``.

    .. math:: w^* = \arg\min_w \; \frac1N \sum_i \mathrm{loss}(\mathrm{model}_w(x_i), y_i) + \sum_j \mathrm{penalty}_j

    Args:
        model: the module to train; moved to the device in place.
        loss: a loss module.
        penalties: penalty modules, added to the loss.
        optimizer: built on ``model.parameters()``; each step gets a closure over the whole accumulated batch.
        schedule: a ``wellposed.optim`` schedule that multiplies every group's learning rate, or a torch ``LRScheduler``
            stepped after each optimizer step.
        drives: ``(method, name, schedule)`` triples: the schedule's value is written to that hyper-parameter each step.
        transforms: batch transforms, applied in order before the model sees the batch.
        sampler: which samples an epoch serves, and in what order; a permutation of all by default.
        callbacks: objects with any of the events ``on_fit_start``, ``on_epoch_start``, ``on_step_start``,
            ``on_step_end``, ``on_epoch_end``, ``on_fit_end``, each called with the trainer.
        epochs: planned epochs; ``progress`` runs from 0 to 1 over them.
        batch_size: samples of a batch of in-memory data, over all processes together.
        accumulate: batches joined in one optimizer step, each weighted by its size.
        clip: largest gradient norm; longer gradients are scaled down to it.
        metrics: name to function of (outputs, targets), evaluated on the validation data after each epoch.
        monitor: which validation figure early stopping and best weights go by: ``"loss"`` or a metric's name.
        mode: whether a smaller (``"min"``) or a larger (``"max"``) figure is better.
        patience: epochs without improvement after which training stops; the best epoch's weights are restored. ``None``
            trains all epochs and keeps the last weights.
        max_seconds: wall-clock limit; training stops after the step that passes it.
        teacher: a frozen module for methods that ask for ``teacher``.
        features_of: layer whose input is ``features``; the last ``nn.Linear`` by default.
        seed: seeds torch's global generator and the loop's own when fitting starts; ``None`` leaves the global one.
        checkpoint: file to save to, atomically, after each epoch and each ``checkpoint_every`` steps.
        checkpoint_every: steps between two checkpoints inside an epoch.
        precision: as Lightning Fabric's: ``"32-true"``, ``"bf16-mixed"``, ``"16-mixed"``, ``"64-true"``, and so on.
        accelerator: as Fabric's: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"``.
        devices: how many; more than one needs ``strategy``.
        strategy: as Fabric's: ``"auto"``, ``"ddp"``, ``"fsdp"``; start the script with ``torchrun``.

    Raises:
        TypeError: if a method asks for something no loop supplies, or a callback has an event that does not exist.
        ValueError: for counts below 1 or a ``monitor`` that is not measured.

    Example:
        >>> import torch
        >>> from wellposed.losses import MaxSup
        >>> model = torch.nn.Linear(2, 2)
        >>> x = torch.randn(64, 2)
        >>> trainer = Trainer(model, MaxSup(), optimizer=torch.optim.SGD(model.parameters(), lr=0.5), epochs=5, seed=0)
        >>> history = trainer.fit((x, (x[:, 0] > 0).long()))
        >>> len(history), history[-1]["loss"] < history[0]["loss"]
        (5, True)
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        penalties: Sequence[nn.Module] = (),
        *,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule | LRScheduler | None = None,
        drives: Sequence[tuple[Any, str, Schedule]] = (),
        transforms: Sequence[nn.Module] = (),
        sampler: Sampler[int] | None = None,
        callbacks: Sequence[Any] = (),
        epochs: int = 10,
        batch_size: int = 64,
        accumulate: int = 1,
        clip: float | None = None,
        metrics: Mapping[str, Metric] | None = None,
        monitor: str = "loss",
        mode: Literal["min", "max"] = "min",
        patience: int | None = None,
        max_seconds: float | None = None,
        teacher: nn.Module | None = None,
        features_of: str | None = None,
        seed: int | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int | None = None,
        precision: str = "32-true",
        accelerator: str = "auto",
        devices: int = 1,
        strategy: str = "auto",
    ) -> None:
        for name, value in (("epochs", epochs), ("batch_size", batch_size), ("accumulate", accumulate)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if monitor != "loss" and monitor not in (metrics or {}):
            raise ValueError(f"monitor={monitor!r} is not measured{nearest(monitor, ['loss', *(metrics or {})])}")
        self.model, self.loss, self.penalties = model, loss, tuple(penalties)
        self.optimizer, self.schedule, self.drives = optimizer, schedule, tuple(drives)
        self.transforms, self.sampler, self.callbacks = tuple(transforms), sampler, tuple(callbacks)
        self.epochs, self.batch_size, self.accumulate, self.clip = epochs, batch_size, accumulate, clip
        self.metrics, self.max_seconds, self.seed = dict(metrics or {}), max_seconds, seed
        self.teacher, self.features_of = teacher, features_of
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.checkpoint_every = checkpoint_every
        self.best = None if patience is None else BestWeights(monitor, mode, patience)
        self._handlers = handlers(self.callbacks)
        self._sampler_update = getattr(sampler, "update", None)
        self._sampler_needs = None if self._sampler_update is None else needs_of(self._sampler_update)
        self.fabric = launched_fabric(precision, accelerator, devices, strategy)
        self.device = self.fabric.device
        self._bare = isinstance(self.fabric.strategy, SingleDeviceStrategy) and precision in ("32-true", "32")
        self.wrapped: Any = model.to(self.device) if self._bare else self.fabric.setup_module(model)
        for part in (loss, *self.penalties, *self.transforms, *([] if teacher is None else [teacher])):
            part.to(self.device)
        self._scale = LossScale() if precision in ("16-mixed", "16") else None
        self.generator = torch.Generator()
        self.epoch = self.step = 0
        self.progress = 0.0
        self.stop = False
        self.batch: Batch | None = None
        self.history: History = []
        self._cursor = 0
        self._losses: list[Tensor] = []
        self._feed: Feed | None = None

    def fit(self, train: Data, valid: Data | None = None, *, resume: bool = False) -> History:
        """Train, and return one dictionary an epoch.

        Args:
            train: ``(inputs, targets)``, :class:`Tensors`, or a loader of batches.
            valid: the same, for the validation figures.
            resume: continue from ``checkpoint`` if that file is there; the result equals the uninterrupted run's bits.

        Returns:
            For each epoch ``epoch``, ``loss``, ``seconds``, ``lr``, and ``valid_<name>`` for every validation figure.

        Raises:
            DivergedError: if the training loss is no finite number and there is no better epoch to return to.
            ValueError: if ``patience`` is set without validation data, or a needed quantity is not in the data.
        """
        if self.best is not None and valid is None:
            raise ValueError("patience needs validation data: fit(train, valid)")
        if self.seed is not None:
            torch.manual_seed(self.seed)
            self.generator.manual_seed(self.seed)
        for drawn in (*self.transforms, self.sampler):
            if drawn is not None and getattr(drawn, "generator", self) is None:
                drawn.generator = self.generator  # type: ignore[union-attr]
        feed = self._feed = Feed(train, self.batch_size, self.sampler, self.generator, self.device)
        objective = Objective(
            self.model,
            self.wrapped,
            self.loss,
            self.penalties,
            teacher=self.teacher,
            features_of=self.features_of,
            weighted=feed.weighted,
            keep_outputs=self._sampler_needs is not None and "outputs" in self._sampler_needs,
        )
        self.total_steps = self.epochs * -(-feed.batches // self.accumulate)
        self._factor = rate_factor(self.schedule, self.total_steps)
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self._fire("on_fit_start")
        if resume and self.checkpoint is not None and self.checkpoint.exists():
            state, warning = files.load_latest(self.checkpoint)
            if warning is not None:
                self.fabric.print(warning)
            self.load_state_dict(state)
        self._deadline = math.inf if self.max_seconds is None else time.monotonic() + self.max_seconds
        try:
            while self.epoch < self.epochs and not self.stop and self._epoch(feed, objective):
                self._close_epoch(valid)
        finally:
            objective.close()
        if self.best is not None:
            self.best.restore(self.model)
        self._fire("on_fit_end")
        return self.history

    def predict(self, data: Data | Tensor, batch_size: int | None = None) -> Tensor:
        """Outputs of the model in evaluation mode for every sample, in order, on the CPU.

        Args:
            data: inputs ``(N, ...)``, or what :meth:`fit` takes.
            batch_size: samples at a time; 8 times the training batch by default.
        """
        return outputs_of(self.model, data, batch_size or 8 * self.batch_size, self.fabric)[0].cpu()

    def evaluate(self, data: Data) -> dict[str, float]:
        """Loss and metrics on ``data`` in evaluation mode.

        The loss is left out when it needs more than outputs and targets (a memory by index, say).
        """
        outputs, targets = outputs_of(self.model, data, 8 * self.batch_size, self.fabric)
        return figures(self.loss, self.metrics, outputs, targets)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the rest of the run, as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "parts": [part.state_dict() for part in self._parts()],
            "random": files.random_state(),
            "generator": self.generator.get_state(),
            "losses": torch.stack(self._losses).cpu() if self._losses else None,
            "clock": [self.epoch, self.step, self._cursor],
            "history": self.history,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave, into the same methods on the same kind of model.

        Raises:
            ValueError: if the state is of a run with other methods.
        """
        parts = list(self._parts())
        if len(parts) != len(state["parts"]):
            raise ValueError(f"the checkpoint holds {len(state['parts'])} parts with state, this run has {len(parts)}")
        self.model.load_state_dict(state["model"])
        for part, kept in zip(parts, state["parts"], strict=True):
            part.load_state_dict(kept)
        self.epoch, self.step, self._cursor = state["clock"]
        self.history = list(state["history"])
        self._losses = [] if state["losses"] is None else list(state["losses"].to(self.device).unbind())
        self.generator.set_state(state["generator"])
        files.set_random_state(state["random"])

    def _parts(self) -> Iterator[Any]:
        """Whatever beside the model keeps state, in a fixed order."""
        methods = (self.loss, *self.penalties, *self.transforms, self.sampler, *self.callbacks)
        run = (self.optimizer, self.schedule, self._scale, self.best, self._feed)
        return (part for part in (*methods, *run) if hasattr(part, "state_dict"))

    def _epoch(self, feed: Feed, objective: Objective) -> bool:
        """Train until the epoch ends (true) or the run is stopped inside it (false)."""
        self.wrapped.train()
        self.loss.train()
        self._started = time.monotonic()
        batches = feed.epoch(self._cursor)
        if self._cursor == 0:
            self._losses = []
            self._fire("on_epoch_start")
        limited = self.max_seconds is not None
        saving = self.checkpoint is not None and self.checkpoint_every is not None
        while part := list(islice(batches, self.accumulate)):
            self._losses.append(self._step(part, objective))
            self._cursor += len(part)
            if saving and self.step % self.checkpoint_every == 0:  # type: ignore[operator]
                self._save()
            if self.stop or (limited and time.monotonic() > self._deadline):
                self.stop = True
                return False
        self._cursor = 0
        return True

    def _step(self, part: list[Batch], objective: Objective) -> Tensor:
        """One optimizer step over the batches in ``part``; returns the objective's value without its graph."""
        share = shares(part, objective.reduction, self.fabric.world_size)
        if self.fabric.world_size > 1:
            pieces = [shard(batch, self.fabric.global_rank, self.fabric.world_size) for batch in part]
            part = [piece for piece, _ in pieces]
            share = [whole * own for whole, (_, own) in zip(share, pieces, strict=True)]
        if self.transforms:
            part = [self._transform(batch) for batch in part]
        self.batch = part[-1]
        self.progress = self.step / self.total_steps
        if self._factor is not None:
            factor = self._factor(self.step)
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        for target, name, schedule in self.drives:
            write(target, name, schedule(self.progress))
        for event in self._handlers["on_step_start"]:
            event(self)
        clock = Clock(self.epoch, self.step, self.progress)
        value = self._update(self._closure(part, share, objective, clock))
        if isinstance(self.schedule, LRScheduler):
            self.schedule.step()
        self.step += 1
        if self._sampler_needs is not None:
            self._tell_sampler(part, clock, objective)
        for event in self._handlers["on_step_end"]:
            event(self)
        return value

    def _closure(
        self, part: list[Batch], share: list[float | Tensor], objective: Objective, clock: Clock
    ) -> Callable[[], Tensor]:
        """What an optimizer calls as often as it likes: true gradients of the whole accumulated batch."""
        last = len(part) - 1
        finish = self._scale is not None or self.clip is not None

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            objective.seen.clear()
            values = [self._backward(batch, clock, share[i], objective, i == last) for i, batch in enumerate(part)]
            if finish:
                parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
                if self._scale is not None:
                    self._scale.unscale_(parameters)
                if self.clip is not None:
                    torch.nn.utils.clip_grad_norm_(parameters, self.clip)
            return values[0] if last == 0 else torch.stack(values).sum()

        return closure

    def _backward(self, batch: Batch, clock: Clock, share: float | Tensor, objective: Objective, last: bool) -> Tensor:
        if self._bare:
            value = objective(batch, clock, share, once=last)
            value.backward()
            return value.detach()
        with self.fabric.no_backward_sync(self.wrapped, enabled=not last):
            with self.fabric.autocast():
                value = objective(batch, clock, share, once=last)
            (value if self._scale is None else value * self._scale.scale).backward()
        return value.detach()

    def _update(self, closure: Callable[[], Tensor]) -> Tensor:
        if self._scale is None:
            return self.optimizer.step(closure)  # type: ignore[arg-type,return-value]
        try:
            value: Tensor = self.optimizer.step(closure)  # type: ignore[arg-type,assignment]
        except GradientOverflowError:
            self._scale.update(overflow=True)
            return torch.full((), torch.nan, device=self.device)
        self._scale.update(overflow=False)
        return value

    def _close_epoch(self, valid: Data | None) -> None:
        """Measure, remember, decide whether to go on, save."""
        losses = torch.stack(self._losses)
        kept = losses if self._scale is None else losses[losses.isfinite()]
        mean = float(self.fabric.all_reduce(kept.mean(), reduce_op="mean"))  # type: ignore[arg-type]
        row = {"epoch": float(self.epoch), "loss": mean, "lr": float(self.optimizer.param_groups[0]["lr"])}
        if valid is not None:
            row |= {f"valid_{name}": value for name, value in self.evaluate(valid).items()}
        row["seconds"] = time.monotonic() - self._started
        self.history.append(row)
        if not math.isfinite(mean):
            if self.best is None or self.best.figure is None:
                raise DivergedError(f"the loss is {mean} in epoch {self.epoch}: try a smaller learning rate, or clip=1")
            self.stop = True
        elif self.best is not None and self.best.update(self.epoch, row, self.model):
            self.stop = True
        self.epoch += 1
        self._losses = []
        self._fire("on_epoch_end")
        if self.checkpoint is not None:
            self._save()

    def _transform(self, batch: Batch) -> Batch:
        inputs, targets = batch.inputs, batch.targets
        for transform in self.transforms:
            inputs, targets = transform(inputs, targets)
        return Batch(inputs, targets, batch.index, batch.group, batch.weight)

    @torch.no_grad()
    def _tell_sampler(self, part: list[Batch], clock: Clock, objective: Objective) -> None:
        """Give the sampler's ``update`` what it names, batch by batch."""
        assert self._sampler_update is not None
        for batch, outputs in zip(part, objective.seen or [None] * len(part), strict=True):
            given: dict[str, Any] = {"model": self.model, "epoch": clock.epoch, "step": clock.step}
            given |= {"inputs": batch.inputs, "targets": batch.targets, "index": batch.index, "group": batch.group}
            given["outputs"] = outputs
            self._sampler_update(**{name: given[name] for name in self._sampler_needs or ()})

    def _fire(self, event: str) -> None:
        for handler in self._handlers[event]:
            handler(self)

    def _save(self) -> None:
        state = self.state_dict()
        if self.fabric.is_global_zero and self.checkpoint is not None:
            files.save(self.checkpoint, state)
        self.fabric.barrier()
