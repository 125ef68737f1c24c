"""The leaderboard: cocktails and references on the same validation folds, finalists on the test part."""

import csv
import dataclasses
import io
import time
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from optuna.trial import FrozenTrial

from wellposed.study.intervals import over_rows
from wellposed.study.metrics import Metric
from wellposed.study.problem import Problem
from wellposed.study.references import REFERENCES, fit_reference, predict_reference
from wellposed.study.results import Entry
from wellposed.study.search import candidate_of
from wellposed.study.table_problem import TableProblem
from wellposed.study.verdict import short_name

Array: TypeAlias = np.ndarray
SHOWN = 8
"""Searched candidates on the leaderboard, beside the winner and the plain net."""


def reference_entries(table: TableProblem, seed: int) -> list[Entry]:
    """Every reference on the search's folds."""
    entries = []
    for name in REFERENCES:
        started = time.monotonic()
        figures = []
        for fold in table.folds:
            model = fit_reference(name, table.problem, fold.x_train, fold.y_train, seed)
            predictions = predict_reference(model, table.problem, fold.x_valid)
            figures.append(table.problem.metric.score(fold.y_valid, predictions))
        entries.append(Entry(name, "reference", None, {}, *_mean_spread(figures), seconds=time.monotonic() - started))
    return entries


def reference_predictions(name: str, table: TableProblem, seed: int) -> Array:
    """A reference fitted on all training rows, on the test rows."""
    model = fit_reference(name, table.problem, *table.train, seed)
    return predict_reference(model, table.problem, table.test[0])


def searched_entry(trial: FrozenTrial, name: str | None = None) -> Entry:
    """One judged candidate."""
    candidate = candidate_of(trial)
    figures = trial.user_attrs["figures"]
    return Entry(
        name=name or short_name(candidate.recipe),
        kind="searched",
        recipe=str(candidate.recipe),
        network=candidate.network.to_json(),
        valid=_mean_spread(figures)[0],
        spread=_mean_spread(figures)[1],
        seconds=float(trial.user_attrs["seconds"]),
    )


def tested(entry: Entry, *, problem: Problem, y: Array, predictions: Array, winner: Array, seed: int) -> Entry:
    """The entry with its test figure, and how far it is behind the winner, with 95 % intervals."""
    test, low, high = over_rows(problem.metric, y, predictions, seed=seed)
    entry = dataclasses.replace(entry, test=test, low=low, high=high)
    if predictions is winner:
        return entry
    behind, behind_low, behind_high = over_rows(problem.metric, y, winner, predictions, seed=seed)
    return dataclasses.replace(entry, behind=behind, behind_low=behind_low, behind_high=behind_high)


def ordered(entries: Sequence[Entry], metric: Metric) -> tuple[Entry, ...]:
    """Finalists first, then the rest; the better validation figure first in each."""

    def key(entry: Entry) -> tuple[bool, float]:
        return entry.test is None, -metric.sign * (entry.valid if entry.valid is not None else -metric.sign * np.inf)

    return tuple(sorted(entries, key=key))


def as_csv(entries: Sequence[Entry]) -> str:
    """The leaderboard as CSV text; the network as JSON-like ``name=value`` pairs."""
    out = io.StringIO()
    names = [field.name for field in dataclasses.fields(Entry)]
    writer = csv.DictWriter(out, names)
    writer.writeheader()
    for entry in entries:
        row = dataclasses.asdict(entry)
        row["network"] = " ".join(f"{k}={v}" for k, v in entry.network.items())
        writer.writerow({k: "" if v is None else v for k, v in row.items()})
    return out.getvalue()


def _mean_spread(figures: Sequence[float]) -> tuple[float, float | None]:
    return float(np.mean(figures)), float(np.std(figures, ddof=1)) if len(figures) > 1 else None
