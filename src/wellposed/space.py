"""Ranges that a person would search: the vocabulary of every method's ``space``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Uniform:
    """A real number, any value in ``[low, high]`` as likely as another."""

    low: float
    high: float


@dataclass(frozen=True)
class LogUniform:
    """A positive real number, any order of magnitude in ``[low, high]`` as likely as another."""

    low: float
    high: float


@dataclass(frozen=True)
class IntUniform:
    """A whole number in ``[low, high]``, both ends included."""

    low: int
    high: int


@dataclass(frozen=True)
class Choice:
    """One of a few named options."""

    options: tuple[str | int | float | bool, ...]


Range: TypeAlias = Uniform | LogUniform | IntUniform | Choice
Space: TypeAlias = Mapping[str, Range]
