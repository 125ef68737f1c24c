"""Random draws that come from one saved generator, wherever the data are."""

import torch
from jaxtyping import Float64
from torch import Tensor


def device_of(generator: torch.Generator | None) -> torch.device:
    """Where ``generator`` draws; without one, the CPU: the same seed then augments alike on every device."""
    return torch.device("cpu") if generator is None else generator.device


def beta(alpha: float, size: int, generator: torch.Generator | None) -> Float64[Tensor, " size"]:
    r"""Draw from :math:`\mathrm{Beta}(\alpha, \alpha)`, on the generator's device.

    With :math:`G_i \sim \Gamma(\alpha)`, :math:`\lambda = G_1 / (G_1 + G_2)` is drawn as
    :math:`\mathrm{sigmoid}(\log G_1 - \log G_2)`, and :math:`\log G_i` as
    :math:`\log \Gamma(\alpha + 1)\text{-draw} + \log(U_i) / \alpha`: nothing underflows, however small ``alpha``.
    """
    device = device_of(generator)
    shape = torch.full((2, size), alpha + 1, dtype=torch.float64, device=device)
    uniform = torch.rand(2, size, dtype=torch.float64, device=device, generator=generator)
    log_gamma = torch._standard_gamma(shape, generator=generator).log() + uniform.log() / alpha
    return torch.sigmoid(log_gamma[0] - log_gamma[1])
