"""Building blocks a model is made of."""

from wellposed.layers.simplex import Sparsemax, sparsemax
from wellposed.layers.table import TableMLP

__all__ = ["Sparsemax", "TableMLP", "sparsemax"]
