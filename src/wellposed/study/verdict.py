"""What a run found, in two sentences."""

from wellposed.study.metrics import Metric
from wellposed.study.results import Entry
from wellposed.train.recipe import Recipe, Term

PLAIN_NET = "Plain net"
TUNED_NET = "Tuned net"
_PLAIN_LOSSES = frozenset({"CrossEntropy", "MSELoss"})


def short_name(recipe: Recipe) -> str:
    """The methods of a recipe that regularise, joined by plus signs; "Tuned net" if there is none."""
    return " + ".join(name for term in recipe.terms for name in _names(term)) or TUNED_NET


def _names(term: Term) -> list[str]:
    if term.slot == "optimizer":
        base = dict(term.arguments).get("base")
        return [] if base is None else [term.name, *_names(base)]
    return [] if term.name in _PLAIN_LOSSES or term.slot == "schedule" else [term.name]


def difference(metric: Metric, value: float, *, signed: bool = False) -> str:
    """A difference of two figures of ``metric``, in points where it is a share.

    >>> from wellposed.study.metrics import METRICS
    >>> difference(METRICS["accuracy"], 0.0184), difference(METRICS["rmse"], 12.345)
    ('1.8', '12.3')
    """
    shown = f"{100 * value:.1f}" if metric.percent else f"{value:.3g}"
    shown = shown.removeprefix("-") if float(shown) == 0 else shown
    return f"+{shown}" if signed and float(shown) > 0 else shown


def verdict(metric: Metric, winner: str, plain: Entry | None, others: list[Entry]) -> tuple[str, str]:
    """Two sentences: the winner against the plain net, and against the best of the references.

    Args:
        metric: figure of merit.
        winner: the winner's short name.
        plain: the plain net's entry, with the paired difference to the winner; ``None`` if it is the winner.
        others: reference entries, likewise.
    """
    unit = " points" if metric.percent else ""
    name = metric.name.replace("_", " ")
    second = _against(metric, max(others, key=lambda e: metric.sign * (e.test or 0.0)), unit)
    if plain is None:
        return "The plain net was the best net: no cocktail that was tried did better on the validation data.", second
    gap, low, high = _gap(plain)
    interval = f"95 % interval {difference(metric, low)} to {difference(metric, high)}"
    if low > 0:
        first = f"{winner} beat the plain net by {difference(metric, gap)}{unit} of {name} ({interval})."
    elif high < 0:
        first = (
            f"{winner} won on the validation data and lost on the test part: the plain net is "
            f"{difference(metric, -gap)}{unit} of {name} ahead ({interval})."
        )
    else:
        first = (
            f"{winner} and the plain net are within noise of each other: "
            f"{difference(metric, gap, signed=True)}{unit} of {name} ({interval})."
        )
    return first, second


def _against(metric: Metric, other: Entry, unit: str) -> str:
    gap, low, high = _gap(other)
    within = low <= 0 <= high
    if within and float(difference(metric, abs(gap))) == 0:
        return f"{other.name}, the best reference, does as well."
    side = "behind" if gap > 0 else "ahead"
    sure = (
        "within noise"
        if within
        else f"95 % interval {difference(metric, min(abs(low), abs(high)))} to "
        + difference(metric, max(abs(low), abs(high)))
    )
    return f"{other.name}, the best reference, is {difference(metric, abs(gap))}{unit} {side}, {sure}."


def _gap(entry: Entry) -> tuple[float, float, float]:
    if entry.behind is None or entry.behind_low is None or entry.behind_high is None:
        raise ValueError(f"{entry.name} was not compared with the winner")
    return entry.behind, entry.behind_low, entry.behind_high
