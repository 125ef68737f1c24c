"""The charts of a report: learning curves, the search's history, reliability, residuals."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from wellposed.study.canvas import Chart, Mark, Plane, Point, Spot, axis, fence
from wellposed.study.formats import Figures, known, metric_name, significant
from wellposed.study.results import Curve, Diagnosis, RunResult

_SERIES = "abcd"


def learning(result: RunResult) -> tuple[Chart, ...]:
    """Training loss and validation metric by epoch, a line a run."""
    name = metric_name(result.metric)
    charts = (
        _by_epoch(result.curves, "loss", "Training loss", "loss", Figures(percent=False)),
        _by_epoch(result.curves, "valid", f"Validation {name}", name, Figures(result.percent)),
    )
    return tuple(chart for chart in charts if chart is not None)


def history(result: RunResult) -> Chart | None:
    """Every trial's value and the best so far; far outliers on the bad side stand at the chart's edge."""
    figures, name = Figures(result.percent), metric_name(result.metric)
    shown = [(t, (float(t.number), t.value)) for t in result.trials if known(t.value)]
    complete = [point for trial, point in shown if trial.state == "complete"]
    others = [point for trial, point in shown if trial.state != "complete"]
    if len(complete) < 2:
        return None
    values = [y for _, y in complete]
    plane = Plane(
        axis([x for _, (x, _) in shown], "trial", whole=True, pad=(0.02, 0.02)),
        axis(fence([y for _, (_, y) in shown], upper=not result.higher_is_better), name, percent=result.percent),
    )
    best = np.maximum.accumulate(values) if result.higher_is_better else np.minimum.accumulate(values)
    steps: list[Point] = [complete[0]]
    for (x, _), value in zip(complete, best.tolist(), strict=True):
        steps += [(x, steps[-1][1]), (x, value)]
    steps.append((shown[-1][1][0], steps[-1][1]))

    beyond = sum(y != plane.y.clamp(y) for _, (_, y) in shown)

    def dots(points: Sequence[Point]) -> str:
        return plane.dots((x, plane.y.clamp(y)) for x, y in points)

    legend = (("dots a", "completed trial"), ("line a", "best so far"))
    return Chart(
        title=f"Validation {name} by trial",
        alt=f"{len(complete)} completed trials; the best {name} so far moves from {figures.value(best[0])} "
        f"to {figures.value(best[-1])}.",
        shape="wide",
        x=plane.x,
        y=plane.y,
        marks=(Mark("dots b", dots(others)), Mark("line a", plane.line(steps)), Mark("dots a", dots(complete))),
        legend=(*legend, ("dots b", "stopped early, at its last value")) if others else legend,
        note=f"{beyond} of the trials {'is' if beyond == 1 else 'are'} far worse than the rest and drawn at the edge."
        if beyond
        else "",
        hover=tuple(
            plane.spot(point, f"trial {t.number}, {t.state}: {figures.value(t.value)}\n{t.recipe}")
            for t, point in shown
        ),
    )


def reliability(diagnosis: Diagnosis) -> tuple[Chart, ...]:
    """Accuracy against confidence with 95 % Wilson intervals, and how many predictions stand in each bin."""
    rows = [row for row in diagnosis.reliability if row["count"] > 0]
    if not rows:
        return ()
    ends = [_wilson(row["accuracy"], row["count"]) for row in rows]
    guess = 1 / len(diagnosis.labels) if diagnosis.labels else 0.0
    least = math.floor(10 * min(guess, *(low for low, _ in ends), *(row["confidence"] for row in rows)) + 1e-9) / 10
    share = axis([least, 1.0], "confidence", percent=True, pad=(0.0, 0.0))
    plane = Plane(share, dataclasses.replace(share, label="accuracy"))
    below = Plane(share, axis([0.0, *(row["count"] for row in rows)], "predictions", whole=True, pad=(0.0, 0.05)))
    points = [(row["confidence"], row["accuracy"]) for row in rows]
    counts = [(row["confidence"], row["count"]) for row in rows]
    texts = [f"confidence {100 * c:.0f}\xa0%, accuracy {100 * a:.0f}\xa0%" for c, a in points]
    texts = [f"{text}\n{n:,.0f} predictions" for text, (_, n) in zip(texts, counts, strict=True)]
    whiskers = "".join(plane.line([(c, low), (c, high)]) for (c, _), (low, high) in zip(points, ends, strict=True))
    return (
        Chart(
            title="Accuracy by confidence",
            alt="Reliability diagram: " + "; ".join(text.replace("\n", ", ") for text in texts) + ".",
            shape="square",
            x=plane.x,
            y=plane.y,
            marks=(
                Mark("guide", plane.line([(least, least), (1.0, 1.0)])),
                Mark("whisker a", whiskers),
                Mark("line a", plane.line(points)),
                Mark("dots a", plane.dots(points)),
            ),
            legend=(("dots a", "test predictions with 95 % interval"), ("guide", "as sure as right")),
            hover=tuple(plane.spot(point, text) for point, text in zip(points, texts, strict=True)),
        ),
        Chart(
            title="Predictions by confidence",
            alt="How many test predictions stand in each bin of confidence; the same counts as above.",
            shape="square",
            x=below.x,
            y=below.y,
            marks=(Mark("bars a", below.bars(counts, (1 - least) / 25)),),
            legend=(("bars a", "test predictions of that confidence"),),
            hover=tuple(below.spot(point, text) for point, text in zip(counts, texts, strict=True)),
        ),
    )


def residuals(diagnosis: Diagnosis, target: str) -> tuple[Chart, ...]:
    """Predicted against actual values, and what was missed (actual minus predicted) by predicted value."""
    pairs = [(a, p) for a, p in zip(diagnosis.actual, diagnosis.predicted, strict=True) if known(a) and known(p)]
    if not pairs:
        return ()
    both = [value for pair in pairs for value in pair]
    plane = Plane(axis(both, f"actual {target}"), axis(both, f"predicted {target}"))
    missed = [(p, a - p) for a, p in pairs]
    around = Plane(
        axis([p for p, _ in missed], f"predicted {target}"), axis([r for _, r in missed], "actual minus predicted")
    )
    texts = [
        f"actual {significant(a, digits=4)}, predicted {significant(p, digits=4)}\nmissed by {significant(a - p)}"
        for a, p in pairs
    ]
    size = float(np.median([abs(r) for _, r in missed]))
    ends = min(both), max(both)
    return (
        Chart(
            title="Predicted against actual",
            alt=f"{len(pairs):,} test rows, predicted against actual values; half of the predictions miss by less than "
            f"{significant(size)}.",
            shape="square",
            x=plane.x,
            y=plane.y,
            marks=(
                *_scatter(plane, pairs),
                Mark("guide", plane.line([(ends[0], ends[0]), (ends[1], ends[1])])),
            ),
            legend=(("scatter a", "test row"), ("guide", "predicted = actual")),
            hover=tuple(plane.spot(pair, text) for pair, text in zip(pairs, texts, strict=True)),
        ),
        Chart(
            title="Residuals",
            alt=f"Actual minus predicted values by predicted value; their mean is "
            f"{significant(float(np.mean([r for _, r in missed])))}.",
            shape="square",
            x=around.x,
            y=around.y,
            marks=(
                *_scatter(around, missed),
                Mark("guide", around.line([(around.x.low, 0.0), (around.x.high, 0.0)])),
            ),
            legend=(("scatter a", "test row"), ("guide", "no error")),
            hover=tuple(around.spot(point, text) for point, text in zip(missed, texts, strict=True)),
        ),
    )


def _by_epoch(curves: Sequence[Curve], key: str, title: str, label: str, figures: Figures) -> Chart | None:
    """A line a run of ``key`` by epoch, or nothing where no run has a finite one."""
    lines = [(c.name, [(r["epoch"], r[key]) for r in c.rows if known(r.get(key))]) for c in curves[: len(_SERIES)]]
    lines = [(name, points) for name, points in lines if points]
    if not lines:
        return None
    every = [point for _, points in lines for point in points]
    plane = Plane(
        axis([x for x, _ in every], "epoch", whole=True, pad=(0.01, 0.01)),
        axis([y for _, y in every], label, percent=figures.percent),
    )
    marks: list[Mark] = []
    legend: list[tuple[str, str]] = []
    hover: list[Spot] = []
    told: list[str] = []
    for letter, (name, points) in zip(_SERIES, lines, strict=False):
        marks.append(
            Mark(f"line {letter}", plane.line(points)) if points[1:] else Mark(f"dots {letter}", plane.dots(points))
        )
        legend.append((f"line {letter}", name))
        hover += [plane.spot(p, f"{name}\nepoch {p[0]:.0f}: {figures.value(p[1])}") for p in points]
        told.append(f"{name} from {figures.value(points[0][1])} to {figures.value(points[-1][1])}")
    return Chart(
        title=title,
        alt=f"{title} by epoch: {'; '.join(told)}.",
        shape="wide",
        x=plane.x,
        y=plane.y,
        marks=tuple(marks[::-1]),
        legend=tuple(legend),
        hover=tuple(hover),
    )


def _scatter(plane: Plane, points: Sequence[Point], layers: int = 8) -> list[Mark]:
    """Translucent dots in a few paths: within a path overlaps do not darken, between paths they do."""
    return [Mark("scatter a", plane.dots(points[i::layers])) for i in range(min(layers, len(points)))]


def _wilson(share: float, count: float, z: float = 1.96) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share of ``count`` trials."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return middle - half, middle + half
