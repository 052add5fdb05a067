"""Run folders: one self-contained record per run, written atomically and readable without torch.

- spec.json: the resolved specification
- provenance.json: versions, machine, seeds, hashes
- metrics.jsonl: metrics per turn, deterministic; it grows while the run goes on
- rollouts.jsonl: a few completions of every turn, of methods that sample while they train
- samples.jsonl: prompt, the baseline's answer, the method's answer, scores
- tasks.jsonl: outcomes per document in tasks of lm-evaluation-harness, where there are any
- policy/: the trained model in hub format, or adapter/: its LoRA adapter in PEFT's format
- checkpoint/: only while the run is in progress
- result.json: the figures; the policy is saved after it
- failure.json: written instead when the run failed

The JSON files are sealed (`records.py`). result.json has the digests of the rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import HarnessError
from .files import ended_holder, write_text
from .live_rows import line_of
from .records import (
    CHANGED,
    Damaged,
    read_bytes,
    read_object,
    read_unchecked,
    rerun,
    rows_of,
    write_sealed,
)
from .spec import FORMER_METHODS, RunSpec, spec_from

if TYPE_CHECKING:
    import pandas as pd

# 1 called the baseline `reference` in results, `sft` in samples; 2 had no seals
SCHEMA = 3
SEALED = 3  # schemas from this on have seals
RESULT, FAILURE = "result.json", "failure.json"
ENDED = "ended without a word"  # status of a run that was killed, or that called os._exit
SPEC, PROVENANCE = "spec.json", "provenance.json"
TRACEBACK = "traceback.txt"
METRICS, SAMPLES, ROLLOUTS = "metrics.jsonl", "samples.jsonl", "rollouts.jsonl"
TASKS = "tasks.jsonl"
BASELINE_FIGURES = ("gold", "proxy", "accuracy", "length")  # of the baseline, in `evaluation`
_PARTS = ("evaluation", "ground", "cost")  # of a result, beside its heading
_OBJECTS = {SPEC: ("options", "stages", "budget"), PROVENANCE: ("versions", "code")}
BASELINE_COLUMNS = {"sft": "baseline", "sft_gold": "baseline_gold", "sft_proxy": "baseline_proxy"}


def write_spec(folder: Path, spec: RunSpec) -> None:
    """Write the resolved spec."""
    write_sealed(folder / SPEC, dataclasses.asdict(spec))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write JSON lines atomically; return their SHA-256."""
    text = "".join(map(line_of, rows))
    write_text(path, text)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; raise Damaged where the file holds anything else."""
    try:
        return rows_of(read_bytes(path, rerun(path.parent)))
    except ValueError as error:  # JSON and UTF-8 errors are ValueErrors
        raise Damaged(path, error, rerun(path.parent)) from error


def rows_behind(record: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the rows of METRICS or SAMPLES of a record; raise Damaged if their digest differs.

    Old records hold no digests: their rows are not checked.
    """
    path = Path(record["folder"]) / name
    content = checked_bytes(record, name)
    try:
        rows = rows_of(content)
    except ValueError as error:  # JSON and UTF-8 errors are ValueErrors
        raise Damaged(path, error, rerun(path.parent)) from error
    old = name == SAMPLES and record.get("schema", SCHEMA) < 2
    return [_renamed(row, BASELINE_COLUMNS) for row in rows] if old else rows


def checked_bytes(record: Mapping[str, Any], name: str) -> bytes:
    """Return the content of a file that has a digest in the record; raise Damaged if the digest
    differs.
    """
    path, recorded = Path(record["folder"]) / name, record.get("files", {}).get(name)
    content = read_bytes(path, rerun(path.parent))
    if recorded is not None and hashlib.sha256(content).hexdigest() != recorded:
        reason = f"not the {name} that result.json was made from: the file was changed"
        raise Damaged(path, reason, rerun(path.parent))
    return content


