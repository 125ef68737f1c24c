"""A user's mistakes, and the nearest thing that would have been right."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    r"""A mistake of the user's: one line that says what, where and, if possible, what to do instead.

    The command prints the line and exits with 2. White space in the message, line ends included, becomes single blanks.

    >>> str(UserError("data.csv:\nno rows"))
    'data.csv: no rows'
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def shown(value: object, limit: int = 40) -> str:
    r"""A cell or a name as it may stand in a message: quoted, on one line, cut when long.

    >>> shown("a\nb"), shown("x" * 50, 5)
    ("'a\\nb'", "'xxxxx...'")
    """
    text = str(value)
    return repr(text if len(text) <= limit else text[:limit] + "...")


def listed(values: Iterable[object], limit: int = 5) -> str:
    """Some cells or names as they may stand in a message, and how many more there are.

    >>> listed("abc", 2)
    "'a', 'b' and 1 more"
    """
    every = list(values)
    text = ", ".join(shown(v) for v in every[:limit])
    return text if len(every) <= limit else f"{text} and {len(every) - limit} more"


def counted(number: int, noun: str) -> str:
    """A number and its noun, in the plural where there are several.

    >>> counted(1, "row"), counted(2000, "row")
    ('1 row', '2,000 rows')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def nearest(name: str, names: Iterable[str]) -> str:
    """``", did you mean 'x'?"`` with the closest of ``names``, or nothing when none is close.

    >>> nearest("MaxSupp", ["MaxSup", "SAM"])
    ", did you mean 'MaxSup'?"
    """
    folded: dict[str, str] = {}
    for n in names:
        folded.setdefault(n.casefold(), n)
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return f", did you mean {folded[close[0]]!r}?" if close else ""
