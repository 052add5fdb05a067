"""Sweeps: rows of one method that differ in numbers only, the points of one curve; and the scores
behind a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ...statistics.intervals import Array
from .figures import answers_of
from .select import Row

Words = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Sweep:
    """Rows that lie on one curve: one row where nothing was swept."""

    name: str
    rows: Sequence[Row]
    options: tuple[str, ...]  # the numbers in which they differ

    def point(self, row: Row) -> str:
        """Return the swept options of a row, `beta=0.1`; empty where none differ."""
        values = row.records[0]["options"]
        return ", ".join(f"{name}={values[name]:g}" for name in self.options)

    def value(self, row: Row) -> str:
        """Return the same without the option's name, where there is one option only."""
        return self.point(row).partition("=")[2] if len(self.options) == 1 else self.point(row)

    @property
    def told(self) -> str:
        """The sweep's name and what it is over, `ppo, over beta`."""
        return f"{self.name}, over {', '.join(self.options)}" if self.options else self.name


def sweeps(rows: Sequence[Row]) -> list[Sweep]:
    """Return finished rows as sweeps, in the order of their first rows.

    A sweep is what has one entry (of a study; else one method) and differs in numbers only: a line
    from DPO to DPO on shuffled labels would say nothing.
    """
    groups: dict[tuple[str, Words], list[Row]] = {}
    for row in rows:
        if row.good:
            groups.setdefault((row.entry, _words(row)), []).append(row)
    names = [_name(key, group, groups) for key, group in groups.items()]
    unique = [
        f"{n} [{g[0].name}]" if names.count(n) > 1 else n
        for n, g in zip(names, groups.values(), strict=True)
    ]
    return [
        Sweep(name, group, _swept(group))
        for name, group in zip(unique, groups.values(), strict=True)
    ]


def _words(row: Row) -> Words:
    """Return all that is no number in a row's settings."""
    record = row.records[0]
    words = {name: str(value) for name, value in record["options"].items() if not _is_number(value)}
    return tuple(sorted({**words, "quick": str(bool(record.get("quick")))}.items()))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _name(key: tuple[str, Words], group: Sequence[Row], groups: Iterable[tuple[str, Words]]) -> str:
    """Return a sweep's name: its only row's, or its entry's with the words in which sweeps of one
    entry differ.
    """
    if len(group) == 1:
        return group[0].name
    entry, words = key
    others = [dict(other) for name, other in groups if name == entry]
    told = ", ".join(f"{n}={v}" for n, v in words if any(other.get(n) != v for other in others))
    return f"{entry} ({told})" if told else entry


def _swept(group: Sequence[Row]) -> tuple[str, ...]:
    """Return the numbers in which rows differ, those that were asked for where the records tell."""
    first = group[0].records[0]
    options = [row.records[0]["options"] for row in group]
    known = [name for name in first["options"] if all(_is_number(o.get(name)) for o in options)]
    differing = [name for name in known if len({o[name] for o in options}) > 1]
    asked = {name for row in group for name in row.records[0].get("asked", differing)}
    return tuple(name for name in differing if name in asked) or tuple(differing)


def seeds_told(rows: Sequence[Row]) -> str:
    """Return how many seeds rows have, `2 or 3/4`: three of four finished."""
    return " or ".join(dict.fromkeys(row.seeds for row in rows))


def scores_of(row: Row) -> dict[str, Array]:
    """Return {figure: scores (S seeds, P prompts)} of the finished runs, with `win_rate`."""
    return {
        "win_rate" if name == "win" else name: scores
        for name, scores in answers_of(row).figures.items()
    }
