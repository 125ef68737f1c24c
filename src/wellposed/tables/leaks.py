"""Columns that say the same as another one, above all as the target."""

import hashlib
from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Leak: TypeAlias = Literal["equal", "one-to-one", "ordered", "decides", ""]

ENOUGH_ROWS = 20
PROBE_ROWS = 1000


def find_duplicates(columns: Mapping[str, pd.Series]) -> dict[str, str]:
    """Columns of equal type and values as an earlier one, by name, and that one's name.

    >>> a = pd.Series([1.0, 2.0])
    >>> find_duplicates({"a": a, "b": a + 1, "c": a.copy()})
    {'c': 'a'}
    """
    first: dict[bytes, str] = {}
    copies = {}
    for name, values in columns.items():
        original = first.setdefault(_digest(values), name)
        if original != name and values.equals(columns[original]):
            copies[name] = original
    return copies


def find_leaks(columns: Mapping[str, pd.Series], target: pd.Series) -> dict[str, Leak]:
    """Typed columns that give the target away, and how.

    Only rows where both have a value count, and with fewer than 20 of them nothing is concluded.

    Returns:
        ``"equal"``: the same values. ``"one-to-one"``: a class for each level and a level for each class.
        ``"ordered"``: a number that rises, or falls, exactly as a target of at least ten values does.
        ``"decides"``: levels with ten rows each on average, every one within a single class; suspicious only.
    """
    if not isinstance(target.dtype, pd.CategoricalDtype):
        y = target.to_numpy()
        numbers = {n: c.to_numpy() for n, c in columns.items() if pd.api.types.is_float_dtype(c.dtype)}
        return {name: leak for name, x in numbers.items() if (leak := _ordered(x, y))}
    codes, classes = target.cat.codes.to_numpy().astype(np.int64), list(target.cat.categories)
    return {name: leak for name, column in columns.items() if (leak := _classes(column, codes, classes))}


def _classes(column: pd.Series, y: NDArray[np.int64], classes: list[str]) -> Leak:
    if isinstance(column.dtype, pd.CategoricalDtype):
        x, names = column.cat.codes.to_numpy().astype(np.int64), list(column.cat.categories)
    elif pd.api.types.is_float_dtype(column.dtype):
        values = column.to_numpy()
        if len(np.unique(values[:PROBE_ROWS])) > max(len(values[:PROBE_ROWS]) / 5, len(classes) + 1):
            return ""
        found, distinct = pd.factorize(values)
        x, names = found.astype(np.int64), [str(int(v)) if v.is_integer() else str(v) for v in distinct.tolist()]
    else:
        return ""
    both = (x >= 0) & (y >= 0)
    x, y = x[both], y[both]
    if len(x) < ENOUGH_ROWS:
        return ""
    pairs = np.unique(x * len(classes) + y)
    levels, seen = len(np.unique(x)), len(np.unique(y))
    if len(pairs) != levels or seen < 2:
        return ""
    if levels == seen:
        same = all(names[pair // len(classes)] == classes[pair % len(classes)] for pair in pairs)
        return "equal" if same else "one-to-one"
    return "decides" if levels <= len(x) / 10 else ""


def _ordered(x: NDArray[np.float64], y: NDArray[np.float64]) -> Leak:
    known = ~(np.isnan(x) | np.isnan(y))
    x, y = x[known], y[known]
    if len(x) < ENOUGH_ROWS or not (_alike(x[:PROBE_ROWS], y[:PROBE_ROWS]) and _alike(x, y)):
        return ""
    if len(np.unique(y)) < 10:
        return ""
    return "equal" if np.array_equal(x, y) else "ordered"


def _alike(x: NDArray[np.float64], y: NDArray[np.float64]) -> bool:
    """Whether y is a strictly monotone function of x."""
    order = np.argsort(x, kind="stable")
    dx, dy = np.diff(x[order]), np.diff(y[order])
    return bool((dy[dx == 0] == 0).all() and ((dy[dx > 0] > 0).all() or (dy[dx > 0] < 0).all()))


def _digest(values: pd.Series) -> bytes:
    digest = hashlib.blake2b(str(values.dtype).encode()[:32], digest_size=16)
    if isinstance(values.dtype, pd.CategoricalDtype):
        digest.update("\0".join(values.cat.categories).encode())
        digest.update(values.cat.codes.to_numpy().astype(np.int64).tobytes())
    elif values.dtype == object:
        digest.update("\0".join(values).encode())
    else:
        digest.update(values.to_numpy().tobytes())
    return digest.digest()
