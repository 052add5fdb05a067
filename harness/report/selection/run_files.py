"""The files of recorded runs: read, checked, and left out where they are damaged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...core.records import Damaged, rerun, show_damaged
from ...core.run_folder import (
    PROVENANCE,
    RESULT,
    SAMPLES,
    SPEC,
    checked_bytes,
    read_beside,
    rows_behind,
)
from ...statistics.judges import no_win_rate
from .agreement import scores_of
from .record_shape import has_numbers, odd_part

Record = Mapping[str, Any]


OF_JUDGE = ("win_rate", "gold", "baseline_gold")  # figures that are a judge's verdicts


def withheld(record: Record) -> str:
    """Return why a run has no win-rate; empty where it has one, or has failed."""
    figures = record.get("evaluation")
    held_out = figures.get("judge") if isinstance(figures, Mapping) else None
    held_out = held_out.get("held_out") if isinstance(held_out, Mapping) else None
    return no_win_rate(held_out) if has_numbers(held_out, "accuracy", "low", "high") else ""


def length_is_bias(record: Record) -> bool:
    """Return whether length itself may move the scores of a run's judge. Older records do not tell:
    then it may.
    """
    judge = record.get("evaluation", {}).get("judge", {})
    return not isinstance(judge, Mapping) or judge.get("length_bias", True) is not False


def without_doubtful(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record without the verdicts of a judge that is not shown to be better than a coin.

    Records of older versions hold them.
    """
    if not withheld(record):
        return record
    figures = {k: v for k, v in record["evaluation"].items() if k not in OF_JUDGE}
    if "curve" in figures:
        figures["curve"] = [
            {k: v for k, v in point.items() if k not in OF_JUDGE} for point in figures["curve"]
        ]
    return {**record, "evaluation": figures}


def left_out(suite: str, damaged: Iterable[Damaged]) -> list[str]:
    """Return the notes on damaged files of a suite's runs."""
    return sorted({str(error) for error in damaged if suite_of(error) in (suite, "")})


def sound(records: Iterable[dict[str, Any]], damaged: list[Damaged]) -> list[dict[str, Any]]:
    """Return the records with intact files. The others are shown on stderr and added to
    `damaged`.
    """
    whole = []
    for record in records:
        try:
            check_files(record)
            whole.append(record)
        except Damaged as error:
            show_damaged(error)
            damaged.append(error)
    return whole


def check_files(record: Record) -> None:
    """Raise Damaged if the files of a finished run were changed or cannot be read."""
    if "failure" in record:
        return
    if odd := odd_part(record):
        result = Path(record["folder"]) / RESULT
        raise Damaged(result, f"{odd} is missing or invalid", rerun(result.parent))
    for name in (SPEC, PROVENANCE):
        read_beside(record, name)
    file = Path(record["folder"]) / SAMPLES
    if not file.exists():
        why = "it is missing: error bars and comparisons need the answers behind a run's figures"
        raise Damaged(file, why, rerun(file.parent))
    if SAMPLES in record.get("files", {}):
        checked_bytes(record, SAMPLES)
    else:  # an older record: no digest says that the answers are those of its figures
        scores_of(record, samples_of(record))


def spec_of(record: Record) -> dict[str, Any]:
    """Return the resolved spec beside a record."""
    return read_beside(record, SPEC)


def provenance_of(record: Record) -> dict[str, Any]:
    """Return the provenance of a run; empty if it has none."""
    there = (Path(record["folder"]) / PROVENANCE).exists()
    return read_beside(record, PROVENANCE) if there else {}


def samples_of(record: Record) -> list[dict[str, Any]]:
    """Return the answers of a run: a dict for each evaluated prompt."""
    file = Path(record["folder"]) / SAMPLES
    rows = rows_behind(record, SAMPLES)
    if not rows or not all("prompt_id" in row for row in rows):
        why = "it has no answers" if not rows else "a line is not an answer to a prompt"
        raise Damaged(file, why, rerun(file.parent))
    if withheld(record):
        columns = dict.fromkeys(("win", "gold", "baseline_gold"))
        return [row | columns for row in rows]
    return rows


def suite_of(error: Damaged) -> str:
    """Return the suite of the run that a damaged file belongs to; empty if it belongs to no run."""
    parts = error.path.parts
    at = len(parts) - 1 - parts[::-1].index("runs") if "runs" in parts else len(parts)
    return parts[at + 1] if at + 1 < len(parts) else ""
