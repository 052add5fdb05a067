"""The verifier `module:function`: a Python function of the user gives the verdict."""

from __future__ import annotations

import importlib.util
import inspect
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness import HarnessError, UsageError, Verifier, hookimpl, prompt_text

NAMES = ("completion", "gold", "prompt", "ended")


@dataclass
class Function(Verifier):
    """A function of your own: `verifier = "module:function"` or "file.py:function".

    It is called with those of these arguments that it names: `completion`, `gold` (the row's answer
    as it stands in the data), `prompt` (as text), `ended`. It returns a number in [0, 1], True or
    False, or None if it cannot decide. It runs in a child process: an answer on which it takes
    longer than `time_limit` is wrong. An exception in it ends the run.
    """

    name = "function"

    function: str = ""  # module:function, or file.py:function with a path beside the suite file
    time_limit: float = 5.0  # seconds of processor time for one answer

    def check(self):
        """Raise ValueError for a name that is not a function's."""
        place, _, name = self.function.rpartition(":")
        if not place or not name.isidentifier():
            raise ValueError(
                f"function = {self.function!r}: expected module:function or file.py:function"
            )
        if self.time_limit <= 0:
            raise ValueError("time_limit must be above 0")

    def verify(self, prompts, completions, golds, ended):
        """Return the function's verdicts; 0.0 if it ran out of time or memory."""
        rows = zip(completions, golds, prompts, ended, strict=True)
        questions = [
            [self._target(), dict(zip(NAMES, (text, gold, prompt_text(p.text), end), strict=True))]
            for text, gold, p, end in rows
        ]
        return [self._verdict(answer) for answer in self._worker().ask(questions)]

    def data_files(self):
        """Return the file that defines the function."""
        return [self._file()]

    def close(self):
        """End the child process."""
        self._worker().close()

    def _worker(self):
        from .timed_worker import worker_for  # imported late: `harness list` starts no child

        return worker_for(f"{__name__}:called", self.time_limit)

    def _target(self) -> str:
        place, _, name = self.function.rpartition(":")
        return f"{self._file()}:{name}" if place.endswith(".py") else self.function

    def _file(self) -> Path:
        place = self.function.rpartition(":")[0]
        if place.endswith(".py"):
            file = Path(self.folder, place).resolve()
        else:
            try:
                spec = importlib.util.find_spec(place)
            except (ImportError, ValueError):
                spec = None
            file = Path(spec.origin) if spec and spec.origin else None
        if file is None or not file.is_file():
            raise UsageError(
                f"verifier {self.function}: there is no {'file' if file else 'module'}"
                f" {file or place}."
            )
        return file

    def _verdict(self, answer) -> float | None:
        if answer.get("error") in ("overtime", "memory"):
            return 0.0
        value = answer.get("value")
        if "error" in answer or not (value is None or isinstance(value, bool | int | float)):
            problem = answer.get("error") or f"it returned {value!r}, and no number"
            raise HarnessError(f"The verifier {self.function} failed: {problem}.")
        return None if value is None else float(value)


def called(question: list) -> object:
    """Return what the user's function returns. Runs in the child."""
    target, values = question
    function, names = _function(target)
    return function(**{name: values[name] for name in names})


@cache
def _function(target: str):
    """Return the function of a target, and the names of its arguments."""
    from .timed_worker import loaded

    function = loaded(target)
    names = list(inspect.signature(function).parameters)
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise TypeError(f"it has an argument {unknown[0]!r}; there are {', '.join(NAMES)}")
    return function, names


@hookimpl
def register_verifiers(register):
    register(Function)
