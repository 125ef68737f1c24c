"""Recipes against each other on the same splits and seeds."""

import dataclasses
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from wellposed.errors import UserError
from wellposed.study.candidates import PLAIN, Candidate
from wellposed.study.intervals import over_seeds
from wellposed.study.metrics import Metric
from wellposed.study.options import FitOptions, Told
from wellposed.study.problem import train
from wellposed.study.table_problem import check_recipe, load_problem, single_split
from wellposed.study.verdict import difference
from wellposed.train.recipe import Recipe
from wellposed.train.trainer import DivergedError


@dataclass(frozen=True)
class Arm:
    """One recipe's figures, a seed each."""

    recipe: str
    figures: tuple[float, ...]
    mean: float
    spread: float


@dataclass(frozen=True)
class Pair:
    """Two recipes: the first's figure minus the second's in better's sign, with its 95 % interval, and who wins."""

    first: str
    second: str
    difference: float
    low: float
    high: float
    winner: str | None


@dataclass(frozen=True)
class Comparison:
    """What a comparison found."""

    metric: str
    percent: bool
    seeds: int
    arms: tuple[Arm, ...]
    pairs: tuple[Pair, ...]
    sentences: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain values."""
        return dataclasses.asdict(self)


def compare_recipes(
    source: str,
    target: str,
    recipes: list[str],
    *,
    seeds: int = 10,
    metric: str | None = None,
    first_seed: int = 0,
    device: str = "cpu",
    told: Told,
) -> Comparison:
    """Train each recipe on the same splits, a split and a seed at a time, and compare in pairs.

    Each seed draws its own test and validation part. The validation part stops training; the figure is the test part's.
    All recipes run on the same plain network.

    Raises:
        UserError: for fewer than two different recipes, or anything about the data that the user can mend.
    """
    parsed = list(dict.fromkeys(Recipe.parse(text) for text in recipes))
    if len(parsed) < 2:
        raise UserError("compare: give two different recipes or more, each with --with")
    figures: dict[str, list[float]] = {str(recipe): [] for recipe in parsed}
    kept: Metric | None = None
    for number, seed in enumerate(range(first_seed, first_seed + seeds)):
        table = load_problem(FitOptions(source, target, metric=metric, seed=seed, device=device))
        kept = table.problem.metric
        fold, x_test, y_test = single_split(table)
        if number == 0:
            for recipe in parsed:
                check_recipe(recipe, table)
        for recipe in parsed:
            told.stage(f"seed {number + 1} of {seeds}: {recipe}")
            try:
                trained = train(table.problem, Candidate(recipe, PLAIN), fold, seed=seed)
            except DivergedError:
                raise UserError(f"compare: {recipe} diverges on {source}; a smaller learning rate may help") from None
            figures[str(recipe)].append(kept.score(y_test, trained.predict(table.problem, x_test)))
        told.trial(number + 1, seeds, "", None)
    assert kept is not None
    arms = [Arm(name, tuple(f), float(np.mean(f)), float(np.std(f, ddof=1))) for name, f in figures.items()]
    pairs = [_pair(kept, a, b) for a, b in combinations(arms, 2)]
    return Comparison(
        metric=kept.name,
        percent=kept.percent,
        seeds=seeds,
        arms=tuple(sorted(arms, key=lambda arm: -kept.sign * arm.mean)),
        pairs=tuple(pairs),
        sentences=tuple(_sentence(kept, pair) for pair in pairs),
    )


def _pair(metric: Metric, a: Arm, b: Arm) -> Pair:
    mean, low, high = over_seeds(metric.sign * (np.array(a.figures) - np.array(b.figures)))
    winner = a.recipe if low > 0 else b.recipe if high < 0 else None
    return Pair(a.recipe, b.recipe, mean, low, high, winner)


def _sentence(metric: Metric, pair: Pair) -> str:
    unit = " points" if metric.percent else ""
    interval = f"95 % interval {difference(metric, pair.low)} to {difference(metric, pair.high)}"
    gap = f"{difference(metric, abs(pair.difference))}{unit} of {metric.name.replace('_', ' ')}"
    if pair.winner is None:
        return f"No difference beyond noise between {pair.first} and {pair.second}: {gap} ({interval})."
    loser = pair.second if pair.winner == pair.first else pair.first
    return f"{pair.winner} wins over {loser} by {gap} ({interval})."
