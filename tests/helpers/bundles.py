"""Bundles of made-up studies, and archives that no harness would write."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.core.digests import digest_of, file_digest
from harness.core.records import write_sealed
from harness.experiments.bundle import MANIFEST, pack

from .tools import put, record

WINS = {"start": 0.5, "dpo": 0.7, "ppo": 0.6}


def study(
    results: Path,
    wins: Mapping[str, float] | None = None,
    seeds: Sequence[int] = (0, 1),
    name: str = "mine",
    **more: Any,
) -> Path:
    """Write finished runs of methods with these win-rates, and the study that they belong to."""
    for method, win in (WINS if wins is None else wins).items():
        for seed in seeds:
            put(results, record(method, seed, win=win, **more))
    folders = sorted((results / "runs").glob("*/*/*"))
    for folder in folders:
        seal(folder)
    write_cells(results, folders, name)
    return results


def seal(folder: Path) -> None:
    """Record the digest of a run's answers, as a real run does."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    result["files"] = {"samples.jsonl": file_digest(folder / "samples.jsonl")}
    write_sealed(folder / "result.json", result)


def write_cells(results: Path, folders: Sequence[Path], name: str) -> None:
    """Write what a study leaves beside its runs."""
    own = results / "studies" / name
    own.mkdir(parents=True)
    cells = [
        {
            "label": folder.parts[-2],
            "entry": folder.parts[-2],
            "method": folder.parts[-2],
            "suite": folder.parts[-3],
            "seed": int(folder.name[4]),
            "fingerprint": folder.name,
            "folder": folder.relative_to(results).as_posix(),
            "trial": False,
            "refused": "",
        }
        for folder in folders
    ]
    write_sealed(own / "cells.json", {"cells": cells})
    (own / "study.toml").write_text('suites = ["toy"]\n', encoding="utf-8")


def packed(folder: Path, file: str = "mine.zip", **about: Any) -> Path:
    """Write a study below a folder, and its bundle; return the bundle."""
    results = study(folder / "results", **about)
    return pack(results, about.get("name", "mine"), folder / file).path


def contents(bundle: Path) -> dict[str, bytes]:
    """The files of an archive by name."""
    with zipfile.ZipFile(bundle) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewritten(bundle: Path, files: Mapping[str, bytes], sealed: bool = True) -> Path:
    """Replace files of a bundle; with a seal and digests that fit, as a forger would make them."""
    content = contents(bundle) | files
    if sealed:
        manifest = json.loads(content[MANIFEST])
        manifest.pop("seal")
        names = sorted(set(content) - {MANIFEST})
        manifest["files"] = {name: sha256(content[name]) for name in names}
        content[MANIFEST] = json.dumps({**manifest, "seal": digest_of(manifest)}).encode()
    return archive(bundle, content)


def sha256(content: bytes) -> str:
    """The SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def archive(path: Path, files: Mapping[str, bytes], mode: int = stat.S_IFREG | 0o644) -> Path:
    """Write a zip file with any names and any mode."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            out.writestr(entry, content, zipfile.ZIP_DEFLATED)
    path.write_bytes(memory.getvalue())
    return path
