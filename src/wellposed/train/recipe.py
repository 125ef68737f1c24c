"""Recipes: a cocktail of methods as one line of text, parsed and never evaluated.

MaxSup(alpha=0.1) + NormLoss(1e-3) + Cutout(8) + SAM(AdamW(lr=1e-3), rho=0.05)
"""

import ast
import importlib
import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from wellposed import catalog
from wellposed.errors import UserError, nearest
from wellposed.train.needs import FACTS
from wellposed.train.slots import SINGLE, SLOTS, Slot, slot_of, wraps
from wellposed.train.trainer import Trainer
from wellposed.train.wiring import Schedule

MAX_LENGTH = 10_000
TASKS = ("classification", "regression")


@dataclass(frozen=True)
class Term:
    """One method of a recipe with the arguments that differ from its defaults, in its signature's order."""

    name: str
    arguments: tuple[tuple[str, Any], ...]
    method: type[Any] = field(compare=False, repr=False)
    slot: Slot = field(compare=False)
    column: int = field(compare=False)

    def __str__(self) -> str:
        shown = (str(value) if key == "base" else f"{key}={_text(value)}" for key, value in self.arguments)
        return f"{self.name}({', '.join(shown)})"

    def to_json(self) -> dict[str, Any]:
        """Return name, slot and arguments as plain values."""
        arguments = {k: v.to_json() if isinstance(v, Term) else _plain(v) for k, v in self.arguments}
        return {"name": self.name, "slot": self.slot, "arguments": arguments}


@dataclass
class Parts:
    """The methods a recipe stands for, built for one model and ready for :class:`Trainer`."""

    loss: nn.Module
    optimizer: torch.optim.Optimizer
    penalties: list[nn.Module] = field(default_factory=list)
    transforms: list[nn.Module] = field(default_factory=list)
    callbacks: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    sampler: Any = None
    schedule: Any = None
    drives: list[tuple[Any, str, Schedule]] = field(default_factory=list)


@dataclass(frozen=True)
class Recipe:
    """A parsed recipe; equal recipes have equal text.

    Example:
        >>> str(Recipe.parse("SAM(AdamW(lr=1e-3), 0.1) + MaxSup(0.2)"))
        'MaxSup(alpha=0.2) + SAM(AdamW(), rho=0.1)'
    """

    terms: tuple[Term, ...]

    @classmethod
    def parse(cls, text: str) -> "Recipe":
        """Parse ``text``, resolve every name in the catalogue and check every argument.

        Raises:
            UserError: one line that names the term, the column (from 1) and, where one is close, the valid name.
        """
        if len(text) > MAX_LENGTH:
            raise UserError(f"recipe: {len(text)} characters are too many (at most {MAX_LENGTH})")
        if not text.strip():
            raise UserError("recipe: empty; a recipe is terms joined by +, such as MaxSup(alpha=0.1) + AdamW(lr=0.001)")
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except SyntaxError as error:
            raise UserError(f"recipe, column {error.offset or 1}: cannot be read ({error.msg})") from None
        except (ValueError, RecursionError, MemoryError) as error:
            raise UserError(f"recipe: cannot be read ({error or type(error).__name__})") from None
        shift = len(text) - len(text.lstrip())
        try:
            terms = [_term(node, shift) for node in _summands(tree)]
        except RecursionError:
            raise UserError("recipe: nested too deeply") from None
        _refuse_conflicts(terms)
        return cls(tuple(sorted(terms, key=lambda term: SLOTS.index(term.slot))))

    def __str__(self) -> str:
        return " + ".join(map(str, self.terms))

    def to_json(self) -> dict[str, Any]:
        """Return the canonical text and the terms as plain values."""
        return {"recipe": str(self), "terms": [term.to_json() for term in self.terms]}

    def without(self, term: Term) -> "Recipe":
        """The recipe with one ingredient taken out; a wrapper leaves the optimizer it wraps.

        Raises:
            ValueError: if ``term`` is not in the recipe.
        """
        if term not in self.terms:
            raise ValueError(f"{term} is not in {self}")
        base = dict(term.arguments).get("base")
        rest = tuple(base if t == term and base is not None else t for t in self.terms if t != term or base is not None)
        return Recipe(rest)

    def check(self, task: Literal["classification", "regression"], inputs: str) -> None:
        """Refuse methods that do not suit the task or the kind of input (``"table"``, ``"image"``).

        Raises:
            UserError: naming the first term that does not.
        """
        for term in self.terms:
            unfit = unsuited(term.method, task, inputs)
            if unfit:
                raise UserError(
                    f"recipe, column {term.column}: {term.name} is for {unfit}, this is {task} of {inputs}s"
                )

    def build(self, model: nn.Module, *, num_classes: int | None = None, num_samples: int | None = None) -> Parts:
        """Build the methods for ``model``: weights are applied to it, the optimizer gets its parameters.

        Where the recipe has no loss, cross-entropy (with classes) or squared error is used; where it has no optimizer,
        AdamW.

        Raises:
            UserError: if a method needs the number of classes or of samples and it is not given.
        """
        facts = {k: v for k, v in (("num_classes", num_classes), ("num_samples", num_samples)) if v is not None}
        drives: list[tuple[Any, str, Schedule]] = []
        terms = list(self.terms)
        weights = [_construct(t, facts, drives) for t in terms if t.slot == "weights"]
        for method in weights:
            method.apply(model)
        if not any(t.slot == "loss" for t in terms):
            terms.append(_named("CrossEntropy" if num_classes is not None else "MSELoss"))
        if not any(t.slot == "optimizer" for t in terms):
            terms.append(_named("AdamW"))
        parameters = [p for p in model.parameters() if p.requires_grad]
        made: dict[Slot, list[Any]] = {slot: [] for slot in SLOTS}
        for t in terms:
            if t.slot != "weights":
                made[t.slot].append(_construct(t, facts, drives, parameters))
        return Parts(
            loss=made["loss"][0],
            optimizer=made["optimizer"][0],
            penalties=made["penalty"],
            transforms=made["transform"],
            callbacks=made["callback"],
            weights=weights,
            sampler=next(iter(made["sampler"]), None),
            schedule=next(iter(made["schedule"]), None),
            drives=drives,
        )


