"""Which rows train, which validate, and which are set aside for one last test."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from wellposed.errors import UserError, counted, listed
from wellposed.tables.schema import Prepared

Rows: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

PARTS = 5
FEWEST_ROWS = 6
FEW_ROWS = 2000
VERY_FEW_ROWS = 25
STRATA = 10


@dataclass(frozen=True)
class Splits:
    """Positions of rows, ascending.

    Args:
        test: a fifth of the rows, for one look at the end.
        train: all others.
        folds: training and validation rows within ``train``, one pair a fold.
        scheme: how the rows were divided, in words.
        notes: classes that a part lacks.
    """

    test: Rows
    train: Rows
    folds: tuple[tuple[Rows, Rows], ...]
    scheme: str
    notes: tuple[str, ...] = ()


def make_splits(prepared: Prepared, *, seed: int = 0) -> Splits:
    """Set a fifth of the rows aside, and divide the others: into folds below 2,000 rows, else into four fifths and one.

    Every part has its share of each class, or of small and large values. A class with a single row is trained on and
    nothing else. Groups stay whole. With times, every part comes after what it is compared with, rows of one time stay
    together, and each of three folds trains on all that comes before it.

    Args:
        prepared: the table as it was understood.
        seed: of the division; the same seed divides alike.

    Raises:
        UserError: with fewer than 6 rows, three groups or three distinct times, or too few rows a class to divide.
    """
    schema, y = prepared.schema, prepared.target
    where = f"{schema.source}: target {schema.target!r}"
    if len(y) < FEWEST_ROWS:
        raise UserError(
            f"{where} has a value in {counted(len(y), 'row')}: at least {FEWEST_ROWS} are needed to train and to test"
        )
    values = y.cat.codes.to_numpy().astype(np.float64) if schema.classes else y.to_numpy(np.float64)
    rng = np.random.default_rng(seed)
    if prepared.times is not None:
        test, folds, scheme = _by_time(prepared.times, f"{schema.source}: --time {schema.time}")
    elif prepared.groups is not None:
        test, folds, scheme = _by_group(prepared.groups, values, rng, f"{schema.source}: --group {schema.group}")
    else:
        test, folds, scheme = _at_random(values, rng, classes=bool(schema.classes), where=where)
    train = np.setdiff1d(np.arange(len(y)), test)
    notes = _lacking(values, test, train, folds, schema.classes) if schema.classes else ()
    return Splits(test, train, folds, scheme, notes)


def _at_random(
    values: Floats, rng: np.random.Generator, *, classes: bool, where: str
) -> tuple[Rows, tuple[tuple[Rows, Rows], ...], str]:
    every = np.arange(len(values))
    test, rest = _first(_deal(values, PARTS, rng, classes=classes), every)
    count = _folds(len(rest))
    found = _pairs(_deal(values[rest], count or PARTS, rng, classes=classes), rest, count)
    if not found:
        raise UserError(f"{where} has too few rows a class to train, to validate and to test")
    balance = "each class" if classes else "low and high values"
    return test, found, f"a fifth at random to test, {balance} alike; {_words(found)}"


def _by_group(
    groups: Rows, values: Floats, rng: np.random.Generator, where: str
) -> tuple[Rows, tuple[tuple[Rows, Rows], ...], str]:
    total = len(np.unique(groups))
    if total < 3:
        raise UserError(f"{where} has {counted(total, 'group')}: three are needed, to train, to validate and to test")
    strata = values
    if len(np.unique(values)) > STRATA:
        strata = np.floor(np.argsort(np.argsort(values)) * (STRATA / len(values)))
    test, rest = _first(_deal_groups(groups, strata, PARTS, rng), np.arange(len(values)))
    count = _folds(len(rest))
    found = _pairs(_deal_groups(groups[rest], strata[rest], count or PARTS, rng), rest, count)
    return test, found, f"whole groups, about a fifth of the rows to test; {_words(found)}"


def _by_time(times: Floats, where: str) -> tuple[Rows, tuple[tuple[Rows, Rows], ...], str]:
    distinct, counts = np.unique(times, return_counts=True)
    if len(distinct) < 3:
        raise UserError(
            f"{where} has {counted(len(distinct), 'distinct time')}: three are needed, to train, validate and test"
        )
    before = np.concatenate([[0], np.cumsum(counts)]) / len(times)
    place = np.searchsorted(distinct, times)
    last = len(distinct) - 1
    cut = min(max(int(np.abs(before - 0.8).argmin()), 2), last)
    shares = (0.4, 0.6, 0.8) if _folds(int((place < cut).sum())) else (0.8,)
    within = before[: cut + 1] / before[cut]
    starts = sorted({min(max(int(np.abs(within - share).argmin()), 1), cut - 1) for share in shares})
    found = tuple(
        (np.flatnonzero(place < start), np.flatnonzero((place >= start) & (place < stop)))
        for start, stop in zip(starts, [*starts[1:], cut], strict=True)
    )
    return np.flatnonzero(place >= cut), found, f"the last fifth in time to test; {_words(found, ' forward in time')}"


def _deal(values: Floats, parts: int, rng: np.random.Generator, *, classes: bool) -> Rows:
    """The part of each row, sorted values dealt out in turn; -1 for the only row of a class."""
    part = np.full(len(values), -1)
    _, position, counts = np.unique(values, return_inverse=True, return_counts=True)
    shared = np.flatnonzero(counts[position] > 1) if classes else np.arange(len(values))
    order = shared[np.lexsort((rng.random(len(shared)), values[shared]))]
    rounds = -(-len(order) // parts)
    turns = np.tile(rng.permutation(parts), (rounds, 1))
    part[order] = (turns if classes else rng.permuted(turns, axis=1)).ravel()[: len(order)]
    return part


def _deal_groups(groups: Rows, strata: Floats, parts: int, rng: np.random.Generator) -> Rows:
    """The part of each row: groups by size, to a factor of 2, each to the part that has least of what it holds."""
    names, group = np.unique(groups, return_inverse=True)
    _, stratum = np.unique(strata, return_inverse=True)
    size = int(stratum.max()) + 1
    holds = np.zeros((len(names), size + 1))
    np.add.at(holds, (group, stratum), 1)
    holds[:, size] = holds.sum(1)
    weighted = holds / holds.sum(0)
    has = np.zeros((min(parts, len(names)), holds.shape[1]))
    part = np.empty(len(names), np.int64)
    for g in np.lexsort((rng.random(len(names)), -np.log2(holds[:, size]).round())):
        part[g] = (has @ weighted[g]).argmin()
        has[part[g]] += holds[g]
    return rng.permutation(len(has))[part][group]


def _first(part: Rows, rows: Rows) -> tuple[Rows, Rows]:
    """The rows of the part whose size is nearest to a fifth, and all others."""
    sizes = np.bincount(part[part >= 0])
    chosen = part == np.where(sizes > 0, np.abs(sizes - len(part) / PARTS), np.inf).argmin()
    return rows[chosen], rows[~chosen]


def _pairs(part: Rows, rows: Rows, count: int) -> tuple[tuple[Rows, Rows], ...]:
    """Training and validation rows of each fold, or of a single hold-out for a count of 0."""
    if not (part >= 0).any():
        return ()
    if count:
        return tuple((rows[part != k], rows[part == k]) for k in range(count) if (part == k).any())
    valid, train = _first(part, rows)
    return ((train, valid),)


def _folds(rows: int) -> int:
    """How many folds so many rows make; 0 for a hold-out."""
    return 0 if rows >= FEW_ROWS else 5 if rows >= VERY_FEW_ROWS else 3


def _words(folds: tuple[tuple[Rows, Rows], ...], how: str = "") -> str:
    return f"{len(folds)}-fold cross-validation{how}" if len(folds) > 1 else f"one hold-out part to validate{how}"


def _lacking(
    values: Floats, test: Rows, train: Rows, folds: tuple[tuple[Rows, Rows], ...], classes: tuple[str, ...]
) -> tuple[str, ...]:
    notes = []
    for words, parts in (("the test part", [test]), ("a training part", [train, *(fold[0] for fold in folds)])):
        absent = [name for k, name in enumerate(classes) if not all((values[rows] == k).any() for rows in parts)]
        if absent:
            notes.append(f"{words} has no row of the classes {listed(absent)}")
    return tuple(notes)
