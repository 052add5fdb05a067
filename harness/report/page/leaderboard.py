"""The leaderboard: one static page of the runs in bundles, each row with the command that repeats
one of its runs.

Rows of several bundles share a table only where every digest of their inputs and of their judge is
equal, and where they have a ground in common. Other rows have a table of their own, and a reason.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ... import __version__
from ...core.archives import OddArchive
from ...core.errors import UsageError, unknown
from ...core.records import Damaged
from ...core.run_folder import FAILURE, RESULT, SPEC
from ...core.table import Cell, Table
from ...experiments.bundle import Bundle
from ...experiments.study.state import CELLS, read_cells, study_folder
from ..selection.comparable import OF_GROUND, shared_seed_of
from ..selection.filters import Record
from ..selection.run_files import check_files, provenance_of, spec_of
from ..selection.select import Row, Selection, order_of, rows_of, suite_records
from ..tables.captions import INTERVAL
from ..tables.columns import COLUMNS, task_columns
from ..tables.footnotes import tuning_of
from ..tables.tables import comparison
from .facts import plot
from .html import render
from .provenance import Environments, run_key
from .settings import seeds

SHOWN = (
    "method",
    "seeds",
    "win_rate",
    "gold",
    "accuracy",
    "kl",
    "length",
    "flops",
    "seconds",
    "labels",
    "models",
    "flops_per_answer",
)  # the columns of a comparison that a leaderboard shows, beside those of tasks
OF_TASKS = ("task.", "tax.")  # how the keys of columns of tasks begin
PLOTS = ("frontier", "cost")
BEST, OPEN, BEHIND = "best", "open", "behind"
NO_GROUND = "shared seed"  # what rows differ in that have no ground in common

Condition = tuple[str, int | None]  # of a table: its name, and the shared seed it belongs to


@dataclass(frozen=True)
class Source:
    """A bundle under the name that the page gives it."""

    name: str
    bundle: Bundle


@dataclass(frozen=True)
class Entry:
    """A row of a leaderboard, and the bundles that hold its runs."""

    row: Row
    source: Source
    also: Sequence[str] = ()  # names of other bundles with the same runs
    tuning: Sequence[str] = ()  # footnotes on how its settings were chosen


@dataclass
class Board:
    """One table of the page: rows that are comparable."""

    suite: str
    model: str
    entries: list[Entry] = field(default_factory=list)
    conditions: dict[Condition, str] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)  # why its rows are not in the table before

    def odds(self, row: Row) -> list[str]:
        """Return the conditions in which a row differs from this table."""
        own = conditions_of(row)
        odd = [n for n in own if n in self.conditions and own[n] != self.conditions[n]]
        if odd:
            return sorted({name for name, _ in odd})
        grounds = [set(entry.row.grounds) for entry in self.entries if entry.row.good]
        alone = row.good and any(not ground & set(row.grounds) for ground in grounds)
        return [NO_GROUND] if alone else []

    def add(self, entry: Entry) -> None:
        """Add a row, or another source of a row that is there."""
        for i, known in enumerate(self.entries):
            if same_runs(known.row, entry.row):
                also = dict.fromkeys([*known.also, entry.source.name])
                also.pop(known.source.name, None)
                self.entries[i] = replace(known, also=tuple(also))
                return
        self.entries.append(entry)
        self.conditions |= {**conditions_of(entry.row), **self.conditions}


def leaderboard(bundles: Sequence[Bundle], suite: str | None = None) -> str:
    """Return the page of bundles whose seals were checked; the same bundles give the same bytes.

    Args:
        bundles: The bundles, unpacked.
        suite: A suite's name; None for all suites.

    Raises:
        UsageError: No bundle has runs of the suite, or a bundle is given twice.
        OddArchive: A record of a bundle is not one that this version can read.
    """
    sources = [Source(n, b) for n, b in zip(_names(bundles), bundles, strict=True)]
    entries = [entry for source in sources for entry in _entries(source)]
    suites = sorted({entry.row.records[0]["suite"] for entry in entries})
    if suite is not None and suite not in suites:
        raise unknown("suite in these bundles", suite, suites)
    wanted = [e for e in entries if suite in (None, e.row.records[0]["suite"])]
    environments = Environments()
    boards = [_shown(b, f"s{i}", environments) for i, b in enumerate(boards_of(wanted))]
    return render(
        {
            "title": "Leaderboard",
            "version": __version__,
            "boards": boards,
            "sources": [_about(source) for source in sources],
            "environments": environments.rows(),
        },
        "leaderboard.html",
    )


def _names(bundles: Sequence[Bundle]) -> list[str]:
    """Return a name for each bundle: its file's, and its place in the list where two are equal."""
    paths = [b.path.resolve() for b in bundles]
    twice = next((p for i, p in enumerate(paths) if p in paths[:i]), None)
    if twice is not None:
        raise UsageError(f"{twice.name} is given twice. Name each bundle once.")
    names = [p.name for p in paths]
    return [f"{n} ({i + 1})" if names.count(n) > 1 else n for i, n in enumerate(names)]


