"""A filter of runs: by suite, study, judge, method or label, and option values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...core.errors import UsageError, unknown
from ...core.run_folder import flatten
from .run_files import spec_of

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Filter:
    """The runs to select: by suite, study, method or label, and option values."""

    suite: str | None = None
    study: str | None = None
    methods: Sequence[str] = ()
    where: Mapping[str, str] = field(default_factory=dict)  # {option: value}, as in a study file
    each: bool = False  # a row per run
    mixed: bool = False  # whether runs that are not comparable are allowed
    judge: str | None = None  # only runs that this judge evaluated

    @property
    def description(self) -> str:
        """The options and methods, `beta=0.1; only ppo, dpo`; empty if all runs are selected."""
        options = ", ".join(f"{name}={value}" for name, value in self.where.items())
        return "; ".join(
            filter(None, [options, f"only {', '.join(self.methods)}" if self.methods else ""])
        )


def names_of(records: Sequence[Record]) -> set[str]:
    """Return the names that select runs: methods, and labels of a study."""
    return {r["method"] for r in records} | {r["label"] for r in records if "label" in r}


def whole_names(parts: Sequence[str], known: set[str]) -> list[str]:
    """Return names from parts split at commas; known names that contain commas are joined again."""
    names: list[str] = []
    rest = list(parts)
    while rest:
        n = next((n for n in range(len(rest), 1, -1) if ", ".join(rest[:n]) in known), 1)
        names.append(", ".join(rest[:n]))
        rest = rest[n:]
    return names


def check_names(records: Sequence[Record], criteria: Filter) -> None:
    """Raise UsageError for a method, option or option value that no run has."""
    methods = names_of(records)
    for method in criteria.methods:
        if method not in methods:
            raise unknown("method with runs", method, methods)
    for name, value in criteria.where.items():
        values = [v for v in (_option(r, name) for r in records) if v is not None]
        if not values:
            raise unknown(
                "option of these runs", name, {o for r in records for o in _option_names(r)}
            )
        if not any(_written_as(v, value) for v in values):
            given = ", ".join(sorted({json.dumps(v).strip('"') for v in values}))
            raise UsageError(f"No run has {name}={value}. There are: {given}.")


def _option_names(record: Record) -> list[str]:
    spec = spec_of(record) if "failure" not in record else {}
    names: dict[str, Iterable[str]] = {
        "stage": flatten(spec.get("stages", {})),
        "labeller": spec.get("labeller_options", {}),
        "suite": record.get("suite_options", {}),
        "run": [name for name, value in spec.items() if not isinstance(value, Mapping | list)],
    }
    return [*record["options"], *(f"{head}.{n}" for head, own in names.items() for n in own)]


def is_wanted(record: Record, criteria: Filter) -> bool:
    """Return whether a record has a method or label, and the option values, of a filter."""
    if (
        criteria.methods
        and record["method"] not in criteria.methods
        and record.get("label") not in criteria.methods
    ):
        return False
    return all(_written_as(_option(record, name), value) for name, value in criteria.where.items())


def _option(record: Record, name: str) -> Any:
    """Return the value of an option: a method's, `suite.`, `labeller.`, `stage.STAGE.` or
    `run.NAME`; or None.
    """
    head, _, rest = name.partition(".")
    if head == "suite":
        return record.get("suite_options", {}).get(rest)
    if head == "stage":
        return flatten(spec_of(record).get("stages", {})).get(rest)
    if head == "labeller":
        return spec_of(record).get("labeller_options", {}).get(rest)
    if head == "run":
        spec = spec_of(record)
        return {**spec, **spec.get("execution", {})}.get(rest)
    return record["options"].get(name)


def _written_as(value: Any, text: str) -> bool:
    """Return whether a text on the command line names this value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return json.dumps(value).strip('"') == text
    try:
        return float(text) == value
    except ValueError:
        return False