def read_beside(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return SPEC or PROVENANCE beside a record, which has its `folder`; raise Damaged."""
    folder = Path(record["folder"])
    values = read_object(folder / name, rerun(folder), has_seal(record))
    for key in _OBJECTS[name]:
        if not isinstance(values.get(key) or {}, dict):
            raise Damaged(folder / name, f"{key} is not an object", rerun(folder))
    return values


def has_seal(record: Mapping[str, Any]) -> bool:
    """Return whether the files of a record are sealed: those of older versions are not."""
    return bool(record.get("schema", 0) >= SEALED)


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the result of a finished run, or None; raise if it is damaged or of a newer schema."""
    return _read_record(folder / RESULT) if _exists(folder / RESULT) else None


def read_failure(folder: Path) -> dict[str, Any] | None:
    """Return the record of a failed run, or None."""
    return _read_record(folder / FAILURE) if _exists(folder / FAILURE) else None


def _exists(path: Path) -> bool:
    """Return whether a file exists. One without permission counts, so that reading it raises the
    error.
    """
    try:
        return path.exists()
    except OSError:
        return True


def _read_record(path: Path) -> dict[str, Any]:
    record, whole = read_unchecked(path, rerun(path.parent))
    schema = record.get("schema", 0)
    if not isinstance(schema, int):
        raise Damaged(path, "its schema is not a number", rerun(path.parent))
    if schema > SCHEMA and whole is not False:
        raise HarnessError(
            f"{path} was written by a newer harness (schema {schema}). Upgrade to read it."
        )
    if whole is False or (whole is None and has_seal(record)):
        raise Damaged(path, CHANGED, rerun(path.parent))
    if odd := _odd(record, path.name):
        raise Damaged(path, odd, rerun(path.parent))
    return _in_names_of_today(record) if schema < 2 else record


def _odd(record: Mapping[str, Any], name: str) -> str:
    """Return the missing parts of a record that every reader needs; empty if none is missing."""
    kinds: dict[str, type] = {"method": str, "suite": str, "recipe": str, "seed": int}
    kinds |= {"options": dict}
    kinds |= {"failure": str} if name == FAILURE else dict.fromkeys(_PARTS, dict)
    return next(
        (f"{key} is missing or odd" for key, kind in kinds.items() if not _is(record, key, kind)),
        "",
    )


def _is(record: Mapping[str, Any], key: str, kind: type) -> bool:
    return isinstance(record.get(key), kind)


def _in_names_of_today(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record of schema 1 with the names of schema 2; `schema` stays 1 for its samples."""
    names = {f"reference_{figure}": f"baseline_{figure}" for figure in BASELINE_FIGURES}
    answers = {"reference_answers": "baseline_answers"}
    parts = {"evaluation": names, "ground": answers, "artifacts": answers}
    renamed = {part: _renamed(record[part], new) for part, new in parts.items() if part in record}
    method = FORMER_METHODS.get(record.get("method", ""), record.get("method"))
    return record | renamed | {"method": method}


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in values.items()}


def runs(
    results: Path, damaged: list[Damaged] | None = None
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield (folder, record) of every run that ended: a failed one has `failure` in its record.

    A run that ended without a word has left neither result nor failure, and no process holds it.

    Args:
        results: The results folder.
        damaged: Damaged records are added to it. Without it, the first one is raised.
    """
    for folder in sorted((results / "runs").glob("*/*/*")):
        try:
            record = read_result(folder) or read_failure(folder) or _ended(folder)
        except Damaged as error:
            if damaged is None:
                raise
            damaged.append(error)
            continue
        if record is not None:
            yield folder, record


def heading(spec: RunSpec, status: str) -> dict[str, Any]:
    """Return what every record begins with."""
    return {
        "schema": SCHEMA,
        "status": status,
        "method": spec.method,
        "suite": spec.suite_name,
        "seed": spec.seed,
        "shared_seed": spec.shared_seed,
        "recipe": spec.recipe(),
        "recipe_of_any_ground": spec.recipe(any_ground=True),
        "start": spec.start,
        "options": dict(spec.options),
        "asked": list(spec.asked),
        "suite_options": dict(spec.suite_options),
        "quick": spec.quick,
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _ended(folder: Path) -> dict[str, Any] | None:
    """Return the record of a run that ended without a word; it hides no other of its recipe."""
    holder = ended_holder(folder)
    if not holder:
        return None
    try:
        spec = spec_from(read_object(folder / SPEC, rerun(folder)))
    except (ValueError, KeyError, TypeError, AttributeError):  # of another version
        return None
    message = f"The run {ENDED} ({holder}). The same command goes on with it."
    return heading(spec, ENDED) | {"failure": message, "finished_at": ""}


def unspent(record: Mapping[str, Any], completions: int) -> dict[str, float]:
    """Return {limit: amount left} if no limit of a run's budget was reached, else an empty dict.

    A limit of labels cuts preferences of `completions` each by whole prompts. It ends training only
    for methods that request labels. For other methods it is ignored beside another limit.
    """
    cost = record.get("cost", {})
    left: dict[str, float] = dict(cost.get("budget_left", {}))
    asks = any(cost.get("method", {}).get(name) for name in ("labels", "ai_labels"))
    limits = {
        name: rest for name, rest in left.items() if name != "labels" or asks or len(left) == 1
    }
    full = {
        name: rest < comb(completions, 2) if name == "labels" else rest <= 0
        for name, rest in limits.items()
    }
    return {} if any(full.values()) else left


def load_results(results: str | Path = "results") -> pd.DataFrame:
    """Return the runs below a results folder as one DataFrame.

    Each run is a row; nested figures are dotted columns. A warning names each damaged record.
    """
    import pandas as pd

    damaged: list[Damaged] = []
    records = runs(Path(results), damaged)
    rows = [{"folder": str(folder), **flatten(record)} for folder, record in records]
    for error in damaged:
        warnings.warn(str(error), stacklevel=2)
    return pd.DataFrame(rows)


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        flat.update(flatten(item, f"{name}.") if isinstance(item, Mapping) else {name: item})
    return flat


def provenance(plugins: Mapping[str, str]) -> dict[str, Any]:
    """Return versions, machine and command of a run; no environment variables, no secrets."""
    packages = (
        "alignment-harness",
        "torch",
        "transformers",
        "datasets",
        "accelerate",
        "tokenizers",
        "numpy",
        "pandas",
    )
    return {
        "versions": (
            {"python": platform.python_version()} | {name: _version(name) for name in packages}
        ),
        "plugins": dict(plugins),
        "machine": {
            "system": platform.platform(),
            "processor": processor(),
            "cores": os.cpu_count(),
        },
        "git": _git_state(),
        "command": [Path(sys.argv[0]).name, *map(_from_here, sys.argv[1:])],
    }


def _from_here(word: str) -> str:
    """Return a path below the current folder relative to it: a record is read on other machines."""
    here = f"{Path.cwd()}{os.sep}"
    return word.removeprefix(here) or word


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def processor() -> str:
    """Return the name of this machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _git_state() -> dict[str, Any] | None:
    """Return the commit of the repository with this source, and whether files differ from it."""
    root = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            encoding="utf-8",
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        tracked = git("ls-files", "--error-unmatch", str(Path(__file__)))
        return (
            {"commit": commit, "dirty": bool(git("status", "--porcelain"))}
            if commit and tracked
            else None
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