# -- which rows share a table ----------------------------------------------------------------------


def conditions_of(row: Row) -> dict[Condition, str]:
    """Return the digests that rows of one table share. Those that the shared seed decides are kept
    for each ground.
    """
    return {
        (name, shared_seed_of(r) if name in OF_GROUND else None): str(value)
        for r in row.good
        for name, value in r["ground"].items()
    }


def same_runs(one: Row, other: Row) -> bool:
    """Return whether two rows are the same runs with the same answers."""
    return one.method == other.method and _answers(one) == _answers(other)


def _answers(row: Row) -> list[tuple[str, int, str]]:
    return sorted(
        (str(r["recipe"]), int(r["seed"]), str(r.get("files", {}).get("samples.jsonl")))
        for r in row.good
    )


def boards_of(entries: Sequence[Entry]) -> list[Board]:
    """Return the tables of rows: suites by name, then models, then the tables in order of use."""
    boards: dict[tuple[str, str], list[Board]] = {}
    for entry in entries:
        record = entry.row.records[0]
        key = (str(record["suite"]), model_of(record))
        own = boards.setdefault(key, [])
        board = next((b for b in own if not b.odds(entry.row)), None)
        if board is None:
            reasons = own[0].odds(entry.row) if own else []
            own.append(board := Board(*key, reasons=reasons))
        board.add(entry)
    return [_named_apart(board) for key in sorted(boards) for board in boards[key]]


def _named_apart(board: Board) -> Board:
    """Return a table whose rows have different names: the bundle's is added to equal ones."""
    names = [entry.row.name for entry in board.entries]
    board.entries = [
        replace(e, row=replace(e.row, name=f"{e.row.name} ({e.source.name})"))
        if names.count(e.row.name) > 1
        else e
        for e in board.entries
    ]
    return board


def model_of(record: Record) -> str:
    """Return the name of the model that a run started from, with the size of the run if quick."""
    spec = spec_of(record) if (Path(record["folder"]) / SPEC).exists() else {}
    name = Path(str(spec.get("model") or "")).name or "the suite's own model"
    return f"{name}, quick size" if record.get("quick") else name


def _entries(source: Source) -> list[Entry]:
    """Return the rows of a bundle, under the labels of its study."""
    bundle, damaged = source.bundle, list[Damaged]()
    records = suite_records(bundle.results, bundle.study, damaged)
    try:
        if damaged:
            raise damaged[0]
        for record in records:
            check_files(record)
    except Damaged as error:
        where = error.path.relative_to(bundle.results).as_posix()
        raise OddArchive(bundle.path, f"{where} lacks what tables need") from error
    entries = []
    for suite in sorted({r["suite"] for r in records}):
        rows = rows_of([r for r in records if r["suite"] == suite])
        tuning = tuning_of(Selection(suite, rows, bundle.results, bundle.study))
        entries += [
            Entry(row, source, tuning=tuning.get(row.records[0].get("cell"), ())) for row in rows
        ]
    return entries


# -- what the page shows ---------------------------------------------------------------------------


def _shown(board: Board, key: str, environments: Environments) -> dict[str, Any]:
    """Return the values of a table that the template shows."""
    entries = sorted(board.entries, key=lambda e: order_of(e.row))
    rows = [e.row for e in entries]
    selection = Selection(board.suite, rows, entries[0].source.bundle.results, of_bundles=True)
    apart = f": another {', '.join(board.reasons)}" if board.reasons else ""
    title = f"{board.suite}, {board.model}{apart}"
    anchors = [f"{key}-r{i}" for i in range(len(rows))]
    about = [_row(e, a, environments) for e, a in zip(entries, anchors, strict=True)]
    return {
        "key": key,
        "title": title,
        "suite": board.suite,
        "reasons": board.reasons,
        "table": with_groups(compared(selection)),
        "links": anchors,
        "plots": [plot(kind, selection, title) for kind in PLOTS],
        "rows": about,
        "notes": [*_code_note(entries), *_tuning_notes(entries)],
    }


