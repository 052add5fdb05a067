"""Bundles: the records of one study in one file, for readers who do not trust its author.

A bundle holds every record behind the study's tables, and the samples from which their figures are
computed. It holds no weights: their digests are in the bundle's own manifest, so a reproduced run
can be compared with them. Equal records give equal bytes.

Reading one runs no code of it. `bundle.json` lists the SHA-256 of every other file; any name beside
those listed here, any other digest and any other schema is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..core import run_folder
from ..core.archives import OddArchive, extract, plain_name, write_archive
from ..core.digests import digest_of
from ..core.errors import HarnessError, Refused, UsageError
from ..core.records import ANEW, CHANGED, SEAL, Damaged, read_bytes, read_object, rerun
from ..core.secrets import FORMS, redact
from ..core.spec import RunSpec
from .reproduction_digests import weights_of
from .study.state import CELLS, TUNING, read_cells, study_folder

SCHEMA = 1
KIND = "alignment-harness bundle"
MANIFEST = "bundle.json"
SUFFIX = ".zip"
STUDY_FILE = "study.toml"
COPY = "Get another copy from its author."  # the remedy of a bundle's reader
RUN_FILES = (
    run_folder.SPEC,
    run_folder.PROVENANCE,
    run_folder.RESULT,
    run_folder.FAILURE,
    run_folder.METRICS,
    run_folder.SAMPLES,
    run_folder.ROLLOUTS,
    run_folder.TASKS,
)
STUDY_FILES = (STUDY_FILE, CELLS, TUNING)
SERVER = re.compile(r"https?://", re.I)


@dataclass(frozen=True)
class Bundle:
    """An unpacked bundle whose seals were checked."""

    path: Path
    results: Path  # a results folder with its runs and its study
    study: str
    # digests of the weights that the bundle leaves out: {RUN: {name in the run folder: SHA-256}}
    weights: Mapping[str, Mapping[str, str]]
    runs: Sequence[str]  # the finished runs, as SUITE/METHOD/RUN
    files: int  # how many it has, beside its manifest
    digest: str  # SHA-256 of its manifest, and so of all of its content

    def folder(self, run: str) -> Path:
        """Return the folder of a run; raise UsageError if the bundle has no such finished run."""
        if run not in self.runs:
            raise UsageError(
                f"{self.path} has no finished run {run!r}. It has:"
                f" {', '.join(self.runs) or 'none'}."
            )
        return self.results / "runs" / run


# -- writing ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Packed:
    """A bundle that was written."""

    path: Path
    size: int  # bytes
    finished: int  # runs, trials included
    failed: int
    missing: int  # runs of the study without a record


def pack(results: Path, study: str, target: Path) -> Packed:
    """Write the bundle of a study to a file, or to `STUDY.zip` in a folder.

    Raises:
        UsageError: There is no such study, or it has no finished run.
        Damaged: A record is not what was written.
        Refused: A sealed record holds a secret.
    """
    own = study_folder(results, study)
    if not (own / CELLS).is_file():
        known = sorted(f.parent.name for f in own.parent.glob(f"*/{CELLS}"))
        raise UsageError(
            f"There is no study {study!r} below {results}. Known: {', '.join(known) or 'none'}."
        )
    names = [c["folder"] for c in read_cells(own / CELLS) if not c.get("refused")]
    folders = [results / name for name in dict.fromkeys(names)]
    ended = [folder for folder in folders if _record(folder) is not None]
    finished = [folder for folder in ended if (folder / run_folder.RESULT).exists()]
    if not finished:
        raise UsageError(f"The study {study} has no finished run: there is nothing to pack.")
    files = _study_files(own, study)
    for folder in ended:
        files |= _run_files(folder, results)
    content = {
        "kind": KIND,
        "schema": SCHEMA,
        "study": study,
        "harness": __version__,
        "weights": {_key(f): weights for f in finished if (weights := weights_of(f))},
        "files": {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)},
    }
    files[MANIFEST] = json.dumps({**content, SEAL: digest_of(content)}, indent=1).encode()
    path = target / f"{study}{SUFFIX}" if target.is_dir() else target
    size = write_archive(path, files)
    return Packed(path, size, len(finished), len(ended) - len(finished), len(folders) - len(ended))


def _record(folder: Path) -> dict[str, Any] | None:
    return run_folder.read_result(folder) or run_folder.read_failure(folder)


def _study_files(folder: Path, study: str) -> dict[str, bytes]:
    """Return the files of a study; its own text is redacted, because no seal covers it."""
    files = {}
    for name in STUDY_FILES:
        if (folder / name).is_file():
            content = read_bytes(folder / name, ANEW)
            if name == STUDY_FILE:
                content = redact(content.decode("utf-8", "replace")).encode()
            files[f"studies/{study}/{name}"] = _without_secrets(folder / name, content)
    return files


def _run_files(folder: Path, results: Path) -> dict[str, bytes]:
    """Return the files of a run's record; raise Damaged where they are not what was written."""
    record = {**(_record(folder) or {}), "folder": str(folder)}
    names = [name for name in RUN_FILES if (folder / name).exists()]
    for name in names:
        if name in (run_folder.SPEC, run_folder.PROVENANCE):
            run_folder.read_beside(record, name)
        elif name in record.get("files", {}):
            run_folder.checked_bytes(record, name)
    return {
        f"runs/{_key(folder)}/{name}": _without_secrets(
            folder / name, read_bytes(folder / name, rerun(folder))
        )
        for name in names
    }


