"""The one table that every format is rendered from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Table:
    """A table before it is rendered: cells are text, `notes` stand below it."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    plain: Sequence[Mapping[str, object]] = ()  # the unrounded figures, a mapping per row
