"""The settings of rows, their costs by phase, and failed runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ...core.data_report import recorded
from ...core.run_folder import flatten
from ...experiments.study.state import CLASSES
from ..selection.filters import Record
from ..selection.run_files import spec_of
from ..selection.select import Row, Selection, is_guest
from ..tables.footnotes import settings_of

SHARED = (
    "suite_options",
    "stages",
    "model",
    "start",
    "reference",
    "budget",
    "engine",
    "judge",
    "labeller",
    "labeller_options",
    "dtype",
    "weights",
    "prompt_sharing",
    "snapshots",
    "quick",
)  # the fields of a spec that do not belong to the method


@dataclass(frozen=True)
class Option:
    """An option of a row."""

    name: str
    value: str
    differs: bool  # whether it differs from another row
    set_by_hand: bool  # whether it differs from the method's default


def text_of(value: Any) -> str:
    """Return the value of an option as text for the command line, with all digits."""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return json.dumps(value).strip('"')


def options(selection: Selection) -> list[list[Option]]:
    """Return the options of every row."""
    values: dict[str, set[str]] = {}
    for row in selection.rows:
        for name, value in _options(row):
            values.setdefault(name, set()).add(value)
    return [
        [
            Option(name, value, len(values[name]) > 1, name in row.records[0].get("asked", ()))
            for name, value in own
        ]
        for row, own in ((row, _options(row)) for row in selection.rows)
    ]


def _options(row: Row) -> list[tuple[str, str]]:
    return [(name, text_of(value)) for name, value in row.records[0]["options"].items()]


def seeds(row: Row) -> str:
    """Return the seeds of a row; failed ones are marked."""
    texts = [
        f"{r['seed']} (failed)" if "failure" in r else str(r["seed"]) for r in _by_seed(row.records)
    ]
    return ", ".join(texts)


def _by_seed(records: Iterable[Record]) -> list[Record]:
    return sorted(records, key=lambda r: int(r["seed"]))


def shared_settings(selection: Selection) -> list[tuple[str, str]]:
    """Return the settings that methods share; if rows differ, every value with its rows."""
    by_name: dict[str, dict[str, list[str]]] = {}
    for row in selection.rows:
        for r in row.records:
            for name, value in _shared(r):
                rows = by_name.setdefault(name, {}).setdefault(value, [])
                rows.extend([row.name] if row.name not in rows else [])
    return [(name, _values_text(values)) for name, values in by_name.items()]


def _shared(record: Record) -> list[tuple[str, str]]:
    if not (Path(record["folder"]) / "spec.json").is_file():
        return []
    spec = spec_of(record)
    flat = flatten({name: spec[name] for name in SHARED if name in spec})
    used = {name: " then ".join(map(str, v)) for name, v in settings_of(record).items()}
    return [
        *((name, text_of(value)) for name, value in flat.items() if value is not None),
        *used.items(),
    ]


def _values_text(values: Mapping[str, Sequence[str]]) -> str:
    if len(values) == 1:
        return next(iter(values))
    return "; ".join(f"{value} ({', '.join(rows)})" for value, rows in values.items())


# -- failed runs and costs ------------------------------------------------------------------------


def data_lines(selection: Selection) -> list[str]:
    """Return the lines on the runs' data: rows read, skipped, dropped and cut; each line once."""
    reports = [recorded(r["data"]) for r in selection.records if r.get("data")]
    return list(dict.fromkeys(line for r in reports for line in [*r.lines(), *r.warnings()]))


def failures(selection: Selection) -> list[dict[str, str]]:
    """Return the failed runs: row, seed, class, message."""
    return [
        {"row": row.name, "seed": str(r["seed"]), "kind": _kind(r), "message": str(r["failure"])}
        for row in selection.rows
        for r in _by_seed(row.failed)
    ]


def _kind(record: Record) -> str:
    status = str(record.get("status", "failed"))
    return CLASSES.get(status, status)


def costs(selection: Selection) -> dict[str, Any]:
    """Return the CPU seconds and TFLOP of rows by phase, and of stages, as means over seeds."""
    phases = dict.fromkeys(name for r in selection.good for name in r["cost"].get("phases", {}))
    rows = []
    for row in selection.rows:
        if row.good:
            own = [
                _cost([r["cost"].get("phases", {}).get(phase) for r in row.good])
                for phase in phases
            ]
            rows.append(
                {
                    "name": row.name,
                    "phases": own,
                    "method": _cost(
                        [None if is_guest(r) else r["cost"]["method"] for r in row.good]
                    ),
                }
            )
    stages = dict.fromkeys(name for r in selection.good for name in r["cost"].get("shared", {}))
    stage_costs = [
        (stage, _cost([r["cost"].get("shared", {}).get(stage) for r in selection.good]))
        for stage in stages
    ]
    return {"phases": list(phases), "rows": rows, "stages": stage_costs}


def _cost(costs: Sequence[Mapping[str, float] | None]) -> tuple[str, str]:
    """Return the mean CPU seconds and TFLOP of the runs with this phase."""
    known = [cost for cost in costs if cost is not None]
    if not known:
        return "-", "-"
    return (
        f"{fmean(c['cpu_seconds'] for c in known):.1f}",
        f"{fmean(c['flops'] for c in known) / 1e12:.3g}",
    )
