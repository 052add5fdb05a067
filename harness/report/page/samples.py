"""Data of the sample browser: prompts, baseline answers (stored once), and every row's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...core.errors import HarnessError
from ..selection.filters import Record
from ..selection.run_files import samples_of
from ..selection.select import Selection
from .sections import Section

Samples = Mapping[str, Mapping[str, Any]]  # by prompt id
# {here: in samples.jsonl}
SHARED = {"prompt": "prompt", "baseline": "baseline", "gold": "baseline_gold"}
PROXY = "baseline_proxy"  # shared as well, except by rows with reward models of the hub
DIGITS = 6  # decimals of figures that are only shown; gold decides outcomes and keeps all digits


def browser(sections: Sequence[Section], prompts: int) -> list[dict[str, Any]]:
    """Return the first prompts of each section, as columns, and the runs of every row."""
    return [_suite(section, prompts) for section in sections]


def _suite(section: Section, limit: int) -> dict[str, Any]:
    selection = section.selection
    runs = {str(r["folder"]): _by_id(r) for r in selection.good}
    known = _prompts(selection, runs)
    ids = list(known)[:limit]
    shared = {name: [known[i].get(key) for i in ids] for name, key in SHARED.items()}
    shared["proxy"] = [_common_proxy(runs, i) for i in ids]
    rows = [
        {"name": row.name, "runs": [_run(r, runs[str(r["folder"])], ids) for r in row.good]}
        for row in selection.rows
        if row.good
    ]
    return {
        "title": section.title,
        "total": len(known),
        "prompts": {"id": ids, **shared},
        "rows": rows,
    }


def _common_proxy(runs: Mapping[str, Samples], prompt: str) -> Any:
    """Return the proxy score of the baseline's answer; None where runs have two reward models."""
    scores = {samples[prompt].get(PROXY) for samples in runs.values() if prompt in samples}
    return scores.pop() if len(scores) == 1 else None


def _by_id(record: Record) -> Samples:
    return {str(s["prompt_id"]): s for s in samples_of(record)}


def _prompts(selection: Selection, runs: Mapping[str, Samples]) -> Samples:
    """Return every prompt by id; raise HarnessError if runs have different texts for an id."""
    known: dict[str, Mapping[str, Any]] = {}
    for folder, samples in runs.items():
        for name, sample in samples.items():
            first = known.setdefault(name, sample)
            if any(first.get(key) != sample.get(key) for key in SHARED.values()):
                raise HarnessError(
                    f"{folder}: prompt {name}, or the baseline's answer to it, differs from the"
                    f" other runs of {selection.suite}, although their inputs have the same"
                    " digests. Delete the folder and run again."
                )
    return known


def _run(record: Record, samples: Samples, ids: Sequence[str]) -> dict[str, Any]:
    answers = [samples.get(i, {}) for i in ids]
    figures = {name: [_short(s.get(name)) for s in answers] for name in ("proxy", "kl")}
    kept = {name: [s.get(name) for s in answers] for name in ("answer", "gold", "length", "ended")}
    return {"seed": record["seed"], **kept, **figures}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")
