"""Where runs were made: machines, versions and commits once each; per run its folder and command;
the study's files.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.errors import HarnessError
from ...experiments.study.state import CELLS, study_folder
from ..selection.select import Record, provenance_of
from .sections import Section
from .settings import text_of


@dataclass
class Environments:
    """The different environments of a page, numbered as they are met."""

    by_key: dict[str, dict[str, Any]] = field(default_factory=dict)

    def number(self, provenance: Mapping[str, Any]) -> int:
        """Return the number of the environment that a run was made in."""
        environment = {
            name: provenance.get(name) for name in ("versions", "plugins", "machine", "git")
        }
        self.by_key.setdefault(json.dumps(environment, sort_keys=True), environment)
        return list(self.by_key).index(json.dumps(environment, sort_keys=True)) + 1

    def rows(self) -> list[dict[str, str]]:
        """Return each as text."""
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
    """Return the part of a run folder's path that is the same wherever the results lie:
    suite/method/run.
    """
    return "/".join(Path(folder).parts[-3:])


def runs(section: Section, environments: Environments) -> list[list[dict[str, Any]]]:
    """Return for each row of a section what is known about its runs."""
    return [[_run(r, environments) for r in row.records] for row in section.selection.rows]


def _run(record: Record, environments: Environments) -> dict[str, Any]:
    told = {
        "folder": run_key(record["folder"]),
        "seed": record["seed"],
        "finished": record.get("finished_at", ""),
    }
    provenance = provenance_of(record)
    if not provenance:
        return {**told, "environment": None, "command": ""}
    return {
        **told,
        "environment": environments.number(provenance),
        "command": command_of(provenance),
    }


def command_of(provenance: Mapping[str, Any]) -> str:
    """Return the command as a shell takes it; `python -m harness` is called what it is."""
    called = provenance.get("command") or [""]
    return shlex.join(["harness" if called[0] == "__main__.py" else called[0], *called[1:]])


# -- the study -------------------------------------------------------------------------------------


def study_of(results: Path, name: str, shown: Sequence[Section]) -> dict[str, Any]:
    """Return a study's file, how many of its runs are there, what was refused, and its tuning."""
    folder = study_folder(results, name)
    suites = {section.selection.suite for section in shown}
    cells = [
        c for c in json.loads((folder / CELLS).read_text(encoding="utf-8")) if c["suite"] in suites
    ]
    found = {run_key(r["folder"]) for section in shown for r in section.selection.records}
    asked = [c for c in cells if not c["trial"] and not c.get("refused")]
    return {
        "name": name,
        "file": _text(folder / "study.toml"),
        "asked": len(asked),
        "missing": [c for c in asked if run_key(c["folder"]) not in found],
        "refused": [c for c in cells if c.get("refused")],
        "tuning": _tuning(folder / "tune.json", suites),
    }


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="surrogateescape") if file.is_file() else ""


def _tuning(file: Path, suites: set[str]) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        searches = [_search(s) for s in told["searches"] if s["suite"] in suites]
        return {
            "trials": told["trials"],
            "seed": told["seed"],
            "rule": told["rule"],
            "searches": searches,
        }
    except (ValueError, KeyError, TypeError) as error:
        raise HarnessError(
            f"{file} is damaged ({error}). Run the study again: it is written anew."
        ) from error


def _search(search: Mapping[str, Any]) -> dict[str, Any]:
    trials = [
        {
            "options": (
                ", ".join(f"{k}={text_of(v)}" for k, v in t["options"].items())
                or "the settings as they are"
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
