"""Joining the loop's parts: Fabric, callbacks' events, scheduled hyper-parameters."""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from torch.optim.lr_scheduler import LRScheduler

from wellposed.errors import nearest

EVENTS = ("on_fit_start", "on_epoch_start", "on_step_start", "on_step_end", "on_epoch_end", "on_fit_end")
Schedule: TypeAlias = Callable[[float], float]


def launched_fabric(precision: str, accelerator: str, devices: int, strategy: str) -> Fabric:
    """Fabric, launched where there are several processes.

    float16 goes in as a plugin, with its scaler off: Fabric refuses it on a CPU by name, and the loop scales by itself.
    """
    if precision in ("16-mixed", "16"):
        device = "cuda" if accelerator in ("cuda", "gpu") or torch.cuda.is_available() else "cpu"
        plugin = MixedPrecision("16-mixed", device, scaler=torch.amp.GradScaler(device, enabled=False))
        fabric = Fabric(accelerator=accelerator, devices=devices, strategy=strategy, plugins=[plugin])
    else:
        fabric = Fabric(accelerator=accelerator, devices=devices, strategy=strategy, precision=precision)  # type: ignore[arg-type]
    if devices != 1 or strategy != "auto":
        fabric.launch()
    return fabric


def handlers(callbacks: Iterable[Any]) -> dict[str, list[Callable[[Any], None]]]:
    """Each event's handlers.

    Raises:
        TypeError: for an event that does not exist, or a callback that handles none.
    """
    found: dict[str, list[Callable[[Any], None]]] = {event: [] for event in EVENTS}
    for callback in callbacks:
        named = [name for name in dir(callback) if name.startswith("on_")]
        for name in named:
            if name not in found:
                raise TypeError(f"{type(callback).__name__}.{name} is no event of the loop{nearest(name, EVENTS)}")
            found[name].append(getattr(callback, name))
        if not named:
            raise TypeError(f"{type(callback).__name__} handles no event of the loop ({', '.join(EVENTS)})")
    return found


def rate_factor(schedule: Schedule | LRScheduler | None, total_steps: int) -> Callable[[int], float] | None:
    """Step to factor on the learning rate, or ``None`` if nothing is to be written each step.

    Raises:
        TypeError: if ``schedule`` is neither a schedule nor an ``LRScheduler``.
    """
    if schedule is None or isinstance(schedule, LRScheduler):
        return None
    over = getattr(schedule, "over", None)
    if over is None:
        raise TypeError(f"{type(schedule).__name__} is no schedule: it needs over(total_steps), or be an LRScheduler")
    factor: Callable[[int], float] = over(total_steps)
    return factor


def write(target: Any, name: str, value: float) -> None:
    """Write a hyper-parameter where its method keeps it: every parameter group of an optimizer, else the attribute."""
    if isinstance(target, torch.optim.Optimizer):
        for group in target.param_groups:
            group[name] = value
    else:
        setattr(target, name, value)
