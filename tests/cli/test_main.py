"""The command as a stranger meets it: a line for a mistake, JSON on standard output alone, everything in a folder."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from wellposed.cli.main import main, seconds_of

COMMANDS = ("fit", "predict", "compare", "catalog", "show", "reproduce")
FILES = {"report.html", "model.safetensors", "pipeline.json", "leaderboard.csv", "metrics.json", "study.db", "log.txt"}


def frame(rows=120):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, rows)).round(3)
    colour = rng.choice(["red", "green", "blue"], rows)
    y = np.where(a + b + (colour == "red") + 0.3 * rng.normal(size=rows) > 0.3, "yes", "no")
    return pd.DataFrame({"a": a, "b": b, "colour": colour, "y": y})


def call(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return stop.value.code


def refused(capsys, *arguments):
    """The one line of a refusal."""
    assert call(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("wellposed: ")
    assert err.count("\n") == 1
    return err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp("fitted")
    frame().to_csv(home / "t.csv", index=False)
    assert call("fit", home / "t.csv", "--target", "y", "--trials", 2, "--out", home / "run") == 0
    return home


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame().to_csv("t.csv", index=False)
    return tmp_path


def test_fit_leaves_every_file_and_judges_exactly_the_trials(run):
    assert {p.name for p in (run / "run").iterdir()} >= FILES
    found = json.loads((run / "run" / "metrics.json").read_text())
    assert len(found["trials"]) == 2
    assert found["trials"][0]["recipe"] == "CrossEntropy() + AdamW(lr=0.002, weight_decay=0.0)"


def test_predictions_are_in_order_and_sum_to_one(run, tmp_path):
    given = pd.read_csv(run / "t.csv").drop(columns="y")
    given.to_csv(tmp_path / "new.csv", index=False)
    given[["colour", "b", "a"]].iloc[::-1].to_csv(tmp_path / "back.csv", index=False)
    for name in ("new", "back"):
        assert call("predict", run / "run", tmp_path / f"{name}.csv", "-o", tmp_path / f"{name}-out.csv") == 0
    out, back = (pd.read_csv(tmp_path / f"{name}-out.csv") for name in ("new", "back"))
    np.testing.assert_allclose(out[["p(no)", "p(yes)"]].sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(out["p(yes)"], back["p(yes)"].to_numpy()[::-1], atol=1e-6)


def test_predict_says_what_is_new_and_refuses_what_is_missing(run, tmp_path, capsys):
    given = frame()
    given.assign(extra=1, colour="pink").to_csv(tmp_path / "odd.csv", index=False)
    assert call("predict", run / "run", tmp_path / "odd.csv", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["rows"] == 120
    assert "extra" in err
    assert "pink" in err
    given.drop(columns="a").to_csv(tmp_path / "less.csv", index=False)
    assert "'a'" in refused(capsys, "predict", run / "run", tmp_path / "less.csv")
    given.assign(a="word").to_csv(tmp_path / "words.csv", index=False)
    assert "should hold numbers" in refused(capsys, "predict", run / "run", tmp_path / "words.csv")
    missing = tmp_path / "no" / "o.csv"
    assert "cannot be written" in refused(capsys, "predict", run / "run", run / "t.csv", "-o", missing)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "which table"),
        (("t.csv",), "--target COLUMN"),
        (("none.csv", "--target", "y"), "no such file"),
        (("t.csv", "--target", "colou"), "did you mean 'colour'"),
        (("t.csv", "--target", "y", "--metric", "acuracy"), "did you mean 'accuracy'"),
        (("t.csv", "--target", "y", "--task", "multi"), "did you mean 'multiclass'"),
        (("t.csv", "--target", "y", "--budget", "0"), "--budget 0"),
        (("t.csv", "--target", "y", "--trials", "0"), "--trials"),
        (("t.csv", "--target", "y", "--device", "tpu"), "--device tpu"),
        (("t.csv", "--target", "y", "--recipe", "MaxSup("), "column 7"),
        (("t.csv", "--target", "y", "--recipe", "MSELoss()"), "column 1: MSELoss is for regression"),
        (("t.csv", "--target", "y", "--recipe", "MaxSup(alpha=-1)"), "column 1: MaxSup: alpha"),
        (("t.csv", "--target", "y", "--group", "g"), "--group"),
        (("t.csv", "--target", "y", "--time", "colour"), "--time colour"),
        (("t.csv", "--trgt", "y"), "--trgt"),
        (("--resume", "nowhere"), "not a run folder"),
        (("sample:diggits", "--target", "y"), "did you mean 'digits'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(table, capsys, arguments, says):
    assert says in refused(capsys, "fit", *arguments)
    assert {p.name for p in table.iterdir()} == {"t.csv"}


@pytest.mark.parametrize(
    "content", [b"", b"a,y\n", b"a,y\n" + b"1,one\n2,one\n" * 30, bytes(range(256)) * 9, b"PAR1 and then nothing"]
)
def test_a_bad_file_is_one_line_and_leaves_no_folder(table, capsys, content):
    (table / "bad.csv").write_bytes(content)
    assert "bad.csv" in refused(capsys, "fit", "bad.csv", "--target", "y")
    assert not (table / "wellposed-runs").exists()


def test_a_leak_is_told_on_standard_error_and_json_alone_on_standard_output(table, capsys):
    frame().assign(copy=lambda t: t["y"]).to_csv("leak.csv", index=False)
    assert call("fit", "leak.csv", "--target", "y", "--trials", 1, "--json") == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["trials"]) == 1
    assert "LEAK" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ft",), "did you mean 'fit'"),
        (("predict",), "predict: Missing argument"),
        (("compare", "t.csv", "--target", "y", "--with", "MaxSup()"), "two different recipes"),
        (("compare", "t.csv", "--target", "y", "--with", "MaxSup()", "--with", "MaxSupp()"), "did you mean 'MaxSup'"),
        (("compare", "t.csv", "--target", "y", "--with", "MaxSup()", "--with", "MSELoss()"), "MSELoss is for"),
        (("show", "maxsupp"), "did you mean 'maxsup'"),
        (("catalog", "--room", "loses"), "did you mean 'losses'"),
        (("reproduce", "nothing-like-it"), "no row"),
    ],
)
def test_other_commands_refuse_in_one_line(table, capsys, arguments, says):
    assert says.casefold() in refused(capsys, *arguments).casefold()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capsys):
    assert call(command, "--help") == 0
    assert f"Example: wellposed {command}" in capsys.readouterr().out


def test_no_command_prints_help(capsys):
    assert call() == 0
    out, err = capsys.readouterr()
    assert "reproduce" in out
    assert err == ""


def test_catalog_json_has_every_row_with_its_fields(capsys):
    assert call("catalog", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["number"] for row in rows} >= set(range(423))
    fields = {"number", "slug", "title", "room", "status", "provides", "claim", "verdict"}
    assert all(fields <= row.keys() for row in rows)


def test_compare_tells_paired_differences(table, capsys):
    recipes = ("--with", "CrossEntropy()", "--with", "LabelSmoothing(alpha=0.2)")
    assert call("compare", "t.csv", "--target", "y", *recipes, "--seeds", 2, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["arms"]) == 2
    assert len(found["pairs"]) == 1


def test_spans_of_time():
    assert [seconds_of(t) for t in ("90", "90s", "1.5m", "2h")] == [90, 90, 90, 7200]


def test_a_process_ends_with_2_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "wellposed.cli.main", "fit", "none.csv", "--target", "y"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr == "wellposed: no such file: none.csv\n"
