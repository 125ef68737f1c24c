"""A paper's claim as one small experiment: arms, seeds, paired differences, and a verdict kept as it came out."""

import importlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from wellposed import catalog
from wellposed.errors import UserError
from wellposed.study.intervals import over_seeds
from wellposed.train.checkpoint import random_state, set_random_state

Verdict: TypeAlias = Literal["reproduced", "not reproduced", "opposite"]
RESULTS = resources.files("wellposed.claims") / "results"


@dataclass(frozen=True)
class Claim:
    """One experiment.

    Args:
        says: what is tested, in one sentence: direction, data, against which baseline.
        run: function of (seed, full) that trains every arm with that seed and returns each arm's figure; ``full`` asks
            for the larger form.
        method: the arm the claim is for.
        baseline: the arm it is compared with.
        metric: what the figures are, with their unit.
        higher_is_better: direction of the metric.
        paper: the paper's own figure, in words; ``None`` where it gives none.
        margin: least difference that counts, in the metric's unit; 0 for direction alone, negative where the paper
            claims to be no worse than the baseline by more than that.
        seeds: how many by default.
    """

    says: str
    run: Callable[[int, bool], Mapping[str, float]]
    method: str
    baseline: str
    metric: str
    higher_is_better: bool = True
    paper: str | None = None
    margin: float = 0.0
    seeds: int = 5


@dataclass(frozen=True)
class Outcome:
    """What came out: the arms' figures by seed, the paired difference with its 95 % interval, the verdict.

    ``difference`` is the method minus the baseline in the direction of better.
    """

    slug: str
    says: str
    metric: str
    higher_is_better: bool
    method: str
    baseline: str
    paper: str | None
    margin: float
    full: bool
    seeds: tuple[int, ...]
    arms: dict[str, tuple[float, ...]]
    difference: float
    low: float
    high: float
    verdict: Verdict
    seconds: float
    torch: str

    def to_json(self) -> str:
        """Return the outcome as JSON text."""
        return json.dumps(asdict(self), indent=1) + "\n"


def verdict_of(low: float, high: float, margin: float = 0.0) -> Verdict:
    """``reproduced`` if the whole interval is beyond ``margin``, ``opposite`` if it is below 0, else not reproduced.

    >>> verdict_of(0.5, 2.0), verdict_of(-0.1, 2.0), verdict_of(-2.0, -0.5)
    ('reproduced', 'not reproduced', 'opposite')
    """
    if low > margin:
        return "reproduced"
    return "opposite" if high < 0 else "not reproduced"


def claim_of(key: str) -> tuple[catalog.Row, Claim]:
    """The catalogue row named by slug, number or class, and its experiment.

    Raises:
        UserError: if there is no such row, or it has no experiment yet.
    """
    row = catalog.row(key)
    if row.experiment is None:
        raise UserError(f"{row.slug}: {row.name} has no experiment yet (status {row.status})")
    module, _, name = row.experiment.rpartition(".")
    claim: Claim = getattr(importlib.import_module(module), name)
    return row, claim


def reproduce(
    key: str,
    *,
    seeds: int | None = None,
    full: bool = False,
    progress: Callable[[int, Mapping[str, float]], None] | None = None,
) -> Outcome:
    """Run a claim's experiment.

    Args:
        key: slug, number or class name of the catalogue row.
        seeds: how many; the claim's own number by default.
        full: the larger form.
        progress: called after each seed with the seed and the arms' figures.

    Raises:
        UserError: if there is no such experiment, or ``seeds`` is below 1.
    """
    row, claim = claim_of(key)
    count = claim.seeds if seeds is None else seeds
    if count < 1:
        raise UserError(f"--seeds {count}: at least 1")
    started, kept = time.monotonic(), random_state()
    arms: dict[str, list[float]] = {}
    try:
        for seed in range(count):
            torch.manual_seed(seed)
            figures = claim.run(seed, full)
            for arm, figure in figures.items():
                arms.setdefault(arm, []).append(float(figure))
            if progress is not None:
                progress(seed, figures)
    finally:
        set_random_state(kept)
    return outcome(row.slug, claim, arms, full=full, seconds=time.monotonic() - started)


def outcome(slug: str, claim: Claim, arms: Mapping[str, Sequence[float]], *, full: bool, seconds: float) -> Outcome:
    """Judge the arms' figures."""
    sign = 1.0 if claim.higher_is_better else -1.0
    gaps = sign * (np.asarray(arms[claim.method]) - np.asarray(arms[claim.baseline]))
    difference, low, high = over_seeds(gaps)
    return Outcome(
        slug=slug,
        says=claim.says,
        metric=claim.metric,
        higher_is_better=claim.higher_is_better,
        method=claim.method,
        baseline=claim.baseline,
        paper=claim.paper,
        margin=claim.margin,
        full=full,
        seeds=tuple(range(len(gaps))),
        arms={arm: tuple(figures) for arm, figures in arms.items()},
        difference=difference,
        low=low,
        high=high,
        verdict=verdict_of(low, high, claim.margin) if len(gaps) > 1 else "not reproduced",
        seconds=round(seconds, 1),
        torch=torch.__version__,
    )


def stored(slug: str) -> dict[str, Any] | None:
    """The outcome that is kept with the package, or ``None``."""
    file = RESULTS / f"{slug}.json"
    if not file.is_file():
        return None
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def store(result: Outcome, folder: Path) -> Path:
    """Write an outcome as ``<slug>.json`` into ``folder``."""
    path = folder / f"{result.slug}.json"
    path.write_text(result.to_json(), encoding="utf-8")
    return path
