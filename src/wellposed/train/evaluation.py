"""Looking at a model in evaluation mode, leaving it as it was."""

from collections.abc import Callable, Mapping

import torch
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor, nn

from wellposed.train.batches import Data, Tensors, as_batch, as_tensors
from wellposed.train.needs import needs_of
from wellposed.train.wiring import Runner

Metric = Callable[[Tensor, Tensor], float]


@torch.no_grad()
def outputs_of(runner: Runner, data: Data | Tensor, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Outputs, half precision promoted, and targets of every sample in order; a bare tensor of inputs has targets 0."""
    table = as_tensors(Tensors(data, torch.zeros(len(data))) if isinstance(data, Tensor) else data)
    if table is not None:
        pairs = list(zip(table.inputs.split(batch_size), table.targets.split(batch_size), strict=True))
    else:
        pairs = [(batch.inputs, batch.targets) for batch in map(as_batch, data)]  # type: ignore[arg-type]
    modes = [(module, module.training) for module in runner.model.modules()]
    runner.model.eval()
    try:
        outputs = torch.cat([runner.look(move_data_to_device(inputs, device)) for inputs, _ in pairs])
    finally:
        for module, training in modes:
            module.training = training
    targets = torch.cat([targets for _, targets in pairs]).to(device)
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32)), targets


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
