"""The report of a run: one HTML file that stands alone, fetches nothing and shows names as what they are, text."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from wellposed.study import charts
from wellposed.study.canvas import Axis, axis
from wellposed.study.formats import Figures, duration, known, metric_name, moment
from wellposed.study.references import BOOSTING
from wellposed.study.results import DataFacts, Diagnosis, Entry, RunResult
from wellposed.study.verdict import PLAIN_NET
from wellposed.train.checkpoint import write_atomic

_BOARD_ROWS = 6
_HEAT_MAP_CLASSES = 20
_COLUMN_ROWS = 200
_CLASS_COUNTS = 12
_EXAMPLE = 48


@dataclass(frozen=True)
class Key:
    """One figure of the row at the top: whose it is, what was measured, and its 95 % interval."""

    label: str
    name: str
    figure: str
    measured: str
    interval: str


@dataclass(frozen=True)
class Confusion:
    """Pairs of classes the winner confuses: true class, predicted class, how often, and the share of the true class."""

    actual: str
    predicted: str
    count: int
    share: float


def write_report(result: RunResult, path: Path) -> None:
    """Write the report of ``result`` to ``path``, whole or not at all.

    Args:
        result: what the run found; parts that are empty get no section.
        path: the file, usually ``report.html`` in the run's folder.

    Raises:
        OSError: if the disk is full or the folder not writable; ``path`` is then as before.
    """
    html = render(result).replace("\0", "\N{REPLACEMENT CHARACTER}")
    write_atomic(path, html.encode("utf-8", "replace"))


def render(result: RunResult) -> str:
    """The report as HTML text."""
    template, script, digest = _page()
    figures = Figures(result.percent)
    winner, plain = _winner(result), _named(result, PLAIN_NET)
    lead, rest = _split_board(result.leaderboard)
    worth = [w for w in result.worth if known(w.gain) and known(w.low) and known(w.high)]
    return template.render(
        result=result,
        data=result.data,
        figures=figures,
        metric=metric_name(result.metric),
        name=_source_name(result.data.source),
        keys=_keys(result, winner, plain),
        winner=winner,
        plain_won=plain is not None and plain.recipe == result.recipe,
        board=lead,
        board_rest=rest,
        test_axis=_interval_axis(result.leaderboard, winner),
        worth=worth,
        worth_axis=axis([v for w in worth for v in (0.0, w.gain, w.low, w.high)], ""),
        learning=charts.learning(result),
        history=charts.history(result),
        failed=sum(t.state == "failed" for t in result.trials),
        reliability=charts.reliability(result.diagnosis),
        residuals=charts.residuals(result.diagnosis, result.data.target),
        heat_map=_heat_map(result.diagnosis),
        confusions=_confusions(result.diagnosis),
        columns=[(c, [_shorten(e) for e in c.examples]) for c in result.data.columns[:_COLUMN_ROWS]],
        columns_left=max(0, len(result.data.columns) - _COLUMN_ROWS),
        classes=_class_counts(result.data),
        snippet=snippet(result),
        known=known,
        script=Markup(script),
        script_digest=digest,
    )


def snippet(result: RunResult) -> str:
    """The best recipe and its network as Python to paste."""
    front = "WellposedRegressor" if result.data.task == "regression" else "WellposedClassifier"
    options = [f"recipe={_literal(result.recipe)}", *(f"{k}={v!r}" for k, v in result.network.items())]
    lines = [f"from wellposed import {front}", "", f"model = {front}("]
    lines += [f"    {option}," for option in (*options, f"seed={result.seed}")]
    lines += [
        ")",
        "model.fit(X, y)  # X: numeric columns without missing values, y: the target",
        "model.predict(X_new)",
    ]
    return "\n".join(lines)


@cache
def _page() -> tuple[Template, str, str]:
    """The template, the page's only script, and that script's digest for the content security policy."""
    loader = PackageLoader("wellposed.study")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": duration, "moment": moment, "short": _short}
    script = loader.get_source(environment, "report.js")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html"), script, digest


def _literal(recipe: str) -> str:
    """``recipe`` as a Python string, a term a line where it is long."""
    terms = recipe.split(" + ")
    if len(recipe) <= 72 or len(terms) == 1:
        return json.dumps(recipe, ensure_ascii=False)
    texts = [terms[0], *(f" + {term}" for term in terms[1:])]
    return "\n".join(["(", *(f"        {json.dumps(text, ensure_ascii=False)}" for text in texts), "    )"])


def _source_name(source: str) -> str:
    """A file's name without its folder; a bundled sample's name as it is."""
    return source if source.startswith("sample:") else PurePath(source).name or source


def _winner(result: RunResult) -> Entry | None:
    """The line of the best recipe, which every other line is compared with; references may stand above it."""
    searched = [e for e in result.leaderboard if e.kind == "searched" and e.recipe == result.recipe]
    return next((e for e in searched if e.network == result.network), searched[0] if searched else None)


def _named(result: RunResult, name: str) -> Entry | None:
    return next((e for e in result.leaderboard if e.name == name), None)


def _keys(result: RunResult, winner: Entry | None, plain: Entry | None) -> list[Key]:
    """The figures at the top: the winner, the plain net where another won, and gradient boosting."""
    figures, metric = Figures(result.percent), metric_name(result.metric)
    chosen = [
        ("Winner", winner),
        (PLAIN_NET, plain if plain is not winner else None),
        (BOOSTING, _named(result, BOOSTING)),
    ]
    keys: list[Key] = []
    for label, entry in chosen:
        if entry is None:
            continue
        if known(entry.test):
            sure = known(entry.low) and known(entry.high)
            interval = figures.interval(entry.low, entry.high) if sure else ""
            keys.append(Key(label, entry.name, figures.value(entry.test), f"{metric} on the test part", interval))
        elif known(entry.valid):
            measured = f"{metric} in validation, not measured on the test part"
            keys.append(Key(label, entry.name, figures.value(entry.valid), measured, ""))
    return keys


def _split_board(board: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """The lines worth reading first (the best few, every reference, every line with a test figure), and the others."""
    first = {id(e) for e in board[:_BOARD_ROWS]}
    lead = [e for e in board if id(e) in first or e.kind == "reference" or known(e.test)]
    shown = {id(e) for e in lead}
    return lead, [e for e in board if id(e) not in shown]


def _interval_axis(board: Sequence[Entry], winner: Entry | None) -> Axis | None:
    """An axis for test intervals, wide enough for all within three times the width of the winner's own."""
    if winner is None or not (known(winner.test) and known(winner.low) and known(winner.high)):
        return None
    reach = 3 * (winner.high - winner.low)
    near = [e for e in board if known(e.test) and abs(e.test - winner.test) <= reach]
    return axis([end for e in near for end in (e.low, e.high) if known(end)], "")


