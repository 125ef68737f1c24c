"""What an output costs: functions of (outputs, targets)."""

from wellposed.losses.memory import ELR
from wellposed.losses.mixing import DecoupledMixup
from wellposed.losses.polynomial import Focal, PolyLoss
from wellposed.losses.smoothing import CrossEntropy, LabelSmoothing, MaxSup
from wellposed.losses.sparsemax import SparsemaxLoss
from wellposed.losses.square import SquareLoss, Squentropy

__all__ = [
    "ELR",
    "CrossEntropy",
    "DecoupledMixup",
    "Focal",
    "LabelSmoothing",
    "MaxSup",
    "PolyLoss",
    "SparsemaxLoss",
    "SquareLoss",
    "Squentropy",
]
