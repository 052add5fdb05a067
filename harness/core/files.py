"""Atomic writes: after a crash a file holds the old content or the whole new content."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import filelock

from .errors import HarnessError, Refused
from .fault_points import fault_point
from .secrets import redact

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REMIND_SECONDS = 60.0  # between two messages on a lock that is waited for


class NoSpace(HarnessError):
    """A file could not be written: the disk, a quota or a limit of file sizes is full."""


@contextmanager
def writing(path: Path, size: int | None = None) -> Iterator[None]:
    """Raise NoSpace, which names the file, where a disk is full while it is written.

    Args:
        path: The file or folder.
        size: Its bytes, where they are known.
    """
    try:
        yield
    except NoSpace:
        raise
    except Exception as error:
        if is_full(error):
            raise NoSpace(_no_space(path, size)) from error
        raise


def is_full(error: BaseException) -> bool:
    """Return whether an error means a full disk; libraries hide the number in the text."""
    hidden = "No space left on device" in str(error)
    return hidden or (isinstance(error, OSError) and error.errno in FULL)


def full_disk(error: BaseException) -> str:
    """Return the message about a full disk, from an error that no writer has named."""
    named = getattr(error, "filename", None)
    if isinstance(named, str | bytes):
        return _no_space(Path(os.fsdecode(named)), None)
    return f"No space for a file: {error}. Free some space, and run the same command again."


def _no_space(path: Path, size: int | None) -> str:
    need = "" if size is None else f" of {size:,} bytes"
    there = next((p for p in (path, *path.parents) if p.exists()), Path("."))
    disk = os.statvfs(there)
    if disk.f_files and not disk.f_favail:
        left = "no inodes are left: there are too many files"
    else:
        left = f"{disk.f_bavail * disk.f_frsize:,} bytes are free"
    return (
        f"No space for {path}{need}: {left} on the disk of {there}. What was written before is"
        " kept. Free some space, and run the same command again."
    )


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically, in UTF-8, without any secret."""
    write_bytes(path, redact(text).encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file atomically: write beside it, flush to disk, rename."""
    temporary = beside(path)
    try:
        with writing(path, len(content)):
            fault_point("write.begin")
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            fault_point("write.written")
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    fault_point("write.replaced")


def beside(path: Path) -> Path:
    """Return a temporary name beside a file that no other process on any host uses.

    Process ids do not tell hosts and containers apart. What a killed process left is removed by the
    next one that locks the folder.
    """
    return path.with_name(f".{path.name[:80]}.{socket.gethostname()[:64]}-{uuid4().hex}.tmp")


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically; NaN is an error, because it is not valid JSON."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


class HashedFile:
    """A file during writing, with the SHA-256 of the bytes written so far."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._hash = stream, hashlib.sha256()

    def write(self, content: bytes | memoryview) -> None:
        """Append to the file."""
        self._stream.write(content)
        self._hash.update(content)

    def digest(self) -> str:
        """Return the SHA-256 of all that was written."""
        return self._hash.hexdigest()


@contextmanager
def hashed_file(path: Path, size: int | None = None) -> Iterator[HashedFile]:
    """Replace a file of `size` bytes, and compute its SHA-256; it is not flushed to disk."""
    with writing(path, size), path.open("wb") as stream:
        yield HashedFile(stream)


def publish(work: Path, final: Path) -> None:
    """Rename a finished folder to its final name: readers see nothing, or all of it."""
    for file in work.rglob("*"):
        if file.is_file():
            with writing(file, file.stat().st_size), file.open("rb") as stream:
                os.fsync(stream.fileno())
    sync_folder(work)
    with writing(final):
        work.replace(final)
    sync_folder(final.parent)


def link_folder(source: Path, target: Path) -> None:
    """Copy a folder of a model; its weights become hard links where the file system has them.

    Small files are copied, so that a user may edit them. A link outlives the deletion of the other.
    """
    with writing(target):
        shutil.copytree(source, target, copy_function=_link_weights, dirs_exist_ok=True)


def _link_weights(source: str, target: str) -> None:
    if source.endswith(".safetensors"):
        Path(target).unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without hard links
            shutil.copy2(source, target)
    else:
        shutil.copy2(source, target)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> Path:
    """Make a folder and check that it is writable; raise Refused with the reason if it is not.

    The file that it writes has a name of its own: other hosts and containers may have a process of
    the same number.
    """
    probe = path / f".probe-{socket.gethostname()}-{uuid4().hex}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_text("", encoding="utf-8")
        probe.unlink(missing_ok=True)
    except OSError as error:
        if is_full(error):
            raise NoSpace(_no_space(path, None)) from error
        raise Refused(
            f"Cannot write to {path}: {error.strerror}. Choose another folder with --results."
        ) from error
    return path


@contextmanager
def lock(folder: Path, what: str, wait: bool) -> Iterator[None]:
    """Hold a folder's lock; raise Refused if another process holds it and `wait` is off. A wait has
    no limit, because the other process may work for a day. Every minute a message names it. The
    system releases the lock even after `kill -9`.
    """
    owner = folder / ".owner"
    holder = filelock.FileLock(folder / ".lock")
    begun = time.monotonic()
    while True:
        try:
            with writing(folder / ".lock"):
                holder.acquire(timeout=REMIND_SECONDS if wait else 0)
            break
        except filelock.Timeout as error:
            process = _holder(owner)
            if not wait:
                raise Refused(
                    f"{what} is in use by {process} ({folder}). Wait for it, or stop it; then run"
                    " this again."
                ) from error
            waited = time.monotonic() - begun
            print(
                f"harness: waiting for {process}, which makes {what[0].lower()}{what[1:]}, for"
                f" {waited:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    try:
        with writing(owner):
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        for left in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        yield
    finally:
        owner.unlink(missing_ok=True)
        holder.release()


def _holder(owner: Path) -> str:
    """Return `process PID on HOST`, as the process that holds a lock has written it."""
    try:
        return owner.read_text(encoding="utf-8") or "another process"
    except OSError:  # it is ending, or it has only just begun
        return "another process"


def ended_holder(folder: Path) -> str:
    """Return the process that held a folder's lock and ended without releasing it; else empty. A
    process on another host is not reported, because it may be alive.
    """
    try:
        text = (folder / ".owner").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
    named = re.fullmatch(r"process (\d+) on (.+)", text)
    if named is None or named[2] != socket.gethostname():
        return ""
    return "" if _held(folder / ".lock", int(named[1])) else text


def _held(file: Path, process: int) -> bool:
    """Return whether a lock is held, without taking it: another process may want it now."""
    try:
        inode = file.stat().st_ino
        lines = Path("/proc/locks").read_text(encoding="utf-8").splitlines()
    except OSError:  # no such list on this system: ask for the process
        return _alive(process)
    return any(f":{inode} " in line for line in lines)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
