"""Runs that are killed, resumed, hurried, shared, tampered with, or out of disk."""

import errno
import hashlib
import json
import shutil
import sqlite3

import numpy as np
import pandas as pd
import pytest
import sqlalchemy.exc

from wellposed.errors import UserError
from wellposed.study import fit as fitting
from wellposed.study import search
from wellposed.study.fit import fit_table, resume_fit
from wellposed.study.options import FitOptions
from wellposed.study.predict import Pipeline, predict_table
from wellposed.study.run_folder import RunFolder


class Told:
    def __init__(self, stop_after=None, error=None):
        self.stop_after, self.error, self.notes = stop_after, error, []

    def stage(self, text):
        pass

    def note(self, text):
        self.notes.append(text)

    def trial(self, done, planned, best, left):
        if done == self.stop_after:
            raise self.error


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(120, 2)).round(3)
    y = np.where(x.sum(1) + 0.5 * rng.normal(size=120) > 0, "yes", "no")
    path = tmp_path_factory.mktemp("table") / "t.csv"
    pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": y}).to_csv(path, index=False)
    return FitOptions(str(path), "y", budget=None, trials=3)


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory):
    return fit_table(options, tmp_path_factory.mktemp("runs") / "whole", Told())


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole[0].path, tmp_path / "copy")
    return RunFolder(tmp_path / "copy")


def board(result):
    return [{k: v for k, v in vars(entry).items() if k != "seconds"} for entry in result.leaderboard]


def test_a_killed_run_resumed_ends_as_the_uninterrupted_one(options, whole, tmp_path):
    with pytest.raises(Killed):
        fit_table(options, tmp_path / "run", Told(2, Killed()))
    _, found = resume_fit(tmp_path / "run", Told())
    assert board(found) == board(whole[1])
    assert len(found.trials) == 3


def test_an_interrupt_leaves_a_model_and_a_report(options, tmp_path):
    told = Told(1, KeyboardInterrupt())
    folder, found = fit_table(options, tmp_path / "run", told)
    assert len(found.trials) == 1
    assert folder.report.is_file()
    assert len(predict_table(folder.path, options.source)[0]) == 120
    assert any("interrupted" in note for note in told.notes)


def test_the_search_ends_before_the_budget_leaving_time_for_the_finale(options, tmp_path):
    run = fitting._Run.__new__(fitting._Run)
    run.options, run.started = FitOptions("t.csv", "y", budget=100.0), 0.0
    run.table = fitting.load_problem(options)
    quick, slow = run._search_deadline(0.01), run._search_deadline(1e6)
    assert 55.0 - 1e-9 <= slow < quick < 96.0
    assert run._deadline() <= 97.0


def test_resume_refuses_other_data_and_other_formats(options, tmp_path, copy):
    study = search.open_study(copy.study)
    study.set_user_attr("fingerprint", "t.csv 0")
    with pytest.raises(UserError, match="not the table this run was begun on"):
        resume_fit(copy.path, Told())
    study.set_user_attr("format", 99)
    with pytest.raises(UserError, match="format 99"):
        resume_fit(copy.path, Told())


def test_a_folder_serves_one_run(options, whole, copy, tmp_path):
    with copy.locked(), pytest.raises(UserError, match="another wellposed run"):
        resume_fit(copy.path, Told())
    with pytest.raises(UserError, match="holds a run already"):
        fit_table(options, copy.path, Told())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(UserError, match="is not empty"):
        fit_table(options, tmp_path / "full", Told())


def test_a_full_disk_is_told_in_one_line(copy, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("wellposed.study.run_folder.write_atomic", full)
    with pytest.raises(UserError, match="No space left"):
        copy.write(copy.report, "x")


@pytest.mark.parametrize("says", ["database or disk is full", "attempt to write a readonly database"])
def test_a_study_that_cannot_be_written_is_told_in_one_line(options, tmp_path, monkeypatch, says):
    def fails(*_, **__):
        raise sqlalchemy.exc.OperationalError("INSERT", {}, sqlite3.OperationalError(says))

    monkeypatch.setattr(search, "run", fails)
    with pytest.raises(UserError, match=says):
        fit_table(options, tmp_path / "run", Told())


def rewrite(folder, change):
    """Alter the pipeline and give it a right checksum again."""
    body = json.loads(folder.pipeline.read_text())
    del body["sha256"]
    change(body)
    body["sha256"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    folder.pipeline.write_text(json.dumps(body, indent=1))


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b["network"].update(width=10**9),
        lambda b: b["network"].update(depth=10**9),
        lambda b: b["network"].update(dropout="0"),
        lambda b: b["network"].update(width=64),
        lambda b: b.update(members=10**9),
        lambda b: b.update(members=True),
        lambda b: b.update(members=1),
        lambda b: b.update(network=[]),
        lambda b: b.update(target=None),
        lambda b: b["encoder"]["columns"][0].update(center=float("nan")),
        lambda b: b["encoder"]["columns"][0].update(kind="__import__('os')"),
        lambda b: b.pop("encoder"),
    ],
)
def test_hostile_values_with_a_right_checksum_are_refused(copy, change):
    rewrite(copy, change)
    with pytest.raises(UserError):
        Pipeline.load(copy)


def test_any_byte_altered_is_refused(copy):
    for path in (copy.pipeline, copy.model):
        kept = path.read_bytes()
        for place in np.linspace(0, len(kept) - 1, 40).astype(int):
            path.write_bytes(kept[:place] + bytes([kept[place] ^ 1]) + kept[place + 1 :])
            with pytest.raises(UserError):
                Pipeline.load(copy)
        path.write_bytes(kept)
    assert Pipeline.load(copy).members


def test_a_recipe_that_is_given_is_kept(options, tmp_path):
    asked = FitOptions(options.source, "y", budget=None, trials=2, recipe="LabelSmoothing(alpha=0.2)")
    _, found = fit_table(asked, tmp_path / "run", Told())
    assert {trial.recipe for trial in found.trials} == {"LabelSmoothing(alpha=0.2)"}


def test_two_workers_judge_exactly_the_trials(options, tmp_path):
    asked = FitOptions(options.source, "y", budget=None, trials=3, workers=2)
    _, found = fit_table(asked, tmp_path / "run", Told())
    assert len(found.trials) == 3
