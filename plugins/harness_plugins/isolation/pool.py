"""Warm workers that return a verdict for each job, even if a program misbehaves."""

from __future__ import annotations

import atexit
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .confine import IsolationError, Limits, missing

GRACE_SECONDS = 10.0  # seconds beyond a job's own limits before a worker counts as lost
WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Container:
    """A container runtime as an additional isolation of the workers."""

    image: str  # with a `python3` of 3.10 or later
    runtime: str = "docker"  # or podman

    def command(self, limits: Limits) -> list[str]:
        """Return the command that starts a worker in a container."""
        folder = WORKER.parent
        memory = f"{4 * limits.memory_mb}m"
        return [
            *(self.runtime, "run", "--rm", "--interactive", "--network=none", "--read-only"),
            *(f"--memory={memory}", f"--memory-swap={memory}", "--pids-limit=256"),
            *("--cap-drop=ALL", "--security-opt=no-new-privileges", "--user=65534:65534"),
            *(f"--tmpfs=/tmp:size={4 * limits.scratch_mb}m", f"--volume={folder}:/isolation:ro"),
            *(self.image, "python3", "-I", "-S", "/isolation/worker.py"),
        ]


class Worker:
    """One worker process; `carry_out` raises `Lost` where it does not answer in time."""

    def __init__(
        self, limits: Limits, readable: Sequence[str], container: Container | None
    ) -> None:
        start = (
            container.command(limits) if container else [sys.executable, "-I", "-S", str(WORKER)]
        )
        settings = json.dumps({"limits": asdict(limits), "readable": list(readable)})
        self.process = subprocess.Popen(
            [*start, settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={"PATH": os.environ.get("PATH", "")} if container else {},
        )
        self.buffer = b""
        problem = self._first_line()
        if problem:
            self.close()
            raise IsolationError(problem)

    def _first_line(self) -> str:
        try:
            return str(self._line(60.0)["problem"])
        except Lost:
            self.process.kill()
            assert self.process.stderr
            text = self.process.stderr.read().decode("utf-8", "replace").strip()
            return f"A worker did not start: {text[-500:] or 'no message'}"

    def carry_out(self, job: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Send a job to the worker and return its reply."""
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            raise Lost from None
        return self._line(seconds)

    def _line(self, seconds: float) -> dict[str, Any]:
        assert self.process.stdout
        deadline, stdout = time.monotonic() + seconds, self.process.stdout.fileno()
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            ready = select.select([stdout], [], [], max(0.0, left))[0]
            part = os.read(stdout, 1 << 16) if ready else b""
            if not part:
                raise Lost
            self.buffer += part
        line, _, self.buffer = self.buffer.partition(b"\n")
        return dict(json.loads(line))

    def close(self) -> None:
        """End the worker and all that it started."""
        assert self.process.stdin and self.process.stdout and self.process.stderr
        with suppress(OSError):  # a worker that has ended leaves a part of its job unsent
            self.process.stdin.close()
        try:
            self.process.wait(2.0)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


class Lost(Exception):
    """A worker ended or did not answer in time."""


class Pool:
    """As many workers as asked for, started on first use and kept.

    Args:
        limits: what one program may use.
        workers: how many run at once.
        readable: further folders that a command may read.
        container: a container runtime, for additional isolation; None: processes of this machine.

    Raises:
        IsolationError: the machine cannot confine a program; nothing was run.
    """

    def __init__(
        self,
        limits: Limits,
        workers: int = 2,
        readable: Sequence[str] = (),
        container: Container | None = None,
    ) -> None:
        problem = _no_runtime(container) if container else missing()
        if problem:
            raise IsolationError(problem)
        self.limits, self.readable, self.container = limits, tuple(readable), container
        self.threads = ThreadPoolExecutor(workers, thread_name_prefix="isolation")
        self.idle: queue.SimpleQueue[Worker | None] = queue.SimpleQueue()
        for _ in range(workers):
            self.idle.put(None)
        self.lock = threading.Lock()

    def run(self, jobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return a reply for each job, in order; a lost worker's job gets `{"lost": True}`."""
        return list(self.threads.map(self._one, jobs))

    def _one(self, job: Mapping[str, Any]) -> dict[str, Any]:
        parts = max(1, len(job.get("cases", ())))
        worker = self.idle.get()
        try:
            worker = worker or Worker(self.limits, self.readable, self.container)
            return worker.carry_out(job, parts * self.limits.seconds + GRACE_SECONDS)
        except Lost:
            if worker:
                os.killpg(worker.process.pid, signal.SIGKILL)
                worker.close()
            worker = None
            return {
                "lost": True,
                "passed": 0,
                "total": parts,
                "status": None,
                "output": "",
                "detail": "the worker was lost",
            }
        finally:
            self.idle.put(worker)

    def close(self) -> None:
        """End all workers."""
        self.threads.shutdown()
        while not self.idle.empty():
            worker = self.idle.get()
            if worker:
                worker.close()


def _no_runtime(container: Container) -> str:
    if shutil.which(container.runtime):
        return ""
    return f"There is no {container.runtime} on this machine. Install it, or leave `container` out."


_warm: dict[tuple[Any, ...], Pool] = {}


def warm_pool(
    limits: Limits, workers: int, readable: tuple[str, ...] = (), container: Container | None = None
) -> Pool:
    """Return the pool with these settings; each process makes it once and keeps it."""
    key = (os.getpid(), limits, workers, readable, container)
    if key not in _warm:
        _warm[key] = Pool(limits, workers, readable, container)
    return _warm[key]


@atexit.register
def close_pools() -> None:
    """End the workers of all warm pools of this process."""
    for key in [key for key in _warm if key[0] == os.getpid()]:
        _warm.pop(key).close()