def _without_secrets(path: Path, content: bytes) -> bytes:
    """Return the content of a file; raise Refused if it holds a secret. A sealed file cannot be
    redacted.
    """
    text = content.decode("utf-8", "replace")
    key = path.name == STUDY_FILE and FORMS.search(text)
    if redact(text) != text or key:
        raise Refused(
            f"{path} holds a key, or the value of an environment variable that holds one. No"
            " bundle was written. Remove it, and make the run again if it is a record."
        )
    return content


def _key(folder: Path) -> str:
    return "/".join(folder.parts[-3:])


# -- reading ---------------------------------------------------------------------------------------


def is_bundle(name: str) -> bool:
    """Return whether an argument names a bundle: by its suffix, or by how an archive begins."""
    if name.lower().endswith(SUFFIX):
        return True
    if not Path(name).is_file():
        return False
    with Path(name).open("rb") as file:
        return file.read(2) == b"PK"


@contextmanager
def opened(path: Path) -> Iterator[Bundle]:
    """Unpack a bundle into a temporary folder, and check every digest and seal.

    Raises:
        UsageError: There is no such file, or it is of another version.
        OddArchive: It is damaged, or holds what no bundle holds.
    """
    with tempfile.TemporaryDirectory(prefix="harness-bundle-") as name:
        folder = Path(name).resolve()
        digests = extract(path, folder)
        try:
            bundle = _checked(path, folder, digests)
        except Damaged as error:
            where = error.path.relative_to(folder).as_posix()
            raise OddArchive(path, f"{where} is not what was written") from error
        except UsageError:
            raise
        except HarnessError as error:  # a record of a newer schema
            raise UsageError(
                f"{path} holds records of a newer harness than this one ({__version__}). Upgrade to"
                " read it."
            ) from error
        yield bundle


