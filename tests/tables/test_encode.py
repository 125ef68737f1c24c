"""Encoding: against pandas and loops, learnt from training rows only, round trips, and files tampered with."""

import json
import math
import re
import zlib
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wellposed.errors import UserError
from wellposed.tables import Encoder, Target, as_table, prepare
from wellposed.tables.coders import CategoryColumn, DateColumn, NumberColumn, TextColumn

N = 400
RNG = np.random.default_rng(0)


def table(n=N):
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "number": rng.standard_cauchy(n),
            "flag": rng.choice(["yes", "no"], n),
            "when": pd.date_range("2019-03-01", periods=n, freq="37h").strftime("%Y-%m-%d %H:%M:%S"),
            "town": rng.choice(["Rome", "Oslo", "Bern", "Nice", "Lima"], n, p=[0.4, 0.3, 0.2, 0.09, 0.01]),
            "note": [f"the {w} house number {i}" for i, w in enumerate(rng.choice(["red", "blue", "old"], n))],
            "id": range(n),
            "y": rng.choice(["a", "b"], n),
        }
    )
    for i, name in enumerate(["number", "flag", "when", "town", "note"]):
        frame[name] = frame[name].astype(object)
        frame.loc[frame.index[i :: 10 + i], name] = None
    return frame


@pytest.fixture
def prepared():
    return prepare(as_table(table()), "y")


def fitted(prepared, rows=None, **options):
    return Encoder.fit(prepared.frame, prepared.schema, rows, **options)


def block(encoder, matrix, name):
    (found,) = [b for b in encoder.layout if b.column == name]
    return matrix[:, found.start : found.stop]


def test_the_layout_covers_the_matrix_and_names_every_column(prepared):
    encoder = fitted(prepared)
    matrix = encoder.transform(prepared.frame)
    assert matrix.dtype == np.float32
    assert matrix.shape == (N, encoder.width)
    assert [b.kind for b in encoder.layout] == ["number", "boolean", "date", "category", "text"]
    assert [b.start for b in encoder.layout[1:]] == [b.stop for b in encoder.layout[:-1]]
    assert (encoder.layout[0].start, encoder.layout[-1].stop) == (0, encoder.width)
    assert len(set(encoder.names)) == encoder.width
    assert "id" in encoder.others


def test_numbers_by_hand(prepared):
    x = pd.to_numeric(prepared.frame["number"])
    z = (x - x.median()) / ((x.quantile(0.75) - x.quantile(0.25)) / 1.3489795003921634)
    expected = np.sign(z) / np.sqrt(1 / z**2 + 1 / 9)
    encoder = fitted(prepared)
    made = block(encoder, encoder.transform(prepared.frame), "number")
    np.testing.assert_allclose(made[:, 0], expected.fillna(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(made[:, 1], x.isna())
    assert np.abs(made).max() <= 3


def test_a_normal_column_keeps_its_unit_variance():
    x = pd.Series(RNG.normal(5, 20, 20_000))
    coder = NumberColumn.fit("x", x)
    assert (coder.center, coder.scale) == (pytest.approx(5, abs=0.5), pytest.approx(20, rel=0.03))


def test_a_column_of_mostly_one_value_is_scaled_by_the_others():
    x = pd.Series([0.0] * 90 + [100.0, 200.0, 300.0])
    assert NumberColumn.fit("x", x) == NumberColumn("x", 0.0, 200.0, indicator=False)
    assert NumberColumn.fit("x", pd.Series([4.0, 4.0])) == NumberColumn("x", 4.0, 1.0, indicator=False)
    assert NumberColumn.fit("x", pd.Series([np.nan, np.nan])) == NumberColumn("x", 0.0, 1.0, indicator=True)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(), min_size=1, max_size=9), st.lists(st.floats(), min_size=1, max_size=9))
def test_any_numbers_make_finite_ones_in_their_order(train, new):
    coder = NumberColumn.fit("x", pd.Series(train, dtype=float))
    out = np.zeros((len(new), len(coder.names)), np.float32)
    coder.encode(pd.Series(new, dtype=float), out)
    assert np.isfinite(out).all()
    assert np.abs(out[:, 0]).max() <= 3
    finite = np.isfinite(new)
    order = np.argsort(np.array(new)[finite], kind="stable")
    assert (np.diff(out[finite, 0][order]) >= 0).all()


def test_booleans_by_hand(prepared):
    encoder = fitted(prepared)
    made = block(encoder, encoder.transform(prepared.frame), "flag")
    raw = table()["flag"]
    np.testing.assert_array_equal(made[:, 0], raw.map({"yes": 1, "no": -1}).fillna(0).astype(float))
    np.testing.assert_array_equal(made[:, 1], raw.isna())


