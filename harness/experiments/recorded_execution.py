"""How a recorded run was computed, so that a reproduction computes each part in the same way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.execution import EVALUATION, TRAINING, Execution, from_record

Settings = Mapping[str, Any]  # of a record or a manifest


@dataclass(frozen=True)
class ExecutionPlan:
    """The settings to compute with, by part of a run, and what cannot be repeated."""

    parts: Mapping[str, Execution] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def processes(self) -> int:
        """How many processes it takes."""
        return max((one.processes for one in self.parts.values()), default=1)

    def of(self, part: str, otherwise: Execution) -> Execution:
        """Return the settings of a part."""
        return self.parts.get(part, otherwise)


def execution_plan_of(record: Mapping[str, Any], hardware: str) -> ExecutionPlan:
    """Return how to compute a run again: each part with its recorded settings.

    Args:
        record: The run's result.
        hardware: The processor of this machine.
    """
    recorded = record.get("execution")
    if not recorded:
        return ExecutionPlan(
            notes=("the record holds no execution settings: those of its spec are used",)
        )
    used: dict[str, list[Settings]] = {
        TRAINING: recorded[TRAINING],
        EVALUATION: [recorded[EVALUATION]],
    }
    for name, pin in record.get("pins", {}).items():
        used[name] = pin["execution"]
        used.setdefault(pin["kind"], pin["execution"])  # where code has changed, and so the names
    parts = {part: from_record(settings[-1]) for part, settings in used.items() if settings}
    return ExecutionPlan(parts, tuple(_notes(record, used, parts, hardware)))


def _notes(
    record: Mapping[str, Any],
    used: Mapping[str, list[Settings]],
    parts: Mapping[str, Execution],
    hardware: str,
) -> Iterator[str]:
    named = {TRAINING, EVALUATION, *record.get("pins", {})} & used.keys()
    for part in sorted(name for name in named if len(used[name]) > 1):
        yield f"{part} was resumed with other execution settings: the last ones are used throughout"
    counts = {parts[name].processes for name in named if name in parts}
    if len(counts - {1}) > 1:
        yield f"parts were made by {', '.join(map(str, sorted(counts)))} processes"
    others = {str(s["hardware"]) for name in named for s in used[name]} - {hardware}
    if others:
        yield f"it was computed on {', '.join(sorted(others))}; here is {hardware}"
