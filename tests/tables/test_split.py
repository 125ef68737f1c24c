"""Splitting: disjoint, complete, stratified, whole groups, forward in time, and never silently impossible."""

import numpy as np
import pandas as pd
import pytest

from wellposed.errors import UserError
from wellposed.tables import as_table, make_splits, prepare


def prepared(y, **options):
    rng = np.random.default_rng(99)
    columns = {name: options.pop(name) for name in ("g", "t") if name in options}
    frame = pd.DataFrame({"x": rng.normal(size=len(y)), **columns, "y": y})
    return prepare(as_table(frame, "t.csv"), "y", **options)


def check(splits, n):
    assert len(splits.test)
    assert splits.folds
    np.testing.assert_array_equal(np.sort(np.concatenate([splits.test, splits.train])), np.arange(n))
    for train, valid in splits.folds:
        assert len(train)
        assert len(valid)
        assert not set(train) & set(valid)
        assert set(train) | set(valid) <= set(splits.train.tolist())


CLASSES = np.random.default_rng(1).choice(["a", "b", "c"], 500, p=[0.7, 0.25, 0.05])


def test_every_part_has_its_share_of_every_class():
    splits = make_splits(prepared(CLASSES))
    check(splits, 500)
    assert len(splits.folds) == 5
    total = pd.Series(CLASSES).value_counts()
    test = pd.Series(CLASSES[splits.test]).value_counts()
    assert (abs(test - total / 5) <= 1).all()
    rest = pd.Series(CLASSES[splits.train]).value_counts()
    for train, valid in splits.folds:
        assert len(train) + len(valid) == len(splits.train)
        assert (abs(pd.Series(CLASSES[valid]).value_counts() - rest / 5) <= 1).all()
    validated = np.sort(np.concatenate([valid for _, valid in splits.folds]))
    np.testing.assert_array_equal(validated, splits.train)
    assert splits.notes == ()


def test_every_part_has_low_and_high_values():
    y = np.random.default_rng(2).lognormal(sigma=2, size=400)
    splits = make_splits(prepared(y))
    check(splits, 400)
    edges = np.quantile(y, [0, 0.25, 0.5, 0.75, 1])
    for part in (splits.test, *(valid for _, valid in splits.folds)):
        counts = np.histogram(y[part], edges)[0]
        assert (abs(counts - len(part) / 4) <= 2).all()


def test_the_seed_decides():
    data = prepared(CLASSES)
    first, again, other = make_splits(data, seed=3), make_splits(data, seed=3), make_splits(data, seed=4)
    np.testing.assert_array_equal(first.test, again.test)
    for (a, b), (c, d) in zip(first.folds, again.folds, strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)
    assert set(first.test) != set(other.test)
    assert set(first.folds[0][1]) != set(other.folds[0][1])


def test_many_rows_make_one_hold_out():
    splits = make_splits(prepared(np.resize(CLASSES, 3000)))
    check(splits, 3000)
    ((train, valid),) = splits.folds
    assert (len(train), len(valid), len(splits.test)) == (1920, 480, 600)
    assert "hold-out" in splits.scheme
    assert "5-fold" in make_splits(prepared(CLASSES)).scheme


def test_ten_rows():
    splits = make_splits(prepared(["a", "b"] * 5))
    check(splits, 10)
    assert len(splits.test) == 2
    assert len(splits.folds) == 3
    check(make_splits(prepared(np.arange(10.0) ** 2)), 10)
    check(make_splits(prepared(["a", "b"] * 3)), 6)


def test_too_few_rows():
    with pytest.raises(UserError, match=r"t\.csv: target 'y' has a value in 5 rows: at least 6"):
        make_splits(prepared(["a", "b", "a", "b", "a"]))
    with pytest.raises(UserError, match=r"t\.csv: target 'y' has too few rows a class"):
        make_splits(prepared(["a", "a", "b", "c", "d", "e", "f"]))


