"""The page of evidence says what the stored outcomes say, and the command behind it does what it is told."""

import json
from pathlib import Path

import pytest

from wellposed.claims import __main__ as command
from wellposed.claims import evidence
from wellposed.claims.experiment import claim_of, outcome

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "src" / "wellposed" / "claims" / "results"
STORED = sorted(file.stem for file in RESULTS.glob("*.json"))


def kept(slug: str) -> dict:
    return json.loads((RESULTS / f"{slug}.json").read_text(encoding="utf-8"))


def altered(folder: Path, slug: str, **changes: object) -> Path:
    (folder / f"{slug}.json").write_text(json.dumps(kept(slug) | changes), encoding="utf-8")
    return folder


def test_the_page_is_what_the_stored_outcomes_give():
    assert (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8") == evidence.page(RESULTS)


def test_every_stored_outcome_is_on_the_page():
    assert sorted(row.slug for row, _ in evidence.outcomes(RESULTS)) == STORED


def test_a_verdict_is_counted_and_shown(tmp_path):
    page = evidence.page(altered(tmp_path, "sam", verdict="opposite"))
    assert "**1 claims: 0 reproduced, 0 not reproduced, 1 opposite.**" in page
    assert page.splitlines()[-1].endswith("| 5 | opposite |")


def test_a_line_holds_difference_interval_and_every_arm(tmp_path):
    changes = {"difference": 2.0, "low": -0.5, "high": 3.5, "arms": {"SAM": [4, 6], "SGD": [1, 5]}, "paper": None}
    line = evidence.page(altered(tmp_path, "sam", **changes, metric="a|b", margin=0.25)).splitlines()[-1]
    assert "| no figure | +2.0 (-0.5 to 3.5) a\\|b, above +0.25 counts [SAM 5.0, SGD 3.0] | 5 |" in line


def test_the_command_writes_the_page_and_leaves_outcomes_alone(tmp_path):
    altered(tmp_path, "sam")
    before = (tmp_path / "sam.json").read_bytes()
    page = tmp_path / "page.md"
    assert command.main(["--evidence-only", "--results", str(tmp_path), "--evidence", str(page)]) == 0
    assert page.read_text(encoding="utf-8") == evidence.page(tmp_path)
    assert (tmp_path / "sam.json").read_bytes() == before


def test_the_command_runs_what_is_named(tmp_path, monkeypatch, capsys):
    ran = []

    def reproduce(slug):
        ran.append(slug)
        found = kept(slug)
        _, claim = claim_of(slug)
        return outcome(slug, claim, found["arms"], full=False, seconds=1.0)

    monkeypatch.setattr(command, "reproduce", reproduce)
    page = tmp_path / "page.md"
    assert command.main(["SAM", "14", "--results", str(tmp_path / "new"), "--evidence", str(page)]) == 0
    assert ran == ["amp", "sam"]
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["amp.json", "sam.json"]
    assert page.read_text(encoding="utf-8").count("\n| ") == 4
    assert capsys.readouterr().out.startswith("amp: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-method"], "no-such-method"),
        (["sam", "--evidence-only"], "leave the methods out"),
        (["sam", "--evidence", "nowhere/page.md"], "--evidence"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main([*arguments, "--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
