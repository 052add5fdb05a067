"""What lies in a results folder, what needs it, and what may be deleted.

A finished run needs the artifacts that its record pins. An unfinished or failed run needs its
trained policy and the shared stages behind it. Everything else can be made again by the command
that made it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from ..core import run_folder
from ..core.artifacts import MANIFEST
from ..core.errors import Refused, UsageError
from ..core.records import Damaged, parsed, read_object, rerun, show_damaged, write_sealed
from ..core.spec import spec_from
from .saved_policy import FAILED, FOLDERS, NONE, PENDING

SPENT = ("checkpoint", "snapshots")  # what only an unfinished run needs
WORK = ".work"
DAMAGED = "damaged"  # state of a run whose record tells nothing; it may need any artifact


@dataclass(frozen=True)
class Item:
    """One folder below a results folder."""

    kind: str  # run, policy, artifact's kind, checkpoint, work
    path: Path
    needed_by: tuple[str, ...] = ()  # runs; empty: nothing needs it
    state: str = ""  # of a run: finished, failed, unfinished
    deletable: bool = False

    @property
    def age(self) -> float:
        """Days since it was last written."""
        return (time.time() - self.path.stat().st_mtime) / 86400


def survey(results: Path, failed: bool = False, policies: Sequence[Path] = ()) -> list[Item]:
    """Return what lies below a results folder; `deletable` marks what may go.

    Args:
        results: The results folder.
        failed: Whether the folders of failed runs may go.
        policies: Run folders whose saved policies may go.
    """
    runs = sorted(
        {
            file.parent
            for name in (run_folder.SPEC, run_folder.RESULT)
            for file in (results / "runs").glob(f"*/*/*/{name}")
        }
    )
    chosen = {folder.resolve() for folder in policies}
    unknown = chosen - {folder.resolve() for folder in runs}
    if unknown:
        raise UsageError(f"{sorted(unknown)[0]}: no run of {results} lies there.")
    items = [item for run in runs for item in _of_run(run, failed, run.resolve() in chosen)]
    gone = {item.path for item in items if item.deletable and item.kind == "run"}
    standing = {run: run.resolve() in chosen for run in runs if run not in gone}
    return items + list(_artifacts(results / "artifacts", standing))


def running(results: Path) -> list[Path]:
    """Return the folders of runs, studies and stages that a process holds."""
    patterns = ("runs/*/*/*/.lock", "studies/*/.lock", f"artifacts/{WORK}/*/.lock")
    files = [file for pattern in patterns for file in results.glob(pattern)]
    return [file.parent for file in files if _held(file)]


def delete(results: Path, items: Iterable[Item]) -> None:
    """Delete items; raise Refused while a run is going on, before anything is deleted."""
    held = running(results)
    if held:
        raise Refused(f"{held[0]} is in use: nothing was deleted. Wait until it has ended.")
    for item in items:
        shutil.rmtree(item.path)
        if item.kind == "policy":
            _note_deleted(item.path.parent)


def size_of(paths: Iterable[Path]) -> int:
    """Return the bytes of all files below some folders; a file with several links counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for path in paths:
        for file in path.rglob("*"):
            if file.is_file():
                stat = file.stat()
                sizes[stat.st_dev, stat.st_ino] = stat.st_size
    return sum(sizes.values())


def _held(file: Path) -> bool:
    lock = filelock.FileLock(file)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return True
    lock.release()
    return False


def _of_run(run: Path, failed: bool, policy: bool) -> list[Item]:
    """Return a run, its saved policies, and what only an unfinished run needs."""
    try:
        result = run_folder.read_result(run)
    except Damaged as error:
        show_damaged(error)
        return [Item("run", run, (), DAMAGED)]
    broken = result is None and (run / run_folder.FAILURE).exists()
    state = "finished" if result else "failed" if broken else "unfinished"
    items = [Item("run", run, (), state, broken and failed)]
    for name in FOLDERS.values():
        if (run / name).is_dir():
            items.append(Item("policy", run / name, (_name(run),), "", policy))
    saved = (result or {}).get("policy", {}).get("saved")
    spent = result is not None and saved not in (PENDING, FAILED)
    for name in SPENT:
        if (run / name).is_dir():
            items.append(Item("checkpoint", run / name, () if spent else (_name(run),), "", spent))
    return items


def _artifacts(root: Path, runs: dict[Path, bool]) -> Iterable[Item]:
    """Yield artifacts with the runs that need them, and work folders of finished ones.

    `runs` says of each run whether its policy may go.
    """
    manifests = {file.parent: _manifest(file) for file in sorted(root.glob(f"*/{MANIFEST}"))}
    needs = {run: _needs(run, manifests) for run in runs}
    for folder, manifest in manifests.items():
        users = [run for run in runs if folder.name in needs[run]]
        policy = manifest.get("kind") == "policy"
        free = all(runs[run] for run in users) if policy else not users
        yield Item(str(manifest.get("kind")), folder, tuple(map(_name, users)), "", free)
    for work in sorted((root / WORK).glob("*")):
        finished = (root / work.name).is_dir()
        if size_of([work]):
            yield Item("work", work, () if finished else ("an unfinished stage",), "", finished)


def _needs(run: Path, manifests: dict[Path, dict[str, Any]]) -> set[str]:
    """Return the names of the artifacts that a run stands on, or goes on from."""
    try:
        result, training = run_folder.read_result(run), _training(run)
    except Damaged as error:
        show_damaged(error)
        return {folder.name for folder in manifests}
    if result is not None and "pins" in result:
        return set(result["pins"])
    contents = {a.get("content") for a in (result or {}).get("artifacts", {}).values()}
    for file in run.glob("checkpoint/*/state.json"):
        contents |= set(_manifest(file).get("stages", {}).values())
    own = {
        f.name: m for f, m in manifests.items() if m.get("inputs", {}).get("training") == training
    }
    for manifest in own.values():
        contents |= set(manifest["inputs"].get("stages", {}).values())
    return set(own) | {f.name for f, m in manifests.items() if m.get("content") in contents}


def _training(run: Path) -> str:
    """Return what names the training of a run; empty where its spec is of another version.

    Raises:
        Damaged: The spec cannot be read.
    """
    values = read_object(run / run_folder.SPEC, rerun(run))
    try:
        return spec_from(values).training_fingerprint()
    except (ValueError, TypeError, KeyError, AttributeError):
        return ""


def _manifest(file: Path) -> dict[str, Any]:
    try:
        content = parsed(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _note_deleted(run: Path) -> None:
    """Write to a run's record that its policy is gone."""
    result = run_folder.read_result(run)
    if result is not None:
        result["policy"] = {"saved": NONE, "reason": "deleted by harness clean"}
        write_sealed(run / run_folder.RESULT, result)


def _name(run: Path) -> str:
    return "/".join(run.parts[-3:])
