"""What is charged on top of the loss: on weights, outputs, inputs and gradients."""

from wellposed.penalties.gradients import GradientNorm
from wellposed.penalties.inputs import VAT
from wellposed.penalties.outputs import ClassSpectralDecoupling, OutputEntropy, SpectralDecoupling
from wellposed.penalties.weights import NormLoss, StructuredSparsity

__all__ = [
    "VAT",
    "ClassSpectralDecoupling",
    "GradientNorm",
    "NormLoss",
    "OutputEntropy",
    "SpectralDecoupling",
    "StructuredSparsity",
]
