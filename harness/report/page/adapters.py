"""Stand-ins until the table and the plots take a Selection."""

from __future__ import annotations

import tempfile
from pathlib import Path

from .. import tables
from ..select import Selection
from ..table import Cell, Table


def comparison(selection: Selection) -> Table:
    groups = tables._grouped(selection.records)
    names = tables._row_names(groups)
    ordered = [(row.method, row.records[0]["recipe"]) for row in selection.rows]
    cells = [[Cell(c) for c in tables._cells(names[k], groups[k])] for k in ordered]
    rows = [r + [Cell("")] * (len(tables.COLUMNS) - len(r)) for r in cells]
    return Table(
        selection.suite, list(tables.COLUMNS), rows, tables._notes(groups, names),
        runs=[[str(r["folder"]) for r in row.records] for row in selection.rows],
    )  # fmt: skip


def kinds() -> list[str]:
    return ["frontier"]


def plot(kind: str, selection: Selection) -> bytes:
    import matplotlib

    from ..plots import frontier

    matplotlib.rcParams["svg.hashsalt"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        frontier(selection.results, selection.suite, Path(folder) / "a.svg", selection.study)
        return (Path(folder) / "a.svg").read_bytes()
