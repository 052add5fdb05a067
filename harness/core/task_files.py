"""The tasks of lm-evaluation-harness that an evaluation names, and the files behind them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from .digests import digest_of, file_digest
from .errors import UsageError

PACKAGE, DISTRIBUTION = "lm_eval", "lm-eval"
YAML = (".yaml", ".yml")


def check_tasks(tasks: Sequence[str], data: str = "") -> None:
    """Raise UsageError where the package or a file is missing.

    Args:
        tasks: Names of stock tasks, or paths of task files or of folders that hold some.
        data: The folder that task files of one's own read; empty for none.
    """
    if not tasks:
        return
    if find_spec(PACKAGE) is None:
        raise UsageError(
            "--tasks needs the package lm-eval: pip install 'alignment-harness[lm-eval]'"
        )
    for task in tasks:
        if is_path(task) and not task_files([task]):
            what = "holds no task file" if Path(task).is_dir() else "is no file or folder"
            raise UsageError(
                f"--tasks {task}: this {what}. Name a stock task of lm-evaluation-harness, a YAML"
                " file, or a folder of YAML files."
            )
    if data and not Path(data).is_dir():
        raise UsageError(f"--task-data {data}: there is no such folder.")


def is_path(task: str) -> bool:
    """Return whether a task is named by its file or folder."""
    return task.endswith(YAML) or "/" in task or "\\" in task or Path(task).is_dir()


def task_files(tasks: Sequence[str]) -> list[Path]:
    """Return the task files that are named by path, in order."""
    files: list[Path] = []
    for task in filter(is_path, tasks):
        path = Path(task)
        own = sorted(path.rglob("*")) if path.is_dir() else [path]
        files += [file for file in own if file.suffix in YAML and file.is_file()]
    return files


def tasks_digest(tasks: Sequence[str], data: str = "") -> str:
    """Return the digest of all that decides tasks: names, files, data, and the package's version.

    Files count by content and name. Their place does not.

    Raises:
        UsageError: A file of the data changed while it was read.
    """
    folders = sorted({file.parent for file in task_files(tasks)})
    beside = [
        f for folder in folders for f in sorted(folder.iterdir()) if f.suffix in (*YAML, ".py")
    ]
    held = sorted(f for f in Path(data).rglob("*") if f.is_file()) if data else []
    names = [Path(task).name if is_path(task) else task for task in tasks]
    try:
        contents = [[file.name, file_digest(file)] for file in (*beside, *held)]
    except FileNotFoundError as error:
        raise UsageError(
            f"--task-data {data}: {error.filename} was deleted while the files were read. Name a"
            " folder that holds the data of the tasks only, for every file in it counts."
        ) from error
    return digest_of([names, contents, metadata.version(DISTRIBUTION)])
