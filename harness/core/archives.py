"""Archives of records: equal content gives equal bytes, and reading one has limits.

An archive is a zip file of regular files with plain names. What else a zip file can hold is
refused: links, folders, encrypted entries, names that lead out of the folder, names that are equal
on some file system, and more bytes than a limit allows.
"""

from __future__ import annotations

import hashlib
import io
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from .errors import UsageError
from .files import write_bytes
from .plain_text import visible

MAX_FILES = 100_000
MAX_BYTES = 2 << 30  # of all files together, unpacked
MAX_FILE_BYTES = 512 << 20  # of one file, unpacked
MAX_PART = 200  # characters of one part of a name
PIECE = 1 << 20
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the time of every entry: a zip file needs one
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Characters that a part of a name may not have: those of paths, of other systems, and unseen ones
ODD = re.compile(r'[\x00-\x1f\x7f\\/:*?"<>|]')


class OddArchive(UsageError):
    """A file is no archive that may be unpacked.

    Args:
        path: The file.
        reason: What is wrong with it.
    """

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(
            f"{path} is no intact bundle ({reason}). Nothing of it was used. Get another copy from"
            " its author."
        )


def write_archive(path: Path, files: Mapping[str, bytes]) -> int:
    """Replace an archive atomically; return its bytes. Equal files give equal bytes.

    Args:
        path: The archive.
        files: The content by name, with `/` between the parts of a name.
    """
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, LONG_AGO)
            entry.create_system = 3  # Unix on every system: it decides how the mode is read
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, files[name], compresslevel=9)
    content = memory.getvalue()
    write_bytes(path, content)
    return len(content)


def extract(path: Path, folder: Path) -> dict[str, str]:
    """Unpack an archive into an empty folder; return the SHA-256 of each file by name.

    Raises:
        UsageError: There is no such file.
        OddArchive: The file is no intact archive, or holds what is refused.
    """
    if not path.is_file():
        missing = "it is a folder" if path.is_dir() else "there is no such file"
        raise UsageError(
            f"{path} is no bundle: {missing}. Expected is a file that `harness report STUDY"
            " --bundle FILE` wrote."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _checked(path, archive.infolist())
            return {e.filename: _unpack(path, archive, e, folder) for e in entries}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise OddArchive(path, visible(str(error)) or "it cannot be unpacked") from error
    except RuntimeError as error:  # zipfile's own, of encrypted entries
        raise OddArchive(path, visible(str(error))) from error


def _checked(path: Path, entries: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """Return the entries of an archive; raise OddArchive for the first that is refused."""
    if len(entries) > MAX_FILES:
        raise OddArchive(path, f"{len(entries):,} files, more than {MAX_FILES:,}")
    unpacked = sum(e.file_size for e in entries)
    if unpacked > MAX_BYTES:
        raise OddArchive(path, f"{unpacked:,} bytes unpacked, more than {MAX_BYTES:,}")
    taken: set[str] = set()
    for entry in entries:
        name = entry.filename
        reason = next(_refusals(entry, name.casefold() in taken), "")
        if reason:
            raise OddArchive(path, f"{visible(name)[:80]!r} {reason}")
        taken.add(name.casefold())
    return entries


def _refusals(entry: zipfile.ZipInfo, taken: bool) -> Iterator[str]:
    """Yield the reasons to refuse an entry."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG) or entry.is_dir():
        yield "is a link, a folder or a device: only regular files are unpacked"
    if not plain_name(entry.filename):
        yield "is a name that is not unpacked"
    if taken:
        yield "is there twice"
    if entry.flag_bits & 1 or entry.compress_type not in METHODS:
        yield "is encrypted, or compressed in another way than deflate"
    if entry.file_size > MAX_FILE_BYTES:
        yield f"has {entry.file_size:,} bytes, more than {MAX_FILE_BYTES:,}"


def plain_name(name: str) -> bool:
    """Return whether a name stays below its folder and is a plain file name on every system."""
    return all(
        part.strip(". ") and part == part.strip() and len(part) <= MAX_PART and not ODD.search(part)
        for part in name.split("/")
    )


def _unpack(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> str:
    """Write one file in pieces; return its SHA-256."""
    target = folder / entry.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    whole, size = hashlib.sha256(), 0
    with archive.open(entry) as source, target.open("xb") as out:
        while piece := source.read(PIECE):
            size += len(piece)
            if size > entry.file_size:
                raise OddArchive(path, f"{visible(entry.filename)!r} is larger than it says")
            whole.update(piece)
            out.write(piece)
    if size != entry.file_size:
        raise OddArchive(path, f"{visible(entry.filename)!r} ends too early")
    return whole.hexdigest()
