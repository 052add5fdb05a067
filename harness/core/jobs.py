"""Jobs of a study: their commands, the resources that they ask for, and how they end."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .errors import UsageError

LOST = -256  # a status: no exit status is known, because a machine or a queue lost the job
INTERRUPTED = (130, 143, -2, -15)  # statuses of a job that was requested to end: it can be resumed
BEGUN = "== begun "  # first word of the line that a log has before the output of each attempt
# variables that a job on another machine gets too, where they are set
PASSED = (
    "PYTHONPATH",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HARNESS_THREADS",
    "HARNESS_CHECKPOINT_EVERY",
    "NO_COLOR",
)


@dataclass(frozen=True)
class Resources:
    """The resources that a job requests of a machine or a cluster. Amounts are for each of its
    nodes.
    """

    gpus: int | None = None  # whole GPUs; none: one where a job runs on a machine with GPUs
    cpus: int = 0  # cores; 0: one for each thread of its processes
    memory: float = 0.0  # GiB of main memory; 0: no limit is requested
    nodes: int = 1  # machines that share a run
    processes: int = 0  # that torchrun starts; 0: one for each GPU, at least one
    minutes: int = 0  # after which the job is ended, to go on later; 0: no limit

    def check(self) -> None:
        """Raise ValueError for amounts that make no sense."""
        if min(self.gpus or 0, self.cpus, self.memory, self.processes, self.minutes) < 0:
            raise ValueError("gpus, cpus, memory, processes and minutes may not be negative")
        if self.nodes < 1:
            raise ValueError("nodes must be at least 1")

    def __str__(self) -> str:
        """Return the requested resources, such as `2 nodes of 8 GPUs, 4 CPUs, 64 GiB, at most 120
        min`.
        """
        parts = [f"{self.gpus} GPU{'s' * (self.gpus > 1)}"] if self.gpus else []
        parts += [f"{self.cpus} CPU{'s' * (self.cpus > 1)}"] if self.cpus else []
        parts += [f"{self.memory:g} GiB"] if self.memory else []
        parts += [f"{self.processes} processes"] if self.processes > 1 else []
        parts += [f"at most {self.minutes} min"] if self.minutes else []
        nodes = [f"{self.nodes} nodes"] if self.nodes > 1 else []
        return " of ".join([*nodes, *filter(None, [", ".join(parts)])])


@dataclass(frozen=True)
class Job:
    """A command of a study for a launcher: `python -m harness ARGUMENTS`, with output to `log`."""

    name: str  # for people
    arguments: tuple[str, ...]
    log: Path  # output is appended to it
    threads: int = 1  # of the CPU, for each process
    resources: Resources = Resources()
    key: str = ""  # the same in every call for the same work: names the job in a queue
    after: tuple[Job, ...] = ()  # jobs that must have ended with status 0 before this one starts
    environment: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # may hold secrets

    @property
    def processes(self) -> int:
        """Return how many processes share the job on each node."""
        return self.resources.processes or max(1, self.resources.gpus or 0)

    @property
    def cpus(self) -> int:
        """Return how many cores the job wants on each node."""
        return self.resources.cpus or self.threads * self.processes

    def command(self, python: str, node: str = "", address: str = "", port: str = "") -> list[str]:
        """Return the command of one node; several processes are started by torchrun.

        Args:
            python: The interpreter.
            node: Number of the node, from 0, where there are several.
            address: Name or IP address of node 0.
            port: A port of node 0 that is free.
        """
        main, nodes = ("-m", "harness", *self.arguments), self.resources.nodes
        if nodes * self.processes == 1:
            return [python, *main]
        many = ["--nnodes", str(nodes), "--node-rank", node]
        many += ["--master-addr", address, "--master-port", port]
        count = ["--nproc-per-node", str(self.processes)]
        where = ["--standalone"] if nodes == 1 else many
        return [python, "-m", "torch.distributed.run", *where, *count, *main]

    def variables(self) -> dict[str, str]:
        """Return the environment variables that the job needs beside those of its machine."""
        return {
            **dict(self.environment),
            "OMP_NUM_THREADS": str(self.threads),
            "PYTHONUNBUFFERED": "1",
        }


def environment_of(names: Iterable[str], where: str) -> tuple[tuple[str, str], ...]:
    """Return the variables that jobs on other machines get: the usual ones, and those of a study.

    Raises:
        UsageError: A name of the study is not set here.
    """
    for name in names:
        if name not in os.environ:
            raise UsageError(
                f"{where}: environment = [{name!r}]: this variable is not set here. Set it, or"
                " leave it out."
            )
    known = dict.fromkeys([*PASSED, *names])
    return tuple((name, os.environ[name]) for name in known if name in os.environ)


def last_attempt(log: Path) -> list[str]:
    """Return the lines that the last attempt of a job wrote to its log."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    before, mark, after = text.rpartition(BEGUN)
    lines = after.partition("\n")[2] if mark else text
    return lines.strip().splitlines()
