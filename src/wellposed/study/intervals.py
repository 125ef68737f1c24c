"""How sure a figure is: bootstrap over rows and over seeds."""

from typing import TypeAlias

import numpy as np
from scipy.stats import norm, t

from wellposed.study.metrics import Metric

Array: TypeAlias = np.ndarray
RESAMPLES = 2_000


def over_rows(
    metric: Metric, y: Array, first: Array, second: Array | None = None, *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """A metric on test rows, or the paired difference of two predictions, with its 95 % percentile interval.

    Args:
        metric: figure of merit.
        y: targets ``(N,)``.
        first: predictions, ``(N, C)`` or ``(N,)``.
        second: predictions to subtract, on the same rows; the difference is positive where ``first`` is better.
        seed: of the resampling.
        resamples: how many.

    Returns:
        The figure, and the interval's low and high end.
    """
    rng = np.random.default_rng(seed)
    n = len(y)
    if metric.by_row is not None:
        rows = metric.by_row(y, first)
        if second is not None:
            rows = metric.sign * (rows - metric.by_row(y, second))
        block = max(1, 5_000_000 // n)
        draws = np.concatenate(
            [rows[rng.integers(n, size=(min(block, resamples - i), n))].mean(1) for i in range(0, resamples, block)]
        )
        return float(rows.mean()), *_ends(draws)

    def figure(index: Array) -> float:
        value = metric.score(y[index], first[index])
        return value if second is None else metric.sign * (value - metric.score(y[index], second[index]))

    draws = np.array([figure(rng.integers(n, size=n)) for _ in range(min(resamples, 500))])
    return figure(np.arange(n)), *_ends(draws[np.isfinite(draws)])


def over_seeds(differences: Array, *, seed: int = 0, resamples: int = 20_000) -> tuple[float, float, float]:
    """Mean of paired differences, one a seed, with its 95 % expanded-percentile bootstrap interval.

    The plain percentile interval is too short for a handful of seeds. The expanded one reads the bootstrap means at
    ``Phi(-sqrt(n / (n - 1)) t_{0.975, n - 1})`` and its mirror, which gives the length of Student's interval and keeps
    the shape of the data (Hesterberg, "What Teachers Should Know About the Bootstrap", 2015). One seed has no interval:
    both ends are the difference itself.
    """
    differences = np.asarray(differences, dtype=np.float64)
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return mean, mean, mean
    tail = float(norm.cdf(-np.sqrt(n / (n - 1)) * t.ppf(0.975, n - 1)))
    rng = np.random.default_rng(seed)
    draws = differences[rng.integers(n, size=(resamples, n))].mean(1)
    low, high = np.quantile(draws, [tail, 1 - tail])
    return mean, float(low), float(high)


def _ends(draws: Array) -> tuple[float, float]:
    if len(draws) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)
