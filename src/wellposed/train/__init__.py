"""The loop that joins the six rooms of the objective, and what it keeps."""

from wellposed.train.batches import Batch, Tensors
from wellposed.train.trainer import DivergedError, Trainer

__all__ = ["Batch", "DivergedError", "Tensors", "Trainer"]
