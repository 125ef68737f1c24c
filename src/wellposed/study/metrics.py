"""What a prediction is judged by."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float
from sklearn import metrics as sk

from wellposed.errors import UserError, nearest

Task: TypeAlias = Literal["binary", "multiclass", "regression"]
Array: TypeAlias = np.ndarray

_TINY = 1e-7


@dataclass(frozen=True)
class Metric:
    """A figure of merit.

    Args:
        name: as the user writes it.
        tasks: tasks it is defined for.
        higher_is_better: its direction.
        percent: whether it is shown in points of a hundred.
        score: function of (targets, predictions); classes ``(N,)`` int with probabilities ``(N, C)``, or
            values ``(N,)`` with values ``(N,)``.
        by_row: the same figure as the mean of one number a row, where it is one; makes paired intervals cheap.
    """

    name: str
    tasks: tuple[Task, ...]
    higher_is_better: bool
    percent: bool
    score: Callable[[Array, Array], float]
    by_row: Callable[[Array, Array], Float[Array, " N"]] | None = None

    @property
    def sign(self) -> float:
        """+1 if higher is better, -1 if lower is."""
        return 1.0 if self.higher_is_better else -1.0


def _hits(y: Array, p: Array) -> Array:
    hits: Array = (p.argmax(1) == y).astype(np.float64)
    return hits


def _log_losses(y: Array, p: Array) -> Array:
    losses: Array = -np.log(np.clip(p[np.arange(len(y)), y], _TINY, 1.0))
    return losses


def _squares(y: Array, p: Array) -> Array:
    squares: Array = (y - p) ** 2
    return squares


def _distances(y: Array, p: Array) -> Array:
    distances: Array = np.abs(y - p)
    return distances


def _r2(y: Array, p: Array) -> float:
    """Explained share of the variance; not a number where there is none to explain."""
    total = float(_squares(y, np.full_like(y, y.mean())).sum())
    return 1 - float(_squares(y, p).sum()) / total if total > 0 else float("nan")


def _brier_rows(y: Array, p: Array) -> Array:
    rows: Array = ((p - np.eye(p.shape[1])[y]) ** 2).sum(1)
    return rows


def _auc(y: Array, p: Array) -> float:
    """Area under the ROC curve; the mean over classes against the rest, of the classes that occur."""
    if p.shape[1] == 2:
        return float(sk.roc_auc_score(y, p[:, 1])) if len(np.unique(y)) == 2 else 0.5
    areas = [float(sk.roc_auc_score(y == c, p[:, c])) for c in np.unique(y) if not (y == c).all()]
    return float(np.mean(areas)) if areas else 0.5


_CLASSES: tuple[Task, ...] = ("binary", "multiclass")
_VALUES: tuple[Task, ...] = ("regression",)

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric("accuracy", _CLASSES, True, True, lambda y, p: float(_hits(y, p).mean()), _hits),
            Metric(
                "balanced_accuracy",
                _CLASSES,
                True,
                True,
                lambda y, p: float(np.mean([_hits(y, p)[y == c].mean() for c in np.unique(y)])),
            ),
            Metric(
                "f1",
                _CLASSES,
                True,
                True,
                lambda y, p: float(sk.f1_score(y, p.argmax(1), average="macro", zero_division=0.0)),
            ),
            Metric("auc", _CLASSES, True, True, _auc),
            Metric("log_loss", _CLASSES, False, False, lambda y, p: float(_log_losses(y, p).mean()), _log_losses),
            Metric("brier", _CLASSES, False, False, lambda y, p: float(_brier_rows(y, p).mean()), _brier_rows),
            Metric("rmse", _VALUES, False, False, lambda y, p: float(np.sqrt(_squares(y, p).mean()))),
            Metric(
                "mae", _VALUES, False, False, lambda y, p: float(_distances(y, p).mean()), lambda y, p: np.abs(y - p)
            ),
            Metric("r2", _VALUES, True, True, _r2),
        )
    }
)


def metric_for(name: str | None, task: Task) -> Metric:
    """The metric of that name, or the task's default: accuracy for classes, root mean squared error for values.

    Raises:
        UserError: if there is no such metric, or it is not for this task.
    """
    if name is None:
        return METRICS["rmse" if task == "regression" else "accuracy"]
    fitting = [m.name for m in METRICS.values() if task in m.tasks]
    if name not in METRICS:
        raise UserError(f"--metric {name}: no such metric{nearest(name, fitting)} (for {task}: {', '.join(fitting)})")
    if name not in fitting:
        raise UserError(f"--metric {name}: not for {task}, choose one of {', '.join(fitting)}")
    return METRICS[name]


def tie_break(y: Array, p: Array) -> float:
    """A proper score in [0, 1) that tells apart predictions with the same accuracy; smaller is better."""
    if p.ndim == 1:
        return 0.0
    return float(np.tanh(_log_losses(y, p).mean() / 10))


def calibration_bins(y: Array, p: Array, bins: int = 10) -> tuple[list[dict[str, float]], float]:
    """Confidence of the predicted class against accuracy in equal-width bins, and the expected calibration error."""
    confidence, hit = p.max(1), _hits(y, p)
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    rows = [
        {
            "confidence": float(confidence[which == b].mean()),
            "accuracy": float(hit[which == b].mean()),
            "count": float(n),
        }
        for b in range(bins)
        if (n := int((which == b).sum()))
    ]
    gap = sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in rows)
    return rows, gap / len(y)
