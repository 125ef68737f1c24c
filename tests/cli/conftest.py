"""One tiny run of the command, shared by every test of what it leaves behind."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from shell import Said, say, table


@dataclass(frozen=True)
class Run:
    """A finished run."""

    path: Path
    data: Path
    said: Said


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("fit")
    data = folder / "things.csv"
    table().to_csv(data, index=False)
    path = folder / "run"
    said = say("fit", data, "--target", "kind", "--trials", 2, "--out", path, "--json")
    assert said.code == 0, said.err
    return Run(path, data, said)
