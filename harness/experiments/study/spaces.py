"""Search spaces, as `[tune.space.METHOD]` defines them, and random points in them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from ...core.errors import UsageError

RANGES = ("log", "uniform", "int", "times")


@dataclass(frozen=True)
class Range:
    """An interval: `log` and `uniform` for numbers, `int` for whole ones, both ends included.
    `times` is one of factors, on a logarithmic scale, of the untuned value.
    """

    kind: str
    low: float
    high: float

    def draw(self, rng: Random, untuned: Any = None) -> Any:
        """Draw a value with three significant digits, easy to read and to type."""
        if self.kind == "int":
            return rng.randint(int(self.low), int(self.high))
        if self.kind == "uniform":
            return float(f"{rng.uniform(self.low, self.high):.3g}")
        value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        if self.kind == "log":
            return float(f"{value:.3g}")
        whole = isinstance(untuned, int)
        return max(1, round(value * untuned)) if whole else float(f"{value * untuned:.3g}")

    def __str__(self) -> str:
        ends = f"{self.low:g} to {self.high:g}"
        return (
            f"{ends} times the untuned value" if self.kind == "times" else f"{ends} ({self.kind})"
        )


@dataclass(frozen=True)
class Choice:
    """One of a list."""

    values: tuple[Any, ...]

    def draw(self, rng: Random, untuned: Any = None) -> Any:
        """Draw one of the values."""
        return rng.choice(self.values)

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.values))}"


Space = Mapping[str, "Range | Choice"]


def read_space(table: Mapping[str, Any], where: str) -> Space:
    """Return the space that a table of a study file defines."""
    if not table:
        raise UsageError(f"{where} is empty: name an option, as beta = [0.03, 0.1, 0.3].")
    return {key: _read(value, f"{where}: {key}") for key, value in table.items()}


def draw(space: Space, rng: Random, untuned: Mapping[str, Any]) -> dict[str, Any]:
    """Draw a point: a value for each option.

    Args:
        space: The axes by option.
        rng: The generator.
        untuned: The method's options without tuning, for axes of `times`.
    """
    return {key: axis.draw(rng, untuned.get(key)) for key, axis in space.items()}


def check_times(space: Space, untuned: Mapping[str, Any], where: str) -> None:
    """Raise UsageError for an axis of `times` whose option has no untuned value above 0."""
    for key, axis in space.items():
        value: Any = untuned.get(key)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if isinstance(axis, Range) and axis.kind == "times" and not (number and value > 0):
            raise UsageError(
                f"{where}: {key}: times multiplies the untuned value, which is {value!r}. Name"
                " values instead, as [0.03, 0.1, 0.3]."
            )


def described_space(space: Space) -> str:
    """Return a space in words, `beta: 0.2 to 5 times the untuned value; epochs: one of 1, 2`."""
    return "; ".join(f"{key}: {axis}" for key, axis in space.items())


def _read(value: Any, where: str) -> Range | Choice:
    if isinstance(value, list) and value:
        return Choice(tuple(value))
    if not isinstance(value, dict) or len(value) != 1:
        raise UsageError(
            f"{where} = {value!r}: expected a list, or one of log, uniform, int and times."
        )
    ((kind, ends),) = value.items()
    good = isinstance(ends, list) and len(ends) == 2 and all(type(e) in (int, float) for e in ends)
    if not good or not ends[0] < ends[1] or (kind in ("log", "times") and ends[0] <= 0):
        raise UsageError(
            f"{where} = {value!r}: expected two numbers, the lower"
            f" first{', above 0' * (kind in ('log', 'times'))}."
        )
    if kind == "int" and any(type(e) is not int for e in ends):
        raise UsageError(f"{where} = {value!r}: expected two whole numbers.")
    return Range(kind, ends[0], ends[1])
