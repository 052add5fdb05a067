"""Columns of a table for tasks of lm-evaluation-harness: the outcome, and the alignment tax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from ...core.errors import HarnessError, UsageError
from ...core.run_folder import TASKS, rows_behind
from ...statistics.intervals import Array, Estimate, two_way_interval
from ..selection.filters import Record
from ..selection.task_runs import record_behind

Outcomes = Mapping[int, float]  # of a task's main metric, by document
AGREE = 1e-6  # largest difference between a record's mean and that of its outcomes
LABELS = {"perplexity": "log-likelihood"}  # what lm-evaluation-harness keeps per document


def tasks_of(good: Sequence[Record]) -> list[str]:
    """Return the tasks that all runs of a row have, in order."""
    first = good[0]["evaluation"].get("tasks", {})
    return [name for name in first if all(name in r["evaluation"].get("tasks", {}) for r in good)]


def task_figures(good: Sequence[Record]) -> dict[str, Any]:
    """Return the figures of each task of a row: `task.NAME` and `tax.NAME`, with intervals.

    The tax is the outcome of the policy less that of the start checkpoint on the same documents.

    Raises:
        UsageError: Seeds of the row were given different documents.
        HarnessError: The outcomes are not those that the record was computed from.
    """
    figures: dict[str, Any] = {}
    for name in tasks_of(good) if good else ():
        about = [record["evaluation"]["tasks"][name] for record in good]
        figures[f"task.{name}.title"] = title(name, about[0])
        if any("missing" in one for one in about):
            figures[f"task.{name}.missing"] = about[0].get("missing", "")
        elif all("mean" in one for one in about):
            if len({one["documents_digest"] for one in about}) > 1:
                raise UsageError(f"The seeds of a row were given different documents of {name}.")
            figures[f"task.{name}.documents"] = about[0]["documents_digest"]
            figures |= _estimates(name, good)
        elif about[0]["aggregated"]:
            key = f"{about[0]['metric']},{about[0]['filter']}"
            figures[f"task.{name}"] = fmean(one["aggregated"][key] for one in about)
    return figures


def title(name: str, about: Mapping[str, Any]) -> str:
    """Return a task with its main metric."""
    metric = LABELS.get(about["metric"], about["metric"].replace("_", " "))
    return f"{name} ({metric})"


def _estimates(name: str, good: Sequence[Record]) -> dict[str, float]:
    ours, start = (_matrix(name, good, side) for side in ("metrics", "start"))
    return _named(f"task.{name}", two_way_interval(ours)) | _named(
        f"tax.{name}", two_way_interval(ours - start)
    )


def _named(name: str, interval: Estimate) -> dict[str, float]:
    ends = {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {name: interval.mean, **ends}


def _matrix(name: str, good: Sequence[Record], side: str) -> Array:
    """Return outcomes (S, D) of the documents that every run has on both sides."""
    by_run = [_outcomes(name, record) for record in good]
    documents = [d for d in by_run[0] if all(d in run for run in by_run)]
    return np.array([[run[d][side] for d in documents] for run in by_run], dtype=np.float64)


def _outcomes(name: str, record: Record) -> dict[int, dict[str, float]]:
    """Return the main outcomes of a run by document, of the policy and of the start."""
    about = record["evaluation"]["tasks"][name]
    metric, chosen = about["metric"], about["filter"]
    outcomes = {
        int(row["doc_id"]): {side: row[side][metric] for side in ("metrics", "start")}
        for row in rows_behind(record_behind(name, record), TASKS)
        if row["task"] == name and row["filter"] == chosen
    }
    kept = {document: both for document, both in outcomes.items() if None not in both.values()}
    mean = fmean(both["metrics"] for both in kept.values()) if kept else float("nan")
    if not abs(mean - about["mean"]) <= AGREE:
        raise HarnessError(
            f"{record_behind(name, record)['folder']}: the mean of {name} is {mean:.6g} in {TASKS}"
            f" and {about['mean']:.6g} in result.json. One of the files was changed: evaluate the"
            " run again."
        )
    return kept


def names_in(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return {task: title} of all rows of a table.

    Raises:
        UsageError: Rows were given different documents of a task.
    """
    titles: dict[str, str] = {}
    documents: dict[str, str] = {}
    for figures in rows:
        for key, value in figures.items():
            if key.startswith("task.") and key.endswith(".title"):
                titles.setdefault(key[5:-6], value)
            elif key.startswith("task.") and key.endswith(".documents"):
                name = key[5:-10]
                if documents.setdefault(name, value) != value:
                    raise UsageError(
                        f"Rows were given different documents of the task {name}. Evaluate them"
                        " again with the same --tasks and --task-data."
                    )
    return titles


def task_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the notes on tasks: what the tax is, and which rows have no outcome."""
    names = names_in(rows)
    if not names:
        return []
    notes = [
        "Tasks are those of lm-evaluation-harness. Alignment tax: the policy's outcome less the"
        " start checkpoint's, paired by document, with 95 % intervals; a log-likelihood is in nats"
        " per document."
    ]
    return notes + [
        f"{name} has no outcome of {row['method']}: {row[f'task.{name}.missing']}."
        for name in names
        for row in rows
        if f"task.{name}.missing" in row
    ]