def test_the_only_row_of_a_class_is_trained_on_in_every_fold():
    y = np.array(["a", "b"] * 30 + ["rare", "pair", "pair"])
    for seed in range(5):
        splits = make_splits(prepared(y), seed=seed)
        check(splits, 63)
        assert all(60 in train for train, _ in splits.folds)
        assert all((y[train] == "pair").any() for train, _ in splits.folds)
        assert any("test part has no row of" in note and "'rare'" in note for note in splits.notes)


@pytest.mark.parametrize("n", [120, 3000])
def test_groups_stay_whole_and_classes_balanced(n):
    rng = np.random.default_rng(5)
    g = rng.integers(0, n // 10, n)
    y = np.where(g % 3 == 0, "a", "b")
    splits = make_splits(prepared(y, g=g, group="g"))
    check(splits, n)
    for left, right in [(splits.train, splits.test), *splits.folds]:
        assert not set(g[left]) & set(g[right])
    assert abs(len(splits.test) / n - 0.2) < 0.08
    share = (y == "a").mean()
    assert abs((y[splits.test] == "a").mean() - share) < (0.25 if n == 120 else 0.1)
    assert len(splits.folds) == (5 if n == 120 else 1)
    assert set(splits.test) != set(make_splits(prepared(y, g=g, group="g"), seed=1).test)


def test_a_dominant_group_does_not_become_the_test_part():
    g = np.array([0] * 80 + [1, 2, 3, 4] * 5)
    for seed in range(4):
        splits = make_splits(prepared(np.random.default_rng(0).normal(size=100), g=g, group="g"), seed=seed)
        check(splits, 100)
        assert len(splits.test) < 50


def test_three_groups_suffice_and_two_do_not():
    y = np.random.default_rng(0).normal(size=30)
    splits = make_splits(prepared(y, g=np.arange(30) % 3, group="g"))
    check(splits, 30)
    assert len(splits.test) == 10
    with pytest.raises(UserError, match=r"t\.csv: --group g has 2 groups: three are needed"):
        make_splits(prepared(y, g=np.arange(30) % 2, group="g"))


@pytest.mark.parametrize(("n", "folds"), [(200, 3), (4000, 1)])
def test_time_runs_forward_and_keeps_equal_times_together(n, folds):
    rng = np.random.default_rng(0)
    t = rng.integers(0, 50, n)
    splits = make_splits(prepared(rng.normal(size=n), t=t, time="t"))
    check(splits, n)
    assert len(splits.folds) == folds
    assert t[splits.train].max() < t[splits.test].min()
    assert abs(len(splits.test) / n - 0.2) < 0.05
    for train, valid in splits.folds:
        assert t[train].max() < t[valid].min()
    assert splits.folds[-1][1].size + splits.folds[-1][0].size == len(splits.train)


def test_rows_without_a_time_are_only_trained_on():
    t = pd.date_range("2020-01-01", periods=40).astype(str).to_numpy().astype(object)
    t[[5, 39]] = None
    splits = make_splits(prepared(np.random.default_rng(0).normal(size=40), t=t, time="t"))
    check(splits, 40)
    assert all({5, 39} <= set(train.tolist()) for train, _ in splits.folds)


def test_ties_in_time():
    y = np.random.default_rng(0).normal(size=30)
    check(make_splits(prepared(y, t=[1] * 28 + [2, 3], time="t")), 30)
    check(make_splits(prepared(y, t=[1, 2] + [3] * 28, time="t")), 30)
    with pytest.raises(UserError, match=r"--time t has 2 distinct times"):
        make_splits(prepared(y, t=[1, 2] * 15, time="t"))


def test_a_class_that_training_lacks_is_said():
    y = ["a", "b"] * 20 + ["late"] * 10
    splits = make_splits(prepared(y, t=np.arange(50) * 2.0, time="t"))
    assert any("a training part has no row of the classes 'late'" in note for note in splits.notes)
