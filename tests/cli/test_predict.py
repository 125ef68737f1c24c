"""`wellposed predict`: order, columns that moved, and files that were tampered with."""

import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from shell import say, table


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run to damage."""
    shutil.copytree(run.path, tmp_path / "run")
    return tmp_path / "run"


def predicted(run, frame, tmp_path):
    path, out = tmp_path / "new.csv", tmp_path / "out.csv"
    frame.to_csv(path, index=False)
    said = say("predict", run.path, path, "-o", out)
    assert said.code == 0, said.err
    return pd.read_csv(out), said.err


def test_order_is_kept_and_the_target_may_be_missing(run, tmp_path):
    frame = table(30, seed=5)
    whole, _ = predicted(run, frame, tmp_path)
    shuffled, _ = predicted(run, frame.drop(columns="kind").iloc[::-1], tmp_path)
    assert list(whole.columns) == ["prediction", "p(no)", "p(yes)"]
    np.testing.assert_allclose(shuffled["p(yes)"].to_numpy()[::-1], whole["p(yes)"], atol=1e-6)
    assert (whole["prediction"] == frame["kind"]).mean() > 0.6


def test_reordered_extra_and_unseen_are_fine_and_said(run, tmp_path):
    frame = table(20, seed=6)
    plain, _ = predicted(run, frame, tmp_path)
    odd = frame[["day", "height", "color", "size"]].assign(extra=1)
    same, notes = predicted(run, odd, tmp_path)
    pd.testing.assert_frame_equal(plain, same)
    assert "extra" in notes
    odd.loc[0, "color"] = "purple"
    _, notes = predicted(run, odd, tmp_path)
    assert "color" in notes


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.drop(columns="size"), "size"),
        (lambda f: f.assign(size="large"), "size"),
    ],
    ids=["missing", "another type"],
)
def test_a_column_that_cannot_be_used_is_an_error(run, tmp_path, change, says):
    path = tmp_path / "new.csv"
    change(table(10)).to_csv(path, index=False)
    said = say("predict", run.path, path)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert says in said.err


@pytest.mark.parametrize("name", ["pipeline.json", "model.safetensors"])
def test_any_altered_byte_is_refused(run, copy, name):
    path = copy / name
    raw = bytearray(path.read_bytes())
    for position in np.random.default_rng(0).integers(len(raw), size=6):
        kept = raw[position]
        raw[position] ^= 1
        path.write_bytes(raw)
        said = say("predict", copy, run.data)
        assert (said.code, said.err.count("\n")) == (2, 1), said.err
        raw[position] = kept
    path.write_bytes(raw)
    assert say("predict", copy, run.data, "-o", copy / "o.csv").code == 0


@pytest.mark.parametrize(
    "change",
    [
        {"network": {"width": 10**9, "depth": 2, "dropout": 0.0, "batch_size": 64, "epochs": 1}},
        {"network": {"width": 8, "depth": 10**9, "dropout": 0.0, "batch_size": 64, "epochs": 1}},
        {"network": "__import__('os').system('true')"},
        {"members": 10**9},
        {"members": True},
        {"members": 99},
        {"encoder": {"columns": [], "others": []}},
        {"encoder": None},
        {"target": {"name": "kind", "task": "binary", "classes": ["a", "b", "c"]}},
        {"target": {"name": "kind", "task": "regression", "mean": "x", "scale": 1.0}},
        {"recipe": None, "members": None},
    ],
    ids=lambda change: "+".join(change) + str(len(str(change))),
)
def test_hostile_values_with_a_right_checksum_are_refused(run, copy, change):
    body = json.loads((copy / "pipeline.json").read_text()) | change
    body.pop("sha256")
    digest = hashlib.sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode()).hexdigest()
    (copy / "pipeline.json").write_text(json.dumps(body | {"sha256": digest}))
    said = say("predict", copy, run.data)
    assert (said.code, said.err.count("\n")) == (2, 1), said.err


def test_another_version_says_so(run, copy):
    body = json.loads((copy / "pipeline.json").read_text()) | {"format": 99, "wellposed": "7.0"}
    (copy / "pipeline.json").write_text(json.dumps(body))
    said = say("predict", copy, run.data)
    assert said.code == 2
    assert "99" in said.err
    assert "7.0" in said.err


def test_no_run_there(tmp_path, run):
    said = say("predict", tmp_path, run.data)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "not a run folder" in said.err
