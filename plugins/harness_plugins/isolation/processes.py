"""The descendants of a process, and how they are ended."""

from __future__ import annotations

import os
import resource
import signal

NO_COMMAND = "there is no such command"  # a reply's detail


def kill_descendants() -> None:
    """Kill all processes that a command left. Each loses the right to fork first, so no new one can
    appear.
    """
    while left := descendants(os.getpid()):
        for process in left:
            try:
                resource.prlimit(process, resource.RLIMIT_NPROC, (0, 0))
                os.kill(process, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


def descendants(root: int) -> list[int]:
    """Return the processes that descend from one, by process number."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8") as file:
                fields = file.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents[int(name)] = int(fields[1])
    children: set[int] = set()
    while more := {p for p, parent in parents.items() if parent in children | {root}} - children:
        children |= more
    return sorted(children)


def processes_of(user: int) -> int:
    """Return how many processes already count against the user's limit."""
    uid = user if os.getuid() == 0 else os.getuid()
    count = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{name}").st_uid == uid:
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue
    return count
