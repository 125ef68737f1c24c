"""Regularisation methods for PyTorch that work in any training loop and work together.

The rooms follow the objective: ``data``, ``losses``, ``penalties``, ``weights``, ``layers``, ``optim``; ``train`` joins
them.
Nothing is loaded before it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wellposed.train.estimator import WellposedClassifier, WellposedRegressor
    from wellposed.train.explain import explain
    from wellposed.train.recipe import Recipe
    from wellposed.train.trainer import Trainer

    __version__: str

__all__ = ["Recipe", "Trainer", "WellposedClassifier", "WellposedRegressor", "__version__", "explain"]

_HOME = {
    "Recipe": "wellposed.train.recipe",
    "Trainer": "wellposed.train.trainer",
    "WellposedClassifier": "wellposed.train.estimator",
    "WellposedRegressor": "wellposed.train.estimator",
    "explain": "wellposed.train.explain",
}
_ROOMS = ("adapt", "catalog", "claims", "data", "layers", "losses", "measure", "optim", "penalties", "study", "tables")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("wellposed")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in (*_ROOMS, "train", "weights"):
        return importlib.import_module(f"wellposed.{name}")
    raise AttributeError(f"module 'wellposed' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "train", "weights"])
