"""The contracts of table formats and launchers. Importing this module does not import torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..core.data import Job

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

    No other part of a study starts processes.
    """

    name: ClassVar[str]

    @abstractmethod
    def run(
        self, jobs: Sequence[Job], started: Callable[[Job], None], ended: Callable[[Job, int], None]
    ) -> None:
        """Run all jobs, started in their order. Return when all have ended.

        An exception, such as KeyboardInterrupt, must end all jobs before it leaves this function.

        Args:
            jobs: Each has arguments of the command line, a log file and a number of threads.
            started: Called with each job when it starts, in the calling thread.
            ended: Called with each job and its exit status when it ends, in the calling thread.
                A status below 0 is the negative number of the signal that ended the job.
        """
