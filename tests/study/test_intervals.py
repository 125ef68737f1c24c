"""Intervals: coverage in simulation, exact cases, pairing."""

import numpy as np
import pytest

from wellposed.study.intervals import over_rows, over_seeds
from wellposed.study.metrics import METRICS


def test_over_seeds_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = sum(
        low <= 0.3 <= high
        for _ in range(300)
        for _, low, high in [over_seeds(rng.normal(0.3, 1.0, size=5), resamples=2_000)]
    )
    assert 0.88 <= hits / 300 <= 0.99  # a plain percentile interval of five values covers about 0.83


def test_over_seeds_is_about_students_interval_for_many_normal_values():
    x = np.random.default_rng(1).normal(2.0, 1.0, size=40)
    mean, low, high = over_seeds(x)
    half = 2.02 * x.std(ddof=1) / np.sqrt(40)
    assert mean == pytest.approx(x.mean())
    assert (low, high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.06)


def test_one_seed_has_no_interval():
    assert over_seeds(np.array([0.5])) == (0.5, 0.5, 0.5)


def test_pairing_makes_the_interval_of_a_constant_difference_a_point():
    y = np.random.default_rng(2).normal(size=200)
    far = y + 3.0
    near = y + 1.0
    mean, low, high = over_rows(METRICS["mae"], y, near, far)
    assert (mean, low, high) == pytest.approx((2.0, 2.0, 2.0))


@pytest.mark.parametrize("name", ["rmse", "auc"])
def test_metrics_that_are_no_mean_over_rows_are_resampled_whole(name):
    rng = np.random.default_rng(3)
    metric = METRICS[name]
    if name == "rmse":
        y = rng.normal(size=300)
        good, bad = y + 0.1 * rng.normal(size=300), y + rng.normal(size=300)
    else:
        y = rng.integers(2, size=300)
        logits = np.stack([np.zeros(300), 3.0 * y - 1.5 + rng.normal(size=300)], 1)
        good = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        bad = np.full((300, 2), 0.5)
    value, low, high = over_rows(metric, y, good)
    assert low <= value <= high
    assert value == pytest.approx(metric.score(y, good))
    gap, gap_low, _ = over_rows(metric, y, good, bad)
    assert gap > 0
    assert gap_low > 0
