"""Early stopping, and the best epoch's weights."""

import math
from typing import Any

from torch import Tensor, nn


class BestWeights:
    """Keep the weights of the best epoch so far, and say when to give up.

    Args:
        monitor: validation figure to go by, without the prefix ``valid_``.
        mode: ``"min"`` if smaller is better, ``"max"`` if larger is.
        patience: epochs without improvement before :meth:`update` says stop.

    Raises:
        ValueError: for another ``mode``.
    """

    def __init__(self, monitor: str, mode: str, patience: int) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode={mode!r}: must be 'min' or 'max'")
        self.monitor, self.sign, self.patience = monitor, 1.0 if mode == "min" else -1.0, patience
        self.figure: float | None = None
        self.epoch = -1
        self.weights: dict[str, Tensor] = {}

    def update(self, epoch: int, row: dict[str, float], model: nn.Module) -> bool:
        """Take one epoch's figures; return whether to stop.

        Raises:
            ValueError: if the monitored figure was not measured.
        """
        name = f"valid_{self.monitor}"
        if name not in row:
            raise ValueError(f"{name} was not measured: this loss cannot be evaluated on new data; monitor a metric")
        figure = self.sign * row[name]
        if not math.isnan(figure) and (self.figure is None or figure < self.figure):
            self.figure, self.epoch = figure, epoch
            self.weights = {key: value.detach().clone() for key, value in model.state_dict().items()}
        return epoch - self.epoch >= self.patience

    def restore(self, model: nn.Module) -> None:
        """Put the best epoch's weights back, if there was one."""
        if self.figure is not None:
            model.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the best figure, its epoch and its weights."""
        return {"figure": self.figure, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.figure, self.epoch, self.weights = state["figure"], state["epoch"], state["weights"]
