"""Tasks of lm-evaluation-harness that were evaluated at different times on the same policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
BEHIND = "behind"  # of a task in a record: the record of the run that holds its outcomes


def with_tasks_of(newest: dict[str, Any], others: Sequence[Record]) -> dict[str, Any]:
    """Return the newest record of a row's seed, with the tasks that only older evaluations have.

    Those of another policy, such as one that another version of the code trained, are left out.

    Args:
        newest: The record that tables show.
        others: Older records of the same recipe and seed.
    """
    tasks = dict(newest.get("evaluation", {}).get("tasks", {}))
    first = len(tasks)
    for other in sorted(others, key=lambda r: str(r.get("finished_at", "")), reverse=True):
        if policy_of(other) == policy_of(newest):
            for name, about in other.get("evaluation", {}).get("tasks", {}).items():
                tasks.setdefault(name, {**about, BEHIND: other})
    if len(tasks) == first:
        return newest
    return {**newest, "evaluation": {**newest["evaluation"], "tasks": tasks}}


def policy_of(record: Record) -> tuple[str, ...]:
    """Return what tells policies apart: the digest of the weights, or, for methods that train
    none, those of the start checkpoint and of a guest.
    """
    pins = record.get("pins") or {}
    weights = sorted(str(pin["content"]) for pin in pins.values() if pin.get("kind") == "policy")
    ground = str(record.get("ground", {}).get("start_checkpoint"))
    return (*weights, ground, str(record.get("guest", "")))


def record_behind(name: str, record: Record) -> Record:
    """Return the record of the run whose file holds the outcomes of a task."""
    behind: Record = record["evaluation"]["tasks"][name].get(BEHIND, record)
    return behind
