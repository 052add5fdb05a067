"""Search spaces, as `[tune.space.METHOD]` defines them, and random points in them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from ...core.errors import UsageError

RANGES = ("log", "uniform", "int")


@dataclass(frozen=True)
class Range:
    """An interval: `log` and `uniform` for numbers, `int` for whole ones, both ends included."""

    kind: str
    low: float
    high: float

    def draw(self, rng: Random) -> Any:
        """Draw a value with three significant digits, easy to read and to type."""
        if self.kind == "int":
            return rng.randint(int(self.low), int(self.high))
        if self.kind == "log":
            return float(f"{math.exp(rng.uniform(math.log(self.low), math.log(self.high))):.3g}")
        return float(f"{rng.uniform(self.low, self.high):.3g}")


@dataclass(frozen=True)
class Choice:
    """One of a list."""

    values: tuple[Any, ...]

    def draw(self, rng: Random) -> Any:
        """Draw one of the values."""
        return rng.choice(self.values)


Space = Mapping[str, "Range | Choice"]


def read_space(table: Mapping[str, Any], where: str) -> Space:
    """Return the space that a table of a study file defines."""
    if not table:
        raise UsageError(f"{where} is empty: name an option, as beta = [0.03, 0.1, 0.3].")
    return {key: _read(value, f"{where}: {key}") for key, value in table.items()}


def draw(space: Space, rng: Random) -> dict[str, Any]:
    """Draw a point: a value for each option."""
    return {key: axis.draw(rng) for key, axis in space.items()}


def _read(value: Any, where: str) -> Range | Choice:
    if isinstance(value, list) and value:
        return Choice(tuple(value))
    if not isinstance(value, dict) or len(value) != 1:
        raise UsageError(f"{where} = {value!r}: expected a list, or one of log, uniform and int.")
    ((kind, ends),) = value.items()
    good = isinstance(ends, list) and len(ends) == 2 and all(type(e) in (int, float) for e in ends)
    if not good or not ends[0] < ends[1] or (kind == "log" and ends[0] <= 0):
        raise UsageError(
            f"{where} = {value!r}: expected two numbers, the lower"
            f" first{', above 0' * (kind == 'log')}."
        )
    if kind == "int" and any(type(e) is not int for e in ends):
        raise UsageError(f"{where} = {value!r}: expected two whole numbers.")
    return Range(kind, ends[0], ends[1])
