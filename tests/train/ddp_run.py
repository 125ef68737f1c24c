"""Trainings that several processes and one process must end alike; the processes write what came out for the test."""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Sampler, TensorDataset

from wellposed.train import DivergedError, Tensors, Trainer


def table(n=13):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(n))
    return x.double(), (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


def network(*layers):
    torch.manual_seed(12)
    return nn.Sequential(nn.Linear(6, 8), *layers, nn.Tanh(), nn.Linear(8, 3)).double()


class WeightNorm(nn.Module):
    def forward(self, model):
        return 0.1 * sum(p.square().sum() for p in model.parameters())


class Mix(nn.Module):
    """Mixes every sample with another one of the whole batch, and draws as many numbers as there are samples."""

    def __init__(self):
        super().__init__()
        self.generator = None

    def forward(self, inputs, targets):
        ratio = torch.rand(len(inputs), 1, generator=self.generator, dtype=inputs.dtype)
        partner = torch.randperm(len(inputs), generator=self.generator)
        return torch.lerp(inputs, inputs[partner], ratio), targets


class Scored(Sampler[int]):
    """Serves the samples with the larger losses; every process must know all losses."""

    def __init__(self):
        self.scores = torch.zeros(13, dtype=torch.float64)

    def __iter__(self):
        return iter(self.scores.argsort(descending=True, stable=True)[:9].tolist())

    def __len__(self):
        return 9

    def update(self, *, index, outputs, targets):
        self.scores[index] = nn.functional.cross_entropy(outputs, targets, reduction="none")

    def state_dict(self):
        return {"scores": self.scores}

    def load_state_dict(self, state):
        self.scores = state["scores"]


class TwoPass(torch.optim.SGD):
    """A step from the gradient at weights moved along the gradient."""

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        params = [p for group in self.param_groups for p in group["params"]]
        kept = [p.clone() for p in params]
        for p in params:
            p.add_(p.grad, alpha=0.2)
        with torch.enable_grad():
            closure()
        for p, w in zip(params, kept, strict=True):
            p.copy_(w)
        super().step()
        return loss


class StopOnSecond:
    """Wants to stop at the third step, but knows so on the last process only."""

    def on_step_end(self, trainer):
        trainer.stop = trainer.step == 3 and trainer.fabric.global_rank == trainer.fabric.world_size - 1


class Rows:
    """Remembers the samples that this process trained on in each epoch, by their first input."""

    def __init__(self):
        self.seen = []

    def on_epoch_start(self, trainer):
        self.seen.append([])

    def on_step_end(self, trainer):
        self.seen[-1] += trainer.batch.inputs[:, 0].tolist()


class Interrupt:
    def on_step_end(self, trainer):
        if trainer.step == 3:
            raise KeyboardInterrupt


def accuracy(outputs, targets):
    return (outputs.argmax(1) == targets).double().mean().item()


def run(world, model=None, data=None, optimizer=torch.optim.SGD, loss=None, penalties=(), resume=False, **options):
    model = network() if model is None else model
    options = {"epochs": 3, "batch_size": 4, "accumulate": 2, "seed": 7} | options
    if world > 1:
        options |= {"accelerator": "cpu", "devices": world, "strategy": options.get("strategy", "ddp")}
    trainer = Trainer(
        model,
        nn.CrossEntropyLoss() if loss is None else loss,
        penalties,
        optimizer=optimizer(model.parameters(), lr=0.1),
        metrics={"accuracy": accuracy},
        **options,
    )
    x, y = table(11)
    history = trainer.fit(table() if data is None else data, (x.to(model[0].weight.dtype), y), resume=resume)
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in history]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    return {
        "weights": state,
        "history": history,
        "step": trainer.step,
        "sampler": getattr(options.get("sampler"), "scores", None),
    }


def equal_to_one(world):
    """What must not depend on the number of processes."""
    x, y = table()
    weight = torch.rand(13, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight[::4] = 0
    frozen = network()
    frozen[0].weight.requires_grad_(False)
    return {
        "plain": run(world),
        "momentum, clipping, penalty": run(
            world, penalties=[WeightNorm()], clip=0.1, optimizer=lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)
        ),
        "sum": run(
            world, loss=nn.CrossEntropyLoss(reduction="sum"), optimizer=lambda p, lr: torch.optim.SGD(p, lr / 9)
        ),
        "weights": run(world, data=Tensors(x, y, weight=weight)),
        "two passes": run(world, optimizer=TwoPass),
        "mixing transform": run(world, transforms=[Mix()]),
        "told sampler": run(world, sampler=Scored(), accumulate=1),
        "early stopping": run(world, epochs=30, patience=2, optimizer=lambda p, lr: torch.optim.SGD(p, 20 * lr)),
        "stopped by one": run(world, callbacks=[StopOnSecond()], accumulate=1),
        "loader": run(world, data=DataLoader(TensorDataset(x, y), batch_size=4)),
        "frozen": run(world, model=frozen),
    }


def equal_over_processes(world, folder):
    """What processes must agree on although it differs from what one process does."""
    x, y = table()
    rows = Rows()
    results = {
        "batch norm": run(world, model=network(nn.BatchNorm1d(8, track_running_stats=True)), batch_size=7),
        "shuffling loader, dropout": run(
            world,
            model=network(nn.Dropout(0.5)),
            data=DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True),
            accumulate=1,
            callbacks=[rows],
        ),
        "no seed": run(world, seed=None),
        "half": run(world, model=network().float(), data=(x.float(), y), precision="bf16-mixed"),
    }

    results["shuffling loader, dropout"]["rows"] = rows.seen

    def noisy(name, **options):
        return run(world, model=network(nn.Dropout(0.5)), checkpoint=folder / name, checkpoint_every=1, **options)

    results["whole"] = noisy("whole")
    try:
        noisy("cut", callbacks=[Interrupt()])
    except KeyboardInterrupt:
        results["resumed"] = noisy("cut", resume=True)
    return results


def unsynced(world):
    """How often gradients are held back from the other processes in a run of three epochs."""
    plain, calls = DistributedDataParallel.no_sync, []
    DistributedDataParallel.no_sync = lambda self: calls.append(1) or plain(self)
    try:
        run(world)
    finally:
        DistributedDataParallel.no_sync = plain
    return len(calls)


def diverges(world):
    try:
        run(world, data=(table()[0] * torch.nan, table()[1]))
    except DivergedError:
        return True
    return False


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, world = Path(sys.argv[1]), int(sys.argv[2])
    result = {"equal to one": equal_to_one(world), "agreed": equal_over_processes(world, folder)}
    result |= {"diverges": diverges(world), "unsynced": unsynced(world)}
    torch.save(result, folder / f"rank{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
