"""A recipe in plain words."""

import inspect

from wellposed import catalog
from wellposed.train.needs import FACTS
from wellposed.train.recipe import Recipe, Term
from wellposed.train.slots import Slot

_ROLE: dict[Slot, str] = {
    "loss": "what an error costs",
    "penalty": "charged on top of the loss",
    "weights": "what the weights may be",
    "transform": "done to each batch before the model sees it",
    "sampler": "which examples are served",
    "optimizer": "how the sum is minimised",
    "schedule": "how the learning rate moves over the run",
    "callback": "done while training runs",
}


def explain(recipe: Recipe | str) -> str:
    """What each term of a recipe does, with its numbers and the paper it is from.

    Args:
        recipe: a recipe or its text.

    Returns:
        One paragraph a term, in the order the training loop uses them.

    Raises:
        UserError: if the text is no recipe.
    """
    parsed = Recipe.parse(recipe) if isinstance(recipe, str) else recipe
    return "\n\n".join(_paragraph(term) for outer in parsed.terms for term in _unfolded(outer))


def _unfolded(term: Term) -> list[Term]:
    """The term, and the optimizers and schedules inside it."""
    return [term, *(inner for _, value in term.arguments if isinstance(value, Term) for inner in _unfolded(value))]


def _paragraph(term: Term) -> str:
    row, _ = catalog.provider(term.name)
    given = dict(term.arguments)
    numbers = [
        f"{name} = {given.get(name, p.default)}" + ("" if name in given else " (default)")
        for name, p in inspect.signature(term.method).parameters.items()
        if name not in FACTS and name not in ("params", "base", "generator", "reduction") and p.default is not p.empty
    ]
    head = f"{term} - {_ROLE[term.slot]}"
    source = f"From: {row.title}" + (f" ({row.year})." if row.year else ".")
    return "\n".join([head, f"  {row.what}", *([f"  With {', '.join(numbers)}."] if numbers else []), f"  {source}"])
