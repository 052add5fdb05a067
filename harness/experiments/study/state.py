"""The progress of a study, read from the records in its run folders, and the estimated cost of what
is left.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from ...core import run_folder
from ...core.errors import UsageError
from ...core.records import (
    ANEW,
    Damaged,
    parsed,
    read_bytes,
    read_object,
    show_damaged,
)
from ...core.spec import RunSpec
from .cells import Cell

DONE, FAILED, LEFT, REFUSED = "done", "failed", "left", "refused"
CLASSES = {
    "failed": "error"
}  # what a record's status is called here; the others are called what they are
DAMAGED = "damaged"  # class of a cell with an unreadable record
CELLS, TUNING = "cells.json", "tune.json"
# seconds of imports and of loading the embedded model, without a record to estimate from
LOADING = 8.0
SHARED = "(shared stages)"  # in costs.csv, in place of a method


@dataclass(frozen=True)
class State:
    """The state of a cell. A failure has a class: diverged, out of memory, error, refused,
    killed.
    """

    status: str
    kind: str = ""
    message: str = ""


def state_of(cell: Cell, results: Path) -> State:
    """Return the state of a cell, from the files in its run folder."""
    if cell.refused:
        return State(REFUSED, "refused", cell.refused)
    folder = results / cell.spec.folder
    try:
        if run_folder.read_result(folder) is not None:
            return State(DONE)
        failed = run_folder.read_failure(folder)
    except Damaged as error:
        return State(FAILED, DAMAGED, str(error))
    if failed is None:
        return State(LEFT)
    status = str(failed.get("status"))
    return State(FAILED, CLASSES.get(status, status), str(failed.get("failure")))


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of a run, from earlier runs; its own part, without shared stages."""

    cpu_seconds: float
    flops: float
    elsewhere: bool = False  # measured on another machine, with the suite's own settings


@cache
def shipped() -> dict[tuple[str, str], Estimate]:
    """Return {(method, suite): mean cost} of the harness's own main study: `python
    results/costs.py` writes it.
    """
    with (Path(__file__).parent / "costs.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        (row["method"], row["suite"]): Estimate(
            float(row["cpu_seconds"]), float(row["flops"]), elsewhere=True
        )
        for row in rows
    }


class Estimates:
    """Estimates from finished runs of the same recipe, or else of the same method and suite.
    Without either, those of the harness's own study are used, unless the run is quick or of another
    model.
    """

    def __init__(self, results: Path) -> None:
        self._recipes: dict[str, list[Mapping[str, Any]]] = {}
        self._methods: dict[tuple[str, str, bool], list[Mapping[str, Any]]] = {}
        self._suites: dict[tuple[str, bool], list[Mapping[str, Any]]] = {}
        for _, record in run_folder.runs(results, []):  # `table` reports damaged records
            if "failure" not in record:
                self._recipes.setdefault(record["recipe"], []).append(record)
                self._methods.setdefault(
                    (record["method"], record["suite"], record.get("quick", False)), []
                ).append(record)
                self._suites.setdefault((record["suite"], record.get("quick", False)), []).append(
                    record
                )

    def elsewhere(self, cell: Cell) -> bool:
        """Return whether the same settings and seed were run to the end by other code."""
        return any(r["seed"] == cell.spec.seed for r in self._recipes.get(cell.spec.recipe(), []))

    def of(self, spec: RunSpec) -> Estimate | None:
        """Return the estimated cost of a run, or None without a run to estimate from."""
        records = self._alike(spec)
        if not records:
            plain = not spec.quick and spec.model is None
            return shipped().get((spec.method, spec.suite_name)) if plain else None
        parts = [(r["cost"]["method"], r["cost"]["evaluation"]) for r in records]
        seconds, flops = (
            fmean(m[name] + e[name] for m, e in parts) for name in ("cpu_seconds", "flops")
        )
        return Estimate(seconds, flops)

    def _alike(self, spec: RunSpec) -> list[Mapping[str, Any]]:
        """Return the finished runs of the same recipe, else of the same method and suite."""
        alike = (spec.method, spec.suite_name, spec.quick)
        return self._recipes.get(spec.recipe()) or self._methods.get(alike) or []

    def seconds_of(self, spec: RunSpec) -> float | None:
        """Return the wall seconds of a run without its shared stages, or None without a run to
        estimate from. Records without a wall time, and the shipped estimates, give CPU seconds
        instead.
        """
        walls = [w for w in map(_wall, self._alike(spec)) if w]
        if walls:
            return fmean(sum(w.values()) - w["stages"] for w in walls)
        state = self.of(spec)
        return None if state is None else state.cpu_seconds + LOADING

    def stage_seconds_of(self, spec: RunSpec) -> float | None:
        """Return the seconds of all shared stages of a suite, or None without a run to estimate
        from.
        """
        records = self._suites.get((spec.suite_name, spec.quick), [])
        seconds = [_wall(r).get("stages", 0.0) for r in records]
        seconds += [r["cost"].get("shared_total", {}).get("cpu_seconds", 0.0) for r in records]
        if any(seconds):
            return float(max(seconds))  # a method without a reward model needs fewer of them
        shared = shipped().get((SHARED, spec.suite_name))
        plain = not spec.quick and spec.model is None
        return shared.cpu_seconds if shared and plain else None


