"""Named points at which a fault is made on purpose, to prove that it loses nothing.

They do nothing unless the environment variable HARNESS_FAULT is set when the process starts:

    HARNESS_FAULT=POINT:N:ACTION      for example HARNESS_FAULT=checkpoint.tensors:2:kill

The fault is made the N-th time that the process reaches the point. POINTS are the names, ACTIONS
the faults. `benchmarks/faults.py` makes them all.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import NoReturn, Protocol, TypeVar, cast

from .errors import HarnessError, UsageError, unknown

VARIABLE = "HARNESS_FAULT"
POINTS = {
    "write.begin": "a file is about to be replaced: nothing of it is written",
    "write.written": "the new content lies beside the file, which is not replaced yet",
    "write.replaced": "a file has its new content",
    "row.append": "a row is about to be added to metrics or rollouts",
    "artifact.made": "a shared stage is computed, and its manifest is not written",
    "artifact.sealed": "an artifact has its manifest, and is not published",
    "artifact.published": "an artifact has its final name, and its scratch folder is still there",
    "step.loss": "the loss of an optimiser step is known; it can be made NaN",
    "step.end": "an optimiser step is done, and no checkpoint holds it",
    "reward": "rewards of completions are known; they can be made NaN",
    "rollout": "completions of a turn are drawn",
    "checkpoint.begin": "a checkpoint is about to be written",
    "checkpoint.tensors": "a checkpoint has its tensors, and no state",
    "checkpoint.sealed": "a checkpoint is whole, and has no final name",
    "checkpoint.published": "a checkpoint has its final name; the oldest one is not removed",
    "evaluation.answers": "the trained policy has answered the evaluation prompts",
    "evaluation.kl": "KL is measured; it can be made NaN",
    "evaluation.judged": "the answers are judged, and nothing is recorded",
    "record.begin": "the evaluation is over, and no file of the record is written",
    "record.result": "result.json is written, and the policy is not saved",
    "record.policy": "the policy is saved, and result.json does not say so",
    "label": "a labeller is about to be asked",
    "judge": "a judge is about to be asked",
    "study.job": "a job of a study is about to begin",
    "study.ended": "a job of a study has ended, and the study has not noted it",
}
T = TypeVar("T")


class Plan(Protocol):
    """What happens at the points of a process."""

    def reach(self, point: str) -> bool:
        """Note that a point is reached; return whether its value is to be NaN."""


class Fault:
    """One fault: an action at the n-th time that a point is reached, counted from 1."""

    def __init__(self, point: str, n: int, action: str) -> None:
        self.point, self.n, self.action, self.reached = point, n, action, 0

    def reach(self, point: str) -> bool:
        """Make the fault, if it is due."""
        if point != self.point:
            return False
        self.reached += 1
        if self.reached != self.n:
            return False
        print(f"harness: {VARIABLE}: {self.action} at {point}", file=sys.stderr, flush=True)
        if self.action == "nan":
            return True
        ACTIONS[self.action]()
        return False


class Count:
    """No fault: how often each point is reached."""

    def __init__(self) -> None:
        self.reached: Counter[str] = Counter()

    def reach(self, point: str) -> bool:
        """Count a point."""
        self.reached[point] += 1
        return False


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _exit() -> NoReturn:
    raise SystemExit(0)


def _full() -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _raise() -> NoReturn:
    raise RuntimeError(f"an error made by {VARIABLE}")


def _memory() -> NoReturn:
    raise MemoryError


def _hang() -> NoReturn:
    while True:
        time.sleep(60)


ACTIONS: dict[str, Callable[[], None]] = {
    "kill": _kill,
    "exit": _exit,
    "full": _full,
    "raise": _raise,
    "memory": _memory,
    "hang": _hang,
    "nan": lambda: None,
}


class Faults:
    """The faults of this process; None where there are none, which is the usual case."""

    plan: Plan | None = None


def fault_point(point: str) -> None:
    """Make a fault here, if this process was started with one."""
    if Faults.plan is not None:
        Faults.plan.reach(point)


def fault_value(point: str, value: T) -> T:
    """Return a number or a tensor, as NaN if this process was started with that fault."""
    if Faults.plan is not None and Faults.plan.reach(point):
        return cast("T", value * float("nan"))  # type: ignore[operator]
    return value


def fault_of(text: str) -> Fault:
    """Return the fault that `POINT:N:ACTION` describes.

    Raises:
        UsageError: The text has another form, or one of its names does not exist.
    """
    point, _, rest = text.partition(":")
    number, _, action = rest.partition(":")
    if not (number.isascii() and number.isdigit() and int(number)):
        raise UsageError(f"{VARIABLE}={text}: expected POINT:N:ACTION, with N from 1.")
    if point not in POINTS:
        raise unknown(f"fault point of {VARIABLE}", point, POINTS)
    if action not in ACTIONS:
        raise unknown(f"action of {VARIABLE}", action, ACTIONS)
    return Fault(point, int(number), action)


def take_fault() -> None:
    """Take the fault from the environment; one that does not exist ends the process.

    A new process does this when it imports this module. A forked one has to call it.
    """
    if not (text := os.environ.get(VARIABLE)):
        return
    try:
        Faults.plan = fault_of(text)
    except HarnessError as error:
        print(f"harness: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


take_fault()