def test_dates_by_pandas(prepared):
    encoder = fitted(prepared)
    made = block(encoder, encoder.transform(prepared.frame), "when")
    assert encoder.coders[2].parts == ("season", "weekday", "clock")
    when = pd.to_datetime(table()["when"])
    known = when.notna().to_numpy()
    clock = (when.dt.hour * 3600 + when.dt.minute * 60 + when.dt.second) / 86400
    season = (when.dt.day_of_year - 1) / (365 + when.dt.is_leap_year)
    weekday = ((when.dt.day_of_week - 3) % 7) / 7
    for column, turn in ((1, season), (3, weekday), (5, clock)):
        np.testing.assert_allclose(made[known, column], np.sin(2 * np.pi * turn[known]), atol=1e-5)
        np.testing.assert_allclose(made[known, column + 1], np.cos(2 * np.pi * turn[known]), atol=1e-5)
    assert (np.diff(made[known, 0]) > 0).all()
    np.testing.assert_array_equal(made[:, 7], ~known)
    assert not made[~known, :7].any()


def test_parts_of_a_date_that_never_vary_are_left_out():
    mondays = pd.Series(pd.date_range("2024-01-01", periods=9, freq="7D"))
    assert DateColumn.fit("d", mondays, "").parts == ("season",)
    clock = DateColumn.fit("d", pd.Series(["12:30", "13:00"]), "%H:%M", ordinal=False)
    assert clock.parts == ("clock",)
    assert clock.names == ("d clock sine", "d clock cosine")


def test_the_time_of_a_split_is_no_ordinal_input():
    prepared = prepare(as_table(table()), "y", time="when")
    (when,) = [c for c in fitted(prepared).coders if c.column == "when"]
    assert not when.ordinal
    assert when.parts


def test_categories_by_get_dummies(prepared):
    encoder = fitted(prepared)
    made = block(encoder, encoder.transform(prepared.frame), "town")
    raw = table()["town"]
    counts = raw.value_counts()
    rare = counts[counts < max(2, N // 200)].index
    order = [*counts.index.difference(rare, sort=False), "other", "missing"]
    order = [level for level in order if level != "other" or len(rare)]
    dummies = pd.get_dummies(raw.where(~raw.isin(rare), "other").fillna("missing"))[order]
    np.testing.assert_array_equal(made, dummies)
    assert list(counts.index[:3]) == list(encoder.coders[3].levels[:3])


def test_rare_capped_and_unseen_levels():
    train = pd.Series(["a"] * 5 + ["b"] * 4 + ["c"] * 3 + ["d"])
    coder = CategoryColumn.fit("c", train, max_levels=2, rare=2)
    assert coder == CategoryColumn("c", ("a", "b"), other=True, missing=False)
    out = np.zeros((5, 3), np.float32)
    coder.encode(pd.Series(["b", "d", "new", None, "a"]), out)
    assert out.tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 0], [1, 0, 0]]
    whole = CategoryColumn.fit("c", train[:12], max_levels=9, rare=2)
    assert not whole.other
    whole.encode(pd.Series(["b", "d", "new", None, "a"]), out)
    assert out.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]]


def slow_hash(text, width):
    """The text's row from its definition, a word at a time."""
    words = re.findall(r"\w+", text.casefold())
    single = [zlib.crc32(w.encode()) for w in words]
    grams = single + [(a * 0x9E3779B1 + b + 1) % 2**32 for a, b in pairwise(single)]
    row = [0.0] * width
    for gram in set(grams):
        h = gram
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            h = (h ^ h >> shift) * factor % 2**32
        h ^= h >> 16
        row[h % width] += math.log(1 + grams.count(gram)) * (1 if h >> 31 else -1)
    length = math.sqrt(sum(v * v for v in row))
    return [v / length for v in row] if length else row


def test_texts_by_a_loop():
    texts = ["Red house, red HOUSE", "", "größer als 3", "one", "!?", "red house red house"]
    out = np.zeros((len(texts), 8), np.float32)
    TextColumn("t", 8).encode(pd.Series(texts), out)
    np.testing.assert_allclose(out, [slow_hash(text, 8) for text in texts], atol=1e-6)
    np.testing.assert_array_equal(out[0], out[5])
    assert not out[1].any()


