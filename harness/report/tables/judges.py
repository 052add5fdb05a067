"""Win-rates of several judges in one table: the same policies, and a column for each judge."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...core.errors import UsageError
from ..selection.comparable import own_reward, unlike
from ..selection.filters import Record
from ..selection.select import Row, Selection
from ..selection.task_runs import policy_of

OF_JUDGE = frozenset({"judge", "judge_model"})  # conditions that two judges may differ in
WIN_RATE = "win_rate"


def name_of(selection: Selection) -> str:
    """Return the judge by whose name a selection was made."""
    return str(selection.criteria.judge)


def check_judges(selections: Sequence[Selection]) -> None:
    """Raise UsageError if evaluations by several judges differ in more than the judge."""
    differ = unlike([record for selection in selections for record in selection.good])
    for name, values in differ.items():
        if name in OF_JUDGE:
            continue
        judges = " and ".join(map(name_of, selections))
        differences = "; ".join(f"{v}: {', '.join(sorted(set(n)))}" for v, n in values.items())
        raise UsageError(
            f"The evaluations by {judges} differ in {name}, so one table cannot hold both"
            f" ({differences}). Evaluate the runs again with equal options: harness evaluate RUN..."
            " --judge NAME."
        )


def policies_of(row: Row) -> frozenset[tuple[Any, ...]]:
    """Return what tells the policies of a row apart: method, options and weights of each run."""
    return frozenset(map(_policy, row.good))


def _policy(record: Record) -> tuple[Any, ...]:
    options = json.dumps(record["options"], sort_keys=True)
    named = (record["method"], record.get("label"), options, own_reward(record).get("weights"))
    return (*named, int(record["seed"]), *policy_of(record))


def add_judge(
    figures_by_row: Sequence[dict[str, Any]],
    rows: Sequence[Row],
    other: Selection,
    others: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Add the win-rates by another judge to the figures of the rows with the same policies.

    Args:
        figures_by_row: The figures of each row. They get `win_rate.NAME`, its interval and its
            bold type.
        rows: The rows.
        other: The runs that the other judge evaluated.
        others: The figures of its rows.

    Returns:
        The notes on rows of which the judge evaluated no policy, or not every one.
    """
    judge, notes = name_of(other), []
    by_policies = {policies_of(row): own for row, own in zip(other.rows, others, strict=True)}
    for figures, row in zip(figures_by_row, rows, strict=True):
        wanted = policies_of(row)
        match = next((p for p in by_policies if p & wanted), frozenset())
        for key, value in by_policies.get(match, {}).items():
            if key.removeprefix("no_").startswith(WIN_RATE):
                figures[key.replace(WIN_RATE, f"{WIN_RATE}.{judge}", 1)] = value
        if match != wanted:
            notes.append(
                f"The judge {judge} evaluated {len(match & wanted)} of {len(wanted)} runs of"
                f" {row.name}."
            )
    return notes


def judges_note(names: Sequence[str]) -> str:
    """Return the note on a table of several judges."""
    return (
        f"Columns of the judges {', '.join(names)} are of the same policies, prompts and sampling."
        f" All other columns that depend on a judge are those of {names[0]}. Each judge's column"
        " has bold type and tests of its own."
    )
