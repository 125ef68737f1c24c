"""Looking at a model in evaluation mode, leaving it as it was."""

from collections.abc import Callable, Mapping

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from wellposed.train.batches import Data, Tensors, as_batch, as_tensors
from wellposed.train.needs import needs_of

Metric = Callable[[Tensor, Tensor], float]


@torch.no_grad()
def outputs_of(model: nn.Module, data: Data | Tensor, batch_size: int, fabric: Fabric) -> tuple[Tensor, Tensor]:
    """Outputs and targets of every sample in order, on Fabric's device; a bare tensor of inputs has targets 0."""
    table = as_tensors(Tensors(data, torch.zeros(len(data))) if isinstance(data, Tensor) else data)
    if table is not None:
        pairs = list(zip(table.inputs.split(batch_size), table.targets.split(batch_size), strict=True))
    else:
        pairs = [(batch.inputs, batch.targets) for batch in map(as_batch, data)]  # type: ignore[arg-type]
    training = model.training
    model.eval()
    try:
        with fabric.autocast():
            outputs = torch.cat([model(fabric.to_device(inputs)) for inputs, _ in pairs])
    finally:
        model.train(training)
    return outputs, fabric.to_device(torch.cat([targets for _, targets in pairs]))


@torch.no_grad()
def figures(loss: nn.Module, metrics: Mapping[str, Metric], outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """The loss, unless it needs more than outputs and targets (a memory by index, say), and every metric."""
    measured: dict[str, float] = {}
    if not needs_of(loss.forward, supplied=2):
        training = loss.training
        loss.eval()
        try:
            measured["loss"] = float(loss(outputs, targets).mean())
        finally:
            loss.train(training)
    return measured | {name: float(metric(outputs, targets)) for name, metric in metrics.items()}
