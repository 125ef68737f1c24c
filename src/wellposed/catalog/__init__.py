"""The papers as data: what each does, what it claims, what implements it, and whether it works here."""

from wellposed.catalog.index import search
from wellposed.catalog.remedies import REMEDIES
from wellposed.catalog.table import Row, provider, row, rows

__all__ = ["REMEDIES", "Row", "provider", "row", "rows", "search"]
