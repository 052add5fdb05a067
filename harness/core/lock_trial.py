"""A trial of file locks: while one process holds a lock, a second one must not get it.

`python -m harness.core.lock_trial FILE` is the second process, on this machine or on another one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import uuid4

import filelock

from .errors import Refused

HELD, TAKEN, ABSENT, FAILED = 10, 11, 12, 13  # exit statuses of the second process
CURE = (
    "Two runs could write to one folder. Mount the file system with locks (NFS version 4 without"
    " `nolock` and `local_lock`, Lustre with `flock`), or name a folder on another one with"
    " --results."
)


def require_locks(folder: Path, elsewhere: Callable[[Sequence[str]], int | None]) -> bool:
    """Try the locks of a folder with a second process here, and with one on another machine.

    Args:
        folder: A folder that exists.
        elsewhere: Runs arguments of Python on another machine; returns the exit status, or None
            where there is no other machine.

    Returns:
        Whether a second machine was tried.

    Raises:
        Refused: Locks do not hold, or the other machine does not see the folder.
    """
    file = folder.resolve() / f".lock-trial-{uuid4().hex}"
    arguments = ["-m", __name__, str(file)]
    try:
        with filelock.FileLock(file):
            here = subprocess.run(
                [sys.executable, *arguments], capture_output=True, text=True, encoding="utf-8"
            )
            _refuse(here.returncode, folder, "two processes on this machine", here.stderr)
            there = elsewhere(arguments)
            if there is not None:
                _refuse(there, folder, "processes on two machines", "")
    except (OSError, NotImplementedError) as error:
        raise Refused(f"File locks do not work in {folder}: {error}. {CURE}") from error
    finally:
        file.unlink(missing_ok=True)
    return there is not None


def _refuse(status: int, folder: Path, takers: str, output: str) -> None:
    """Raise Refused for any exit status other than HELD."""
    if status == HELD:
        return
    if status == TAKEN:
        raise Refused(f"File locks do not hold in {folder}: {takers} took one lock. {CURE}")
    if status == ABSENT:
        raise Refused(
            f"Another machine of the cluster does not see {folder}. All machines need the results"
            " folder under the same path: name one on a shared file system with --results."
        )
    more = (output.strip().splitlines() or [f"exit status {status}"])[-1]
    raise Refused(
        f"File locks could not be tried in {folder} by {takers}: {more}. The same Python"
        f" environment, {sys.executable}, is needed on all machines."
    )


def take(file: Path) -> int:
    """Try to take a lock that another process holds; return how that went."""
    if not file.exists():
        return ABSENT
    try:
        filelock.FileLock(file).acquire(timeout=0)
    except filelock.Timeout:
        return HELD
    except (OSError, NotImplementedError) as error:
        print(error, file=sys.stderr)
        return FAILED
    return TAKEN


if __name__ == "__main__":
    sys.exit(take(Path(sys.argv[1])))
