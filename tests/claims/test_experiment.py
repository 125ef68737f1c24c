"""Claims: the judgement in exact cases, one run end to end, and that no stored outcome was edited by hand."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from wellposed import catalog
from wellposed.claims import experiment
from wellposed.claims.experiment import Claim, Outcome, claim_of, outcome, reproduce, store, stored, verdict_of
from wellposed.errors import UserError
from wellposed.study.intervals import over_seeds

WITH_EXPERIMENT = [row for row in catalog.rows() if row.experiment is not None]
STORED = [row.slug for row in WITH_EXPERIMENT if stored(row.slug) is not None]


def claim(**changes) -> Claim:
    made = Claim(
        says="The new one draws larger numbers than the old one.",
        run=lambda seed, full: {"new": 2.0 + float(torch.rand(())) + full, "old": 1.0 + seed},
        method="new",
        baseline="old",
        metric="number",
    )
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize(
    ("low", "high", "margin", "verdict"),
    [
        (0.1, 0.2, 0.0, "reproduced"),
        (-0.1, 0.2, 0.0, "not reproduced"),
        (0.0, 0.2, 0.0, "not reproduced"),
        (-0.2, 0.0, 0.0, "not reproduced"),
        (-0.2, -0.1, 0.0, "opposite"),
        (0.1, 0.2, 0.15, "not reproduced"),
        (0.16, 0.2, 0.15, "reproduced"),
        (-0.2, -0.1, 0.15, "opposite"),
        (-0.2, -0.1, -1.0, "reproduced"),
        (-1.2, 0.1, -1.0, "not reproduced"),
        (-1.2, -0.1, -1.0, "opposite"),
    ],
)
def test_the_verdict_follows_from_the_interval(low, high, margin, verdict):
    assert verdict_of(low, high, margin) == verdict


def test_a_constant_difference_is_its_own_interval():
    found = outcome("x", claim(), {"new": [3.0, 4.0, 5.0], "old": [1.0, 2.0, 3.0]}, full=False, seconds=1.26)
    assert (found.difference, found.low, found.high, found.verdict) == (2.0, 2.0, 2.0, "reproduced")
    assert found.arms == {"new": (3.0, 4.0, 5.0), "old": (1.0, 2.0, 3.0)}
    assert (found.seeds, found.seconds) == ((0, 1, 2), 1.3)


def test_where_lower_is_better_the_sign_turns():
    arms = {"new": [3.0, 4.0, 5.5], "old": [1.0, 2.0, 3.0]}
    up = outcome("x", claim(), arms, full=False, seconds=0.0)
    down = outcome("x", claim(higher_is_better=False), arms, full=False, seconds=0.0)
    assert (up.verdict, down.verdict) == ("reproduced", "opposite")
    assert down.difference == -up.difference
    assert (down.low, down.high) == pytest.approx((-up.high, -up.low), abs=0.05)


def test_the_difference_is_paired_by_seed():
    arms = {"new": [11.0, 101.0, 1001.0], "old": [10.0, 100.0, 1000.0]}
    assert outcome("x", claim(), arms, full=False, seconds=0.0).verdict == "reproduced"


def test_the_margin_is_the_claims():
    arms = {"new": [2.0, 2.0], "old": [1.0, 1.0]}
    assert outcome("x", claim(margin=0.5), arms, full=False, seconds=0.0).verdict == "reproduced"
    assert outcome("x", claim(margin=1.5), arms, full=False, seconds=0.0).verdict == "not reproduced"


def test_one_seed_decides_nothing():
    found = outcome("x", claim(), {"new": [9.0], "old": [1.0]}, full=False, seconds=0.0)
    assert (found.difference, found.verdict) == (8.0, "not reproduced")


@pytest.fixture
def made(monkeypatch) -> catalog.Row:
    """A row whose experiment stands in this module."""
    row = dataclasses.replace(catalog.row("maxsup"), slug="made", experiment=f"{__name__}.MADE")
    monkeypatch.setattr(experiment.catalog, "row", lambda key: row)
    return row


MADE = claim()


@pytest.mark.usefixtures("made")
def test_an_experiment_from_end_to_end(tmp_path, monkeypatch):
    seen = []
    found = reproduce("made", seeds=3, progress=lambda seed, figures: seen.append((seed, dict(figures))))
    draws = [float(torch.rand((), generator=torch.Generator().manual_seed(seed))) for seed in range(3)]
    assert found.arms["new"] == pytest.approx([2.0 + draw for draw in draws])
    assert found.arms["old"] == (1.0, 2.0, 3.0)
    assert [seed for seed, _ in seen] == [0, 1, 2]
    assert seen[2][1] == {arm: figures[2] for arm, figures in found.arms.items()}
    assert (found.slug, found.torch, found.full) == ("made", torch.__version__, False)
    assert reproduce("made", full=True).arms["new"][0] == pytest.approx(found.arms["new"][0] + 1)
    assert len(reproduce("made").seeds) == MADE.seeds
    path = store(found, tmp_path)
    assert path == tmp_path / "made.json"
    monkeypatch.setattr(experiment, "RESULTS", tmp_path)
    kept = stored("made")
    assert kept is not None
    assert kept == json.loads(found.to_json())
    assert stored("another") is None


@pytest.mark.usefixtures("made")
def test_random_state_is_left_as_it_was(monkeypatch):
    def draws() -> tuple[float, float]:
        return float(torch.rand(())), float(np.random.rand())  # Python's are drawn by beartype's own checks too

    def run(seed, full):
        draws()
        return {"new": 1.0, "old": 0.0}

    def broken(seed, full):
        draws()
        raise RuntimeError("broken")

    def seeded() -> None:
        torch.manual_seed(7)
        np.random.seed(7)

    seeded()
    expected = draws()
    monkeypatch.setitem(globals(), "MADE", claim(run=run))
    seeded()
    reproduce("made", seeds=2)
    assert draws() == expected
    monkeypatch.setitem(globals(), "MADE", claim(run=broken))
    seeded()
    with pytest.raises(RuntimeError, match="broken"):
        reproduce("made")
    assert draws() == expected


@pytest.mark.usefixtures("made")
def test_no_seed_at_all_is_refused():
    with pytest.raises(UserError, match="--seeds 0: at least 1"):
        reproduce("made", seeds=0)


def test_a_row_without_experiment_says_so():
    row = next(row for row in catalog.rows() if row.experiment is None)
    with pytest.raises(UserError, match=f"{row.slug}: .* has no experiment yet"):
        claim_of(row.slug)


@pytest.mark.parametrize("slug", [row.slug for row in WITH_EXPERIMENT])
def test_every_experiment_is_a_claim_named_after_its_row(slug):
    row, found = claim_of(slug)
    assert isinstance(found, Claim)
    assert row.experiment is not None
    assert row.experiment.rpartition(".")[2] == slug.replace("-", "_")
    assert found.method
    assert found.baseline
    assert found.method != found.baseline
    assert found.seeds >= 5
    assert found.says.endswith(".")
    assert found.metric


def test_every_stored_outcome_belongs_to_a_row():
    assert {Path(str(file)).stem for file in experiment.RESULTS.iterdir() if file.name.endswith(".json")} == set(STORED)


@pytest.mark.parametrize("slug", STORED)
def test_a_stored_outcome_is_what_its_figures_give(slug):
    kept, (_, made) = stored(slug), claim_of(slug)
    assert kept is not None
    assert set(kept) == {field.name for field in dataclasses.fields(Outcome)}
    for name in ("says", "metric", "higher_is_better", "method", "baseline", "paper", "margin"):
        assert kept[name] == getattr(made, name), name
    assert kept["slug"] == slug
    assert kept["seeds"] == list(range(made.seeds))
    assert {len(figures) for figures in kept["arms"].values()} == {made.seeds}
    sign = 1.0 if kept["higher_is_better"] else -1.0
    gaps = sign * (np.array(kept["arms"][made.method]) - np.array(kept["arms"][made.baseline]))
    assert (kept["difference"], kept["low"], kept["high"]) == pytest.approx(over_seeds(gaps))
    assert kept["verdict"] == verdict_of(kept["low"], kept["high"], kept["margin"])
