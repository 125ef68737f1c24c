"""The scikit-learn front: the conventions of scikit-learn, and what training by a recipe adds to them."""

import copy
import inspect
import pickle
import random

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from wellposed import WellposedClassifier, WellposedRegressor
from wellposed.layers import TableMLP
from wellposed.train import estimator as front

QUICK = {"width": 16, "depth": 1, "epochs": 5}
COCKTAIL = "LabelSmoothing(alpha=0.05) + NormLoss(strength=0.001) + Mixup(alpha=0.2) + SAM(AdamW(lr=0.01), rho=0.05)"


ROUNDED = {
    "check_sample_weight_equivalence_on_dense_data": (
        "a row of weight 2 equals two rows to the rounding of float32, about what the check allows, and only because "
        "its rows make one batch: of several, the copies would fall into different ones"
    )
}


@parametrize_with_checks(
    [WellposedClassifier(width=32, epochs=20), WellposedRegressor(width=32, epochs=20)],
    expected_failed_checks=lambda estimator: ROUNDED,
    xfail_strict=False,
)
def test_scikit_learn_conventions(estimator, check, monkeypatch):
    # The suite enforces annotations; scikit-learn requires a constructor that takes anything and leaves it to fit.
    monkeypatch.setattr(front._Front, "__init__", inspect.unwrap(front._Front.__init__))
    check(estimator)


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def diabetes():
    return load_diabetes(return_X_y=True)


def test_a_cocktail_trains(iris):
    model = WellposedClassifier(recipe=COCKTAIL, width=32, epochs=30).fit(*iris)
    assert model.score(*iris) > 0.93
    assert [t.name for t in model.recipe_.terms] == ["LabelSmoothing", "NormLoss", "Mixup", "SAM"]
    assert model.n_iter_ == len(model.history_) <= 30


@pytest.mark.parametrize(
    "term",
    [
        "NormLoss(strength=0.3)",
        "Mixup(alpha=1.0)",
        "SAM(AdamW(), rho=0.5)",
        "LabelSmoothing(alpha=0.5)",
        "FeatureMask(p=0.5)",
    ],
)
def test_each_term_has_an_effect(iris, term):
    base = "" if "AdamW" in term else " + AdamW()"
    plain = WellposedClassifier(recipe="AdamW()", **QUICK).fit(*iris).predict_proba(iris[0])
    other = WellposedClassifier(recipe=term + base, **QUICK).fit(*iris).predict_proba(iris[0])
    assert np.abs(plain - other).max() > 1e-3


@pytest.mark.parametrize("recipe", ["ELR(beta=0.7) + AdamW()", "EL2N() + AdamW()"])
def test_methods_that_know_samples_by_index_stop_early_too(iris, recipe):
    model = WellposedClassifier(recipe=recipe, width=16, epochs=12, patience=1).fit(*iris)
    assert "valid_log_loss" in model.history_[0]
    assert "valid_loss" in model.history_[0] or recipe.startswith("ELR")


@pytest.mark.parametrize("term", ["WeightCompander()", "Mixout()", "DropConnect(p=0.1)", "ContinualBackprop()"])
def test_a_recipe_that_changes_the_module_pickles(iris, term):
    model = WellposedClassifier(recipe=f"{term} + AdamW()", **QUICK).fit(*iris)
    expected = model.predict_proba(iris[0])
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        np.testing.assert_array_equal(twin.predict_proba(iris[0]), expected)


def test_sample_weights_decide(iris):
    X, y = iris
    X, y = np.repeat(X[:, :2], 2, 0), np.tile([0, 1], 150)  # each row twice, once in either class
    model = WellposedClassifier(recipe="AdamW(lr=0.02)", width=16, epochs=15)
    first = clone(model).fit(X, y, sample_weight=np.where(y == 0, 9.0, 1.0))
    second = clone(model).fit(X, y, sample_weight=np.where(y == 0, 1.0, 9.0))
    assert (first.predict(X) == 0).all()
    assert (second.predict(X) == 1).all()


def test_a_weight_is_a_number_of_copies_where_the_batch_is_whole():
    g = np.random.default_rng(0)
    X, y, copies = g.normal(size=(20, 3)), g.normal(size=20), g.integers(0, 4, 20)
    options = {**QUICK, "patience": None, "batch_size": 100}
    weighted = WellposedRegressor(**options).fit(X, y, sample_weight=copies).predict(X)
    repeated = WellposedRegressor(**options).fit(X.repeat(copies, 0), y.repeat(copies)).predict(X)
    unweighted = WellposedRegressor(**options).fit(X, y).predict(X)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-4, atol=1e-5)
    assert np.abs(weighted - unweighted).max() > 1e-2


