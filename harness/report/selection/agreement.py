"""Whether the scores of a run's answers agree with the figures of its record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ...core.records import Damaged, rerun
from ...core.run_folder import SAMPLES
from ...statistics.over_prompts import known

MEANS = ("gold", "proxy", "kl", "length", "accuracy")  # of an answer, beside the win-rate
AGREE = 1e-6  # largest difference between a record's mean and that of its answers


def scores_of(
    record: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> dict[str, list[float] | None]:
    """Return `win` and the figures of MEANS by answer, NaN where one is missing; None where all
    are.

    Raises:
        Damaged: The answers lack a score of the record, or have another mean.
    """
    columns = {name: _column(samples, name) for name in ("win", *MEANS)}
    figures = record["evaluation"]
    means = {"win": figures.get("win_rate")} | {name: figures.get(name) for name in MEANS}
    for name, recorded in means.items():
        values = columns[name]
        if recorded is None or (values is None and name not in ("win", "gold")):
            continue
        if values is None:
            raise _damaged(record, f"its answers have no {name} scores")
        if abs(mean_of(values) - recorded["mean"]) > AGREE:
            raise _damaged(
                record,
                f"the mean of {name} is {mean_of(values):.6g} here and {recorded['mean']:.6g} in"
                " result.json",
            )
    return columns


def _damaged(record: Mapping[str, Any], why: str) -> Damaged:
    file = Path(record["folder"]) / SAMPLES
    return Damaged(file, why, rerun(file.parent))


def _column(samples: Sequence[Mapping[str, Any]], name: str) -> list[float] | None:
    values = [s.get(name) for s in samples]
    if all(v is None for v in values):
        return None
    return [math.nan if v is None else float(v) for v in values]


def mean_of(values: Sequence[float]) -> float:
    """Return the mean of the values that are not missing."""
    return fmean(known(values))
