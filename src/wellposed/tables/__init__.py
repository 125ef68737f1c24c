"""From a file to arrays: reading, understanding, splitting and encoding a table."""

from wellposed.tables.delimited import Dialect
from wellposed.tables.encode import Block, Encoder
from wellposed.tables.kinds import Column
from wellposed.tables.read import RawTable, as_table, read_table
from wellposed.tables.samples import SAMPLES
from wellposed.tables.schema import Prepared, Schema, infer_schema, prepare
from wellposed.tables.split import Splits, make_splits
from wellposed.tables.target import Target

__all__ = [
    "SAMPLES",
    "Block",
    "Column",
    "Dialect",
    "Encoder",
    "Prepared",
    "RawTable",
    "Schema",
    "Splits",
    "Target",
    "as_table",
    "infer_schema",
    "make_splits",
    "prepare",
    "read_table",
]
