"""`harness new KIND NAME` for a method, suite, verifier or judge: write a working plugin project.

The templates are in `harness/cli/templates`. A project takes all files of `project` and of the
folder of its kind. `NAME` in a file's path stands for the project's name.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from ..api.registry import NAME
from ..core.errors import Refused, UsageError

if TYPE_CHECKING:  # its place in Python 3.10 is importlib.abc
    from importlib.resources.abc import Traversable

KINDS = ("method", "suite", "verifier", "judge")
SUFFIX = ".template"


def new_project(kind: str, name: str, parent: Path) -> Path:
    """Write a plugin project. Existing files are never changed.

    Args:
        kind: "method", "suite", "verifier" or "judge".
        name: The plugin's name.
        parent: The folder in which the project's folder is made.

    Returns:
        The project's folder.

    Raises:
        UsageError: The kind is unknown, or the name is malformed.
        Refused: The project's folder exists, or it cannot be written.
    """
    if kind not in KINDS:
        raise UsageError(f"There is no project of kind {kind!r}: expected {' or '.join(KINDS)}.")
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r}: a name is lower-case letters, digits and _, a letter first.")
    folder = parent / f"harness-{name.replace('_', '-')}"
    if folder.exists():
        raise Refused(f"{folder} exists already: choose another name or folder.")
    try:
        for path, template in templates(kind).items():
            file = folder / path.replace("NAME", name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(filled(template, kind, name), encoding="utf-8")
    except OSError as error:
        raise Refused(f"Cannot write {folder}: {error.strerror}.") from error
    return folder


def templates(kind: str) -> dict[str, str]:
    """Return the templates of a kind of project by the path of their files."""
    root = files("harness.cli") / "templates"
    return _texts(root / "project") | _texts(root / kind)


def filled(template: str, kind: str, name: str) -> str:
    """Return the text of a template for a project of this kind and name."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    spoken = name.replace("_", " ")
    return environment.from_string(template).render(
        name=name,
        dashed=name.replace("_", "-"),
        title=spoken.capitalize(),
        class_name=spoken.title().replace(" ", ""),
        method={"method": name, "verifier": "rlvr"}.get(kind, "dpo"),
        against=" --against preferences.jsonl" if kind == "judge" else "",
        judge=f" --judge {name}" if kind == "judge" else "",
        suite={"suite": name, "verifier": "questions.toml --model PATH_OR_HUB_ID"}.get(
            kind, "summarization"
        ),
    )


def _texts(folder: Traversable, inside: str = "") -> dict[str, str]:
    """Return the templates in a folder and its subfolders by path, without the suffix."""
    texts: dict[str, str] = {}
    for entry in folder.iterdir():
        if entry.is_dir():
            texts |= _texts(entry, f"{inside}{entry.name}/")
        elif entry.name.endswith(SUFFIX):
            texts[inside + entry.name.removesuffix(SUFFIX)] = entry.read_text(encoding="utf-8")
    return texts
