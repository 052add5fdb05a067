"""`harness table`: one table per suite, on the terminal, in a pipe or in files."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..api.contracts import Reporter
from ..core.errors import UsageError
from ..core.global_state import put_back
from ..core.table import Table
from ..report.output import check_output, suite_file, write_output
from ..report.selection.filters import Filter
from ..report.selection.select import select, suites_of
from .echo import echo

ALL = "all"
TERMINAL_COLUMNS = ("method", "seeds", "win_rate", "lc_win_rate", "kl", "length", "flops")
LEAST_COLUMNS = 3  # shown on the narrowest terminal too
CELL_WIDTH = 28  # characters of a cell on a terminal: the reason of a failure is longer
MORE = "All columns and full notes: harness table --columns all"


@dataclass(frozen=True)
class TableRequest:
    """The options of `harness table`."""

    results: Path
    criteria: Filter
    reporter: Reporter
    named_format: bool  # whether --format was given
    columns: str = ""
    match: str | None = None
    spread: str = "interval"  # or sd
    ratings: bool = False  # ratings in place of the comparison
    judges: Sequence[str] = ()  # of the columns with win-rates; empty: the judge of the runs

    @property
    def keys(self) -> Sequence[str]:
        """The keys of the columns to show; empty for all."""
        keys = [key.strip() for key in self.columns.split(",") if key.strip()]
        return [] if keys == [ALL] else keys or self.reporter.columns

    @property
    def asked(self) -> bool:
        """Whether the user names columns. Those of a format or a terminal may be left out."""
        return bool(self.columns.strip())

    def table(self, suite: str, keys: Sequence[str]) -> tuple[Table, list[str]]:
        """Return the table of one suite, and the notes on the runs that it leaves out."""
        from ..report.tables.match import matched, parse_match
        from ..report.tables.tables import comparison, unfinished_notes

        criteria = replace(self.criteria, suite=suite)
        judges: Sequence[str | None] = self.judges or [None]
        selection, *others = [select(self.results, replace(criteria, judge=j)) for j in judges]
        # damaged files are named on stderr when they are read
        left_out = unfinished_notes(replace(selection, damaged=()))
        if self.match:
            return matched(selection, *parse_match(self.match)), left_out
        if self.ratings:
            from ..report.tables.ratings import ratings_table

            return ratings_table(selection), left_out
        return comparison(selection, keys, self.spread, others, self.asked), left_out


def print_across(request: TableRequest, output: Path | None) -> int:
    """Print the one table across models and suites, or write it to a file; return the exit code."""
    from ..report.tables.across import ranking

    table = ranking(request.results, request.criteria)
    with put_back(f"The reporter {request.reporter.name}"):
        text = request.reporter.render(table)
    if output is None:
        echo(text)
        return 0
    check_output(output)
    write_output(output, text)
    echo(f"wrote {output}")
    return 0


def print_tables(request: TableRequest) -> int:
    """Print the table of every suite in turn; return the exit code.

    A suite that cannot be shown is reported on stderr, and the next one follows.
    """
    suites = suites_of(request.results, request.criteria)
    if len(suites) > 1 and request.reporter.name != "md":
        raise UsageError(
            f"The format {request.reporter.name} holds one table, and there are runs of"
            f" {', '.join(suites)}. Name one suite with --suite, or write files with -o."
        )
    fit = sys.stdout.isatty() and not (
        request.named_format
        or request.columns
        or request.match
        or request.ratings
        or request.judges
    )
    width = shutil.get_terminal_size().columns
    code = 0
    for i, suite in enumerate(suites):
        try:
            table, left_out = request.table(suite, TERMINAL_COLUMNS if fit else request.keys)
        except UsageError as error:
            if len(suites) == 1:
                raise
            echo(f"harness: {suite}: {error}", fg="red", err=True)
            code = error.exit_code
            continue
        text = fitted(table, request.reporter, width) if fit else rendered(table, request.reporter)
        echo(f"\n{text}" if i else text, nl=False)
        if not fit:
            _show_missing_notes(text, left_out)
    return code


def write_tables(request: TableRequest, output: Path) -> int:
    """Write the table to a file, or one file per suite if there are several."""
    check_output(output)
    suites = suites_of(request.results, request.criteria)
    for suite in suites:
        file = output if len(suites) == 1 else suite_file(output, suite)
        table, left_out = request.table(suite, request.keys)
        text = rendered(table, request.reporter)
        write_output(file, text)
        _show_missing_notes(text, left_out)
        if len(suites) > 1:
            echo(f"wrote {file}")
    return 0


def _show_missing_notes(text: str, notes: Sequence[str]) -> None:
    """Show on stderr the notes that a format, such as csv, leaves out of its text."""
    for note in notes:
        if note not in text:
            echo(f"harness: {note}", fg="yellow", err=True)


def rendered(table: Table, reporter: Reporter) -> str:
    """Return a table in a format."""
    with put_back(f"The format {reporter.name}"):
        return reporter.render(table)


def fitted(table: Table, reporter: Reporter, width: int) -> str:
    """Return a table with the columns that fit a width, and notes of one line each."""
    rows = [
        [replace(c, text=textwrap.shorten(c.text, CELL_WIDTH, placeholder=" ...")) for c in row]
        for row in table.rows
    ]
    count = len(table.columns)
    kept = [j for j in range(count) if any(row[j].text not in ("-", "") for row in rows)]
    while True:
        shown = Table(
            title=table.title,
            columns=[table.columns[j] for j in kept],
            rows=[[row[j] for j in kept] for row in rows],
        )
        text = rendered(shown, reporter)
        lines = [line for line in text.splitlines() if line.startswith("|")]
        if len(kept) <= LEAST_COLUMNS or max(map(len, lines)) <= width:
            break
        kept.pop()
    marked = [f"({mark}) {note}" for mark, note in table.footnotes.items()]
    notes = [note for note in (*marked, *table.notes, table.caption) if note]
    one_line = [textwrap.shorten(note, width, placeholder=" ...") for note in notes]
    return "\n".join([text, *one_line, MORE]) + "\n"
