"""What a column is: number, category, yes or no, date, free text, or nothing a model can learn from."""

import re
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd

from wellposed.errors import counted, listed, shown
from wellposed.tables.cells import (
    FALSE,
    TRUE,
    Levels,
    Numbers,
    find_date_format,
    has_leading_zeros,
    parse_dates,
    read_booleans,
    read_dates,
    read_levels,
    read_numbers,
)

Kind: TypeAlias = Literal[
    "number", "category", "boolean", "date", "text", "id", "constant", "empty", "duplicate", "leak"
]
USED: tuple[Kind, ...] = ("number", "category", "boolean", "date", "text")
"""The kinds that become inputs; columns of the others are left out."""

NUMBER_SHARE = 0.9
TEXT_WORDS = 2
ID_SHARE = 0.95
ID_WORDS = frozenset({"id", "ids", "uuid", "guid"})
COUNTER_WORDS = ID_WORDS | {"key", "index", "idx", "no", "nr", "num", "number", "row", "rownames", "unnamed"}


@dataclass(frozen=True)
class Column:
    """One column as it was understood.

    Args:
        name: its name.
        kind: what it is.
        role: ``"input"``, ``"target"``, ``"group"``, ``"time"`` or ``"left out"``.
        missing: share of rows without a value, unusable cells included.
        levels: number of distinct values.
        examples: the first distinct values.
        reason: why it is of this kind, in a few words.
        format: the form of its dates, empty for any other kind.
    """

    name: str
    kind: Kind
    role: str
    missing: float
    levels: int
    examples: tuple[str, ...]
    reason: str
    format: str = ""


@dataclass(frozen=True)
class Examined:
    """A column as it was understood, its cells read accordingly, and what a person should know about them."""

    column: Column
    values: pd.Series
    notes: tuple[str, ...] = ()


def examine(name: str, series: pd.Series, *, keep: bool = False) -> Examined:
    """Find out what a column is.

    A column of which at least 90 % of the cells are numbers is one of numbers, its other cells missing; with fewer it
    is one of categories or text. Infinite numbers are missing. Mostly distinct strings are text if they have two words
    or more; distinct single words, whole numbers that count the rows, and distinct whole numbers under a name such as
    ``id`` tell nothing and are ids.

    Args:
        name: the column's name.
        series: its cells, raw or typed.
        keep: never call it an id.
    """
    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        return _date(name, series, "", "has a date type")
    numbers = read_numbers(series)
    known = int(np.count_nonzero(~np.isnan(numbers.values)))
    bad = int(np.count_nonzero(numbers.bad))
    if not known + bad:
        reason = "every value is infinite or missing" if numbers.infinite else "every value is missing"
        return Examined(Column(name, "empty", "left out", 1.0, 0, (), reason), series)
    declared = isinstance(series.dtype, pd.CategoricalDtype)
    if not declared and known >= NUMBER_SHARE * (known + bad):
        return _numeric(name, series, numbers, keep=keep)
    mixed = known / (known + bad) >= 0.1 and not declared
    return _named(name, series, read_levels(series), keep=keep, mixed=known if mixed else 0)


def typed(series: pd.Series, kind: Kind, form: str = "") -> pd.Series:
    """Cells as their column's kind has them; a series that is typed already comes back equal.

    Returns:
        float64 with NaN for numbers and booleans (0 or 1), ``datetime64[s]`` for dates, a categorical for categories,
        strings for text.
    """
    if kind == "number":
        return pd.Series(read_numbers(series).values, series.index, name=series.name)
    if kind == "boolean":
        return pd.Series(read_booleans(series).values, series.index, name=series.name)
    if kind == "date":
        return pd.Series(read_dates(series, form or "ISO8601")[0], series.index, name=series.name)
    levels = read_levels(series)
    if kind == "text":
        names = np.array([*levels.names, ""], object)[levels.codes]
        return pd.Series(names, series.index, name=series.name, dtype=object)
    values = pd.Categorical.from_codes(levels.codes, categories=pd.Index(levels.names, dtype=object))
    return pd.Series(values, series.index, name=series.name)


