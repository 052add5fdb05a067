"""Table formats: Markdown for people, CSV (unrounded) for programs."""

from __future__ import annotations

import csv
import io

from harness import hookimpl
from harness.contracts import Reporter


class Markdown(Reporter):
    """A GitHub-flavoured Markdown table with its notes below."""

    name, suffix = "md", ".md"

    def render(self, table):
        """Return the table with aligned columns."""
        rows = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in [table.columns, *table.rows]]
        widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
        lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
        rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
        notes = [f"\n{note}" for note in table.notes]
        return "\n".join([f"**{table.title}**\n", lines[0], rule, *lines[1:], *notes]) + "\n"


class CSV(Reporter):
    """Every figure unrounded, a row per row of the table."""

    name, suffix = "csv", ".csv"

    def render(self, table):
        """Return comma-separated values with a header."""
        columns = list(dict.fromkeys(name for row in table.plain for name in row))
        stream = io.StringIO()
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table.plain)
        return stream.getvalue()


@hookimpl
def register_reporters(register):
    register(Markdown)
    register(CSV)
