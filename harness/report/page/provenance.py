"""Provenance: each environment, the folder and command of every run, and the study's files."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...experiments.study.state import CELLS, TUNING, read_cells, read_tuning, study_folder
from ..selection.filters import Record
from ..selection.run_files import provenance_of
from .sections import Section
from .settings import text_of


@dataclass
class Environments:
    """The environments of a page, numbered in order of first use."""

    by_key: dict[str, dict[str, Any]] = field(default_factory=dict)

    def number(self, provenance: Mapping[str, Any]) -> int:
        """Return the number of the environment in which a run was computed."""
        environment = {
            name: provenance.get(name) for name in ("versions", "plugins", "machine", "git")
        }
        self.by_key.setdefault(json.dumps(environment, sort_keys=True), environment)
        return list(self.by_key).index(json.dumps(environment, sort_keys=True)) + 1

    def rows(self) -> list[dict[str, str]]:
        """Return the environments as text, in order."""
        return [_environment(environment) for environment in self.by_key.values()]


def _environment(environment: Mapping[str, Any]) -> dict[str, str]:
    git, versions = environment["git"], environment["versions"] or {}
    plugins = {
        name: v for name, v in (environment["plugins"] or {}).items() if name not in versions
    }
    commit = (
        "not in a repository"
        if not git
        else git["commit"] + (", with changes" if git["dirty"] else ", clean")
    )
    return {
        "versions": ", ".join(
            f"{name} {version}" for name, version in {**versions, **plugins}.items() if version
        ),
        "machine": ", ".join(
            f"{name}: {value}" for name, value in (environment["machine"] or {}).items()
        ),
        "commit": commit,
    }


def run_key(folder: str) -> str:
    """Return the part suite/method/run of the path of a run folder."""
    return "/".join(Path(folder).parts[-3:])


def runs(section: Section, environments: Environments) -> list[list[dict[str, Any]]]:
    """Return the provenance of the runs of each row of a section."""
    return [[_run(r, environments) for r in row.records] for row in section.selection.rows]


def _run(record: Record, environments: Environments) -> dict[str, Any]:
    known = {
        "folder": run_key(record["folder"]),
        "seed": record["seed"],
        "finished": record.get("finished_at", ""),
    }
    provenance = provenance_of(record)
    if not provenance:
        return {**known, "environment": None, "command": ""}
    return {
        **known,
        "environment": environments.number(provenance),
        "command": command_of(provenance),
    }


def command_of(provenance: Mapping[str, Any]) -> str:
    """Return the command as a line for a shell, with `harness` for `python -m harness`."""
    called = provenance.get("command") or [""]
    return shlex.join(["harness" if called[0] == "__main__.py" else called[0], *called[1:]])


# -- the study -------------------------------------------------------------------------------------


def study_of(results: Path, name: str, shown: Sequence[Section]) -> dict[str, Any]:
    """Return a study's file, its planned, missing and refused runs, and its tuning."""
    folder = study_folder(results, name)
    suites = {section.selection.suite for section in shown}
    cells = [c for c in read_cells(folder / CELLS) if c["suite"] in suites]
    present = {run_key(r["folder"]) for section in shown for r in section.selection.records}
    planned = [c for c in cells if not c["trial"] and not c.get("refused")]
    return {
        "name": name,
        "file": _text(folder / "study.toml"),
        "planned": len(planned),
        "missing": [c for c in planned if run_key(c["folder"]) not in present],
        "refused": [c for c in cells if c.get("refused")],
        "tuning": _tuning(folder / TUNING, suites),
    }


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="surrogateescape") if file.is_file() else ""


def _tuning(file: Path, suites: set[str]) -> dict[str, Any] | None:
    tuning = read_tuning(file)
    if not tuning:
        return None
    searches = [_search(s) for s in tuning["searches"] if s["suite"] in suites]
    rule = {name: tuning[name] for name in ("trials", "seed", "rule")}
    return {**rule, "searches": searches}


def _search(search: Mapping[str, Any]) -> dict[str, Any]:
    trials = [
        {
            "options": (
                ", ".join(f"{k}={text_of(v)}" for k, v in t["options"].items())
                or "the settings of the study file"
            ),
            "status": t["status"],
            "figure": _figure(t),
            "chosen": number == search["chosen"],
        }
        for number, t in enumerate(search["trials"])
    ]
    return {"method": search["method"], "suite": search["suite"], "trials": trials}


def _figure(trial: Mapping[str, Any]) -> str:
    known = {"options", "fingerprint", "folder", "status"}
    return next(
        (f"{v:.4f}" for k, v in trial.items() if k not in known and isinstance(v, float)), "-"
    )
