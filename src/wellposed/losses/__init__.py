"""What an output costs: functions of (outputs, targets)."""

from wellposed.losses.smoothing import CrossEntropy, LabelSmoothing, MaxSup

__all__ = ["CrossEntropy", "LabelSmoothing", "MaxSup"]