def test_held_out_rows_are_judged_by_their_weights():
    z, y = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, -1.0]]), torch.tensor([0, 0, 1])
    each = [-torch.log_softmax(z[i].double(), 0)[y[i]].item() for i in range(3)]
    assert front._judged(z, y, None) == pytest.approx(sum(each) / 3)
    assert front._judged(z, y, torch.tensor([1.0, 2.0, 5.0])) == pytest.approx(
        (each[0] + 2 * each[1] + 5 * each[2]) / 8
    )
    values = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [0.0]])
    assert front._judged(*values, torch.tensor([3.0, 1.0])) == pytest.approx((3 * 1 + 9) / 4)


def test_grid_search_over_recipes(iris):
    grid = {"recipe": ["AdamW(lr=1e-6)", COCKTAIL], "width": [32]}
    search = GridSearchCV(WellposedClassifier(epochs=40), grid, cv=2).fit(*iris)
    assert search.best_params_["recipe"] == COCKTAIL
    assert search.best_score_ > 0.9


def test_pipeline_with_categories():
    g = np.random.default_rng(1)
    table = pd.DataFrame({"size": g.normal(size=80), "colour": g.choice(["red", "blue"], 80)})
    y = np.where((table["size"] > 0) ^ (table["colour"] == "red"), "in", "out")
    encode = make_column_transformer((OneHotEncoder(), ["colour"]), remainder="passthrough")
    pipeline = make_pipeline(encode, WellposedClassifier(recipe="AdamW(lr=0.02)", width=32, epochs=40))
    assert cross_val_score(pipeline, table, y, cv=2).mean() > 0.85


def test_classes_may_be_words_and_columns_may_have_names(iris):
    X, y = pd.DataFrame(iris[0], columns=list("abcd")), pd.Series(np.array(["setosa", "blue", "Zwei"])[iris[1]])
    named = WellposedClassifier(width=16, epochs=20, recipe="AdamW(lr=0.01)").fit(X, y)
    assert named.classes_.tolist() == ["Zwei", "blue", "setosa"]
    assert named.feature_names_in_.tolist() == list("abcd")
    assert named.score(X, y) > 0.9
    with pytest.raises(ValueError, match="feature names"):
        named.predict(X[["b", "a", "c", "d"]])


def test_regression_is_in_the_targets_unit(diabetes):
    X, y = diabetes
    model = WellposedRegressor(width=16, epochs=15)
    plain = model.fit(X, y).predict(X)
    assert model.score(X, y) > 0.4
    moved = clone(model).fit(X * 1e6 + 3.0, y * 1e-4 - 7e3).predict(X * 1e6 + 3.0)
    np.testing.assert_allclose((moved + 7e3) * 1e4, plain, rtol=1e-3, atol=0.5)


def test_constant_columns_and_targets_are_harmless(diabetes):
    X = np.column_stack([diabetes[0], np.full(442, 1e9 + 0.1)])
    assert WellposedRegressor(width=16, epochs=15).fit(X, diabetes[1]).score(X, diabetes[1]) > 0.4
    constant = WellposedRegressor(**QUICK).fit(X, np.full(442, 5.0)).predict(X)
    assert np.abs(constant - 5.0).max() < 0.5


def test_a_seed_decides_everything_and_none_decides_nothing(iris):
    def fitted(seed):
        return WellposedClassifier(recipe=COCKTAIL, dropout=0.2, seed=seed, **QUICK).fit(*iris).predict_proba(iris[0])

    np.testing.assert_array_equal(fitted(3), fitted(3))
    assert np.abs(fitted(3) - fitted(4)).max() > 1e-3
    assert np.abs(fitted(None) - fitted(None)).max() > 1e-3


def test_global_randomness_is_left_as_it_was(iris):
    def drawn():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    expected = drawn()
    torch.set_rng_state(kept[0])
    np.random.set_state(kept[1])
    random.setstate(kept[2])
    WellposedClassifier(recipe=COCKTAIL, dropout=0.2, **QUICK).fit(*iris).predict(iris[0])
    with pytest.raises(ValueError, match="MaxSup"):
        WellposedClassifier(recipe="MaxSupp()").fit(*iris)
    assert drawn() == expected


def test_a_model_of_ones_own(iris):
    asked = []

    def build(features, outputs):
        asked.append((features, outputs))
        return nn.Sequential(nn.Linear(features, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, outputs))

    X, y = iris[0][:, :3], iris[1]
    rows = np.arange(0, 150, 3)[:49]  # of which batches of 16 would leave one
    model = WellposedClassifier(model=build, recipe="AdamW(lr=0.02)", epochs=25, batch_size=16, patience=None)
    model.fit(X[rows], y[rows])
    assert asked == [(3, 3)]
    assert model.score(X, y) > 0.85
    assert not model.model_.training
    assert isinstance(WellposedRegressor(model=TableMLP, **QUICK).fit(X, y).model_, TableMLP)


