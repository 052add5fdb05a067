"""A child process that calls one function for one question after another, within time and memory.

It is for checks whose run time depends on the answer: symbolic mathematics, regular expressions,
schemas, and functions of a user. The code is trusted; the answers are not. For programs that are
not trusted there is `harness_plugins.isolation`.

A question that takes more processor time than the limit is interrupted inside the child, which
stays warm. So is a question that takes WAITING times the limit by the clock, which only a waiting
function does; a loaded machine changes no verdict. A child that cannot be interrupted is killed,
and a spare one takes its place at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from harness import HarnessError

START_LIMIT = 120.0  # seconds for the imports of a child
WAITING = 10.0  # factor of the limit for the time by the clock
PATIENCE = 1.0  # seconds beyond that before a child is killed
MEMORY = 2 << 30  # bytes of address space beyond what the child has after its imports
OVERTIME = "overtime"


class _Overtime(BaseException):
    """The time of a question is over. It is not an Exception, so that the called code does not
    catch it.
    """


class TimedWorker:
    """The parent's side: a warm child, and a spare one once a child had to be killed.

    Args:
        target: The function, `module:name` or `FILE.py:name`. It takes one JSON-able value and
            returns another.
        limit: Seconds of processor time for a question.
    """

    def __init__(self, target: str, limit: float) -> None:
        self.target, self.limit = target, limit
        self.kills = 0
        self._child: _Child | None = None
        self._spare: _Child | None = None

    def ask(self, questions: Sequence[Any]) -> list[dict[str, Any]]:
        """Return an answer per question: `{"value": ...}`, or `{"error": ...}` with the reason.

        Raises:
            HarnessError: The child does not start.
        """
        return [self._ask(question) for question in questions]

    def close(self) -> None:
        """End the children. The next question starts one again."""
        for child in (self._child, self._spare):
            if child is not None:
                child.end()
        self._child = self._spare = None

    def _ask(self, question: Any) -> dict[str, Any]:
        if self._child is None:
            self._child = _Child(self.target, self.limit)
        answer = self._child.ask(question)
        if answer is None:  # killed: the spare child continues while another one starts
            self.kills += 1
            self._child = self._spare or _Child(self.target, self.limit)
            self._spare = _Child(self.target, self.limit)
            return {"error": OVERTIME}
        return answer


class _Child:
    """One child process; it is ready once its imports are done."""

    def __init__(self, target: str, limit: float) -> None:
        self.limit, self.ready = limit, False
        self._target = target
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, target, str(limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "PYTHONHASHSEED": "0",  # libraries may go through sets
            },
        )
        self._unread = b""

    def ask(self, question: Any) -> dict[str, Any] | None:
        """Return the answer; None where the child had to be killed."""
        self._wait_until_ready()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has died: there will be no answer
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        line = self._line(WAITING * self.limit + PATIENCE)
        if line is None:
            self.end()
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """Kill the child and wait for its end."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _wait_until_ready(self) -> None:
        if self.ready:
            return
        line = self._line(START_LIMIT)
        answer = json.loads(line) if line else {"error": "it did not start"}
        if "error" in answer:
            self.end()
            raise HarnessError(f"The verifier cannot use {self._target}: {answer['error']}.")
        self.ready = True

    def _line(self, seconds: float) -> bytes | None:
        """Return the next line of the child; None if it has died or sends none."""
        assert self._process.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self._unread:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                return None
            block = os.read(self._process.stdout.fileno(), 1 << 16)
            if not block:
                return None
            self._unread += block
        line, _, self._unread = self._unread.partition(b"\n")
        return line


@cache
def worker_for(target: str, limit: float) -> TimedWorker:
    """Return the worker of a function: one for all verifiers of this process that use it."""
    return TimedWorker(target, limit)


def loaded(target: str) -> Callable[[Any], Any]:
    """Return the function that a target names.

    Raises:
        ImportError: There is no such module.
        AttributeError: The module has no such function.
    """
    place, _, name = target.rpartition(":")
    module = _module_of_file(place) if place.endswith(".py") else importlib.import_module(place)
    function: Callable[[Any], Any] = getattr(module, name)
    return function


def _module_of_file(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"harness_function_{Path(path).stem}", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ImportError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """The child: answer each line of the input by one line of the output."""
    target, limit = sys.argv[1], float(sys.argv[2])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the function's own output must not be read as an answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    _end_with_parent()
    try:
        function = loaded(target)
        answer: dict[str, Any] = {"value": "ready"}
    except Exception as error:  # the parent reports it
        answer = {"error": f"{type(error).__name__}: {error}"}
    _limit_memory()
    _write(answers, answer)
    for timer in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(timer, _interrupt)
    for line in sys.stdin.buffer:
        _write(answers, _answer(function, json.loads(line), limit))


def _answer(function: Callable[[Any], Any], question: Any, limit: float) -> dict[str, Any]:
    """Return the value of the function, or the reason why there is none."""
    try:
        _set_timers(limit)
        try:
            value = function(question)
        finally:
            _set_timers(0.0)
        json.dumps(value)
        return {"value": value}
    except _Overtime:
        return {"error": OVERTIME}
    except MemoryError:
        return {"error": "memory"}
    except Exception as error:  # any exception of the function is an answer without a value
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def _set_timers(limit: float) -> None:
    """Interrupt after so many seconds of processor time, and later by the clock; 0 is never."""
    signal.setitimer(signal.ITIMER_PROF, limit)
    signal.setitimer(signal.ITIMER_REAL, WAITING * limit)


def _interrupt(number: int, frame: Any) -> None:
    raise _Overtime


def _write(stream: Any, answer: dict[str, Any]) -> None:
    stream.write(json.dumps(answer).encode() + b"\n")
    stream.flush()


def _end_with_parent() -> None:
    """Have the kernel end this process with its parent, where it can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def _limit_memory() -> None:
    """Limit the address space to the present use plus MEMORY, if the system reports the use."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main()
