"""Understanding: what each column is taken for and why, what is left out, and one line for what cannot be predicted."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from wellposed.errors import UserError
from wellposed.tables import as_table, infer_schema, prepare, read_table
from wellposed.tables.cells import find_date_format, read_levels, read_numbers
from wellposed.tables.kinds import examine, typed

N = 60
RNG = np.random.default_rng(0)
X = RNG.normal(size=N)
Y = RNG.normal(size=N)


def kind_of(values, name="c", **options):
    return examine(name, pd.Series(values), **options).column.kind


def table_of(n=N, **columns):
    return pd.DataFrame({"x": X[:n].astype(str), **columns, "y": (["a", "b"] * n)[:n]})


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (X.astype(str), "number"),
        (X, "number"),
        (["1,234", "$5", "7 %", "\N{MINUS SIGN}4", "1e3", " 2 "], "number"),
        (["3", "4", "NA", "", "nan", "N/A", "?", "3"], "number"),
        ([3, 4, None, 3], "number"),
        (["0", "1", "1"], "boolean"),
        (["yes", "No", None], "boolean"),
        ([True, False, None], "boolean"),
        (["T", "F", "f"], "boolean"),
        (["a", "b", "a", "b"], "category"),
        (["007", "012", "007"], "category"),
        (pd.Categorical([1, 2, 1, 2]), "category"),
        (["a", None, "a"], "category"),
        ([5, None, 5], "category"),
        (["2020-01-01", "2020-03-05 10:00", None], "date"),
        (["13.1.2020", "2.3.2021"], "date"),
        (["1/13/2020", "2/3/2021"], "date"),
        (["Jan 3, 2020", "Feb 5, 2021"], "date"),
        (["01/13/2020 11:00:00 PM", "02/03/2021 01:00:00 AM"], "date"),
        ([20200131, 20210228, 19990101], "date"),
        (pd.to_datetime(["2020-01-01", "2021-01-01"]).tz_localize("Europe/Berlin"), "date"),
        ([f"word {i}" for i in range(9)], "text"),
        ([f"id{i}" for i in range(9)], "id"),
        (list(range(9)), "id"),
        (list(range(1, 10)), "id"),
        (["x"] * 4, "constant"),
        ([2.5] * 4, "constant"),
        (["", "NA", None], "empty"),
        ([np.inf, -np.inf, np.nan], "empty"),
        (["18-25", "26-35", "18-25"], "category"),
        ([0.1, 0.2, 0.3], "number"),
        (list(range(1950, 1960)), "number"),
    ],
)
def test_kinds(values, kind):
    assert kind_of(values) == kind


def test_names_decide_only_for_whole_numbers():
    distinct = [7, 3, 9, 1]
    assert kind_of(distinct, "customerId") == "id"
    assert kind_of(distinct, "customer_id", keep=True) == "number"
    assert kind_of(distinct, "humidity") == "number"
    assert kind_of([0.5, 1.5, 2.5], "id") == "number"
    repeated = examine("zone_id", pd.Series([1, 2, 3] * 5))
    assert repeated.column.kind == "category"
    assert "--group zone_id" in repeated.notes[0]


def test_a_few_strings_among_numbers_are_missing_and_many_make_a_category():
    few = [str(i * 0.5) for i in range(50)]
    few[6] = few[40] = "oops"
    found = examine("c", pd.Series(few))
    assert found.column.kind == "number"
    assert found.values.isna().sum() == 2
    assert found.column.missing == pytest.approx(0.04)
    assert "'c': 2 cells without a number ('oops'; data rows 7, 41)" in found.notes[0]
    many = examine("c", pd.Series(["1", "2", "low", "high"] * 5))
    assert many.column.kind == "category"
    assert "mixes 10 numbers with 10 other cells" in many.notes[0]


def test_infinite_values_are_missing_and_counted():
    for values in ([1.5, np.inf, -np.inf, 2.5], ["1.5", "inf", "-Infinity", "2.5"]):
        found = examine("c", pd.Series(values))
        assert found.values.isna().tolist() == [False, True, True, False]
        assert "2 infinite" in found.notes[0]


@pytest.mark.parametrize("kind", ["number", "boolean", "date", "category", "text"])
def test_reading_cells_twice_changes_nothing(kind):
    raw = {
        "number": ["1,5x", "2.5", None, "inf"],
        "boolean": ["yes", "0", None, "maybe"],
        "date": ["2020-01-02 03:04:05", None, "x", "1999-12-31"],
        "category": [" a", "b ", "NA", "3.0"],
        "text": ["a b c", None, " d", ""],
    }[kind]
    once = typed(pd.Series(raw), kind)
    pd.testing.assert_series_equal(typed(once, kind), once)


def test_numbers_as_float_reads_them():
    words = ["1", "-2.5", "+3", "1e-3", "1,234,567.5", "1_0", "0x10", "1,23", "--1", "ⅷ"]
    read = read_numbers(pd.Series(words))
    np.testing.assert_array_equal(read.values, [1, -2.5, 3, 1e-3, 1234567.5, *[np.nan] * 5])
    assert read.bad.tolist() == [False] * 5 + [True] * 5


def test_levels_agree_between_text_and_numbers():
    text = read_levels(pd.Series(["3", "4.0", "x ", None, "NA"]))
    assert text.names == ["3", "4", "x"]
    assert text.codes.tolist() == [0, 1, 2, -1, -1]
    assert read_levels(pd.Series([3.0, 4.0, np.nan])).names == ["3", "4"]
    assert read_levels(pd.Series(["none", "Missing"])).names == ["none", "Missing"]


def test_the_day_comes_first_where_the_month_cannot():
    assert find_date_format(["1/2/2020", "13/2/2020"]) == "%d/%m/%Y"
    assert find_date_format(["1/2/2020", "2/13/2020"]) == "%m/%d/%Y"
    assert find_date_format(["555-1234", "555-9876"]) is None


class TestWhatIsLeftOut:
    def test_ids_constants_empty_columns_and_copies_are_said(self):
        frame = table_of(row=range(N), k="same", void="", copy=X.astype(str))
        schema = infer_schema(frame, "y")
        assert {c.name: c.kind for c in schema.columns if c.role == "left out"} == {
            "row": "id",
            "k": "constant",
            "void": "empty",
            "copy": "duplicate",
        }
        assert [c.name for c in schema.inputs] == ["x"]
        assert "'x'" in next(c.reason for c in schema.columns if c.name == "copy")
        assert all(any(f"'{name}'" in note for note in schema.notes) for name in ("row", "k", "void", "copy"))

    def test_an_almost_equal_column_is_no_copy(self):
        other = X.copy()
        other[5] = np.nan
        assert len(infer_schema(table_of(other=other), "y").inputs) == 2

    @pytest.mark.parametrize("leak", [["a", "b"] * (N // 2), [1, 0] * (N // 2), ["north", "south"] * (N // 2)])
    def test_a_column_that_gives_the_classes_away(self, leak):
        schema = infer_schema(table_of(leak=leak), "y")
        assert schema.columns[1].kind == "leak"
        assert schema.warnings[0].startswith("LEAK: column 'leak'")
        assert "--keep leak" in schema.warnings[0]
        kept = infer_schema(table_of(leak=leak), "y", keep=["leak"])
        assert len(kept.inputs) == 2
        assert kept.warnings[0].startswith("LEAK?")

    def test_one_exception_makes_it_no_leak_and_pure_levels_only_a_suspicion(self):
        leak = [1, 0] * (N // 2)
        leak[3] = 1
        assert not infer_schema(table_of(leak=leak), "y").warnings
        pure = [["p", "q"][i // 2 % 2] if i % 2 else "r" for i in range(N)]
        schema = infer_schema(table_of(pure=pure), "y")
        assert [c.name for c in schema.inputs] == ["x", "pure"]
        assert schema.warnings[0].startswith("LEAK? column 'pure' decides the target")

    @pytest.mark.parametrize("function", [lambda y: y, np.exp, lambda y: -3 * y])
    def test_a_column_that_orders_the_rows_as_the_target(self, function):
        y = RNG.normal(size=N)
        frame = pd.DataFrame({"x": X, "leak": function(y), "y": y})
        schema = infer_schema(frame, "y")
        assert [c.name for c in schema.inputs] == ["x"]
        frame.loc[7, "leak"] = frame.loc[8, "leak"] + 1e-9
        assert [c.name for c in infer_schema(frame, "y").inputs] == ["x", "leak"]

    def test_few_rows_prove_no_leak(self):
        assert not infer_schema(table_of(10, leak=[1, 0] * 5), "y").warnings

    def test_nothing_left(self):
        with pytest.raises(UserError, match=r"t\.csv: no column is left to predict 'y' from \('k: the same"):
            infer_schema(pd.DataFrame({"k": "a", "y": [1, 0] * 9}), "y", source="t.csv")
        with pytest.raises(UserError, match=r"no column is left.*there is no other.*one column"):
            infer_schema(pd.DataFrame({"y": [1, 0] * 9}), "y")


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        (["b", "a"] * 30, "binary", ("a", "b")),
        (["b", "a", "c"] * 20, "multiclass", ("a", "b", "c")),
        ([True, False] * 30, "binary", ("False", "True")),
        ([10, 9, 2] * 20, "multiclass", ("2", "9", "10")),
        (["1.0", "0.0"] * 30, "binary", ("0", "1")),
        ([0.5, 1.5] * 30, "binary", ("0.5", "1.5")),
        (list(range(20)) * 3, "multiclass", tuple(map(str, range(20)))),
        (list(range(30)) * 2, "regression", ()),
        (Y, "regression", ()),
        ([1.5, 2.5, 3.5] * 20, "regression", ()),
        (pd.Categorical([3, 1] * 30), "binary", ("1", "3")),
    ],
)
def test_tasks(values, task, classes):
    schema = infer_schema(pd.DataFrame({"x": X, "y": values}), "y")
    assert (schema.task, schema.classes) == (task, classes)
    assert sum(schema.counts) == (N if classes else 0)


def test_the_task_can_be_overruled():
    frame = pd.DataFrame({"x": X, "y": [1, 2, 3] * 20})
    assert infer_schema(frame, "y", task="regression").task == "regression"
    assert infer_schema(frame, "y", task="classification").task == "multiclass"
    binary = pd.DataFrame({"x": X, "y": [1, 2] * 30})
    assert infer_schema(binary, "y", task="multiclass").task == "multiclass"
    assert infer_schema(binary, "y", task="classification").task == "binary"
    with pytest.raises(UserError, match="not binary: it has 3 classes"):
        infer_schema(frame, "y", task="binary")
    with pytest.raises(UserError, match=r"no task 'regresion', did you mean 'regression'\?"):
        infer_schema(frame, "y", task="regresion")
    with pytest.raises(UserError, match=r"'y' cannot be a regression: 60 of its values are no numbers \('a', 'b'\)"):
        infer_schema(table_of(), "y", task="regression")


class TestBadTargets:
    def test_no_such_column(self):
        with pytest.raises(UserError, match=r"t\.csv has no column 'X' for --target, did you mean 'x'\?"):
            infer_schema(table_of(), "X", source="t.csv")
        with pytest.raises(UserError, match=r"no column 'price' for --target \(there are: 'x', 'y'\)"):
            infer_schema(table_of(), "price")
        with pytest.raises(UserError, match=r"no column 'z' for --group"):
            infer_schema(table_of(), "y", group="z")
        with pytest.raises(UserError, match=r"no column 'z' for --keep"):
            infer_schema(table_of(), "y", keep=["z"])

    def test_a_missing_header_line_is_suspected(self, tmp_path):
        path = tmp_path / "iris.csv"
        path.write_text("5.1,3.5,1.4\n4.9,3.0,1.4\n")
        with pytest.raises(UserError, match="is the header line missing"):
            prepare(read_table(path), "species")

    def test_missing_and_infinite_targets_are_dropped_counted_and_said(self):
        y = Y.copy()
        y[[3, 9]] = np.nan, np.inf
        prepared = prepare(as_table(pd.DataFrame({"x": X, "y": y})), "y")
        assert prepared.schema.dropped == 2
        assert prepared.rows.tolist() == [i for i in range(N) if i not in (3, 9)]
        np.testing.assert_array_equal(prepared.target, y[prepared.rows])
        np.testing.assert_array_equal(prepared.frame["x"], X[prepared.rows])
        assert "2 of 60 rows dropped for want of a usable value (1 missing, 1 infinite)" in prepared.schema.notes[0]
        words = ["a", "b", "NA", ""] * 15
        schema = infer_schema(pd.DataFrame({"x": X, "y": words}), "y")
        assert (schema.counts, schema.dropped) == ((15, 15), 30)

    def test_none_is_a_class_of_its_own(self):
        assert infer_schema(pd.DataFrame({"x": X, "y": ["None", "some"] * 30}), "y").classes == ("None", "some")

    def test_some_cells_of_a_numeric_target_are_no_numbers(self):
        y = [*map(str, Y[:-1]), "broken"]
        schema = infer_schema(pd.DataFrame({"x": X, "y": y}), "y")
        assert schema.task == "regression"
        assert "1 not a number" in schema.notes[0]
        labels = [*["0", "1"] * 29, "1", "broken"]
        schema = infer_schema(pd.DataFrame({"x": X, "y": labels}), "y")
        assert (schema.task, schema.dropped) == ("binary", 1)

    @pytest.mark.parametrize(
        ("y", "words"),
        [
            (["yes"] * N, "'y' has one class only ('yes')"),
            (["yes"] * 30 + [None] * 30, "'y' has one class only ('yes')"),
            ([3] * N, "'y' has the value 3 in every row"),
            ([None] * N, "'y' has no value in any row"),
            ([f"u{i}" for i in range(N)], "every class has a single row"),
            ([f"u{i // 1.5}" for i in range(N)], "40 classes in 60 rows"),
            (pd.date_range("2020-01-01", periods=N), "holds dates"),
        ],
    )
    def test_nothing_to_predict(self, y, words):
        with pytest.raises(UserError) as caught:
            infer_schema(pd.DataFrame({"x": X, "y": y}), "y", source="t.csv")
        assert str(caught.value).startswith("t.csv: target 'y'")
        assert words in str(caught.value)

    def test_a_class_of_one_row_is_said(self):
        y = ["a", "b"] * 29 + ["b", "rare"]
        assert "classes with a single row" in infer_schema(pd.DataFrame({"x": X, "y": y}), "y").notes[0]


class TestGroupAndTime:
    def test_the_group_is_no_input_and_missing_groups_stand_alone(self):
        g = [f"g{i % 7}" for i in range(N)]
        g[0], g[1] = None, ""
        prepared = prepare(as_table(table_of(g=g)), "y", group="g")
        assert "g" not in prepared.frame
        assert len(np.unique(prepared.groups)) == 9
        assert len(np.unique(prepared.groups[:2])) == 2

    def test_a_date_as_time_keeps_its_cyclic_parts_and_a_number_is_no_input(self):
        when = pd.date_range("2020-01-01", periods=N, freq="D").strftime("%d.%m.%Y").to_list()
        when[5] = None
        prepared = prepare(as_table(table_of(when=when)), "y", time="when")
        assert "when" in prepared.frame
        assert prepared.times[5] == -np.inf
        assert prepared.times[1] - prepared.times[0] == 86400
        counted = prepare(as_table(table_of(t=range(N))), "y", time="t")
        assert "t" not in counted.frame
        np.testing.assert_array_equal(counted.times, range(N))

    def test_what_cannot_divide_is_refused(self):
        with pytest.raises(UserError, match="not by both"):
            infer_schema(table_of(g=1), "y", group="g", time="x")
        with pytest.raises(UserError, match="--group y is the target"):
            infer_schema(table_of(), "y", group="y")
        with pytest.raises(UserError, match="--time s holds neither dates nor numbers"):
            infer_schema(table_of(s=["u", "v", "w"] * 20), "y", time="s")


def test_ten_thousand_columns(tmp_path):
    values = RNG.integers(0, 99, (8, 10_000)).astype(str)
    rows = [[f"c{i}" for i in range(10_000)] + ["y"], *([*row, "ab"[i % 2]] for i, row in enumerate(values))]
    (tmp_path / "wide.csv").write_text("\n".join(",".join(row) for row in rows))
    program = """if True:
        from wellposed.tables import Encoder, prepare, read_table
        prepared = prepare(read_table("wide.csv"), "y")
        print(prepared.frame.shape[1], Encoder.fit(prepared.frame, prepared.schema).transform(prepared.frame).shape)
    """
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout == "10000 (8, 10000)\n"


def test_the_schema_is_plain_data():
    schema = infer_schema(table_of(when="2020-01-01", k=range(N)), "y")
    assert json.loads(json.dumps(schema.to_json(), allow_nan=False))["columns"][0]["name"] == "x"