def _wall(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the wall seconds of a record by part; empty where it has none."""
    return dict(record["cost"].get("wall", {}))


def study_folder(results: Path, name: str) -> Path:
    """Return the folder of a study's own files; its runs are stored like any others."""
    return results / "studies" / name


def cells_json(cells: Iterable[Cell]) -> dict[str, Any]:
    """Return the stored form of the cells of a study."""
    rows = [
        {
            "label": c.label,
            "entry": c.entry,
            "method": c.spec.method,
            "suite": c.spec.suite_name,
            "seed": c.spec.seed,
            "fingerprint": c.fingerprint,
            "folder": str(c.spec.folder),
            "trial": c.trial,
            "refused": c.refused,
        }
        for c in cells
    ]
    return {"cells": rows}


@dataclass(frozen=True)
class Place:
    """The place of a run in its study's tables."""

    label: str  # of its row
    entry: str  # of the study file that this is a setting of


def places_of(results: Path, name: str) -> dict[str, Place]:
    """Return {run folder: place} of the runs in a study's table: no trials and no refused runs."""
    cells = [c for c in _finals(results, name) if not c["refused"]]
    return {str(results / c["folder"]): Place(c["label"], c["entry"]) for c in cells}


def refused_of(results: Path, name: str, suite: str) -> dict[str, str]:
    """Return {label: reason} of the study's entries that a suite cannot serve."""
    return {
        c["label"]: c["refused"]
        for c in _finals(results, name)
        if c["refused"] and c["suite"] == suite
    }


def _finals(results: Path, name: str) -> list[dict[str, Any]]:
    """Return the stored cells of a study without trials; those of older versions have fewer
    keys.
    """
    file = study_folder(results, name) / CELLS
    if not file.is_file():
        known = sorted(f.parent.name for f in file.parent.parent.glob(f"*/{CELLS}"))
        raise UsageError(
            f"There is no study {name!r} below {results}. Known: {', '.join(known) or 'none'}."
        )
    return [
        {
            "label": c["label"],
            "entry": c.get("entry", c["label"]),
            "suite": c["suite"],
            "folder": c["folder"],
            "refused": c.get("refused", ""),
        }
        for c in read_cells(file)
        if not c["trial"]
    ]


def read_cells(file: Path) -> list[dict[str, Any]]:
    """Return the cells in CELLS; raise Damaged. Older versions wrote a list without a seal."""
    try:
        content = parsed(read_bytes(file, ANEW))
        cells = content if isinstance(content, list) else read_object(file, ANEW)["cells"]
        for cell in cells:
            texts = [cell[name] for name in ("label", "suite", "folder")]
            if not all(isinstance(t, str) for t in texts) or not isinstance(cell["trial"], bool):
                raise ValueError("a cell is odd")
        return list(cells)
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(file, error, ANEW) from error


def read_tuning(file: Path) -> dict[str, Any]:
    """Return what TUNING holds; empty where there is none.

    A damaged file is shown on stderr, and tables have no notes on tuning.
    """
    if not file.exists():
        return {}
    try:
        tuning = read_object(file, ANEW)
        _check_tuning(tuning)
        return tuning
    except Damaged as error:
        show_damaged(error)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        show_damaged(Damaged(file, error, ANEW))
    return {}


def _check_tuning(tuning: Mapping[str, Any]) -> None:
    """Raise KeyError, TypeError or AttributeError for anything but a record of tuning."""
    tuning["trials"], tuning["seed"], tuning["rule"]
    for search in tuning["searches"]:
        search["method"], search["suite"], search["chosen"], search["row"]
        for trial in search["trials"]:
            trial["status"], trial["options"].items()