@pytest.mark.parametrize(
    ("rows", "size", "taken"), [(65, 64, 65), (129, 64, 65), (64, 64, 64), (1, 64, 64), (7, 1, 1), (7, 2, 4), (3, 2, 3)]
)
def test_no_batch_has_a_single_row(rows, size, taken):
    assert front._batch_size(rows, size) == taken


def test_every_class_keeps_rows_to_train_on():
    strata = np.repeat([0, 1, 2, 3], [100, 40, 2, 1])
    held = front._held_out(strata, 0.25, 0)
    assert [int(held[strata == c].sum()) for c in range(4)] == [25, 10, 0, 0]
    assert front._held_out(strata, 0.95, 0)[strata == 3].sum() == 0
    assert front._held_out(strata, 0.95, 0)[strata == 2].sum() == 1
    assert not front._held_out(strata[:60], 0.15, 0).any()
    assert (front._held_out(strata, 0.25, 1) != held).any()


def test_early_stopping_goes_by_held_out_rows():
    X, y = load_breast_cancer(return_X_y=True)
    options = {"recipe": "AdamW(lr=0.05)", "width": 32, "epochs": 30}
    early = WellposedClassifier(**options, patience=2).fit(X, y)
    best = int(np.argmin([row["valid_log_loss"] for row in early.history_]))
    assert early.n_iter_ == best + 3 < 30
    shorter = WellposedClassifier(**options, patience=2, validation_fraction=0.4).fit(X, y)
    assert shorter.history_[0]["valid_log_loss"] != early.history_[0]["valid_log_loss"]
    full = WellposedClassifier(**{**options, "epochs": 4}, patience=None).fit(X, y)
    assert full.n_iter_ == 4
    assert "valid_log_loss" not in full.history_[0]


@pytest.mark.parametrize(
    "option", [{"width": 8}, {"depth": 2}, {"dropout": 0.5}, {"batch_size": 16}, {"epochs": 2}, {"seed": 7}]
)
def test_every_option_changes_the_outcome(diabetes, option):
    plain = WellposedRegressor(**QUICK).fit(*diabetes).predict(diabetes[0])
    other = WellposedRegressor(**{**QUICK, **option}).fit(*diabetes).predict(diabetes[0])
    assert np.abs(plain - other).max() > 1e-2


def test_predictions_do_not_depend_on_the_rows_beside_them(diabetes):
    X, y = diabetes
    model = WellposedRegressor(**QUICK).fit(X, y)
    whole = model.predict(X)  # 442 rows: a block and a part of one
    np.testing.assert_allclose(model.predict(X[::-1])[::-1], whole, rtol=1e-9)
    np.testing.assert_allclose(model.predict(X[300:301]), whole[300:301], rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"recipe": "MaxSupp()"}, ValueError, "column 1.*did you mean 'MaxSup'"),
        ({"recipe": "Cutout(4)"}, ValueError, "Cutout is for images"),
        ({"recipe": ""}, ValueError, "empty"),
        ({"validation_fraction": 1.0}, ValueError, "validation_fraction=1.0"),
        ({"width": 0}, ValueError, "width=0"),
        ({"epochs": 0}, ValueError, "epochs=0"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"patience": 0}, ValueError, "patience=0"),
        ({"model": lambda features, outputs: nn.Linear(features, 1)}, ValueError, r"shape \(2, 1\), expected \(2, 3\)"),
        ({"model": nn.Linear(4, 3)}, TypeError, "builds a module"),
    ],
)
def test_bad_options_are_refused_by_fit(iris, options, error, words):
    with pytest.raises(error, match=words):
        WellposedClassifier(**options).fit(*iris)


def test_a_classifiers_loss_does_not_suit_a_regressor(diabetes):
    with pytest.raises(ValueError, match="MaxSup is for classification"):
        WellposedRegressor(recipe="MaxSup()").fit(*diabetes)


@pytest.mark.parametrize(
    "weight", [np.full(149, 1.0), np.full((150, 1), 1.0), np.full(150, -1.0), np.full(150, np.nan)]
)
def test_bad_weights_are_refused(iris, weight):
    with pytest.raises(ValueError, match=r"sample_weight|inconsistent"):
        WellposedClassifier(**QUICK).fit(*iris, sample_weight=weight)


def test_the_reports_snippet_is_a_constructor():
    model = WellposedClassifier(recipe=COCKTAIL, width=64, depth=3, dropout=0.25, batch_size=128, epochs=40, seed=5)
    assert clone(model).get_params() == model.get_params()
    assert repr(model).startswith("WellposedClassifier(")
