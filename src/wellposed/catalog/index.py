"""Full-text search over the rows: SQLite FTS5 in memory, built at the first query."""

import difflib
import re
import sqlite3
from collections.abc import Iterable
from functools import cache

from wellposed.catalog.remedies import REMEDIES, SYNONYMS
from wellposed.catalog.table import STATUSES, Row, by_key, row, rows
from wellposed.errors import UserError, nearest

MOST_WORDS = 24
MOST_READINGS = 8
_WEIGHTS = (10.0, 4.0, 2.0, 0.5)
_FAVOUR = {"works": 1.3, "partial": 1.15, "planned": 1.0}
_SMALL = frozenset(
    re.findall("[a-z]+", "a an and are against by for from how i in is it my of on or that the to what when which with")
)


def search(words: str, room: str | None = None, status: str | None = None) -> list[Row]:
    """Rows that hold the words, best first; every row of the filter, by number, where there are no words.

    Words are matched by stem and as beginnings of words, in either spelling of -ise; a word that occurs nowhere is read
    as the nearest one that does. Rows that hold all the words come alone; if none does, those that hold some. A name
    counts for more than a description, and a method that works for more than one that is planned.

    Args:
        words: anything; only its letters and digits count.
        room: only rows of that room, or with code in it.
        status: only rows that are ``"works"``, ``"partial"`` or ``"planned"``.

    Raises:
        UserError: for a room or a status that there is not.

    >>> [found.slug for found in search("sharpness aware minimization")][0]
    'sam'
    """
    _check("room", room, sorted({home for entry in rows() for home in entry.rooms}))
    _check("status", status, STATUSES)
    found = _ranked(words) if words.strip() else rows()
    return [r for r in found if (room is None or room in r.rooms) and (status is None or r.status == status)]


def _check(what: str, given: str | None, known: Iterable[str]) -> None:
    if given is not None and given not in (known := list(known)):
        raise UserError(f"no {what} {given!r}{nearest(given, known)} (there are: {', '.join(known)})")


def _ranked(words: str) -> list[Row]:
    terms = list(dict.fromkeys(_words(words)))
    terms = [t for t in terms if t not in _SMALL] or terms
    known = [readings for t in terms[:MOST_WORDS] if (readings := _readings(t))]
    matched = _match(known, "AND") or _match(known, "OR")
    named = [by_key()[key] for join in (" ", "-", "") if (key := join.join(words.casefold().split())) in by_key()]
    return list(dict.fromkeys(named + matched))


def _readings(term: str) -> list[str]:
    """The words that ``term`` may stand for: itself and what it begins, else the nearest there is, else none."""
    longer = [] if term in _vocabulary() else sorted((w for w in _vocabulary() if w.startswith(term)), key=len)
    if longer or _index().execute("SELECT 1 FROM methods WHERE methods MATCH ?", (f'"{term}"*',)).fetchone():
        return [term, *longer[:MOST_READINGS]]
    return difflib.get_close_matches(term, _vocabulary(), n=1, cutoff=0.75)


def _match(terms: list[list[str]], joined: str) -> list[Row]:
    """Rows for which all (``"AND"``) or some (``"OR"``) of the terms occur in one of their readings."""
    if not terms:
        return []
    spelled = (" OR ".join(f'"{word}" OR "{word}"*' for word in readings) for readings in terms)
    query = f" {joined} ".join(f"({any_of})" for any_of in spelled)
    scored = _index().execute(
        f"SELECT rowid, bm25(methods, {', '.join(map(str, _WEIGHTS))}) FROM methods WHERE methods MATCH ?", (query,)
    )
    found = [(score * _FAVOUR[(r := row(number)).status], number, r) for number, score in scored]
    return [r for _, _, r in sorted(found, key=lambda hit: hit[:2])]


def _words(text: str) -> list[str]:
    """Lower-case words with British -ise, -isation and -yse written with a z, here and in the index alike."""
    plain = re.sub(r"(?<=[a-z]{3}[iy])s(?=(?:e|ed|es|er|ers|ing|ation|ations)\b)", "z", text.casefold())
    return re.findall(r"[^\W_]+", plain)


@cache
def _vocabulary() -> dict[str, None]:
    """Words of three letters or more in everything but the formulas, in alphabetical order."""
    seen = {word for texts in _texts().values() for text in texts[:3] for word in text.split()}
    return dict.fromkeys(sorted(word for word in seen if len(word) > 2))


@cache
def _texts() -> dict[int, tuple[str, ...]]:
    """What is indexed of each row: names, remedies, description, formulas."""

    def fold(*parts: str) -> str:
        return " ".join(_words(" ".join(parts)))

    return {
        r.number: (
            fold(r.name, r.slug, r.title, r.arxiv or "", *map(_class_name, r.provides)),
            fold(*(f"{name} {REMEDIES[name]} {SYNONYMS[name]}" for name in r.remedies)),
            fold(r.what, r.claim),
            fold(r.math),
        )
        for r in rows()
    }


def _class_name(path: str) -> str:
    """``"MaxSup Max Sup"`` for ``"wellposed.losses.MaxSup"``: whole and in its words."""
    name = path.rpartition(".")[2]
    return f"{name} {re.sub('(?<=[a-z])(?=[A-Z])', ' ', name)}"


@cache
def _index() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.execute(
        "CREATE VIRTUAL TABLE methods USING fts5(names, remedies, text, math, tokenize='porter unicode61')"
    )
    connection.executemany(
        "INSERT INTO methods(rowid, names, remedies, text, math) VALUES (?, ?, ?, ?, ?)",
        ((number, *texts) for number, texts in _texts().items()),
    )
    return connection