def compared(selection: Selection) -> Table:
    """Return the comparison with the columns of a leaderboard that have values."""
    whole = comparison(selection)
    keys = {c.title_with(INTERVAL): c.key for c in [*COLUMNS, *task_columns(whole.plain)]}
    own = [keys[title] for title in whole.columns]
    return comparison(selection, [k for k in own if k in SHOWN or k.startswith(OF_TASKS)])


def with_groups(table: Table) -> Table:
    """Return a table with the group of each row in its second column.

    `best` are the rows that are not significantly worse than the best one: the confidence set
    behind bold type. `open` are those that only the spread of their own seeds keeps from being
    excluded.
    """
    figure = next((n for n in ("win_rate", "gold") if _has(table, f"{n}_bold")), "")
    if not figure:
        return table
    groups = [_group(figures, figure) for figures in table.plain]
    return replace(
        table,
        columns=[*table.columns[:1], "group", *table.columns[1:]],
        rows=[[*row[:1], group, *row[1:]] for row, group in zip(table.rows, groups, strict=True)],
    )


def _has(table: Table, name: str) -> bool:
    return any(name in figures for figures in table.plain)


def _group(figures: Mapping[str, object], figure: str) -> Cell:
    if f"{figure}_bold" not in figures:
        return Cell("-")
    if figures[f"{figure}_bold"]:
        return Cell(BEST, bold=True)
    return Cell(OPEN if f"{figure}_open" in figures else BEHIND)


def _row(entry: Entry, anchor: str, environments: Environments) -> dict[str, Any]:
    """Return where a row comes from, and the commands that repeat its runs."""
    runs = [_run(r, entry.source, environments) for r in entry.row.records]
    return {
        "name": entry.row.name,
        "anchor": anchor,
        "bundles": ", ".join([entry.source.name, *entry.also]),
        "seeds": seeds(entry.row),
        "runs": runs,
        "command": next((run["command"] for run in runs if run["command"]), ""),
    }


def _run(record: Record, source: Source, environments: Environments) -> dict[str, Any]:
    """Return one run: a failed one is in the bundle, and has no command."""
    failed, key = "failure" in record, run_key(record["folder"])
    provenance = provenance_of(record)
    name = source.bundle.path.name
    return {
        "seed": f"{record['seed']} (failed)" if failed else str(record["seed"]),
        "command": "" if failed else shlex.join(["harness", "reproduce", name, "--run", key]),
        "failure": record.get("failure", ""),
        "environment": environments.number(provenance) if provenance else None,
    }


def _code_note(entries: Sequence[Entry]) -> Iterator[str]:
    """Yield the note on rows that different code of the harness computed."""
    codes: dict[str, list[str]] = {}
    for entry in entries:
        for record in entry.row.good:
            code = str((provenance_of(record).get("code") or {}).get("harness"))[:12]
            names = codes.setdefault(code, [])
            names.extend([entry.row.name] if entry.row.name not in names else [])
    if len(codes) > 1:
        texts = "; ".join(f"{code}: {', '.join(names)}" for code, names in codes.items())
        yield (
            f"Different code of the harness computed these rows ({texts}). Their start checkpoint,"
            " data, judge and baseline are equal by digest."
        )


def _tuning_notes(entries: Sequence[Entry]) -> list[str]:
    return [f"{entry.row.name}: {text}" for entry in entries for text in entry.tuning]


def _about(source: Source) -> dict[str, Any]:
    """Return a bundle's line: its study, runs, and what its study planned and lacks."""
    bundle = source.bundle
    folder = study_folder(bundle.results, bundle.study)
    cells = [c for c in read_cells(folder / CELLS) if not c["trial"]]
    planned = [c for c in cells if not c.get("refused")]
    ends = (RESULT, FAILURE)
    missing = [
        c for c in planned if not any((bundle.results / c["folder"] / end).exists() for end in ends)
    ]
    file = folder / "study.toml"
    return {
        "name": source.name,
        "study": bundle.study,
        "digest": bundle.digest,
        "finished": len(bundle.runs),
        "planned": len(planned),
        "missing": len(missing),
        "refused": [
            f"{c['label']} on {c['suite']}: {c['refused']}" for c in cells if c.get("refused")
        ],
        "command": shlex.join(["harness", "reproduce", bundle.path.name, "--sample", "1"]),
        "file": file.read_text(encoding="utf-8", errors="replace") if file.is_file() else "",
    }