def words_of(name: str) -> set[str]:
    """The words of a column's name in lower case, ``customerId`` and ``customer_id`` alike.

    >>> sorted(words_of("customerId"))
    ['customer', 'id']
    """
    return set(re.split(r"[\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).casefold()))


def _numeric(name: str, series: pd.Series, numbers: Numbers, *, keep: bool) -> Examined:
    values = numbers.values
    known = values[~np.isnan(values)]
    distinct = pd.unique(known)
    integral = bool((distinct == np.floor(distinct)).all())
    missing = 1 - len(known) / len(values)
    notes = []
    reason = "whole numbers" if integral else "numbers"
    if numbers.bad.any():
        rows = np.flatnonzero(numbers.bad)
        odd = listed(pd.unique(series.iloc[rows].astype(str)), 3)
        where = ", ".join(str(r + 1) for r in rows[:5]) + (", ..." if len(rows) > 5 else "")
        cells = f"{counted(len(rows), 'cell')} without a number ({odd}; data rows {where})"
        notes.append(f"column {shown(name)}: {cells}, taken as missing")
        reason = f"{len(known) / (len(known) + len(rows)):.0%} numbers, the rest taken as missing"
    if numbers.infinite:
        notes.append(f"column {shown(name)}: {counted(numbers.infinite, 'infinite value')}, taken as missing")
    examples = tuple(str(int(v)) if v.is_integer() else f"{v:.6g}" for v in map(float, distinct[:3]))
    column = Column(name, "number", "input", missing, len(distinct), examples, reason)

    def result(kind: Kind, reason: str, form: str = "") -> Examined:
        role = "input" if kind in USED else "left out"
        found = replace(column, kind=kind, role=role, reason=reason, format=form)
        return Examined(found, typed(series, kind, form) if kind in USED else series, tuple(notes))

    if len(distinct) == 1:
        return result("category", "one value, or missing") if missing else result("constant", "the same in every row")
    if len(distinct) == 2 and set(distinct) == {0.0, 1.0}:
        return result("boolean", "0 or 1")
    if not integral:
        return Examined(column, pd.Series(values, series.index, name=name), tuple(notes))
    if has_leading_zeros(series) and len({len(text) for text in read_levels(series).names}) == 1:
        return result("category", "codes with leading zeros")
    if distinct.min() >= 19000101 and distinct.max() <= 21001231 and len(distinct) > 2:
        texts = [str(int(v)) for v in distinct]
        if not np.isnat(parse_dates(texts, "%Y%m%d")).any():
            return result("date", "dates written as YYYYMMDD", "%Y%m%d")
    words = words_of(name)
    if not keep and len(known) > 2:
        if not missing and known[0] in (0, 1) and (np.diff(known) == 1).all():
            return result("id", "counts the rows")
        if len(distinct) >= ID_SHARE * len(known) and words & COUNTER_WORDS:
            return result("id", "distinct whole numbers, named like an id")
    if words & ID_WORDS and len(distinct) < ID_SHARE * len(known):
        notes.append(_repeated(name))
        return result("category", "whole numbers that repeat, named like an id")
    return Examined(column, pd.Series(values, series.index, name=name), tuple(notes))


def _named(name: str, series: pd.Series, levels: Levels, *, keep: bool, mixed: int) -> Examined:
    names = levels.names
    rows = len(levels.codes)
    known = int(np.count_nonzero(levels.codes >= 0))
    notes: list[str] = []
    column = Column(name, "category", "input", 1 - known / rows, len(names), tuple(names[:3]), "")

    def result(kind: Kind, reason: str, form: str = "") -> Examined:
        role = "input" if kind in USED else "left out"
        found = replace(column, kind=kind, role=role, reason=reason, format=form)
        return Examined(found, typed(series, kind, form) if kind in USED else series, tuple(notes))

    lower = {n.casefold() for n in names}
    if len(names) == 1 and known == rows:
        return result("constant", "the same in every row")
    if len(lower) == 2 and lower & TRUE and lower & FALSE:
        return result("boolean", " or ".join(sorted(names)[:2]))
    if form := find_date_format(names):
        return _date(name, series, form, f"dates written as {form}")
    sample = names[:: max(1, len(names) // 1000)]
    words = sum(len(n.split()) for n in sample) / max(1, len(sample))
    if mixed:
        mixture = f"{counted(mixed, 'number')} with {counted(known - mixed, 'other cell')}"
        notes.append(f"column {shown(name)} mixes {mixture}, all taken as names")
    if words >= TEXT_WORDS and (len(names) >= known / 2 or len(names) > 1000):
        return result("text", f"{len(names)} distinct strings of {words:.0f} words")
    if not keep and known > 2 and len(names) >= ID_SHARE * known:
        share = "all" if len(names) == known else "almost all"
        return result("id", f"{share} values differ")
    if words_of(name) & ID_WORDS and len(names) > 1:
        notes.append(_repeated(name))
    if len(names) == 1:
        return result("category", "one value, or missing")
    return result("category", "mixed numbers and strings" if mixed else f"{len(names)} distinct strings")


def _date(name: str, series: pd.Series, form: str, reason: str) -> Examined:
    dates, bad = read_dates(series, form or "ISO8601")
    known = dates[~np.isnat(dates)]
    distinct = np.unique(known)
    notes = []
    if bad.any():
        notes.append(f"column {shown(name)}: {counted(int(bad.sum()), 'cell')} without a date, taken as missing")
    kind: Kind = "date" if len(distinct) > 1 else "constant" if len(known) == len(dates) else "date"
    if not len(known):
        kind, reason = "empty", "every value is missing"
    role = "input" if kind == "date" else "left out"
    missing = 1 - len(known) / len(dates)
    column = Column(name, kind, role, missing, len(distinct), tuple(map(str, distinct[:3])), reason, form)
    return Examined(column, pd.Series(dates, series.index, name=name), tuple(notes))


def _repeated(name: str) -> str:
    return f"column {shown(name)} repeats: if rows with one value belong together, split by it with --group {name}"
