"""Time the training loop against the same loop written by hand, and other loops where installed.

    OMP_NUM_THREADS=1 python benchmarks/loop.py

Every case trains the same network on the same tensors, batch by batch in a new order each epoch, and but for the last
two with the same optimizer. One call is a whole ``fit`` of a few epochs by a loop that is already built; Lightning
alone builds its Trainer anew, as its ``fit`` needs. The last two lines of a table are steps in one fused kernel.
"""

import argparse
import copy
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timing import Rows, compare, save, table
from wellposed.optim import SGDW, AdamW
from wellposed.train import Trainer

BATCH = 64
Call = Callable[[], object]


@dataclass(frozen=True)
class Problem:
    """A network, its data, how an optimizer is made, and how many epochs one call trains."""

    model: nn.Module
    x: Tensor
    y: Tensor
    optimizer: Callable[[Any], torch.optim.Optimizer]
    epochs: int

    def fresh(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = copy.deepcopy(self.model)
        return model, self.optimizer(model.parameters())


def problem(sizes: tuple[int, ...], batches: int, epochs: int, optimizer: Callable[[Any], Any]) -> Problem:
    torch.manual_seed(0)
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    x = torch.randn(BATCH * batches, sizes[0])
    return Problem(nn.Sequential(*layers[:-1]), x, torch.randint(10, (len(x),)), optimizer, epochs)


def order(x: Tensor) -> Iterator[Tensor]:
    """The indices of one epoch's batches."""
    permutation = torch.randperm(len(x))
    for start in range(0, len(x), BATCH):
        yield permutation[start : start + BATCH]


def by_hand(task: Problem) -> Call:
    model, optimizer = task.fresh()

    def fit() -> None:
        model.train()
        for _ in range(task.epochs):
            total = torch.zeros(())
            for i in order(task.x):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(task.x[i]), task.y[i])
                loss.backward()
                optimizer.step()
                total += loss.detach()
            total.item()

    return fit


def ours(task: Problem, optimizer: Callable[[Any], torch.optim.Optimizer] | None = None) -> Call:
    model = copy.deepcopy(task.model)
    made = (optimizer or task.optimizer)(model.parameters())
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer=made, epochs=1, batch_size=BATCH, accelerator="cpu")

    def fit() -> None:
        trainer.epochs = trainer.epoch + task.epochs
        trainer.fit((task.x, task.y))

    return fit


def fabric(task: Problem) -> Call:
    from lightning_fabric import Fabric

    made = Fabric(accelerator="cpu", devices=1)
    model, optimizer = made.setup(*task.fresh())

    def fit() -> None:
        model.train()
        for _ in range(task.epochs):
            total = torch.zeros(())
            for i in order(task.x):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(task.x[i]), task.y[i])
                made.backward(loss)
                optimizer.step()
                total += loss.detach()
            total.item()

    return fit


def with_skorch(task: Problem) -> Call:
    from skorch import NeuralNetClassifier

    model, _ = task.fresh()
    net = NeuralNetClassifier(
        model,
        criterion=nn.CrossEntropyLoss,
        optimizer=lambda parameters, **_: task.optimizer(parameters),
        batch_size=BATCH,
        train_split=None,
        iterator_train__shuffle=True,
        verbose=0,
    ).initialize()

    def fit() -> None:
        net.partial_fit(task.x, task.y, epochs=task.epochs)

    return fit


def with_lightning(task: Problem) -> Call:
    import lightning
    from torch.utils.data import DataLoader, TensorDataset

    model, optimizer = task.fresh()

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer

    module, loader = Module(), DataLoader(TensorDataset(task.x, task.y), batch_size=BATCH, shuffle=True)
    extras = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")

    def fit() -> None:
        off = dict.fromkeys(extras, False)
        lightning.Trainer(max_epochs=task.epochs, accelerator="cpu", devices=1, **off).fit(module, loader)

    return fit


def cases(task: Problem, optimizer: str) -> dict[str, Call]:
    found = {"PyTorch by hand": by_hand(task), "wellposed Trainer": ours(task), "Fabric by hand": fabric(task)}
    if importlib.util.find_spec("skorch"):
        found["skorch"] = with_skorch(task)
    if importlib.util.find_spec("lightning"):
        found["Lightning"] = with_lightning(task)
    if optimizer == "AdamW":
        found["PyTorch by hand, fused AdamW"] = by_hand(Problem(task.model, task.x, task.y, FUSED_ADAMW, task.epochs))
        found["wellposed Trainer, wellposed AdamW"] = ours(task, lambda p: AdamW(p, lr=1e-3))
    else:
        found["PyTorch by hand, fused SGD"] = by_hand(Problem(task.model, task.x, task.y, FUSED_SGD, task.epochs))
        found["wellposed Trainer, wellposed SGDW"] = ours(task, lambda p: SGDW(p, lr=1e-3, momentum=0.9))
    return found


def SGD(p: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(p, lr=1e-3, momentum=0.9)


def ADAMW(p: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(p, lr=1e-3)


def FUSED_SGD(p: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(p, lr=1e-3, momentum=0.9, fused=True)


def FUSED_ADAMW(p: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(p, lr=1e-3, fused=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the training loop.")
    parser.add_argument("--rounds", type=int, default=31)
    rounds = parser.parse_args().rounds
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    sizes = {"64-128-10": ((64, 128, 10), 150, 2), "784-512-512-10": ((784, 512, 512, 10), 30, 1)}
    results: dict[str, Rows] = {}
    for network, (layers, batches, epochs) in sizes.items():
        for name, optimizer in (("SGD", SGD), ("AdamW", ADAMW)):
            task = problem(layers, batches, epochs, optimizer)
            results[f"{network}, {name}"] = compare(cases(task, name), rounds=rounds, sample=0.02)
            print(table(f"{network}, batch {BATCH}, {name}", results[f"{network}, {name}"]), flush=True)
    save(Path(__file__).parent / "results" / "loop.json", results)


if __name__ == "__main__":
    main()
