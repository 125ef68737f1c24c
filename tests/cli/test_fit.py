"""`wellposed fit`: what it leaves, the same again from the same seed, and going on after a kill."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shell import say, table
from wellposed.study import fit as fitting
from wellposed.study.fit import fit_table, resume_fit
from wellposed.study.options import FitOptions
from wellposed.study.search import finished, open_study

FIGURES = ("name", "kind", "recipe", "network", "valid", "spread", "test", "low", "high", "behind")


class Quiet:
    """Nobody is told; ``stop_after`` trials the process is taken for killed."""

    def __init__(self, stop_after: int | None = None, error: type[BaseException] = RuntimeError) -> None:
        self.stop_after, self.error, self.notes = stop_after, error, []

    def stage(self, text: str) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Remember."""
        self.notes.append(text)

    def trial(self, done: int, planned: int | None, best: str, left: float | None) -> None:
        """Die when it is time."""
        if done == self.stop_after:
            raise self.error


def figures(result) -> list[dict[str, object]]:
    return [{name: getattr(entry, name) for name in FIGURES} for entry in result.leaderboard]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("data") / "small.csv"
    table(60).drop(columns="day").to_csv(path, index=False)
    return str(path)


def test_the_run_folder_holds_what_the_readme_says(run):
    names = {p.name for p in run.path.iterdir() if not p.name.startswith(".")}
    assert names == {
        "report.html",
        "model.safetensors",
        "pipeline.json",
        "leaderboard.csv",
        "metrics.json",
        "study.db",
        "log.txt",
    }
    board = pd.read_csv(run.path / "leaderboard.csv")
    assert {"Plain net", "Linear model", "Gradient boosting", "Mean or majority"} <= set(board["name"])
    assert not any(p.suffix in (".pkl", ".pt") for p in run.path.iterdir())


def test_json_output_is_the_result(run):
    found = run.said.json
    assert found == json.loads((run.path / "metrics.json").read_text()) | {
        "folder": str(run.path),
        "report": str(run.path / "report.html"),
    }
    assert len(found["trials"]) == 2
    assert found["data"]["task"] == "binary"
    assert len(found["verdict"]) == 2
    kinds = {c["name"]: c["kind"] for c in found["data"]["columns"]}
    assert kinds == {"size": "number", "color": "category", "day": "date", "height": "number", "kind": "boolean"}


def test_a_killed_run_goes_on_to_the_same_leaderboard(data, tmp_path):
    options = FitOptions(data, "kind", budget=None, trials=4, seed=3)
    _, whole = fit_table(options, tmp_path / "whole", Quiet())
    with pytest.raises(RuntimeError):
        fit_table(options, tmp_path / "cut", Quiet(stop_after=2))
    folder, resumed = resume_fit(tmp_path / "cut", Quiet())
    assert figures(resumed) == figures(whole)
    assert [(t.state, t.recipe, t.value) for t in resumed.trials] == [
        (t.state, t.recipe, t.value) for t in whole.trials
    ]
    assert len(finished(open_study(folder.study))) == 4


def test_ctrl_c_leaves_a_model_and_a_report(data, tmp_path):
    told = Quiet(stop_after=1, error=KeyboardInterrupt)
    folder, result = fit_table(FitOptions(data, "kind", budget=None, trials=50), tmp_path / "run", told)
    assert len(result.trials) == 1
    assert folder.report.exists()
    assert folder.model.exists()
    assert any("interrupted" in note for note in told.notes)


def test_a_fixed_recipe_is_kept_and_only_the_network_searched(data, tmp_path):
    recipe = "MaxSup(alpha=0.2) + Mixup() + AdamW(lr=0.01)"
    said = say("fit", data, "--target", "kind", "--trials", 2, "--recipe", recipe, "--out", tmp_path / "r", "--json")
    assert said.code == 0, said.err
    assert {t["recipe"] for t in said.json["trials"]} == {recipe}


@pytest.mark.parametrize("suffix", ["parquet", "feather", "tsv"])
def test_other_formats_give_the_same_problem(suffix, tmp_path):
    frame = table(60).drop(columns="day")
    path = tmp_path / f"t.{suffix}"
    writers = {"parquet": frame.to_parquet, "feather": frame.to_feather, "tsv": lambda p: frame.to_csv(p, sep="\t")}
    writers[suffix](path)
    said = say("fit", path, "--target", "kind", "--trials", 1, "--out", tmp_path / "run", "--json")
    assert said.code == 0, said.err
    assert said.json["data"]["rows"] == 60


def test_regression_and_samples_and_time(tmp_path):
    said = say(
        "fit", "sample:diabetes", "--target", "progression", "--trials", 1, "--metric", "mae", "--time", "age",
        "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert said.json["metric"] == "mae"
    assert said.json["diagnosis"]["actual"]


def test_two_workers_share_a_study(data, tmp_path):
    said = say("fit", data, "--target", "kind", "--trials", 3, "--workers", 2, "--out", tmp_path / "run", "--json")
    assert said.code == 0, said.err
    assert len(said.json["trials"]) >= 3


def test_the_search_leaves_time_for_the_finale(data, tmp_path, monkeypatch):
    ends = []

    class SeenError(Exception):
        """What was to be seen was."""

    def look(run):
        ends.append((run._search_deadline(0.0), run._search_deadline(1e9)))
        raise SeenError

    monkeypatch.setattr(fitting._Run, "go", look)
    with pytest.raises(SeenError):
        fit_table(FitOptions(data, "kind", budget=100.0), tmp_path / "run", Quiet())
    ((quick, slow),) = ends
    assert quick - slow == pytest.approx(45 - 5)  # at most 45 % of the budget is kept back, 2 s and 3 % at least


def test_a_leak_is_shouted_even_with_json(tmp_path):
    frame = table(60)
    frame["copy"] = frame["kind"].map({"yes": 1, "no": 0})
    path = tmp_path / "leak.csv"
    frame.to_csv(path, index=False)
    said = say("fit", path, "--target", "kind", "--trials", 1, "--out", tmp_path / "run", "--json")
    assert said.code == 0
    assert "LEAK" in said.err
    assert any("copy" in warning for warning in said.json["data"]["warnings"])


def test_the_verdict_is_printed_for_people(data, tmp_path):
    said = say("fit", data, "--target", "kind", "--trials", 1, "--out", tmp_path / "run")
    assert said.code == 0
    assert "best reference" in said.out.replace("\n", " ")
    assert str(Path("run") / "report.html") in said.out.replace("\n", "")


def test_probabilities_do_not_depend_on_the_rows_beside(run):
    from wellposed.study.predict import predict_table

    whole, _ = predict_table(run.path, str(run.data))
    probabilities = whole[["p(no)", "p(yes)"]].to_numpy()
    assert np.allclose(probabilities.sum(1), 1)
    assert (whole["prediction"] == np.where(probabilities[:, 1] > probabilities[:, 0], "yes", "no")).all()
