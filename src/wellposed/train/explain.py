"""A recipe in plain words."""

from wellposed import catalog
from wellposed.train.arguments import offered
from wellposed.train.recipe import Recipe
from wellposed.train.slots import Slot
from wellposed.train.terms import Term, text_of

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
    return "\n\n".join(paragraph for term in parsed.terms for paragraph in _paragraphs(term, _ROLE[term.slot]))


def _paragraphs(term: Term, role: str) -> list[str]:
    """What is said of a term, then of the optimizers and schedules inside it."""
    row, _ = catalog.provider(term.name)
    given = dict(term.arguments)
    numbers = [
        f"{name} = {text_of(given.get(name, p.default))}" + ("" if name in given else " (default)")
        for name, p in offered(term.method).items()
        if name != "base"
    ]
    lines = [f"{term} - {role}", f"  {row.what}"]
    if numbers:
        lines.append(f"  With {', '.join(numbers)}.")
    lines.append(f"  From: {row.title} ({row.year}).")
    inner = [
        paragraph
        for name, value in term.arguments
        if isinstance(value, Term)
        for paragraph in _paragraphs(
            value, _ROLE["optimizer"] if name == "base" else f"how {name} of {term.name} moves over the run"
        )
    ]
    return ["\n".join(lines), *inner]
