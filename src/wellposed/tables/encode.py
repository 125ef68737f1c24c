"""A table to one float32 matrix, on which every transform and penalty works, learnt from training rows only."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float32
from numpy.typing import NDArray

from wellposed.errors import UserError, counted, listed, nearest, shown
from wellposed.tables.cells import read_booleans, read_dates, read_levels, read_numbers
from wellposed.tables.coders import (
    CODERS,
    BooleanColumn,
    CategoryColumn,
    Coder,
    DateColumn,
    NumberColumn,
    TextColumn,
)
from wellposed.tables.delimited import one_column_hint
from wellposed.tables.kinds import Column, typed
from wellposed.tables.schema import Schema
from wellposed.tables.strict import Fields

MOST_CELLS = 500_000_000
FEWEST_COLUMNS = 8
WIDEST = 10_000_000


class Block(NamedTuple):
    """The columns of the matrix, ``start`` up to and without ``stop``, that one column of the table became."""

    column: str
    kind: str
    start: int
    stop: int


@dataclass(frozen=True)
class Encoder:
    """Columns of a table to columns of a matrix, in the order of the schema.

    Numbers are standardised and smoothly clipped, booleans are 1 and -1, dates a number and cyclic parts, categories
    one-hot, text hashed; a missing value is 0 and has an indicator or a level of its own. See
    :mod:`wellposed.tables.coders` for each.

    Args:
        coders: one an input column.
        others: columns the table had besides, which a new table may have too.
    """

    coders: tuple[Coder, ...]
    others: tuple[str, ...] = ()

    @classmethod
    def fit(
        cls,
        frame: pd.DataFrame,
        schema: Schema,
        rows: NDArray[np.integer] | None = None,
        *,
        max_levels: int = 100,
        text_columns: int = 256,
    ) -> "Encoder":
        """Learn from the rows at the positions ``rows`` of ``frame``, all by default, and from no other.

        Levels of fewer than 1 in 200 training rows, but of 2 at least and of 10 at most, share a column. Both limits
        below are halved, down to 8, until a matrix of all rows has at most half a thousand million cells (2 GB).

        Args:
            frame: the inputs, raw or typed.
            schema: how the table was understood.
            rows: positions of the training rows.
            max_levels: the most levels of a category that have a column of their own.
            text_columns: the most columns into which a text is hashed; a quarter of the training rows if that is fewer,
                but at least 16.
        """
        part = frame if rows is None else frame.iloc[rows]
        rare = max(2, min(10, len(part) // 200))
        text_columns = min(text_columns, max(16, len(part) // 4))
        coders = tuple(_fit(c, part[c.name], max_levels, rare, text_columns) for c in schema.inputs)
        inputs = {c.column for c in coders}
        encoder = cls(coders, tuple(c.name for c in schema.columns if c.name not in inputs))
        while encoder.width * len(frame) > MOST_CELLS and max(max_levels, text_columns) > FEWEST_COLUMNS:
            max_levels, text_columns = max(max_levels // 2, FEWEST_COLUMNS), max(text_columns // 2, FEWEST_COLUMNS)
            encoder = replace(encoder, coders=tuple(_narrowed(c, max_levels, text_columns) for c in encoder.coders))
        return encoder

    @property
    def layout(self) -> tuple[Block, ...]:
        """Where each column of the table stands in the matrix."""
        stops = np.cumsum([len(c.names) for c in self.coders]).tolist()
        starts = [0, *stops[:-1]]
        return tuple(Block(c.column, c.kind, a, b) for c, a, b in zip(self.coders, starts, stops, strict=True))

    @property
    def width(self) -> int:
        """Number of columns of the matrix."""
        return sum(len(c.names) for c in self.coders)

    @property
    def names(self) -> tuple[str, ...]:
        """What each column of the matrix means."""
        return tuple(name for c in self.coders for name in c.names)

    def transform(self, frame: pd.DataFrame) -> Float32[np.ndarray, "N D"]:
        """The matrix of the rows of ``frame``, raw or typed; other columns than the inputs do not matter.

        Raises:
            UserError: if an input column is not there.
        """
        self._require(frame)
        matrix = np.zeros((len(frame), self.width), np.float32)
        for coder, block in zip(self.coders, self.layout, strict=True):
            coder.encode(frame[coder.column], matrix[:, block.start : block.stop])
        return matrix

    def check(self, frame: pd.DataFrame, source: str = "the table") -> tuple[pd.DataFrame, list[str]]:
        """The inputs in a new table, typed and in order, and what a person should know about them.

        Columns may stand in any order. Cells that cannot be read count as missing and are counted, unless they are all
        a column has. Levels that training did not have are counted.

        Raises:
            UserError: if an input column is not there, or none of its cells can be read as its kind.
        """
        self._require(frame, source)
        known = {c.column for c in self.coders} | set(self.others)
        extra = [str(name) for name in frame.columns if name not in known]
        notes = [f"columns that training did not have are ignored: {listed(extra)}"] if extra else []
        columns = {}
        for coder in self.coders:
            columns[coder.column], said = _checked(coder, frame[coder.column], source)
            notes += said
        return pd.DataFrame(columns), notes

    def to_json(self) -> dict[str, object]:
        """Plain types that :meth:`from_json` takes back."""
        columns = [{"column": c.column, "kind": c.kind, **c.to_json()} for c in self.coders]
        return {"columns": columns, "others": list(self.others)}

    @classmethod
    def from_json(cls, plain: object, where: str = "encoder") -> "Encoder":
        """The encoder that was written; nothing in ``plain`` is executed, and anything odd refused.

        Args:
            plain: what :meth:`to_json` returned, through JSON.
            where: its path in its file, for messages.

        Raises:
            UserError: for a missing, unknown, repeated or ill-typed field, or a number out of range, naming it.
        """
        fields = Fields(plain, where)
        coders = []
        for position, item in enumerate(fields.items("columns")):
            one = Fields(item, f"{where}.columns[{position}]")
            column, kind = one.text("column"), one.choice("kind", tuple(CODERS))
            coders.append(CODERS[kind].from_json(column, one))
            one.done()
        others = fields.texts("others")
        fields.done()
        names = [c.column for c in coders] + list(others)
        if not coders or len(set(names)) < len(names):
            raise UserError(f"{where}.columns: expected one column or more, each once")
        encoder = cls(tuple(coders), others)
        if sum(c.width if isinstance(c, TextColumn) else 1 for c in coders) > WIDEST:
            raise UserError(f"{where}.columns: more than {WIDEST} columns of text")
        return encoder

    def _require(self, frame: pd.DataFrame, source: str = "the table") -> None:
        missing = [c.column for c in self.coders if c.column not in frame.columns]
        if missing:
            near = nearest(missing[0], map(str, frame.columns)) if len(missing) == 1 else ""
            raise UserError(
                f"{source} lacks {counted(len(missing), 'column')}"
                f" that the model was trained on: {listed(missing)}{near}{one_column_hint(frame)}"
            )


def _fit(column: Column, series: pd.Series, max_levels: int, rare: int, text_columns: int) -> Coder:
    if column.kind == "number":
        return NumberColumn.fit(column.name, series)
    if column.kind == "boolean":
        return BooleanColumn.fit(column.name, series)
    if column.kind == "date":
        return DateColumn.fit(column.name, series, column.format, ordinal=column.role != "time")
    if column.kind == "category":
        return CategoryColumn.fit(column.name, series, max_levels=max_levels, rare=rare)
    return TextColumn(column.name, text_columns)


def _narrowed(coder: Coder, max_levels: int, text_columns: int) -> Coder:
    if isinstance(coder, TextColumn):
        return replace(coder, width=min(coder.width, text_columns))
    if isinstance(coder, CategoryColumn) and len(coder.levels) > max_levels:
        return replace(coder, levels=coder.levels[:max_levels], other=True)
    return coder


def _checked(coder: Coder, series: pd.Series, source: str) -> tuple[pd.Series, list[str]]:
    """One column of a new table, typed, and what to say about it."""
    where = f"column {shown(coder.column)}"
    if isinstance(coder, TextColumn):
        return typed(series, "text"), []
    if isinstance(coder, CategoryColumn):
        return typed(series, "category"), _unknown(coder, series, where)
    notes = []
    if isinstance(coder, DateColumn):
        words, read = f"dates ({coder.format})", typed(series, "date", coder.format)
        bad = read_dates(series, coder.format)[1]
    else:
        number = isinstance(coder, NumberColumn)
        words, found = ("numbers", read_numbers(series)) if number else ("yes or no", read_booleans(series))
        read, bad = pd.Series(found.values, series.index, name=series.name), found.bad
        if found.infinite:
            notes.append(f"{where}: {counted(found.infinite, 'infinite value')}, taken as missing")
    if bad.any():
        odd = listed(pd.unique(series[bad].astype(str)), 3)
        if read.isna().all():
            raise UserError(f"{source}: {where} should hold {words}, and none of its cells does ({odd})")
        notes.append(f"{where}: {counted(int(bad.sum()), 'cell')} without {words} ({odd}), taken as missing")
    return read, notes


def _unknown(coder: CategoryColumn, series: pd.Series, where: str) -> list[str]:
    levels = read_levels(series)
    own = set(coder.levels)
    new = [position for position, name in enumerate(levels.names) if name not in own]
    count = int(np.isin(levels.codes, new).sum())
    if not count or (coder.other and count <= len(series) / 2):
        return []
    often = "rarely had or did not have" if coder.other else "did not have"
    values = listed((levels.names[k] for k in new), 3)
    return [f"{where}: {counted(count, 'cell')} of values that training {often} ({values})"]