def unsuited(method: type[Any], task: str, inputs: str) -> str:
    """What ``method`` is for, if that leaves out the task or the input; else nothing."""
    suits: Sequence[str] = getattr(method, "suits", ())
    tasks = [s for s in suits if s in TASKS]
    kinds = [s for s in suits if s not in TASKS]
    if tasks and task not in tasks:
        return " and ".join(tasks)
    return " and ".join(f"{kind}s" for kind in kinds) if kinds and inputs not in kinds else ""


def trainer_for(
    recipe: Recipe,
    model: nn.Module,
    *,
    num_classes: int | None,
    num_samples: int,
    callbacks: Sequence[Any] = (),
    **options: Any,
) -> tuple[Trainer, Parts]:
    """A :class:`Trainer` of ``recipe`` on ``model``; further ``options`` are the trainer's own keyword arguments."""
    parts = recipe.build(model, num_classes=num_classes, num_samples=num_samples)
    trainer = Trainer(
        model,
        parts.loss,
        parts.penalties,
        optimizer=parts.optimizer,
        schedule=parts.schedule,
        drives=parts.drives,
        transforms=parts.transforms,
        sampler=parts.sampler,
        callbacks=[*parts.callbacks, *callbacks],
        **options,
    )
    return trainer, parts


def _summands(node: ast.expr) -> Iterator[ast.expr]:
    """The terms of ``a + b + c``, left to right, without recursion on long sums."""
    right: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        right.append(node.right)
        node = node.left
    yield node
    yield from reversed(right)


def _term(node: ast.expr, shift: int, *, inside: str | None = None) -> Term:
    column = node.col_offset + 1 + shift
    if isinstance(node, ast.Name):
        call = ast.Call(func=node, args=[], keywords=[])
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        call = node
    else:
        raise UserError(f"recipe, column {column}: {_source(node)} is not a method; terms look like MaxSup(alpha=0.1)")
    name = call.func.id  # type: ignore[attr-defined]
    method = _resolve(name, column)
    slot = slot_of(method)
    if slot is None:
        raise UserError(f"recipe, column {column}: {name} is no term of an objective ({', '.join(SLOTS)})")
    arguments = _arguments(call, name, method, slot=slot, shift=shift, column=column)
    term = Term(name, arguments, method, slot, column)
    if inside is None or slot == "schedule":
        _try(term)
    return term


def _resolve(name: str, column: int) -> type[Any]:
    try:
        _, path = catalog.provider(name)
    except UserError as error:
        raise UserError(f"recipe, column {column}: {error}") from None
    module, _, attribute = path.rpartition(".")
    method = getattr(importlib.import_module(module), attribute)
    if not inspect.isclass(method):
        raise UserError(f"recipe, column {column}: {name} is a function, not a method that fills a slot")
    return method


