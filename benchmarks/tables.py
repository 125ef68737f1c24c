"""`wellposed fit` beside tuned gradient boosting at the same budget, on real tables that packages ship.

    python benchmarks/tables.py [--budget 180] [--only NAME ...]     # one result file a table
    python benchmarks/tables.py --page                               # docs/tables.md from the results

Both see the same rows: the same test part, touched once, and the same validation folds. Gradient boosting is
scikit-learn's, its seven hyper-parameters searched by the same sampler for the same wall-clock time, the best refitted
on all training rows.
The tables of ISLP and statsmodels are read from the installed packages (`pip install --no-deps ISLP statsmodels`).
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from wellposed.study.fit import fit_table
from wellposed.study.intervals import over_rows
from wellposed.study.options import FitOptions
from wellposed.study.predict import Pipeline
from wellposed.study.references import predict_reference
from wellposed.study.table_problem import TableProblem, load_problem

RESULTS = Path(__file__).parent / "results" / "tables"
PAGE = Path(__file__).parent.parent / "docs" / "tables.md"


@dataclass(frozen=True)
class Source:
    """A table that a package ships."""

    name: str
    about: str
    target: str
    package: str
    file: str = ""
    drop: tuple[str, ...] = ()
    metric: str | None = None


SOURCES = (
    Source("digits", "handwritten digits, 64 pixels, 10 classes", "digit", "scikit-learn"),
    Source("diabetes", "disease progression after one year", "progression", "scikit-learn"),
    Source("oj", "which of two orange juices is bought", "Purchase", "ISLP", "OJ.csv"),
    Source("wage", "wages of men in the Mid-Atlantic region", "wage", "ISLP", "Wage.csv", ("logwage",)),
    Source("caravan", "who buys caravan insurance, 6 % do", "Purchase", "ISLP", "Caravan.csv", metric="auc"),
    Source("bikes", "bicycles hired in an hour", "bikers", "ISLP", "Bikeshare.csv", ("casual", "registered")),
)


class Quiet:
    """Nobody is told."""

    def stage(self, text: str) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def trial(self, done: int, planned: int | None, best: str, left: float | None) -> None:
        """Say nothing."""


def path_of(source: Source, folder: Path) -> str:
    """The table as `wellposed fit` reads it."""
    if source.package == "scikit-learn":
        return f"sample:{source.name}"
    spec = importlib.util.find_spec(source.package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{source.name} needs the package {source.package}")
    found = next(Path(spec.origin).parent.rglob(source.file))
    path = folder / f"{source.name}.csv"
    pd.read_csv(found).drop(columns=list(source.drop)).to_csv(path, index=False)
    return str(path)


def boosting(table: TableProblem, budget: float, seed: int) -> tuple[np.ndarray, float, int]:
    """Gradient boosting searched for ``budget`` seconds: its test predictions, validation figure, and trials."""
    classes = table.problem.num_classes is not None
    make = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor

    def objective(trial: optuna.Trial) -> float:
        model = {
            "learning_rate": trial.suggest_float("learning_rate", 0.01, 0.3, log=True),
            "max_iter": trial.suggest_int("max_iter", 50, 600, log=True),
            "max_leaf_nodes": trial.suggest_int("max_leaf_nodes", 4, 128, log=True),
            "min_samples_leaf": trial.suggest_int("min_samples_leaf", 2, 100, log=True),
            "l2_regularization": trial.suggest_float("l2_regularization", 1e-4, 10.0, log=True),
            "max_features": trial.suggest_float("max_features", 0.2, 1.0),
            "max_bins": trial.suggest_categorical("max_bins", [64, 128, 255]),
        }
        trial.set_user_attr("model", model)
        scores, figures = [], []
        for i, fold in enumerate(table.folds):
            fitted = make(**model, random_state=seed, early_stopping=False).fit(fold.x_train, fold.y_train)
            predictions = predict_reference(fitted, table.problem, fold.x_valid)
            scores.append(table.problem.score(fold.y_valid, predictions))
            figures.append(table.problem.metric.score(fold.y_valid, predictions))
            trial.report(statistics.fmean(scores), i)
            if i + 1 < len(table.folds) and trial.should_prune():
                raise optuna.TrialPruned
        trial.set_user_attr("figure", statistics.fmean(figures))
        return statistics.fmean(scores)

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=6),
    )
    default = {"learning_rate": 0.1, "max_iter": 100, "max_leaf_nodes": 31, "min_samples_leaf": 20, "max_bins": 255}
    study.enqueue_trial(default | {"l2_regularization": 1e-4, "max_features": 1.0})
    study.optimize(objective, timeout=0.95 * budget)
    best = study.best_trial
    fitted = make(**best.user_attrs["model"], random_state=seed, early_stopping=False).fit(*table.train)
    return predict_reference(fitted, table.problem, table.test[0]), best.user_attrs["figure"], len(study.trials)


def run(source: Source, budget: float, seed: int = 0) -> dict[str, object]:
    """One table, both searches."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = FitOptions(path_of(source, folder), source.target, budget=budget, metric=source.metric, seed=seed)
        table = load_problem(options)
        started = time.monotonic()
        predictions, valid, trials = boosting(table, budget, seed)
        boosting_seconds = time.monotonic() - started
        started = time.monotonic()
        made, result = fit_table(options, folder / "run", Quiet())
        ours = Pipeline.load(made).predict(table.prepared.frame.iloc[table.splits.test])
        seconds = time.monotonic() - started
    metric, y = table.problem.metric, table.test[1]
    boosted, boosted_low, boosted_high = over_rows(metric, y, predictions)
    gap, gap_low, gap_high = over_rows(metric, y, ours, predictions)
    entries = {entry.name: entry for entry in result.leaderboard if entry.test is not None}
    winner = next(e for e in result.leaderboard if e.recipe == result.recipe and e.test is not None)
    return {
        "name": source.name,
        "about": source.about,
        "package": source.package,
        "rows": table.prepared.schema.rows,
        "inputs": len(table.prepared.schema.inputs),
        "metric": metric.name,
        "percent": metric.percent,
        "budget": budget,
        "recipe": result.recipe,
        "trials": len(result.trials),
        "seconds": seconds,
        "test": [winner.test, winner.low, winner.high],
        "plain": None if "Plain net" not in entries else entries["Plain net"].test,
        "linear": entries["Linear model"].test,
        "boosting": [boosted, boosted_low, boosted_high],
        "boosting_valid": valid,
        "boosting_trials": trials,
        "boosting_seconds": boosting_seconds,
        "gap": [gap, gap_low, gap_high],
    }


