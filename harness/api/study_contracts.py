"""The contracts of table formats and launchers. Importing this module does not import torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..core.jobs import Job

if TYPE_CHECKING:
    from ..core.table import Table


class Reporter(ABC):
    """A table format."""

    name: ClassVar[str]
    suffix: ClassVar[str]

    columns: ClassVar[Sequence[str]] = ()  # default columns of a comparison; empty: all

    @abstractmethod
    def render(self, table: Table) -> str:
        """Return the table as text.

        Args:
            table: Cells as text, unrounded values, footnotes and notes.

        Returns:
            The whole file, with a newline at its end.
        """


@dataclass
class Launcher(ABC):
    """Runs the jobs of a study. Its dataclass fields are its options.

    No other part of a study starts processes. `job.command(...)` is what to start, with torchrun
    where several processes share a run; `job.variables()` is the environment it needs. A log is
    appended to, after a line that begins with `harness.core.jobs.BEGUN`.
    """

    name: ClassVar[str]
    # Whether the shared stages of a study are made first, by jobs that the others are `after`.
    # Otherwise a run waits for a stage that another run is making, and keeps its GPU meanwhile.
    stages_first: ClassVar[bool] = False

    @abstractmethod
    def run(
        self, jobs: Sequence[Job], started: Callable[[Job], None], ended: Callable[[Job, int], None]
    ) -> None:
        """Run all jobs, started in their order. Return when all have ended.

        A job ends in one of three ways:

        - *ended*: it has an exit status.
        - *interrupted*: its status is in `harness.core.jobs.INTERRUPTED`. A launcher whose cluster
          starts such a job again does not call `ended`, and waits. A run goes on by itself.
        - *lost*: there is no exit status. A launcher may start the job again. Otherwise its status
          is `harness.core.jobs.LOST`.

        KeyboardInterrupt must end all jobs before it leaves this function. Any other exception
        does the same, or leaves jobs in a queue of which each has the name `job.key`. The next
        call with the same jobs must find those, and not start them twice.

        Args:
            jobs: Each has arguments of the command line, a log file, resources and a key.
            started: Called with each job when it starts, in the calling thread.
            ended: Called with each job and its exit status when it ends, in the calling thread.
                A status below 0 is the negative number of the signal that ended the job.
        """

    def elsewhere(self, arguments: Sequence[str]) -> int | None:
        """Run Python with arguments on another machine; return its exit status.

        Returns:
            None where there is no other machine, or where none is free at once.
        """
        return None
