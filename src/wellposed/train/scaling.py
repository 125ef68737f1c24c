"""Loss scaling for float16 that a step with several passes can use.

``torch.amp.GradScaler`` unscales inside ``step`` and once only, so a closure never sees true gradients. Here the
closure unscales, and an overflow is an exception that any update method already survives.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class GradientOverflowError(ArithmeticError):
    """A gradient left float16's range: the step is to be skipped and the scale lowered."""


class LossScale:
    """A factor on the loss, lowered on overflow and raised after a run of good steps.

    Args:
        scale: first factor.
        growth: factor on the scale after ``interval`` good steps.
        backoff: factor on the scale after an overflow.
        interval: good steps between two growths.
    """

    def __init__(self, scale: float = 2.0**16, growth: float = 2.0, backoff: float = 0.5, interval: int = 2000) -> None:
        self.scale, self.growth, self.backoff, self.interval = scale, growth, backoff, interval
        self.good_steps = 0

    def unscale_(self, parameters: Iterable[Tensor]) -> None:
        """Divide every gradient by the scale.

        Raises:
            GradientOverflowError: if a gradient is infinite or not a number; the gradients are then cleared.
        """
        parameters = [p for p in parameters if p.grad is not None]
        grads = [p.grad for p in parameters if p.grad is not None]
        if not grads:
            return
        torch._foreach_mul_(grads, 1.0 / self.scale)
        if not bool(torch.stack([n.float() for n in torch._foreach_norm(grads, torch.inf)]).isfinite().all()):
            for p in parameters:
                p.grad = None
            raise GradientOverflowError

    def update(self, overflow: bool) -> None:
        """Move the scale after a step that overflowed or did not."""
        if overflow:
            self.scale, self.good_steps = self.scale * self.backoff, 0
            return
        self.good_steps += 1
        if self.good_steps == self.interval:
            self.scale, self.good_steps = self.scale * self.growth, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the factor and the count of good steps."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])
