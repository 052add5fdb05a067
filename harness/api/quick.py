"""What `--quick` changes: a suite's own values, wherever they are lower than those of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.options import options_of

# Options in which 0 or None means no limit, or the default of another class: any value is lower.
WITHOUT_LIMIT = frozenset({"steps", "max_rows", "rows_per_part", "labels", "batch_size"})

Quick = Mapping[str, Mapping[str, Any]]  # by "suite", "stage.NAME", a method's name, or "*"


def lowered(values: Mapping[str, Any], quick: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """Return the quick values that are lower than the values of a run.

    Args:
        values: The values that differ from the defaults.
        quick: The values of a quick run.
        cls: The dataclass with the options and their defaults.
    """
    known = options_of(cls)
    return {
        name: value
        for name, value in quick.items()
        if name in known and _lowers(name, value, values.get(name, known[name].default))
    }


def quick_method(quick: Quick, cls: type, name: str) -> dict[str, Any]:
    """Return what `--quick` changes for a method: `*` for whatever it has of that, the entry under
    its name over it.
    """
    common = {k: v for k, v in quick.get("*", {}).items() if k in options_of(cls)}
    return common | dict(quick.get(name, {}))


def _lowers(name: str, value: Any, current: Any) -> bool:
    if not current:
        return name in WITHOUT_LIMIT
    return isinstance(current, int | float) and value < current
