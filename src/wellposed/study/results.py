"""What a run of ``wellposed fit`` found: plain data, written as ``metrics.json`` and read by the report."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Column:
    """How one column of the table was understood."""

    name: str
    kind: str
    why: str
    missing: float
    levels: int
    examples: tuple[str, ...]
    used: bool


@dataclass(frozen=True)
class DataFacts:
    """The data as it was understood."""

    source: str
    target: str
    task: Literal["binary", "multiclass", "regression"]
    rows: int
    train_rows: int
    test_rows: int
    scheme: str
    columns: tuple[Column, ...]
    classes: dict[str, int]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One line of the leaderboard.

    ``valid`` is the mean of the metric over validation folds, ``spread`` its standard deviation; ``test`` with
    ``low`` and ``high`` (95 %, bootstrap over test rows) is measured once, at the end, and only for the finalists.
    ``behind`` is the winner's test figure minus this one's in the direction of better, with its paired 95 % interval.
    """

    name: str
    kind: Literal["searched", "reference"]
    recipe: str | None
    network: dict[str, Any]
    valid: float | None
    spread: float | None
    seconds: float
    test: float | None = None
    low: float | None = None
    high: float | None = None
    behind: float | None = None
    behind_low: float | None = None
    behind_high: float | None = None


@dataclass(frozen=True)
class Worth:
    """What one ingredient of the winner is worth: the metric with it minus without it, over seeds, in better's sign."""

    ingredient: str
    gain: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class Curve:
    """One training run's history: a row an epoch with ``epoch``, ``loss`` and ``valid`` (the metric)."""

    name: str
    rows: tuple[dict[str, float], ...]


@dataclass(frozen=True)
class Trial:
    """One candidate of the search."""

    number: int
    state: Literal["complete", "pruned", "failed"]
    recipe: str
    value: float | None
    seconds: float


@dataclass(frozen=True)
class Diagnosis:
    """How the winner's test predictions look; which fields are filled depends on the task.

    Classification: ``reliability`` rows ``{"confidence", "accuracy", "count"}`` a bin, ``ece`` in [0, 1], ``labels``
    and ``confusion`` (rows are true classes). Regression: ``actual`` and ``predicted`` of at most 2,000 test rows.
    """

    reliability: tuple[dict[str, float], ...] = ()
    ece: float | None = None
    labels: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    actual: tuple[float, ...] = ()
    predicted: tuple[float, ...] = ()


@dataclass(frozen=True)
class RunResult:
    """Everything ``wellposed fit`` found.

    ``metric`` is the metric's name, ``higher_is_better`` its direction and ``percent`` whether it is shown in points of
    a hundred. ``verdict`` is two sentences. The winner is ``leaderboard[0]``'s recipe only if it was searched:
    ``recipe`` is always the best searched recipe, in canonical form.
    """

    version: str
    created: str
    command: str
    seed: int
    budget_seconds: float | None
    elapsed_seconds: float
    metric: str
    higher_is_better: bool
    percent: bool
    recipe: str
    network: dict[str, Any]
    verdict: tuple[str, ...]
    data: DataFacts
    leaderboard: tuple[Entry, ...]
    worth: tuple[Worth, ...]
    curves: tuple[Curve, ...]
    trials: tuple[Trial, ...]
    diagnosis: Diagnosis
    environment: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the result as JSON text."""
        return json.dumps(_finite(dataclasses.asdict(self)), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    """JSON has no infinity and no not-a-number: they become null."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
