"""How numbers are written for a person: percent with a digit, other figures with three, spans of time in words."""

import math
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import TypeGuard

MISSING = "–"
_NAMES = MappingProxyType({"auc": "AUC", "f1": "F1", "mae": "MAE", "r2": "R²", "rmse": "RMSE"})


@dataclass(frozen=True)
class Figures:
    r"""How a metric's values, differences and intervals are written.

    Args:
        percent: whether a value of 1 is written as 100 %, and a difference in points.

    >>> Figures(percent=True).value(0.9741), Figures(percent=False).value(0.04236)
    ('97.4\xa0%', '0.0424')
    >>> Figures(percent=True).interval(0.961, 0.9832)
    '96.1 to 98.3\xa0%'
    >>> Figures(percent=True).gap(-0.004), Figures(percent=True).gap_interval(-0.011, 0.003)
    ('−0.4', '−1.1 to 0.3')
    """

    percent: bool

    def value(self, value: float | None) -> str:
        """The metric itself, with its unit."""
        if not known(value):
            return MISSING
        return f"{self._digits(value, value)}{self._unit}"

    def interval(self, low: float | None, high: float | None) -> str:
        """An interval of the metric, with its unit."""
        return MISSING if not (known(low) and known(high)) else f"{self.gap_interval(low, high)}{self._unit}"

    def gap(self, gap: float | None, *, sign: bool = False) -> str:
        """A difference of two values, in points where the metric is in percent; with a plus if ``sign``."""
        if not known(gap):
            return MISSING
        text = self._digits(gap, gap)
        return f"+{text}" if sign and gap > 0 and text.strip("0.,") else text

    def gap_interval(self, low: float | None, high: float | None) -> str:
        """An interval of a difference, both ends with the same digits."""
        if not (known(low) and known(high)):
            return MISSING
        larger = max(abs(low), abs(high))
        return f"{self._digits(low, larger)} to {self._digits(high, larger)}"

    @property
    def points(self) -> str:
        """The unit of a difference, with a space before it, or nothing."""
        return " points" if self.percent else ""

    @property
    def _unit(self) -> str:
        return "\xa0%" if self.percent else ""

    def _digits(self, value: float, like: float) -> str:
        return _minus(f"{100 * value:.1f}") if self.percent else significant(value, like=like)


def known(value: float | None) -> TypeGuard[float]:
    """Whether there is a finite number to write."""
    return value is not None and math.isfinite(value)


def significant(value: float, *, digits: int = 3, like: float | None = None) -> str:
    """``value`` to ``digits`` significant digits, never rounding what stands before the point.

    Args:
        value: a finite number.
        digits: how many.
        like: the number whose digits decide where to round, for columns that line up; ``value`` itself if not given.

    >>> [significant(v) for v in (0.0, 1234.5, 12.345, 0.00012345, 1.2345e-7, -3.2e9)]
    ['0', '1,234', '12.3', '0.000123', '1.23e-7', '−3.20e9']
    """
    size = abs(value if like is None else like)
    if size == 0:
        return "0"
    if not 1e-4 <= size < 1e6:
        return scientific(value, digits=digits)
    return _minus(f"{value:,.{max(0, digits - 1 - math.floor(math.log10(size)))}f}")


def scientific(value: float, *, digits: int = 3) -> str:
    """``value`` as a number from 1 to 10 with ``digits`` digits, times a power of ten.

    >>> scientific(-0.00001234)
    '−1.23e-5'
    """
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return _minus(f"{mantissa}e{int(exponent)}")


def duration(seconds: float) -> str:
    r"""A span of time as a person would say it.

    >>> [duration(s) for s in (0.004, 0.42, 12.4, 178.0, 300.0, 4000.0)]
    ['<0.1\xa0s', '0.4\xa0s', '12\xa0s', '2\xa0min 58\xa0s', '5\xa0min', '1\xa0h 7\xa0min']
    """
    if seconds < 0.05:
        return "<0.1\xa0s"
    if seconds < 9.95:
        return f"{seconds:.1f}\xa0s"
    whole = round(seconds) if seconds < 3599.5 else 60 * round(seconds / 60)
    parts = ((whole // 3600, "h"), (whole % 3600 // 60, "min"), (whole % 60, "s"))
    return " ".join(f"{n}\xa0{unit}" for n, unit in parts if n)


def moment(created: str) -> str:
    """A time in ISO format without its seconds, or any other text as it is.

    >>> moment("2025-06-03T14:21:07+00:00")
    '2025-06-03 14:21 UTC'
    """
    try:
        time = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{time:%Y-%m-%d %H:%M} {time.tzname() or ''}".rstrip()


def metric_name(name: str) -> str:
    """A metric's name in prose: ``log_loss`` is log loss, ``rmse`` is RMSE."""
    return _NAMES.get(name, name.replace("_", " "))


def _minus(text: str) -> str:
    """A true minus sign, and none before a zero."""
    if text.startswith("-") and not text.strip("-0.,"):
        return text[1:]
    return text.replace("-", "−", 1) if text.startswith("-") else text
