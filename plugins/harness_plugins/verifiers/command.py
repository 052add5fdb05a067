"""`command`: an external checker accepts the answer: a proof assistant, a compiler, a solver.

The answer goes into a file, by a template if there is one, and the command runs on it in isolation
(see harness_plugins/isolation). Its exit status is the verdict, with optional conditions on its
output.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import HarnessError, Prompt, Verifier, hookimpl

from ..isolation.confine import Limits
from ..isolation.pool import Container, close_pools
from ..isolation.processes import NO_COMMAND
from .isolated import pool_of, refuse_without_isolation

LONGEST = 100_000  # characters of a completion
BLOCK = re.compile(r"^ {0,3}```[^\n]*\n(.*?)(?:^ {0,3}```|\Z)", re.M | re.S)


@dataclass
class Command(Verifier):
    """An external command accepts the answer, in isolation: 1.0 for exit status 0, else 0.0."""

    name, reads_prompt = "command", False

    command: str = ""  # such as "coqc -q {file}"; {file} and {gold} are the names of files
    template: str = ""  # a template of the file, with {answer} and {gold}; else the answer
    file_name: str = "answer.txt"  # the file that the command reads
    fenced: bool = True  # use the last fenced block of the completion, if there is one
    forbidden: str = ""  # a regular expression; an answer that it matches is wrong, and is not run
    output: str = ""  # a regular expression that the output must match
    seconds: float = 20.0  # time limit of the command
    memory_mb: int = 2048  # memory limit of each of its processes
    processes: int = 32  # limit of processes that it may start
    readable: tuple[str, ...] = ()  # further folders that it may read; /usr, /bin and /lib are
    workers: int = 2  # commands that run at once
    container: str = ""  # an image with python3 and the command, as additional isolation
    runtime: str = "docker"  # the container runtime: docker or podman

    def check(self) -> None:
        """Raise ValueError for a command, pattern or limit that cannot work."""
        if not self.command.strip():
            raise ValueError('command is empty. Name one: command = "coqc -q {file}"')
        for option in ("forbidden", "output"):
            try:
                re.compile(getattr(self, option))
            except re.error as error:
                raise ValueError(f"{option} is no regular expression: {error}") from error
        if min(self.seconds, self.memory_mb, self.processes, self.workers) <= 0:
            raise ValueError("seconds, memory_mb, processes and workers must be above 0")
        if Path(self.file_name).name != self.file_name or self.file_name in ("", "gold"):
            raise ValueError(f"file_name = {self.file_name!r} is no plain name of a file")
        refuse_without_isolation(self.container)

    def identity(self) -> dict[str, object]:
        """Return the options except `workers`, with the template's text instead of its path."""
        values = {k: v for k, v in super().identity().items() if k != "workers"}
        return {**values, "template": self._around()}

    def data_files(self) -> list[Path]:
        """Return the template."""
        return [self.folder / self.template] if self.template else []

    def _around(self) -> str:
        return (self.folder / self.template).read_text("utf-8") if self.template else "{answer}"

    def verify(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        golds: Sequence[str | None],
        ended: Sequence[bool],
    ) -> list[float | None]:
        """Return 1.0 if the command accepts, else 0.0. The gold answer may be None."""
        self._installed()
        texts = [self._answer(text[:LONGEST]) for text in completions]
        wanted = [not self.forbidden or not re.search(self.forbidden, text) for text in texts]
        jobs = [
            self._job(text, gold or "")
            for text, gold, run in zip(texts, golds, wanted, strict=True)
            if run
        ]
        replies = iter(self._run(jobs))
        return [float(run and self._accepted(next(replies))) for run in wanted]

    def _answer(self, completion: str) -> str:
        blocks = BLOCK.findall(completion) if self.fenced else []
        return blocks[-1] if blocks else completion

    def _job(self, answer: str, gold: str) -> dict:
        names = {"{file}": self.file_name, "{gold}": "gold"}
        arguments = [names.get(word, word) for word in shlex.split(self.command)]
        parts = re.split(r"(\{answer\}|\{gold\})", self._around())
        texts = {"{answer}": answer, "{gold}": gold}
        whole = "".join(texts.get(part, part) for part in parts)
        files = {self.file_name: whole, "gold": gold}
        return {"kind": "command", "arguments": arguments, "files": files, "input": ""}

    def _accepted(self, reply: dict) -> bool:
        if reply["detail"] == NO_COMMAND:
            raise HarnessError(f"The verifier command cannot start {self.command!r}: {NO_COMMAND}.")
        matched = not self.output or re.search(self.output, reply["output"])
        return reply["status"] == 0 and bool(matched)

    def _installed(self) -> None:
        program = shlex.split(self.command)[0]
        if not self.container and not shutil.which(program):
            raise HarnessError(
                f"The verifier command runs {program!r}, which is not installed here. Install it,"
                " or name an image that has it: container = ..."
            )

    def _run(self, jobs: list[dict]) -> list[dict]:
        limits = Limits(
            seconds=self.seconds,
            memory_mb=self.memory_mb,
            scratch_mb=64,
            file_mb=32,
            processes=self.processes,
        )
        box = Container(self.container, self.runtime) if self.container else None
        return pool_of(limits, self.workers, tuple(self.readable), box).run(jobs)

    def close(self) -> None:
        """End the workers of every `code` and `command` verifier."""
        close_pools()


@hookimpl
def register_verifiers(register):
    register(Command)
