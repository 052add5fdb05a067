"""The built-in launcher: the runs of a study in parallel processes on this machine."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from harness import Launcher, hookimpl

PATIENCE = 10.0  # seconds that a process gets to end by itself
PAUSE = 0.05  # seconds between two looks
PR_SET_PDEATHSIG = 1


@dataclass
class Local(Launcher):
    """Processes on this machine, as many at a time as it has cores; one where a GPU would be
    shared.
    """

    name = "local"

    jobs: int = 0  # concurrent processes; 0: one per core, or 1 with an NVIDIA GPU

    def check(self):
        """Refuse a number that makes no sense."""
        if self.jobs < 0:
            raise ValueError("jobs may not be negative")

    def run(self, jobs, started, ended):
        """Keep so many processes going; whatever ends this ends them."""
        waiting, running = deque(jobs), {}
        try:
            while waiting or running:
                while waiting and len(running) < (self.jobs or usual()):
                    job = waiting.popleft()
                    running[job] = start(job)
                    started(job)
                for job, child in list(running.items()):
                    if child.poll() is not None:
                        del running[job]
                        ended(job, child.returncode)
                time.sleep(PAUSE)
        finally:
            stop(running.values())


def usual():
    """Return how many processes at a time this machine is for."""
    return (
        1
        if list(Path("/dev").glob("nvidia[0-9]*"))
        else len(os.sched_getaffinity(0))
        if LINUX
        else os.cpu_count()
    )


def start(job):
    """Start a job in this process's group, so that what a terminal sends to a study reaches its
    runs.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads), "PYTHONUNBUFFERED": "1"}
    with job.log.open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "harness", *job.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            preexec_fn=Orphan(os.getpid()) if LINUX else None,
        )


class Orphan:
    """Called in a new process: it is not to outlive the study, even where the study is killed
    outright.

    The same study given again would find its runs in use. This process has no threads, so that
    calling Python between fork and exec is safe.
    """

    def __init__(self, parent):
        self.parent = parent

    def __call__(self):
        """Ask the kernel for SIGKILL when the parent ends: a run goes on from its checkpoint after
        that, too.
        """
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self.parent:  # it ended before that was asked
            os._exit(1)


def stop(children):
    """End processes: ask first, then insist."""
    for child in children:
        child.terminate()
    deadline = time.monotonic() + PATIENCE
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


LINUX = sys.platform.startswith("linux")
LIBC = (
    ctypes.CDLL(None) if LINUX else None
)  # looked up here: nothing is imported between fork and exec


@hookimpl
def register_launchers(register):
    register(Local)