def _checked(path: Path, folder: Path, digests: dict[str, str]) -> Bundle:
    """Return an unpacked bundle whose digests and seals hold."""
    manifest = _manifest(path, folder)
    listed = manifest["files"]
    del digests[MANIFEST]
    if odd := sorted(set(digests) ^ set(listed)):
        where = "not listed in" if odd[0] in digests else "missing, but listed in"
        raise OddArchive(path, f"{odd[0][:80]} is {where} {MANIFEST}")
    if odd := sorted(name for name in listed if digests[name] != listed[name]):
        raise OddArchive(path, f"the SHA-256 of {odd[0][:80]} is not the one in {MANIFEST}")
    study = manifest["study"]
    if odd := sorted(name for name in listed if not _expected(name, study)):
        raise OddArchive(path, f"{odd[0][:80]!r} belongs to no record of the study")
    if not (study_folder(folder, study) / CELLS).is_file():
        raise OddArchive(path, f"it has no studies/{study}/{CELLS}")
    for cell in read_cells(study_folder(folder, study) / CELLS):
        if not re.fullmatch("runs(/[^/]+){3}", cell["folder"]) or not plain_name(cell["folder"]):
            raise OddArchive(path, f"{CELLS} names the folder {cell['folder'][:80]!r}")
    runs = sorted(_key((folder / name).parent) for name in listed if _is(name, run_folder.RESULT))
    for name in listed:
        if _is(name, run_folder.RESULT) or _is(name, run_folder.FAILURE):
            _check_record((folder / name).parent)
    return Bundle(path, folder, study, manifest["weights"], runs, len(listed), digest_of(manifest))


def _manifest(path: Path, folder: Path) -> dict[str, Any]:
    """Return what `bundle.json` lists; raise an error unless this version can read it."""
    if not (folder / MANIFEST).is_file():
        raise OddArchive(path, f"it has no {MANIFEST}: another kind of archive")
    manifest = read_object(folder / MANIFEST, COPY, sealed=True)
    if manifest.get("kind") != KIND:
        raise OddArchive(path, f"{MANIFEST} is of another kind of archive")
    if (schema := manifest.get("schema")) != SCHEMA:
        raise UsageError(
            f"{path} is a bundle of schema {str(schema)[:20]}, and this harness"
            f" ({__version__}) reads schema {SCHEMA}. Use the version that wrote it:"
            f" {str(manifest.get('harness'))[:20]}."
        )
    texts = isinstance(manifest.get("files"), dict) and plain_name(str(manifest.get("study")))
    if not texts or "/" in manifest["study"] or not _nested(manifest.get("weights")):
        raise OddArchive(path, f"{MANIFEST} lacks a part, or a part is odd")
    return manifest


def _nested(weights: object) -> bool:
    return isinstance(weights, dict) and all(isinstance(own, dict) for own in weights.values())


def _expected(name: str, study: str) -> bool:
    """Return whether a bundle of a study may hold a file of this name."""
    parts = name.split("/")
    if parts[0] == "runs":
        return len(parts) == 5 and parts[4] in RUN_FILES
    return parts[:2] == ["studies", study] and len(parts) == 3 and parts[2] in STUDY_FILES


def _is(name: str, file: str) -> bool:
    return name.endswith(f"/{file}")


def _check_record(folder: Path) -> None:
    """Raise Damaged if a record, or a file that it has a digest of, is not what was written."""
    record = {**(_record(folder) or {}), "folder": str(folder)}
    if not run_folder.has_seal(record):
        raise Damaged(folder / run_folder.RESULT, CHANGED, COPY)
    for name in (run_folder.SPEC, run_folder.PROVENANCE):
        if (folder / name).exists() or "failure" not in record:
            run_folder.read_beside(record, name)
    for name in record.get("files", {}):
        if name in RUN_FILES:
            run_folder.checked_bytes(record, name)
    if "failure" not in record and run_folder.SAMPLES not in record.get("files", {}):
        raise Damaged(folder / run_folder.SAMPLES, "no digest of it is recorded", COPY)


def servers_of(spec: RunSpec) -> list[str]:
    """Return the addresses of servers in the options of a run, sorted.

    The author of a bundle chose them, and the name of the variable whose key would be sent there.
    """
    return sorted({text for text in _texts(dataclasses.asdict(spec)) if SERVER.match(text)})


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
