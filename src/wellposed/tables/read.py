"""A file or a shipped sample to a frame, nothing interpreted yet."""

import gzip
import os
import zlib
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from wellposed.errors import UserError, listed, nearest, shown
from wellposed.tables.delimited import Dialect, read_delimited, unique_names
from wellposed.tables.samples import SAMPLES, read_sample

FOREIGN = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook; unpack it, or export the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook; export the sheet as CSV"),
    (b"SQLite format 3", "an SQLite database; export the table as CSV"),
    (b"\x89HDF", "an HDF5 file; export the table as CSV or Parquet"),
    (b"%PDF", "a PDF"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"BZh", "compressed with bzip2; unpack it"),
    (b"\xfd7zXZ", "compressed with xz; unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it"),
    (b"<!DOCTYPE", "a web page, perhaps in place of the download"),
    (b"<html", "a web page, perhaps in place of the download"),
    (b"<?xml", "XML"),
    (b'{"', "JSON; convert it to CSV"),
    (b'[{"', "JSON; convert it to CSV"),
)
BINARY_SUFFIXES = {".parquet": "Parquet", ".pq": "Parquet", ".feather": "Feather", ".arrow": "Arrow", ".ipc": "Arrow"}

BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)


@dataclass(frozen=True)
class RawTable:
    """A table as it stood in its source.

    Args:
        frame: one column a name, names distinct strings; every cell of a delimited text is a string.
        source: the file or sample, for messages.
        format: ``"csv"``, ``"parquet"``, ``"arrow"``, ``"sample"`` or ``"frame"``.
        dialect: how a delimited text was written, ``None`` for anything else.
        target: the column a sample is usually asked for, ``None`` for anything else.
        notes: what a person should know about the reading.
    """

    frame: pd.DataFrame
    source: str
    format: str
    dialect: Dialect | None = None
    target: str | None = None
    notes: tuple[str, ...] = ()


def read_table(source: str | Path) -> RawTable:
    """Read CSV, TSV, Parquet, Arrow or Feather by content, whatever the name's ending, or ``sample:NAME``.

    A text or a table may be compressed with gzip.

    Args:
        source: path of a file, or ``sample:`` and the name of a table in :data:`~wellposed.tables.samples.SAMPLES`.

    Raises:
        UserError: if there is no such file, it cannot be read, or it holds no table with rows.
    """
    if str(source).startswith("sample:"):
        name = str(source).removeprefix("sample:")
        return RawTable(read_sample(name), str(source), "sample", target=SAMPLES[name].target)
    path = Path(source)
    data = _bytes(path)
    notes = []
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            raise UserError(f"{source} is a damaged or truncated gzip file") from None
        notes.append("unpacked with gzip")
    kind = BINARY_SUFFIXES.get(path.suffix.lower())
    table = _columnar(data, str(source), kind)
    if table is None:
        for start, words in FOREIGN:
            if data.startswith(start):
                raise UserError(f"{source} is not a table but {words}")
        frame, dialect, said = read_delimited(data, str(source))
        return RawTable(frame, str(source), "csv", dialect, notes=(*notes, *said))
    form, arrow, named = table
    if kind is None and path.suffix.lower() not in ("", ".gz"):
        notes.append(f"read as {form.capitalize()}, whatever the name's ending")
    frame, said = _plain(arrow)
    return _checked(RawTable(frame, str(source), form, notes=(*notes, *named, *said)))


def as_table(frame: pd.DataFrame, source: str = "the table") -> RawTable:
    """A frame that is already in memory, with distinct strings for names.

    Raises:
        UserError: if it has no rows or no columns.
    """
    names, notes = unique_names(_name(column) for column in frame.columns)
    plain = frame.set_axis(names, axis=1).reset_index(drop=True)
    return _checked(RawTable(plain, source, "frame", notes=tuple(notes)))


def _name(column: Hashable) -> str:
    return " ".join(map(str, column)) if isinstance(column, tuple) else str(column)


def _checked(table: RawTable) -> RawTable:
    if not table.frame.shape[1]:
        raise UserError(f"{table.source} has no columns")
    if not len(table.frame):
        raise UserError(f"{table.source} has columns ({listed(table.frame.columns)}) but no rows")
    return table


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        parent = path.parent
        if not parent.is_dir():
            raise UserError(f"no such file: {path} (there is no directory {parent})") from None
        near = nearest(path.name, (p.name for p in parent.iterdir())) if os.access(parent, os.R_OK) else ""
        raise UserError(f"no such file: {path}{near}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a directory: give one file in it") from None
    except PermissionError:
        raise UserError(f"{path} cannot be read: permission denied") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{shown(path)} cannot be read: {error}") from None


def _columnar(data: bytes, source: str, kind: str | None) -> tuple[str, pa.Table, list[str]] | None:
    """Format, content and notes of a Parquet or Arrow file, names made distinct; ``None`` for any other file."""
    from pyarrow import feather, ipc, parquet

    readers = (
        (b"PAR1", "parquet", parquet.read_table),
        (b"ARROW1", "arrow", feather.read_table),
        (b"FEA1", "arrow", feather.read_table),
        (b"\xff\xff\xff\xff", "arrow", lambda stream: ipc.open_stream(stream).read_all()),
    )
    for start, form, read in readers:
        if data.startswith(start):
            try:
                table = read(pa.BufferReader(data))
                table.validate(full=True)
                names, notes = unique_names(table.column_names)
            except (pa.ArrowException, UnicodeDecodeError, OSError, EOFError) as error:
                words = f"damaged or truncated {form.capitalize()} file"
                raise UserError(f"{source} is a {words} ({error})") from None
            return form, table.rename_columns(names), notes
    if kind is not None:
        raise UserError(f"{source} is {'empty' if not data else f'not a {kind} file, in spite of its name'}")
    return None


def _plain(table: pa.Table) -> tuple[pd.DataFrame, list[str]]:
    """Numbers, strings, dates and categories of an Arrow table as pandas has them; nested columns are left out."""
    table = table.replace_schema_metadata(None)
    types = pa.types
    nested = []
    for position, field in reversed(list(enumerate(table.schema))):
        column = table.column(position)
        if types.is_dictionary(field.type):
            continue
        if types.is_nested(field.type) or any(is_bytes(field.type) for is_bytes in BYTES):
            nested.append(field.name)
            table = table.remove_column(position)
        elif types.is_decimal(field.type):
            table = table.set_column(position, field.name, column.cast(pa.float64()))
        elif types.is_duration(field.type) or types.is_time(field.type):
            ticks = column.cast(pa.int64() if field.type.bit_width == 64 else pa.int32())
            table = table.set_column(position, field.name, ticks)
        elif types.is_date(field.type):
            table = table.set_column(position, field.name, column.cast(pa.timestamp("s")))
    notes = [f"columns of lists, records or bytes are left out: {listed(reversed(nested))}"] if nested else []
    return table.to_pandas(), notes
