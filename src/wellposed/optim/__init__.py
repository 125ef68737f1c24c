"""How the sum of loss and penalties is minimised: optimizers, wrappers around them, schedules."""

from wellposed.optim.decoupled import SGDW, AdamW, normalized_weight_decay
from wellposed.optim.momo import MoMo, MoMoAdam
from wellposed.optim.perturbation import AMP, SAM, GradientRegularization
from wellposed.optim.schedules import WSD, Constant, Cosine, Linear, Schedule
from wellposed.optim.statistics import frozen_statistics

__all__ = [
    "AMP",
    "SAM",
    "SGDW",
    "WSD",
    "AdamW",
    "Constant",
    "Cosine",
    "GradientRegularization",
    "Linear",
    "MoMo",
    "MoMoAdam",
    "Schedule",
    "frozen_statistics",
    "normalized_weight_decay",
]