def test_word_order_matters_and_the_hash_never_changes():
    out = np.zeros((2, 32), np.float32)
    TextColumn("t", 32).encode(pd.Series(["dog bites man", "man bites dog"]), out)
    assert (out[0] != out[1]).any()
    assert np.flatnonzero(out[0]).tolist() == [i for i, v in enumerate(slow_hash("dog bites man", 32)) if v]


def test_nothing_is_learnt_from_other_rows_than_training():
    frame = table()
    rows = np.arange(0, N, 2)
    prepared = prepare(as_table(frame), "y")
    before = fitted(prepared, rows)
    others = np.setdiff1d(np.arange(N), rows)
    changed = prepared.frame.copy()
    changed.loc[others, "number"] = 1e9
    changed["town"] = changed["town"].astype(str).astype(object)
    changed.loc[others, "town"] = "Atlantis"
    changed.loc[others, "flag"] = np.nan
    changed.loc[others, "when"] = pd.Timestamp("2099-01-01")
    assert Encoder.fit(changed, prepared.schema, rows) == before
    assert fitted(prepared) != before


def test_raw_cells_encode_like_typed_ones(prepared):
    encoder = fitted(prepared)
    raw = table()
    np.testing.assert_array_equal(encoder.transform(raw), encoder.transform(prepared.frame))
    checked, notes = encoder.check(raw)
    np.testing.assert_array_equal(encoder.transform(checked), encoder.transform(prepared.frame))
    assert notes == []


