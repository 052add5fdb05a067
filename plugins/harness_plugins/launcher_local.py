"""The built-in launcher: the runs of a study in parallel processes on this machine."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from harness import Launcher, UsageError, hookimpl
from harness.core.jobs import BEGUN

PATIENCE = 10.0  # seconds in which a process may end by itself
PAUSE = 0.05  # seconds between two checks
PR_SET_PDEATHSIG = 1


@dataclass
class Local(Launcher):
    """Processes on this machine: one for each GPU, or for each core where there is none."""

    name = "local"

    jobs: int = 0  # concurrent jobs; 0: one per GPU, or per core without GPUs

    def check(self):
        """Refuse a negative number."""
        if self.jobs < 0:
            raise ValueError("jobs may not be negative")

    def run(self, jobs, started, ended):
        """Run `jobs` jobs at a time. If this process ends, they end."""
        machine = Machine(gpus_here(), cores_here(), memory_here(), self.jobs)
        for job in jobs:
            machine.check(job)
        waiting, running = deque(jobs), {}
        try:
            while waiting or running:
                while waiting and machine.take(waiting[0]):
                    job = waiting.popleft()
                    running[job] = start(job, machine.gpus_of(job))
                    started(job)
                for job, child in list(running.items()):
                    if child.poll() is not None:
                        del running[job]
                        machine.release(job)
                        ended(job, status_of(job, child))
                end_overdue(running)
                time.sleep(PAUSE)
        finally:
            stop(running.values())


class Machine:
    """The resources of this machine that running jobs use.

    A job has the GPUs that its study requests for itself. Without a request, it gets the GPU with
    the fewest jobs.
    """

    def __init__(self, gpus, cores, memory, jobs):
        self.cores, self.memory, self.jobs = cores, memory, jobs
        self.load = dict.fromkeys(gpus, 0)  # {GPU: jobs on it}
        self.taken = {}  # {job: its GPUs}

    def check(self, job):
        """Refuse a job that this machine can never run."""
        needed = job.resources
        for amount, there, what in (
            (needed.nodes, 1, "nodes"),
            (needed.gpus or 0, len(self.load), "GPUs"),
            (needed.cpus, self.cores, "CPUs"),
            (needed.memory, self.memory, "GiB of memory"),
        ):
            if amount > there:
                raise UsageError(
                    f"{job.name} asks for {amount:g} {what}, and this machine has {there:g}. Lower"
                    " [resources], or start the study with --launcher slurm or ray."
                )

    def take(self, job):
        """Reserve the resources of a job; return whether they were free."""
        if not self._has_room(job):
            return False
        gpus = job.resources.gpus
        idle = [gpu for gpu, jobs in self.load.items() if not jobs]
        if gpus and len(idle) < gpus:
            return False
        chosen = idle[:gpus] if gpus else []
        if gpus is None and self.load:
            chosen = [min(self.load, key=self.load.get)]
        for gpu in chosen:
            self.load[gpu] += 1
        self.taken[job] = chosen
        return True

    def _has_room(self, job):
        """Return whether there is a free place, and the cores and memory that the job requests."""
        if self.jobs:
            limit = self.jobs
        else:
            limit = len(self.load) if self.load and job.resources.gpus != 0 else self.cores
        cores = sum(self.cores_of(other) for other in self.taken)
        memory = sum(other.resources.memory for other in self.taken)
        return (
            len(self.taken) < limit
            and cores + self.cores_of(job) <= self.cores
            and memory + job.resources.memory <= self.memory
        )

    def cores_of(self, job):
        """Return the cores that count: the requested ones, or without `jobs` one per thread."""
        usual = 0 if self.jobs or self.load else min(job.cpus, self.cores)
        return job.resources.cpus or usual

    def gpus_of(self, job):
        """Return the GPUs of a running job."""
        return self.taken[job]

    def release(self, job):
        """Release the resources of a job."""
        for gpu in self.taken.pop(job):
            self.load[gpu] -= 1


def gpus_here():
    """Return the GPUs of this machine as CUDA_VISIBLE_DEVICES names them, and only those in it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
    names = [name.strip() for name in visible.split(",")]
    ends = [i for i, name in enumerate(names) if name in ("", "-1")]  # CUDA stops reading there
    return names[: ends[0]] if ends else names


def cores_here():
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if LINUX else os.cpu_count() or 1


def memory_here():
    """Return the GiB of main memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def start(job, gpus=()):
    """Start a job in this process's group, so that signals of the terminal reach the runs of a
    study.
    """
    environment = {**os.environ, **job.variables()}
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    with job.log.open("a", encoding="utf-8") as log:
        log.write(f"{BEGUN}by the launcher local\n")
        log.flush()
        child = subprocess.Popen(
            job.command(sys.executable),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            preexec_fn=Orphan(os.getpid()) if LINUX else None,
        )
    minutes = job.resources.minutes
    child.deadline = time.monotonic() + 60 * minutes if minutes else math.inf
    return child


def end_overdue(running):
    """End the jobs that reached their time limit."""
    for child in running.values():
        if time.monotonic() > child.deadline:
            child.terminate()
            child.deadline, child.overdue = math.inf, True


def status_of(job, child):
    """Return the exit status of a job that ended; its log names the time limit if that ended it."""
    if getattr(child, "overdue", False):
        with job.log.open("a", encoding="utf-8") as log:
            log.write(
                f"harness: ended after {job.resources.minutes} min, as [resources] asks for.\n"
            )
    return child.returncode


class Orphan:
    """Called in a new process, which must not outlive the study, even if the study is killed.

    Otherwise the same study could not resume, because its runs would be in use. This process has no
    threads, so that calling Python between fork and exec is safe.
    """

    def __init__(self, parent):
        self.parent = parent

    def __call__(self):
        """Ask the kernel for SIGKILL when the parent ends; a run continues from its checkpoint
        after that.
        """
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self.parent:  # the parent ended before the request
            os._exit(1)


def stop(children):
    """End processes: SIGTERM first, then SIGKILL."""
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
)  # looked up now, because nothing may be imported between fork and exec


@hookimpl
def register_launchers(register):
    register(Local)
