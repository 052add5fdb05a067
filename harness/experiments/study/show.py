"""Output of a study: its cells before the start, progress while it runs, and a summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ...core import run_folder
from ...core.table import aligned
from .cells import Cell
from .spaces import described_space
from .state import DONE, FAILED, LEFT, REFUSED, Estimate, Estimates, State
from .work import Plan, Watch, notes

UNITS = ((1e12, "TFLOP"), (1e9, "GFLOP"))


def dry_run(planned: Plan, states: Sequence[State], estimates: Estimates) -> str:
    """Return the runs of a study, their states, and an estimate of the remaining cost."""
    rows, cpu, flops, unknown = [["run", "state", "CPU s", "FLOP", ""]], 0.0, 0.0, 0
    borrowed = False
    for cell, state in zip(planned.cells, states, strict=True):
        open_ = state.status in (LEFT, FAILED)
        guess = estimates.of(cell.spec) if open_ else None
        borrowed |= bool(guess and guess.elsewhere)
        if state.status == LEFT:
            unknown += guess is None
            cpu += guess.cpu_seconds if guess else 0
            flops += guess.flops if guess else 0
        costs = _cost_cells(guess) if guess or not open_ else ["unknown", "unknown"]
        rows.append([cell.name, state.kind or state.status, *costs, state.message])
    lines = [*aligned(rows), "", f"{len(planned.cells)} runs: {notes(states)}."]
    lines += [*_same(planned.cells), *_remarks(planned, states, estimates, borrowed)]
    return "\n".join([*lines, _remaining(cpu, flops, unknown)])


def _remaining(cpu: float, flops: float, unknown: int) -> str:
    """Return the sentence on the remaining cost, of which that of some runs may be unknown."""
    runs = f"{unknown} run{'s' * (unknown > 1)} of unknown cost"
    if unknown and not (cpu or flops):
        return f"There {'is' if unknown == 1 else 'are'} {runs}; shared stages are extra."
    more = f", and {runs}" if unknown else ""
    return (
        f"The remaining runs may take {cpu:.0f} CPU seconds and {flops:.2g} FLOP{more}; shared"
        " stages are extra."
    )


def _cost_cells(guess: Estimate | None) -> list[str]:
    if guess is None:
        return ["", ""]
    about = "~" if guess.elsewhere else ""
    return [f"{about}{guess.cpu_seconds:.0f}", f"{about}{guess.flops:.2g}"]


def _remarks(
    planned: Plan, states: Sequence[State], estimates: Estimates, borrowed: bool
) -> list[str]:
    """Return the lines below the runs: requests, searches that wait, other code, estimates."""
    lines = _requests(planned.cells, states)
    lines += _shipped(planned)
    for choice in planned.waiting:
        entry = choice.search.entry
        seeds = len(entry.seeds) * max(1, len(entry.shared_seeds))
        lines.append(
            f"{choice.label} on {choice.search.suite}: {seeds} more once its trials are through."
        )
    other = sum(
        s.status == LEFT and estimates.elsewhere(c)
        for c, s in zip(planned.cells, states, strict=True)
    )
    if other:
        lines.append(
            f"{other} of those left lie here finished by other code, the harness's or a plugin's:"
            " such results are never taken for this code's. `harness table` still shows them."
        )
    if borrowed:
        lines.append(
            "~ marks the cost of the method in the harness's own study, on two cores of another"
            " machine with the suite's settings. Your steps, models and sweeps may cost more."
        )
    return lines


def _shipped(planned: Plan) -> list[str]:
    """Return the search spaces that methods declare themselves, where the study names none."""
    spaces = {c.search.entry.label: c.search.space for c in planned.choices if c.search.shipped}
    return [
        f"{label} is tuned over its method's own space ({described_space(space)})."
        for label, space in spaces.items()
    ]


def _requests(cells: Sequence[Cell], states: Sequence[State]) -> list[str]:
    """Return what the runs that are left request of a machine or a cluster."""
    left = [str(c.resources) for c, s in zip(cells, states, strict=True) if s.status == LEFT]
    requests = dict.fromkeys(text for text in left if text)
    return [f"{left.count(text)} of those left request each: {text}." for text in requests]


class Plain(Watch):
    """A line per event, for logs and pipes."""

    def __init__(self, results: Path, name: str) -> None:
        self.results, self.name = results, name
        self.counts: dict[str, dict[str, int]] = {}  # by label: number of cells per state
        self.status: dict[str, str] = {}  # by fingerprint
        self.todo = self.over = 0
        self.since = time.monotonic()
        self.begun: dict[str, float] = {}

    def begin(self, planned: Plan, states: Sequence[State], jobs: int) -> None:
        """Print the progress of the study."""
        self.todo, self.over, self.since = jobs, 0, time.monotonic()
        self.status = {c.fingerprint: s.status for c, s in zip(planned.cells, states, strict=True)}
        self.counts = {}
        for cell in planned.cells:
            self._count(cell, 1)
        self.say(f"{self.name}: {notes(states)}; {jobs} to run")
        failed = sum(s.status == FAILED for s in states)
        if failed and not jobs:
            self.say("Failed runs are not tried again without --retry-failed.")

    def note(self, text: str) -> None:
        """Print a message about no single cell."""
        self.say(f"      {text}")

    def started(self, cell: Cell) -> None:
        """Print that a cell started."""
        self.begun[cell.fingerprint] = time.monotonic()
        self.say(f"      begin  {cell.name}")

    def ended(self, cell: Cell, state: State, log: Path) -> None:
        """Print how a cell ended, and the path of its log if it failed."""
        self.over += 1
        took = time.monotonic() - self.begun.pop(cell.fingerprint, time.monotonic())
        why = "" if state.status == DONE else f": {state.message} See {log}."
        line = f"{state.kind or state.status}  {cell.name}, {took:.0f} s{self._rest()}{why}"
        self.say(f"[{self.over}/{self.todo}] {line}")

    def say(self, line: str) -> None:
        """Write a line."""
        click.echo(line, err=True)

    def summary(self, planned: Plan, states: Sequence[State]) -> None:
        """Print how the study ended, every failure with its class, and the next step."""
        click.echo(f"{self.name}: {notes(states)}")
        for cell, state in zip(planned.cells, states, strict=True):
            if state.status in (FAILED, REFUSED):
                colour = "red" if state.status == FAILED else "yellow"
                click.secho(f"  {state.kind:<14} {cell.name}: {state.message}", fg=colour)
        for choice in planned.choices:
            click.echo(
                f"  {choice.label} on {choice.search.cells[0].spec.suite_name}: {_chosen(choice)}"
            )
        lines = [*_shipped(planned), *_same(planned.cells)]
        for line in [*lines, *_unspent(planned, states, self.results)]:
            click.echo(f"  {line}")
        if any(s.status == DONE for s in states):
            where = "" if str(self.results) == "results" else f" --results {self.results}"
            click.echo(f"Put side by side: harness table --study {self.name}{where}")
        if any(s.status == FAILED for s in states):
            click.echo(
                "Failed runs are tried again with --retry-failed; killed and refused ones"
                " without it."
            )

    def _rest(self) -> str:
        left = (time.monotonic() - self.since) / self.over * (self.todo - self.over)
        return f", about {left:.0f} s left" if left else ""

    def _count(self, cell: Cell, by: int) -> None:
        label = cell.label.partition(", trial ")[0] + ", trials" * cell.trial
        row = self.counts.setdefault(f"{label} on {cell.spec.suite_name}", {})
        status = self.status[cell.fingerprint]
        row[status] = row.get(status, 0) + by


class Live(Plain):
    """A table that is redrawn at every event, for a terminal."""

    def begin(self, planned: Plan, states: Sequence[State], jobs: int) -> None:
        """Draw the table."""
        from rich.console import Console
        from rich.live import Live as Region

        super().begin(planned, states, jobs)
        self.region: Any = None
        if jobs:  # no automatic refresh: it would start a thread, and launchers fork
            self.region = Region(self._table(), console=Console(stderr=True), auto_refresh=False)
            self.region.start()

    def started(self, cell: Cell) -> None:
        """Count a cell as running."""
        self.begun[cell.fingerprint] = time.monotonic()
        self._move(cell, "running")

    def ended(self, cell: Cell, state: State, log: Path) -> None:
        """Count a cell by its final state; a failure is printed above the table."""
        if state.status == DONE:
            self.over += 1
        else:
            super().ended(cell, state, log)
        self._move(cell, state.status)

    def end(self) -> None:
        """Stop redrawing the table."""
        if self.region is not None:
            self.region.stop()

    def say(self, line: str) -> None:
        """Print a line, above the table if there is one."""
        region = getattr(self, "region", None)
        if region is not None and region.is_started:
            region.console.print(line, markup=False, highlight=False)
        else:
            super().say(line)

    def _move(self, cell: Cell, status: str) -> None:
        self._count(cell, -1)
        self.status[cell.fingerprint] = status
        self._count(cell, 1)
        self.region.update(self._table(), refresh=True)

    def _table(self) -> Any:
        from rich.table import Table

        columns = (DONE, "running", FAILED, LEFT, REFUSED)
        table = Table(
            title=f"{self.name}: {self.over}/{self.todo}{self._rest() if self.over else ''}"
        )
        table.add_column("")
        for name in columns:
            table.add_column(name, justify="right", style="red" if name == FAILED else None)
        for label, counts in self.counts.items():
            table.add_row(label, *(str(counts.get(name) or "") for name in columns))
        return table


def watch_for(results: Path, name: str) -> Watch:
    """Return the display for the kind of output."""
    return Live(results, name) if sys.stderr.isatty() else Plain(results, name)


def _chosen(choice: Any) -> str:
    if choice.open:
        return "not chosen yet: its trials are not through"
    if choice.chosen is None:
        return "none: no trial was finished"
    point = choice.search.points[choice.chosen]
    return ", ".join(f"{key}={value}" for key, value in point.items()) or "the settings as they are"


def _same(cells: Sequence[Cell]) -> list[str]:
    """Return notes on runs that a study names twice: a table has one row for them."""
    seeds: dict[tuple[str, str, str], list[int]] = {}
    for cell in cells:
        for other in () if cell.trial else cell.also:
            seeds.setdefault((other, cell.label, cell.spec.suite_name), []).append(cell.spec.seed)
    return [
        f"{other} on {suite}, seed {', '.join(map(str, sorted(of)))}: the same run as {first},"
        " carried out once and in tables under that name."
        for (other, first, suite), of in seeds.items()
    ]


def _unspent(planned: Plan, states: Sequence[State], results: Path) -> list[str]:
    """Return notes on rows that ended before their budget was used: they are not equal by it."""
    left: dict[str, str] = {}
    for cell, state in zip(planned.cells, states, strict=True):
        if state.status == DONE and not cell.trial:
            unspent = run_folder.unspent(
                run_folder.read_result(results / cell.spec.folder) or {},
                cell.spec.stages["preferences"]["completions"],
            )
            if unspent:
                amounts = ", ".join(f"{value:.3g} {name}" for name, value in unspent.items())
                left[f"{cell.label} on {cell.spec.suite_name}"] = amounts
    return [
        f"{row} ended by itself before its budget: {amounts} left" for row, amounts in left.items()
    ]