def test_limits_change_the_width_and_a_large_table_lowers_them(prepared, monkeypatch):
    width = fitted(prepared).width
    assert block(fitted(prepared), fitted(prepared).transform(prepared.frame), "note").shape[1] == N // 4
    assert fitted(prepared, text_columns=32).width == width - (N // 4 - 32)
    assert fitted(prepared, max_levels=2).width < width
    monkeypatch.setattr("wellposed.tables.encode.MOST_CELLS", N * 100)
    assert 8 < fitted(prepared).width <= 100


def test_json_round_trip_is_exact(prepared):
    encoder = fitted(prepared, np.arange(N // 2))
    again = Encoder.from_json(json.loads(json.dumps(encoder.to_json(), allow_nan=False)))
    assert again == encoder
    np.testing.assert_array_equal(again.transform(prepared.frame), encoder.transform(prepared.frame))


class TestNewTables:
    @pytest.fixture
    def encoder(self, prepared):
        return fitted(prepared)

    def test_missing_columns_are_named(self, encoder):
        with pytest.raises(UserError, match=r"new\.csv lacks 1 column that .*: 'town', did you mean 'Town'\?"):
            encoder.check(table().rename(columns={"town": "Town"}), "new.csv")
        with pytest.raises(UserError, match=r"lacks 2 columns .*: 'number', 'when'"):
            encoder.transform(table()[["flag", "town", "note"]])

    def test_extra_and_reordered_columns(self, encoder):
        frame = table()
        shuffled = frame[sorted(frame)].assign(extra=1)
        checked, notes = encoder.check(shuffled)
        assert list(checked) == [b.column for b in encoder.layout]
        assert notes == ["columns that training did not have are ignored: 'extra'"]
        np.testing.assert_array_equal(encoder.transform(checked), encoder.transform(frame))
        assert encoder.check(frame.drop(columns=["y", "id"]))[1] == []

    @pytest.mark.parametrize(
        ("column", "words"),
        [("number", "should hold numbers"), ("flag", "should hold yes or no"), ("when", "should hold dates (ISO8601)")],
    )
    def test_cells_of_another_type(self, encoder, column, words):
        frame = table()
        frame[column] = frame[column].astype(object)
        frame.loc[:3, column] = "red"
        checked, notes = encoder.check(frame)
        assert "4 cells without" in notes[0]
        assert "('red'), taken as missing" in notes[0]
        assert checked[column][:4].isna().all()
        frame[column] = "red"
        with pytest.raises(UserError) as caught:
            encoder.check(frame, "new.csv")
        assert f"new.csv: column '{column}' {words}, and none of its cells does ('red')" in str(caught.value)

    def test_numbers_as_text_and_levels_as_numbers(self):
        frame = pd.DataFrame({"n": [1.5, 2.5] * 20, "c": pd.Categorical([3, 4] * 20), "y": ["a", "b", "b", "a"] * 10})
        encoder = fitted(prepare(as_table(frame), "y"))
        new = pd.DataFrame({"n": ["1.5", "2.5"], "c": ["3", "4.0"]})
        checked, notes = encoder.check(new)
        assert notes == []
        np.testing.assert_array_equal(encoder.transform(checked), encoder.transform(frame[:2]))

    def test_unseen_levels_are_counted(self):
        frame = pd.DataFrame({"c": ["u", "v"] * 20, "r": ["p", "q", "p", "p"] * 9 + ["w1", "w2", "w3", "w4"]})
        encoder = fitted(prepare(as_table(frame.assign(y=["a", "b", "b", "a"] * 10)), "y"))
        assert [coder.other for coder in encoder.coders] == [False, True]
        new = pd.DataFrame({"c": ["new", "u", "u", None], "r": ["w1", "p", "q", "new"]})
        assert encoder.check(new)[1] == ["column 'c': 1 cell of values that training did not have ('new')"]
        assert (
            "rarely had or did not have ('new', 'odd')" in encoder.check(new.assign(r=["new", "odd", "odd", "p"]))[1][1]
        )

    def test_infinite_numbers_are_counted(self, encoder):
        frame = table()
        frame.loc[3, "number"] = np.inf
        frame.loc[1, "number"] = "-inf"
        checked, notes = encoder.check(frame)
        assert notes == ["column 'number': 2 infinite values, taken as missing"]
        assert checked["number"][[1, 3]].isna().all()


def tampered():
    """One change a case: a path into the file, and what is put there (``...`` deletes)."""
    yield from [
        ((), []),
        ((), None),
        (("columns",), {}),
        (("columns",), []),
        (("columns", 0), "x"),
        (("columns", 0, "kind"), "os.system"),
        (("columns", 0, "kind"), ...),
        (("columns", 0, "column"), 3),
        (("columns", 0, "column"), "x" * 20_000),
        (("columns", 0, "column"), "flag"),
        (("columns", 0, "center"), "0"),
        (("columns", 0, "center"), math.nan),
        (("columns", 0, "center"), 10**400),
        (("columns", 0, "center"), True),
        (("columns", 0, "scale"), 0.0),
        (("columns", 0, "scale"), -1.0),
        (("columns", 0, "scale"), math.inf),
        (("columns", 0, "indicator"), 1),
        (("columns", 0, "extra"), 1),
        (("columns", 2, "format"), "%s"),
        (("columns", 2, "parts"), ["season", "season"]),
        (("columns", 2, "parts"), ["century"]),
        (("columns", 3, "levels"), ["a", "a"]),
        (("columns", 3, "levels"), [1]),
        (("columns", 3, "levels"), "Rome"),
        (("columns", 3, "missing"), None),
        (("columns", 4, "width"), 0),
        (("columns", 4, "width"), 10**9),
        (("columns", 4, "width"), 8.0),
        (("others",), ["number"]),
        (("others",), ...),
        (("surprise",), {}),
    ]


@pytest.mark.parametrize(("path", "value"), list(tampered()), ids=lambda v: str(v)[:20])
def test_a_tampered_file_is_refused_by_the_name_of_the_field(prepared, path, value):
    plain = json.loads(json.dumps(fitted(prepared).to_json()))
    if not path:
        plain = value
    else:
        inner = plain
        for key in path[:-1]:
            inner = inner[key]
        if value is ...:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value
    with pytest.raises(UserError, match=r"^pipeline") as caught:
        Encoder.from_json(plain, "pipeline")
    assert "\n" not in str(caught.value)


def test_targets_know_their_classes_or_the_scale_of_training_rows():
    y = pd.Series([1.0, 3.0, 100.0], name="y")
    target = Target.fit(y, "regression", np.array([0, 1]))
    assert target == Target("y", "regression", (), 2.0, 1.0)
    assert Target.fit(y, "regression").mean == pytest.approx(104 / 3)
    assert Target.fit(pd.Series([5.0, 5.0]), "regression").scale == 1.0
    classes = Target.fit(pd.Series(pd.Categorical(["b", "a"]), name="y"), "binary", np.array([0]))
    assert classes == Target("y", "binary", ("a", "b"))
    for one in (target, classes):
        assert Target.from_json(json.loads(json.dumps(one.to_json()))) == one


@pytest.mark.parametrize(
    "change",
    [
        {"task": "ranking"},
        {"classes": ["a"]},
        {"classes": ["a", "b", "c"]},
        {"classes": ["a", "a"]},
        {"mean": 0.0},
        {"task": "regression"},
        {"name": None},
    ],
    ids=str,
)
def test_a_tampered_target_is_refused(change):
    plain = Target("y", "binary", ("a", "b")).to_json()
    with pytest.raises(UserError, match=r"^target"):
        Target.from_json(plain | change)
    with pytest.raises(UserError, match=r"target\.scale"):
        Target.from_json(Target("y", "regression", (), 1.0, -1.0).to_json())
