"""Content-addressed stage outputs, each named by the hash of its inputs.

An artifact is computed once and verified at every use.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .digests import digest_of, file_digest
from .distributed import ALONE, DistributedContext
from .fault_points import fault_point
from .files import lock, make_folder, publish
from .progress import LOADING, activity, making
from .records import CHANGED, Damaged, read_object, write_sealed

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Artifact:
    """A finished stage output: a read-only folder, its inputs, and its cost."""

    folder: Path
    kind: str
    content: str  # SHA-256 over its files: equal bytes have equal digests, whatever made them
    info: Mapping[str, Any]  # the stage's own report
    cost: Mapping[str, Any]  # meter totals of making it
    reused: bool  # read from the cache, not made in this process
    # the settings it was computed with, several where the work was resumed with others
    execution: Sequence[Mapping[str, Any]] = ()

    def pin(self) -> dict[str, Any]:
        """Return the entry of an artifact in the records that depend on it."""
        return {"kind": self.kind, "content": self.content, EXECUTION: list(self.execution)}


# (output, scratch) -> (info, cost); `info` may hold EXECUTION where the work was resumed
Make = Callable[[Path, Path], tuple[dict[str, Any], dict[str, Any]]]
EXECUTION = "execution"
# what every manifest has; those of older versions have no seal
_SHAPE = {"files": dict, "content": str, "inputs": dict, "info": dict, "cost": dict}


class Artifacts:
    """The artifacts below one results folder."""

    def __init__(self, root: Path, distributed: DistributedContext = ALONE) -> None:
        self.root, self.distributed = make_folder(root), distributed

    def find(self, kind: str, inputs: Mapping[str, Any]) -> Artifact | None:
        """Return the artifact of these inputs, or None where it was not made yet."""
        folder = self.root / artifact_name(kind, inputs)
        there = self.distributed.broadcast_from_main(folder.exists())
        return self._open(folder, kind, reused=True) if there else None

    def get_or_make(
        self,
        kind: str,
        inputs: Mapping[str, Any],
        make: Make,
        execution: Callable[[], Mapping[str, Any]] | None = None,
    ) -> Artifact:
        """Return the artifact of these inputs; make it if the cache does not hold it.

        `execution` returns how it was computed. The manifest holds it; the name does not.

        `make(output, scratch)` fills `output`. `scratch` survives a crash, so `make` can resume.
        A second process that needs the same artifact waits for the first.
        """
        name = artifact_name(kind, inputs)
        final, work = self.root / name, make_folder(self.root / ".work" / name)
        with (
            lock(work, f"The artifact {name}", wait=True)
            if self.distributed.main
            else nullcontext()
        ):
            if self.distributed.broadcast_from_main(final.exists()):
                return self._open(final, kind, reused=True)
            output = (
                work / f"output{self.distributed.rank}"
            )  # every process makes it, the main one's is kept
            shutil.rmtree(output, ignore_errors=True)
            output.mkdir()
            try:
                with making(kind):
                    info, cost = make(output, make_folder(work / "scratch"))
            except Exception:  # on a full disk the space is needed
                shutil.rmtree(output, ignore_errors=True)
                raise
            if self.distributed.main:
                fault_point("artifact.made")
                settings = info.pop(EXECUTION, None) or ([dict(execution())] if execution else [])
                origin = {"kind": kind, "inputs": inputs, "info": info, "cost": cost}
                _seal(output, {**origin, EXECUTION: settings})
                fault_point("artifact.sealed")
                publish(output, final)
                fault_point("artifact.published")
            self.distributed.barrier()
            shutil.rmtree(work / "scratch" if self.distributed.main else output, ignore_errors=True)
        return self._open(final, kind, reused=False)

    def _open(self, folder: Path, kind: str, reused: bool) -> Artifact:
        """Return an artifact; one that was just made is not read again to be verified."""
        remedy = f"Delete the folder {folder} and run the same command again to make it again."
        manifest = read_object(folder / MANIFEST, remedy)
        odd = [key for key, kind in _SHAPE.items() if not isinstance(manifest.get(key), kind)]
        if odd or digest_of(manifest["files"]) != manifest["content"]:
            raise Damaged(folder / MANIFEST, f"{(odd or ['files'])[0]} was changed", remedy)
        if reused:
            with activity(LOADING, f"verifying the stored {kind}"):
                _verify(folder, manifest["files"], remedy)
        return Artifact(
            folder,
            kind,
            manifest["content"],
            manifest["info"],
            manifest["cost"],
            reused,
            manifest.get(EXECUTION, ()),
        )


def artifact_name(kind: str, inputs: Mapping[str, Any]) -> str:
    """Return the name of the folder of an artifact: its kind, and a digest of its inputs."""
    return f"{kind}-{digest_of({'kind': kind, **inputs})[:16]}"


def _seal(output: Path, origin: Mapping[str, Any]) -> None:
    """Write the manifest: the inputs of the files, and their digests."""
    files = {
        str(f.relative_to(output)): file_digest(f) for f in sorted(output.rglob("*")) if f.is_file()
    }
    write_sealed(output / MANIFEST, {**origin, "files": files, "content": digest_of(files)})


def _verify(folder: Path, files: Mapping[str, str], remedy: str) -> None:
    """Raise Damaged if the files of an artifact are not those that were written, or are more.

    Hidden files do not count: file systems and desktops leave some.
    """
    for name, digest in files.items():
        if _digest(folder / name) != digest:
            raise Damaged(folder / name, CHANGED, remedy)
    for file in folder.rglob("*"):
        name = str(file.relative_to(folder))
        hidden = any(part.startswith(".") for part in Path(name).parts)
        if not (file.is_dir() or hidden or name in files or name == MANIFEST):
            raise Damaged(file, "it was added to the artifact after that was written", remedy)


def _digest(file: Path) -> str | None:
    try:
        return file_digest(file)
    except OSError:  # missing, a folder, unreadable
        return None
