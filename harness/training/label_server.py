"""A labeller that answers while a method trains, in a process of its own.

The method's process cannot read the labeller's memory, which may hold gold. It sends prompt ids and
completions and receives labels, as JSON lines over pipes. `python -m harness.training.label_server`
is the server.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from random import Random
from threading import Thread
from typing import Any

from ..api.contracts import Labeller
from ..api.participants import participants
from ..api.registry import installed, load_file
from ..core.data import Comparison
from ..core.errors import HarnessError
from ..core.secrets import redact, redact_streams
from ..core.seeds import derive
from ..core.spec import RunSpec, spec_from
from ..core.watchdog import TooSlow, waiting_for
from .labels import checked_labels

PATIENCE = 10.0  # seconds that a labeller gets to end by itself


class LabelClient:
    """The client's side: it starts the server at the first request and ends it with the run."""

    def __init__(
        self, spec: RunSpec, files: Sequence[str], human: bool, labeller: str = ""
    ) -> None:
        self.human = human
        self._named = f" (labeller {labeller})" if labeller else ""  # ends messages
        self.usage: dict[str, float] = {}  # what labelling has used since it began
        self._child = subprocess.Popen(
            [sys.executable, "-m", "harness.training.label_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": str(spec.execution.threads),
            },  # a model's labels depend on it, if barely
            encoding="utf-8",
        )
        try:
            self._ask({"spec": dataclasses.asdict(spec), "files": list(files)})
        except BaseException:
            self.close()
            raise

    def compare(
        self,
        prompt_ids: Sequence[str],
        texts: Sequence[Sequence[str]],
        lengths: Sequence[Sequence[int]],
        ended: Sequence[Sequence[bool]],
        key: Any,
    ) -> tuple[list[list[Comparison]], int]:
        """Return the labels of each prompt's completions and their number; `key` seeds errors."""
        request = {
            "do": "compare",
            "prompts": list(prompt_ids),
            "texts": texts,
            "lengths": lengths,
            "ended": ended,
            "key": key,
        }
        before = self.usage.get("asked", 0)
        labels = [[Comparison(i, j, p) for i, j, p in row] for row in self._ask(request)["said"]]
        return labels, (
            int(self.usage["asked"] - before) if "asked" in self.usage else sum(map(len, labels))
        )

    def revise(
        self, prompt_ids: Sequence[str], texts: Sequence[Sequence[str]], rounds: int, key: Any
    ) -> list[list[str]]:
        """Return the completions after `rounds` rewrites, each under a principle that is drawn."""
        request = {
            "do": "revise",
            "prompts": list(prompt_ids),
            "texts": texts,
            "rounds": rounds,
            "key": key,
        }
        revised: list[list[str]] = self._ask(request)["said"]
        return revised

    def close(self) -> None:
        """End the labeller's process, even in the middle of an answer."""
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.close()  # the server ends with its input
        except OSError:  # it has ended, and a request was still in the pipe
            pass
        try:
            self._child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            with waiting_for(f"the labeller's process {self._child.pid}"):
                self._child.stdin.write(json.dumps(question) + "\n")
                self._child.stdin.flush()
                answer: dict[str, Any] = json.loads(self._child.stdout.readline())
        except TooSlow:
            self._child.kill()
            self.close()
            raise
        except (OSError, ValueError) as error:
            self.close()
            raise HarnessError(
                f"The labeller's process ended: exit code {self._child.returncode}{self._named}."
            ) from error
        if "error" in answer:
            raise HarnessError(f"The labeller failed: {answer['error']}{self._named}")
        self.usage = answer["usage"]
        return answer


def main() -> None:
    """Serve one labeller until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the other end's to handle
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    redact_streams()
    os.dup2(2, 1)  # what a labeller prints is no answer
    clerk = None
    for question in _questions():
        try:
            if clerk is None:
                clerk = LabelServer(question)
                answer: dict[str, Any] = {}
            else:
                answer = {"said": clerk.answer(question)}
            answer["usage"] = clerk.labeller.usage()
        except HarnessError as error:
            answer = {"error": str(error)}
        except BaseException as error:  # any error of a plugin's labeller is reported to the client
            answer = {"error": f"{type(error).__name__}: {error}"}
        if "error" in answer:
            answer["error"] = redact(answer["error"])
        print(json.dumps(answer), file=answers, flush=True)


def _questions() -> Iterator[dict[str, Any]]:
    """Yield the requests; when the client has ended, end the process, even in the middle of an
    answer.
    """
    lines: SimpleQueue[str] = SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    Thread(target=listen, daemon=True).start()
    while True:
        yield json.loads(lines.get())


class LabelServer:
    """The other end: the labeller of a spec, prepared, and the prompts it is asked about."""

    def __init__(self, question: dict[str, Any]) -> None:
        registry = installed()
        for path in question["files"]:
            load_file(registry, path)
        self.spec = spec_from(question["spec"])
        built = participants(self.spec, registry)
        labeller, self.suite = built.learns_from, built.suite
        assert labeller is not None, "the run was refused without one"
        built.labelling_judge.prepare(self.suite, None)
        labeller.prepare(self.suite, built.labelling_judge)
        self.labeller: Labeller = labeller
        self.prompts = {prompt.id: prompt for prompt in self.suite.prompts("train")}

    def answer(self, question: dict[str, Any]) -> list[Any]:
        """Return what is said of each prompt's completions."""
        return [getattr(self, question["do"])(question, i) for i in range(len(question["prompts"]))]

    def compare(self, question: dict[str, Any], i: int) -> list[tuple[int, int, float]]:
        """Return opinions of the i-th prompt's completions."""
        name, rng = question["prompts"][i], self._rng("fresh labels", question, i)
        prompt, texts = self.prompts[name], question["texts"][i]
        labels = checked_labels(
            self.labeller.compare_sampled(
                prompt, texts, question["lengths"][i], question["ended"][i], rng
            ),
            len(texts),
            self.labeller.name,
            prompt,
        )
        return [(c.first, c.second, c.p) for c in labels]

    def revise(self, question: dict[str, Any], i: int) -> list[str]:
        """Return the i-th prompt's completions after some rounds of revision, a principle drawn for
        each.
        """
        name, rng = question["prompts"][i], self._rng("revisions", question, i)
        principles, revised = self.labeller.constitution(self.suite), []
        for text in question["texts"][i]:
            for _ in range(question["rounds"]):
                text = self.labeller.revise(self.prompts[name], text, rng.choice(principles), rng)
            revised.append(text)
        return revised

    def _rng(self, purpose: str, question: dict[str, Any], i: int) -> Random:
        """Return the random numbers for the i-th prompt of a question."""
        key = (
            self.spec.shared_seed,
            self.spec.seed,
            purpose,
            *question["key"],
            question["prompts"][i],
        )
        return Random(derive(*key))


if __name__ == "__main__":
    main()
