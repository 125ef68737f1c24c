"""Which arguments of a constructor a recipe may set, and what may stand in them, told by the annotations."""

import inspect
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin

from wellposed.train.needs import FACTS

LARGEST = 2**63 - 1
"""Whole numbers beyond it are refused: no tensor counts so far."""

_COMPUTING = ("foreach", "fused", "capturable", "differentiable")
_WITHHELD = frozenset({"params", "reduction", "reduce", "size_average", "maximize", "generator", "where", *_COMPUTING})
"""The loop's business, or how a thing is computed rather than what."""

_WORDS: Mapping[Any, str] = types.MappingProxyType(
    {
        float: "a number",
        int: "a whole number",
        bool: "True or False",
        str: "a word in quotes",
        types.NoneType: "None",
        tuple: "a tuple",
    }
)


def offered(method: type[Any]) -> dict[str, inspect.Parameter]:
    """Parameters of the constructor that a recipe may set: those that a literal can fill, and the wrapped ``base``."""
    return {
        name: p
        for name, p in inspect.signature(method).parameters.items()
        if name not in FACTS and name not in _WITHHELD and (name == "base" or words(p.annotation) not in ("", "None"))
    }


def admitted(value: Any, annotation: Any) -> Any:
    """``value`` in the one form in which a parameter of that annotation is written.

    Raises:
        TypeError: saying what the parameter takes.

    >>> admitted(1, float), admitted((0, 1), tuple[float, ...] | float), admitted(None, str | None)
    (1.0, (0.0, 1.0), None)
    """
    kinds = _kinds(annotation)
    if type(value) is int and int not in kinds and float in kinds:
        value = float(value)
    if type(value) is float and float in kinds:
        return value + 0.0  # no negative zero
    if type(value) in kinds or annotation is inspect.Parameter.empty:
        return value
    for kind in kinds:
        if isinstance(value, tuple) and get_origin(kind) is tuple:
            of_each = get_args(kind)
            if of_each[-1] is ...:
                of_each = of_each[:1] * len(value)
            if len(of_each) == len(value):
                return tuple(admitted(v, k) for v, k in zip(value, of_each, strict=True))
    raise TypeError(words(annotation))


def words(annotation: Any) -> str:
    """What a parameter of that annotation takes, as far as a literal can give it.

    >>> words(tuple[float, float]), words(int | None), words(float | tuple[float, ...])
    ('a tuple of 2', 'a whole number or None', 'a number or a tuple')
    """
    if annotation is inspect.Parameter.empty:
        return "a value"
    kinds = _kinds(annotation)
    if get_origin(annotation) is tuple and ... not in get_args(annotation):
        return f"a tuple of {len(get_args(annotation))}"
    known = [_WORDS[k] for kind in kinds if (k := get_origin(kind) or kind) in _WORDS]
    return " or ".join(known)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
