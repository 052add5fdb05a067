"""The conformance set: tensors, options, losses and gradients of every method, for any library.

`harness check --export FOLDER` writes it. The format is in docs/conformance.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ..api.contracts import Method
from ..api.registry import Registry
from ..core.errors import HarnessError, Refused
from ..core.files import make_folder, write_bytes, write_json
from ..core.options import build, parse_settings
from .recording_lab import PROMPTS, TOKENS, WORDS, Recorded, Unsupported, record

SCHEMA = 1  # raised when a reader of older sets would misread a newer one
MANIFEST = "conformance.json"
SOFT = "soft"


@dataclass(frozen=True)
class Case:
    """A method with its options on one set of tensors."""

    name: str  # METHOD, METHOD.ALIAS, or either with `.soft` for soft labels
    method: str
    paper: str
    options: Mapping[str, Any]
    steps: list[list[Recorded]]


def cases_of(cls: type[Method], settings: Mapping[str, Any], aliases: bool) -> Iterator[Case]:
    """Yield the cases of a method: its options, its aliases, and each with soft labels too.

    Raises:
        Unsupported: It takes no step that can be recorded.
        UsageError: Its options cannot be built.
    """
    named: dict[str, Mapping[str, Any]] = {cls.name: settings}
    if aliases:
        for alias, text in getattr(cls, "aliases", {}).items():
            named[f"{cls.name}.{alias}"] = parse_settings(text.split(), "aliases")
    for name, options in named.items():
        for soft in (False, True):
            method = build(cls, options, f"method {cls.name}")
            method.check()
            steps, used = record(method, soft)
            if not steps:
                raise Unsupported("it takes no step by gradient")
            if not soft or used & {"pairs", "labelled"}:
                own = dataclasses.asdict(method)
                label = f"{name}.{SOFT}" if soft else name
                yield Case(label, cls.name, cls.paper, own, steps)


def export(
    folder: Path,
    registry: Registry,
    only: str | None = None,
    settings: tuple[str, ...] = (),
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write the set of all methods of a registry, or of one, and return its manifest.

    Args:
        folder: A new or an empty folder.
        registry: The plugins.
        only: One method; `settings` (NAME=VALUE) are then its options.
        settings: Options of the method.
        say: Receives a line for each method that has no case.

    Raises:
        Refused: The folder holds files, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused(f"{folder} is not empty: name a new folder for the set.")
    make_folder(folder)
    listed: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for name in [only] if only else sorted(registry.classes["methods"]):
        cls = registry.get("methods", name)
        try:
            own = parse_settings(settings, "--set") if only else {}
            found = list(cases_of(cls, own, aliases=not own))
        except Exception as error:
            if only:
                raise _failed(name, error) from error
            skipped[name] = _why(error)
            say(f"{name} is left out: {skipped[name]}")
            continue
        listed += [_written(case, folder) for case in found]
    manifest = _head() | {"cases": listed, "skipped": skipped}
    write_json(folder / MANIFEST, manifest)
    return manifest


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, Unsupported | HarnessError) else repr(error)


def _failed(name: str, error: Exception) -> HarnessError:
    if isinstance(error, HarnessError):
        return error
    return Refused(f"{name} has no tensors to export: {_why(error)}.")


def _head() -> dict[str, Any]:
    from .. import __version__

    return {
        "schema": SCHEMA,
        "harness": __version__,
        "torch": torch.__version__,
        "dtype": "float64",
        "prompts": PROMPTS,
        "tokens": TOKENS,
        "vocabulary": WORDS,
    }


def _written(case: Case, folder: Path) -> dict[str, Any]:
    """Write the tensors of a case, and return its entry in the manifest."""
    tensors: dict[str, torch.Tensor] = {}
    steps: list[dict[str, Any]] = []
    for i, step in enumerate(case.steps):
        steps.append({"value": sum(term.value for term in step), "terms": []})
        for j, term in enumerate(step):
            head = f"{i}.{j}."
            own = {**term.columns, "output": term.output}
            own |= {"loss": term.loss, "gradient": term.gradient}
            tensors |= {head + name: t.contiguous().clone() for name, t in own.items()}
            steps[-1]["terms"].append(_entry(term))
    content = safetensors.torch.save(tensors)
    file = f"{case.name}.safetensors"
    write_bytes(folder / file, content)
    return {
        "name": case.name,
        "method": case.method,
        "paper": case.paper,
        "options": case.options,
        "file": file,
        "sha256": hashlib.sha256(content).hexdigest(),
        "steps": steps,
    }


def _entry(term: Recorded) -> dict[str, Any]:
    return {
        "of": term.of,
        "weight": term.weight,
        "reduction": term.reduction if term.loss.dim() == 3 else "mean",
        "value": term.value,
        "columns": sorted(term.columns),
    }