def _arguments(
    call: ast.Call, name: str, method: type[Any], *, slot: Slot, shift: int, column: int
) -> tuple[tuple[str, Any], ...]:
    signature = inspect.signature(method)
    allowed = [p for n, p in signature.parameters.items() if n not in FACTS and n not in ("params", "generator")]
    keywords = [p.name for p in allowed]
    positional = [p.name for p in allowed if p.kind is not p.KEYWORD_ONLY]
    given: dict[str, Any] = {}
    if len(call.args) > len(positional):
        takes = f"takes {', '.join(positional)}" if positional else "takes no arguments by position"
        raise UserError(f"recipe, column {column}: {name} got {len(call.args)} arguments; it {takes}")
    pairs = list(zip(positional, call.args, strict=False))
    for keyword in call.keywords:
        where = keyword.value.col_offset + 1 + shift
        if keyword.arg is None:
            raise UserError(f"recipe, column {where}: ** is not allowed in a recipe")
        if keyword.arg in FACTS:
            raise UserError(f"recipe, column {where}: {name}: {keyword.arg} is filled in from the data")
        if keyword.arg not in keywords:
            hint = nearest(keyword.arg, keywords) or f" (it has: {', '.join(keywords) or 'none'})"
            raise UserError(f"recipe, column {where}: {name} has no argument {keyword.arg!r}{hint}")
        if any(keyword.arg == key for key, _ in pairs):
            raise UserError(f"recipe, column {where}: {name}: {keyword.arg} is given twice")
        pairs.append((keyword.arg, keyword.value))
    for key, node in pairs:
        given[key] = _value(node, shift, name)
    if slot == "optimizer":
        _check_base(given.get("base"), name, method, column)
    for p in allowed:
        if p.default is p.empty and p.name not in given:
            raise UserError(f"recipe, column {column}: {name} needs {p.name}, as in {name}({p.name}=...)")
    return tuple((p.name, given[p.name]) for p in allowed if p.name in given and not _same(given[p.name], p.default))


def _same(value: Any, default: Any) -> bool:
    """Whether a value says no more than the default does; ``True`` and ``1`` are different things to say."""
    return bool(value == default) and isinstance(value, bool) == isinstance(default, bool)


def _check_base(base: Any, name: str, method: type[Any], column: int) -> None:
    if not wraps(method):
        return
    if not isinstance(base, Term) or base.slot != "optimizer":
        raise UserError(f"recipe, column {column}: {name} wraps an optimizer, as in {name}(AdamW(lr=0.001))")


def _value(node: ast.expr, shift: int, name: str) -> Any:
    column = node.col_offset + 1 + shift
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"recipe, column {column}: {name}: a number must be finite")
            return value
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as number)):
            return -number if isinstance(sign, ast.USub) else number
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            return tuple(_value(part, shift, name) for part in parts)
        case ast.Call() | ast.Name():
            term = _term(node, shift, inside=name)
            if term.slot not in ("optimizer", "schedule"):
                raise UserError(f"recipe, column {column}: {term.name} cannot be an argument; join terms with +")
            return term
    raise UserError(f"recipe, column {column}: {name}: {_source(node)} is not a number, a word in quotes or a tuple")


def _refuse_conflicts(terms: Sequence[Term]) -> None:
    seen: dict[str, Term] = {}
    for term in terms:
        if term.slot in SINGLE and term.slot in seen:
            other = seen[term.slot]
            raise UserError(
                f"recipe, column {term.column}: {term.name}: the recipe already has {SINGLE[term.slot]}, "
                f"{other.name} at column {other.column}"
            )
        if term.name in seen:
            raise UserError(
                f"recipe, column {term.column}: {term.name} stands at column {seen[term.name].column} already"
            )
        seen[term.slot] = seen[term.name] = term


def _try(term: Term) -> None:
    """Build the method once on a token parameter, so that a value out of range is found while it has a column."""
    facts = {"num_classes": 2, "num_samples": 2}
    try:
        _construct(term, facts, [], [nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        line = next((part for part in str(error).splitlines() if part.strip()), type(error).__name__)
        raise UserError(f"recipe, column {term.column}: {term.name}: {line}") from None


def _construct(
    term: Term,
    facts: dict[str, int],
    drives: list[tuple[Any, str, Schedule]],
    parameters: list[nn.Parameter] | None = None,
) -> Any:
    driven: list[tuple[str, Schedule]] = []
    arguments: dict[str, Any] = {}
    for name, value in term.arguments:
        if not isinstance(value, Term):
            arguments[name] = value
        elif value.slot == "optimizer":
            arguments[name] = _construct(value, facts, drives, parameters)
        else:
            schedule = _construct(value, facts, drives)
            driven.append((name, schedule))
            arguments[name] = schedule(0.0)
    signature = inspect.signature(term.method).parameters
    for fact in FACTS:
        if fact in signature:
            if fact in facts:
                arguments[fact] = facts[fact]
            elif signature[fact].default is inspect.Parameter.empty:
                raise UserError(f"recipe, column {term.column}: {term.name} needs {fact}, which the data does not have")
    method = term.method(parameters, **arguments) if "params" in signature else term.method(**arguments)
    for name, schedule in driven:
        if not (isinstance(method, torch.optim.Optimizer) or hasattr(method, name)):
            raise UserError(f"recipe, column {term.column}: {term.name}: {name} cannot follow a schedule")
        drives.append((method, name, schedule))
    return method


def _named(name: str) -> Term:
    method = _resolve(name, 1)
    slot = slot_of(method)
    assert slot is not None
    return Term(name, (), method, slot, 1)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))}{',' if len(value) == 1 else ''})"
    return str(value) if isinstance(value, Term) else repr(value)


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def _source(node: ast.expr) -> str:
    text = ast.unparse(node)
    return repr(text if len(text) <= 40 else text[:37] + "...")