def _heat_map(diagnosis: Diagnosis) -> list[tuple[str, list[tuple[int, float]]]]:
    """A row a true class: its name, and for every predicted class the count and the share of the row."""
    if not 0 < len(diagnosis.labels) <= _HEAT_MAP_CLASSES:
        return []
    rows = zip(diagnosis.labels, diagnosis.confusion, strict=True)
    return [(label, [(n, n / max(1, sum(counts))) for n in counts]) for label, counts in rows]


def _confusions(diagnosis: Diagnosis) -> list[Confusion]:
    """The most frequent errors, where there are too many classes for a heat map."""
    if len(diagnosis.labels) <= _HEAT_MAP_CLASSES:
        return []
    found = [
        Confusion(diagnosis.labels[i], diagnosis.labels[j], n, n / sum(row))
        for i, row in enumerate(diagnosis.confusion)
        for j, n in enumerate(row)
        if i != j and n > 0
    ]
    return sorted(found, key=lambda c: -c.count)[:_HEAT_MAP_CLASSES]


def _class_counts(data: DataFacts) -> tuple[list[tuple[str, int, float]], int]:
    """The most frequent classes with count and share, and how many classes more there are."""
    total = max(1, sum(data.classes.values()))
    ordered = sorted(data.classes.items(), key=lambda item: -item[1])
    return [(name, n, n / total) for name, n in ordered[:_CLASS_COUNTS]], max(0, len(ordered) - _CLASS_COUNTS)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _shorten(example: str) -> str:
    return example if len(example) <= _EXAMPLE else f"{example[: _EXAMPLE - 1]}…"
