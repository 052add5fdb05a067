"""Run folders: one self-contained record per run, written atomically and readable without torch.

- spec.json: the resolved specification
- provenance.json: versions, machine, seeds, hashes
- metrics.jsonl: metrics per turn, deterministic; it grows while the run goes on
- rollouts.jsonl: a few completions of every turn, of methods that sample while they train
- samples.jsonl: prompt, the baseline's answer, the method's answer, scores
- policy/: the trained model in hub format, or adapter/: its LoRA adapter in PEFT's format
- checkpoint/: only while the run is in progress
- result.json: the figures; the policy is saved after it
- failure.json: written instead when the run failed
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import HarnessError
from .files import ended_holder, write_json, write_text
from .live_rows import line_of
from .spec import FORMER_METHODS, RunSpec, spec_from

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 2  # 1 called the baseline `reference` in results, `sft` in samples
RESULT, FAILURE = "result.json", "failure.json"
ENDED = "ended without a word"  # status of a run that was killed, or that called os._exit
TRACEBACK = "traceback.txt"
METRICS, SAMPLES, ROLLOUTS = "metrics.jsonl", "samples.jsonl", "rollouts.jsonl"
BASELINE_FIGURES = ("gold", "proxy", "accuracy", "length")  # of the baseline, in `evaluation`
BASELINE_COLUMNS = {"sft": "baseline", "sft_gold": "baseline_gold", "sft_proxy": "baseline_proxy"}


def write_spec(folder: Path, spec: RunSpec) -> None:
    """Write the resolved spec."""
    write_json(folder / "spec.json", dataclasses.asdict(spec))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write JSON lines atomically; return their SHA-256."""
    text = "".join(map(line_of, rows))
    write_text(path, text)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return _rows_of(path.read_bytes())


def _rows_of(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.decode("utf-8").splitlines()]


def rows_behind(record: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the rows of METRICS or SAMPLES of a record; raise HarnessError if their digest
    differs.

    Old records hold no digests: their rows are not checked.
    """
    path, recorded = Path(record["folder"]) / name, record.get("files", {}).get(name)
    content = path.read_bytes()
    try:
        if recorded is not None and hashlib.sha256(content).hexdigest() != recorded:
            raise ValueError(f"not the {name} that result.json was made from: the file was changed")
        rows = _rows_of(content)
    except ValueError as error:  # JSON and UTF-8 errors are ValueErrors
        raise HarnessError(
            f"{path} is damaged ({error}). Delete the folder {path.parent} and run again."
        ) from error
    old = name == SAMPLES and record.get("schema", SCHEMA) < 2
    return [_renamed(row, BASELINE_COLUMNS) for row in rows] if old else rows


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the result of a finished run, or None; raise if it is damaged or of a newer schema."""
    path = folder / RESULT
    if not path.exists():
        return None
    return _read_record(path)


def read_failure(folder: Path) -> dict[str, Any] | None:
    """Return the record of a failed run, or None."""
    return _read_record(folder / FAILURE) if (folder / FAILURE).exists() else None


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("not an object")
    except ValueError as error:  # JSON and UTF-8 errors are ValueErrors
        raise HarnessError(
            f"{path} is damaged ({error}). Delete the folder {path.parent} and run again."
        ) from error
    if record.get("schema", 0) > SCHEMA:
        raise HarnessError(
            f"{path} was written by a newer harness (schema {record['schema']}). Upgrade to"
            " read it."
        )
    return _in_names_of_today(record) if record.get("schema", 0) < SCHEMA else record


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


def runs(results: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield (folder, record) of every run that ended: a failed one has `failure` in its record.

    A run that ended without a word has left neither result nor failure, and no process holds it.
    """
    for folder in sorted((results / "runs").glob("*/*/*")):
        result = read_result(folder)
        if result is not None:
            yield folder, result
        elif (failed := read_failure(folder) or _ended(folder)) is not None:
            yield folder, failed


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
        spec = spec_from(json.loads((folder / "spec.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):  # of another version, or damaged
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

    Each run is a row; nested figures are dotted columns.
    """
    import pandas as pd

    rows = [{"folder": str(folder), **flatten(record)} for folder, record in runs(Path(results))]
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
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def processor() -> str:
    """Return what the processor of this machine is called."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _git_state() -> dict[str, Any] | None:
    """Return the commit of the repository with this source, and whether files differ from it."""
    root = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
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
