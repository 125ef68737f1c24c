"""What the report's charts are drawn on: axes with round ticks, and paths on a canvas that stretches to its place.

The template draws the paths in an inline SVG and sets all text in HTML beside it, so a chart follows the page's width,
font and colour scheme, prints, needs no script to be seen, and cannot be broken by a name.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from wellposed.study.formats import scientific

SIDE = 1000
_TINY = 1e-200
Point: TypeAlias = tuple[float, float]
Spot: TypeAlias = tuple[float, float, str]


@dataclass(frozen=True)
class Axis:
    """A linear axis: what it measures, its two ends, and its ticks as (percent of its length, text)."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    def share(self, value: float) -> float:
        """Where ``value`` lies: 0 at the low end, 1 at the high one."""
        return (value - self.low) / (self.high - self.low)

    def clamp(self, value: float) -> float:
        """``value``, or the end of the axis that it lies beyond."""
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class Mark:
    """One path, with the style classes that say what it is."""

    style: str
    path: str


@dataclass(frozen=True)
class Chart:
    """A chart ready to draw.

    ``alt`` says what it shows to those who cannot see it; ``legend`` pairs a mark's style with its name; ``note``
    is a remark below; ``hover`` holds spots of the canvas with the text shown there.
    """

    title: str
    alt: str
    shape: Literal["wide", "square"]
    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    legend: tuple[tuple[str, str], ...] = ()
    note: str = ""
    hover: tuple[Spot, ...] = ()


@dataclass(frozen=True)
class Plane:
    """Two axes, and the paths that things in their units become."""

    x: Axis
    y: Axis

    def spot(self, point: Point, text: str) -> Spot:
        """A place to hover over, on the canvas."""
        x, y = self._at((point[0], self.y.clamp(point[1])))
        return round(x, 1), round(y, 1), text

    def line(self, points: Sequence[Point]) -> str:
        """A line through ``points``."""
        return "M" + "L".join(self._text(p) for p in points) if points else ""

    def dots(self, points: Iterable[Point]) -> str:
        """A round dot a point: a path of no length, with round ends."""
        return "".join(f"M{self._text(p)}h0" for p in points)

    def bars(self, points: Iterable[Point], width: float) -> str:
        """Bars ``width`` wide from zero up to ``points``."""
        corners = ((x - width / 2, x + width / 2, y) for x, y in points)
        return "".join(self.line([(a, 0.0), (a, y), (b, y), (b, 0.0)]) + "Z" for a, b, y in corners)

    def _at(self, point: Point) -> Point:
        return SIDE * self.x.share(point[0]), SIDE * (1 - self.y.share(point[1]))

    def _text(self, point: Point) -> str:
        x, y = self._at(point)
        return f"{x:.1f} {y:.1f}"


def axis(
    values: Iterable[float],
    label: str,
    *,
    percent: bool = False,
    whole: bool = False,
    pad: tuple[float, float] = (0.05, 0.05),
) -> Axis:
    """An axis that holds ``values``, with about five round ticks.

    Args:
        values: finite numbers; none gives the axis from 0 to 1.
        label: what it measures.
        percent: whether ticks are written in percent.
        whole: whether only whole numbers get a tick.
        pad: room left at the low and at the high end, as shares of the span.
    """
    found = list(values) or [0.0, 1.0]
    low, high = min(found), max(found)
    if high - low <= max(1e-9 * max(abs(low), abs(high)), _TINY):
        margin = max(abs(low) / 20, 0.5 if whole or abs(low) < _TINY else 0.0)
        low, high = low - margin, high + margin
    low, high = low - pad[0] * (high - low), high + pad[1] * (high - low)
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(math.log(s / rough)))
    step = max(1.0, step) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    shares = [((i * step - low) / (high - low), i * step) for i in range(first, last + 1)]
    ticks = tuple((100 * s, _tick(p, step, percent=percent)) for s, p in shares if -1e-9 <= s <= 1 + 1e-9)
    return Axis(label, low, high, ticks)


def fence(values: Sequence[float], *, upper: bool) -> list[float]:
    """``values`` without the far outliers of one side: those beyond three interquartile ranges from the quartile."""
    if not values:
        return []
    first, third = np.quantile(values, [0.25, 0.75])
    reach = 3 * (third - first)
    return [v for v in values if (v <= third + reach if upper else v >= first - reach)]


def _tick(position: float, step: float, *, percent: bool) -> str:
    if percent:
        position, step = 100 * position, 100 * step
    size, order = max(abs(position), step), math.floor(math.log10(step) + 1e-9)
    if size >= 1e7 or step < 1e-5:
        digits = math.floor(math.log10(size) + 1e-9) - order + 1
        return "0" if abs(position) < step / 2 else scientific(position, digits=digits)
    text = f"{position:,.{max(0, -order)}f}".replace("-", "−")
    return f"{text}\xa0%" if percent else text
