"""The rows: read from the TOML files beside this module, one file a room."""

import dataclasses
import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from wellposed.errors import UserError, nearest

STATUSES = ("works", "partial", "planned")
TIERS = ("A", "B", "C")
CONFIDENCES = ("high", "medium", "low")
_HERE = Path(__file__).parent
_RESULTS = _HERE.parent / "claims" / "results"


@dataclass(frozen=True, slots=True)
class Row:
    """One paper, or one method that the papers are compared with.

    Attributes:
        number: kept for good; the papers have 0 to 422, the comparison methods 1000 and up.
        slug: short unique name, lower case with hyphens.
        room: the file it stands in, hence the room of the library it belongs to.
        name: what the method is called.
        title: the paper's.
        year: of the paper.
        tier: ``"A"`` a reusable component, ``"B"`` a study or theorem, ``"C"`` a system with one reusable component.
        confidence: how sure the mathematics is; what ``math`` calls unconfirmed was not found in paper or code.
        status: ``"works"``, ``"partial"`` or ``"planned"``.
        what: what it does.
        math: its formulas with the paper's symbols and defaults.
        claim: what the paper says comes of it.
        provides: import paths of what implements it.
        remedies: what it helps against, out of :data:`~wellposed.catalog.REMEDIES`.
        related: numbers of related rows.
        headline: the paper's own figure.
        experiment: import path of the experiment that tests the claim.
        missing: what a partial row lacks, or why a planned one stays out.
        follows: which of paper and official code is followed where they differ.
        arxiv: identifier.
        code: repository ``owner/name`` of the official code.
    """

    number: int
    slug: str
    room: str
    name: str
    title: str
    year: int
    tier: str
    confidence: str
    status: str
    what: str
    math: str
    claim: str
    provides: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()
    related: tuple[int, ...] = ()
    headline: str | None = None
    experiment: str | None = None
    missing: str | None = None
    follows: str | None = None
    arxiv: str | None = None
    code: str | None = None

    @property
    def rooms(self) -> tuple[str, ...]:
        """Its own room, then the rooms that its code stands in."""
        homes = (path.split(".")[1] for path in self.provides if path.startswith("wellposed."))
        return tuple(dict.fromkeys((self.room, *homes)))

    @property
    def verdict(self) -> str | None:
        """What the stored run of the claim's experiment found; ``None`` if there is none."""
        try:
            verdict: str | None = json.loads((_RESULTS / f"{self.slug}.json").read_text(encoding="utf-8"))["verdict"]
        except FileNotFoundError:
            return None
        return verdict

    def as_dict(self) -> dict[str, Any]:
        """Every field and the verdict, as values that JSON knows."""
        plain = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()} | {"verdict": self.verdict}


@cache
def rows() -> tuple[Row, ...]:
    """Every row, by number."""
    found = [row for file in _HERE.glob("*.toml") for row in _read(file)]
    return tuple(sorted(found, key=lambda row: row.number))


def _read(file: Path) -> Iterator[Row]:
    for entry in tomllib.loads(file.read_text(encoding="utf-8"))["row"]:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        yield Row(room=file.stem, **fields)


def row(key: str | int) -> Row:
    """The row with that number, slug, class name or name; letter case does not matter.

    >>> row(27).slug, row("SAM").number, row("MaxSup").name
    ('sam', 27, 'MaxSup (Max Suppression)')

    Raises:
        UserError: if there is none, with the nearest that there is.
    """
    found = by_key().get(str(key).strip().casefold())
    if found is None:
        raise UserError(f"no row {key!r} in the catalogue{nearest(str(key), _spellings())}")
    return found


def provider(name: str) -> tuple[Row, str]:
    """The row and the import path of a public class or function.

    >>> found, path = provider("MaxSup")
    >>> found.number, path
    (73, 'wellposed.losses.MaxSup')

    Raises:
        UserError: if no row provides it, with the nearest name that one does.
    """
    found = _providers().get(name)
    if found is None:
        raise UserError(f"no method {name!r} in the catalogue{nearest(name, _providers())}")
    return found


@cache
def _providers() -> dict[str, tuple[Row, str]]:
    found: dict[str, tuple[Row, str]] = {}
    for entry in rows():
        for path in entry.provides:
            found.setdefault(path.rpartition(".")[2], (entry, path))
    return found


@cache
def by_key() -> dict[str, Row]:
    """Rows by every key of :func:`row`, in lower case; a slug wins over a class, and a class over a name."""
    names = {entry.name.casefold(): entry for entry in reversed(rows())}
    classes = {name.casefold(): entry for name, (entry, _) in _providers().items()}
    slugs = {entry.slug: entry for entry in rows()}
    numbers = {str(entry.number): entry for entry in rows()}
    return names | classes | slugs | numbers


@cache
def _spellings() -> tuple[str, ...]:
    """Keys worth suggesting, as they are written."""
    return (*(entry.slug for entry in rows()), *_providers(), *(entry.name for entry in rows()))