def page() -> str:
    """The documentation page from the stored results."""
    found = [
        json.loads((RESULTS / f"{s.name}.json").read_text()) for s in SOURCES if (RESULTS / f"{s.name}.json").exists()
    ]
    minutes = found[0]["budget"] / 60
    lines = [
        "# `fit` beside gradient boosting on real tables",
        "",
        f"`wellposed fit` with a budget of {minutes:g} minutes, and scikit-learn's histogram gradient boosting with",
        "its hyper-parameters searched for the same time on the same folds, one thread each. The test part is the same",
        "fifth of the rows, touched once by each. The last column is `fit` minus gradient boosting in the direction of",
        "better, with its paired 95 % bootstrap interval over test rows; bold where the interval leaves out zero. One",
        "split and one seed a table, as it came out.",
        "",
        "| table | rows x columns | metric | plain net | linear | `fit` | boosting, tuned | `fit` - boosting |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in found:

        def show(value: float | None, r: dict[str, object] = r) -> str:
            if value is None:
                return "-"
            return f"{100 * value:.1f} %" if r["percent"] else f"{value:.4g}"

        def gap(value: float, r: dict[str, object] = r) -> str:
            return f"{100 * value:+.1f}" if r["percent"] else f"{value:+.3g}"

        mean, low, high = r["gap"]
        cell = f"{gap(mean)} ({gap(low)} to {gap(high)})"
        cell = f"**{cell}**" if low > 0 or high < 0 else cell
        ours, boosted = show(r["test"][0]), show(r["boosting"][0])
        lines.append(
            f"| {r['name']} ({r['package']}): {r['about']} | {r['rows']} x {r['inputs']} | {r['metric']} "
            f"| {show(r['plain'])} | {show(r['linear'])} | {ours} | {boosted} | {cell} |"
        )
    lines += ["", "The recipes that won:", ""]
    lines += [f"- {r['name']} ({r['trials']} trials in {r['seconds']:.0f} s): `{r['recipe']}`" for r in found]
    lines += ["", "`python benchmarks/tables.py` runs it again, `--page` rewrites this page from the results.", ""]
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=180.0, help="seconds for each of the two searches")
    parser.add_argument("--only", nargs="*", help="names of tables")
    parser.add_argument("--page", action="store_true", help="only rewrite docs/tables.md")
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for source in () if options.page else SOURCES:
        if not options.only or source.name in options.only:
            found = run(source, options.budget)
            (RESULTS / f"{source.name}.json").write_text(json.dumps(found, indent=1) + "\n")
            print(source.name, found["test"], found["boosting"], found["gap"], flush=True)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
