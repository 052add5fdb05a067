"""The one table that every format is rendered from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cell:
    """One cell of a table: its text and its formatting."""

    text: str
    interval: str = ""  # as [low, high]
    bold: bool = False  # not significantly worse than the best of its column
    best: bool = False  # the best mean of its column
    marks: tuple[str, ...] = ()  # keys of the table's footnotes

    def __str__(self) -> str:
        """Return it as plain text, without marks."""
        return f"{self.text} {self.interval}".strip()


@dataclass
class Table:
    """A table before it is rendered."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)  # printed below the table
    plain: Sequence[Mapping[str, object]] = ()  # the unrounded figures, a mapping per row
    caption: str = ""  # what bold and intervals mean; made from the tests that were used
    footnotes: Mapping[str, str] = field(default_factory=dict)  # by mark
    runs: Sequence[Sequence[str]] = ()  # the run folders behind each row


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of equal length as lines, their columns padded to one width."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
