"""Metrics against scikit-learn and against counting."""

import numpy as np
import pytest
from sklearn import metrics as sk

from wellposed.errors import UserError
from wellposed.study.metrics import METRICS, calibration_bins, metric_for, tie_break


@pytest.fixture
def classes():
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=120)
    p = rng.dirichlet(np.ones(3), size=120)
    return y, p


@pytest.fixture
def values():
    rng = np.random.default_rng(1)
    y = rng.normal(size=80)
    return y, y + 0.3 * rng.normal(size=80)


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("accuracy", lambda y, p: sk.accuracy_score(y, p.argmax(1))),
        ("balanced_accuracy", lambda y, p: sk.balanced_accuracy_score(y, p.argmax(1))),
        ("f1", lambda y, p: sk.f1_score(y, p.argmax(1), average="macro")),
        ("auc", lambda y, p: sk.roc_auc_score(y, p, multi_class="ovr")),
        ("log_loss", sk.log_loss),
        ("brier", lambda y, p: np.mean(((p - np.eye(3)[y]) ** 2).sum(1))),
    ],
)
def test_classification_metrics_agree_with_scikit_learn(name, peer, classes):
    assert METRICS[name].score(*classes) == pytest.approx(peer(*classes))


@pytest.mark.parametrize(
    ("name", "peer"),
    [("rmse", sk.root_mean_squared_error), ("mae", sk.mean_absolute_error), ("r2", sk.r2_score)],
)
def test_regression_metrics_agree_with_scikit_learn(name, peer, values):
    assert METRICS[name].score(*values) == pytest.approx(peer(*values))


def test_a_figure_by_row_has_the_figure_for_mean(classes, values):
    for metric in METRICS.values():
        if metric.by_row is not None:
            data = values if "regression" in metric.tasks else classes
            assert metric.by_row(*data).mean() == pytest.approx(metric.score(*data))


def test_r2_of_a_constant_target_is_not_a_number():
    assert np.isnan(METRICS["r2"].score(np.ones(5), np.arange(5.0)))


def test_the_tie_break_prefers_the_surer_of_two_right_predictions():
    y = np.array([0, 1])
    sure, unsure = np.array([[0.9, 0.1], [0.1, 0.9]]), np.array([[0.6, 0.4], [0.4, 0.6]])
    assert 0 <= tie_break(y, sure) < tie_break(y, unsure) < 1
    assert tie_break(y, np.eye(2)[1 - y]) < 1


def test_calibration_bins_count_and_the_error_is_the_weighted_gap():
    p = np.array([[0.75, 0.25]] * 8)
    y = np.array([0] * 4 + [1] * 4)
    bins, ece = calibration_bins(y, p)
    assert bins == [{"confidence": 0.75, "accuracy": 0.5, "count": 8.0}]
    assert ece == pytest.approx(0.25)


def test_metric_for_names_what_there_is():
    assert metric_for(None, "binary").name == "accuracy"
    assert metric_for(None, "regression").name == "rmse"
    with pytest.raises(UserError, match="did you mean 'log_loss'"):
        metric_for("logloss", "binary")
    with pytest.raises(UserError, match=r"not for regression.*rmse, mae, r2"):
        metric_for("auc", "regression")
