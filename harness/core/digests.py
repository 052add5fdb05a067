"""Digests: of plain values, of files, and of the code that makes a result."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any


def source_digest(cls: type[Any]) -> str:
    """Return the SHA-256 of the file that defines a class, of its bases' files, and of the siblings
    they import.
    """
    modules: set[str] = set()
    queue = [base.__module__ for base in cls.__mro__ if base.__module__ not in ("builtins", "abc")]
    while queue:
        name = queue.pop()
        if name not in modules and getattr(sys.modules.get(name), "__file__", None):
            modules.add(name)
            queue += _imported(name)
    files = (Path(sys.modules[name].__file__ or "") for name in modules)
    return combined_digest(
        sorted(files, key=file_digest)
    )  # in an order that no folder's name decides


def _imported(name: str) -> list[str]:
    """Return the loaded modules of its own package, or beside its file, that a module's source
    imports from.
    """
    file = Path(sys.modules[name].__file__ or "")
    top = name.partition(".")[0]
    if top == "harness":  # the core has a digest of its own
        return []
    package = sys.modules[name].__package__ or ""
    found: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            told = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(told, package)
            found += [str(base), *(f"{base}.{alias.name}" for alias in node.names)]
    files = {other: getattr(sys.modules.get(other), "__file__", None) for other in found}
    return [
        o
        for o, f in files.items()
        if f and (o.partition(".")[0] == top or Path(f).parent == file.parent)
    ]


def package_digest(cls: type[Any]) -> str:
    """Return the SHA-256 of everything in the package that defines a class, or of its file when
    that stands alone.

    A suite or a judge computes with modules beside it; a method does not, and `source_digest` is
    enough.
    """
    file = Path(sys.modules[cls.__module__].__file__ or "")
    if (file.parent / "__init__.py").exists():
        return combined_digest(sorted(file.parent.rglob("*.py")))
    return source_digest(cls)


def combined_digest(files: Iterable[Path]) -> str:
    """Return one SHA-256 over the contents of files, in the order given."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(file_digest(file).encode())
    return whole.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        whole = hashlib.sha256()
        while block := stream.read(1 << 20):
            whole.update(block)
        return whole.hexdigest()


def model_files(folder: Path) -> list[Path]:
    """Return the files of a model folder in hub format that decide what the model does."""
    wanted = (".json", ".safetensors", ".model", ".jinja", ".txt")
    return [f for f in sorted(folder.iterdir()) if f.suffix in wanted and f.name != "training.json"]


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value in canonical form."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def canonical(value: Any) -> str:
    """Return canonical JSON: sorted keys, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@cache
def harness_digest() -> str:
    """Return the digest of the harness's own source files: results of other code are never taken
    for this one's.
    """
    root = Path(__file__).parent
    surface = {
        "cli.py",
        "__main__.py",
        "scaffold.py",
    }  # what only speaks to the user decides no result
    aside = ("report", "check", "study", "statistics")
    files = [
        f
        for f in sorted(root.rglob("*.py"))
        if f.name not in surface and f.parent.name not in aside
    ]
    return combined_digest(files)
