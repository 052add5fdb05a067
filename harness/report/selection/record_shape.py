"""The fields of a result that tables, plots and pages need: figures are numbers, and none is
missing.

A seal shows that a record was not changed. It does not show that this version of the harness wrote
it: another version, a script or a person may have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]


def number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return plain and abs(value) <= 1e300 and math.isfinite(value)


def has_numbers(value: Any, *names: str) -> bool:
    """Return whether a value is an object with a finite number under each name."""
    return isinstance(value, Mapping) and all(number(value.get(name)) for name in names)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _estimate(value: Any) -> bool:
    """Return whether a value is an estimate with its interval, or the marker of a missing one."""
    return value is None or _object(mean=number)(value)


def _object(**parts: Check) -> Check:
    """Return a check for an object with these parts."""
    return lambda value: (
        isinstance(value, Mapping)
        and all(name in value and check(value[name]) for name, check in parts.items())
    )


def _all(check: Check) -> Check:
    """Return a check that applies another check to every value of an object."""
    return lambda value: isinstance(value, Mapping) and all(map(check, value.values()))


def _points(value: Any) -> bool:
    return isinstance(value, list) and all(map(_all(number), value))


def _both(one: Check, other: Check) -> Check:
    return lambda value: one(value) and other(value)


COSTS = (
    *("seconds", "cpu_seconds", "flops", "tokens_generated", "tokens_trained", "peak_memory"),
    *("reward_queries", "verifier_queries"),
)
REQUIRED: dict[str, Check] = {
    "cost.method": _both(_all(number), _object(**dict.fromkeys(COSTS, number))),
    "cost.models": _all(_object(parameters=number, bytes=number)),
    "cost.labels": number,
    "cost.ai_labels": number,
    "cost.shared_total": _object(seconds=number, flops=number),
    "evaluation": lambda value: (
        isinstance(value, Mapping) and _text(value.get("kl_estimator", value.get("kl_missing")))
    ),
    "evaluation.eos_rate": number,
    "evaluation.prompts": number,
    "evaluation.split": _text,
    "evaluation.temperature": number,
    "evaluation.distinct": number,
    "evaluation.inference": _object(flops_per_answer=number, reward_queries_per_answer=number),
    "ground": _both(_all(_text), _object(start_checkpoint=_text, evaluation_prompts=_text)),
}
WHERE_THERE: dict[str, Check] = {
    **{f"evaluation.{name}": _estimate for name in ("win_rate", "gold", "proxy", "kl", "length")},
    "evaluation.accuracy": _object(mean=number),
    "evaluation.pass_at_k": _all(_object(mean=number)),
    "evaluation.maj_at_k": _all(_object(mean=number)),
    "evaluation.mean_of_answers": _object(mean=number),
    "evaluation.curve": _points,
    "artifacts": _all(_object()),
    "files": _all(_text),
    "asked": lambda value: isinstance(value, list) and all(map(_text, value)),
    "suite_options": _object(),
}


def odd_part(record: Mapping[str, Any]) -> str:
    """Return the name of the first part that readers cannot read; empty if there is none."""
    for name, check in REQUIRED.items():
        if not check(_part(record, name)):
            return name
    there = ((name, check, _part(record, name, MISSING)) for name, check in WHERE_THERE.items())
    return next(
        (name for name, check, part in there if part is not MISSING and not check(part)), ""
    )


MISSING = object()


def _part(record: Mapping[str, Any], name: str, other: Any = None) -> Any:
    for key in name.split("."):
        record = record.get(key, other) if isinstance(record, Mapping) else other
    return record
