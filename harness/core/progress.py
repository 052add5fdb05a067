"""The current activity of a run, and its wall time by part.

A run opens a `WallClock`. Code below it names its activity with `part` (the clock only) or
`activity` (the clock and the display), and counts steps with `advance`. Outside of a run all three
do nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol

LOADING, STAGES, METHOD = "loading", "stages", "method"
EVALUATION, CHECKPOINTS, OTHER = "evaluation", "checkpoints", "other"
PARTS = (LOADING, STAGES, METHOD, EVALUATION, CHECKPOINTS, OTHER)
POLICY = "policy"  # the artifact that keeps the trained policy: a checkpoint, not a stage


class Show(Protocol):
    """Receives the beginning, the steps and the end of an activity."""

    def __call__(self, name: str, step: int, total: int, ended: bool) -> None:
        """Show that an activity began (step 0), did `step` of `total` (0: unknown), or ended.

        An empty name that ended is the run itself, however it ended.
        """


class WallClock:
    """Wall seconds of one run by part. Time inside two parts counts once, for the inner one.

    Args:
        started: Reading of `time.perf_counter` at the start of the run.
        show: Called when an activity begins, advances and ends.
    """

    def __init__(self, started: float | None = None, show: Show | None = None) -> None:
        self.artifact_seconds: dict[
            str, float
        ] = {}  # seconds of each artifact that this run made, by kind
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._parts = [OTHER]
        self._activities: list[str] = []
        self._show = show
        self._mark = time.perf_counter()
        # what came before the clock: imports, and reading the options and the model's files
        self._seconds[LOADING] = self._mark - (self._mark if started is None else started)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of every part so far; their sum is the whole wall time."""
        self._settle()
        return dict(self._seconds)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside to a part."""
        self._settle()
        self._parts.append(name)
        try:
            yield
        finally:
            self._settle()
            self._parts.pop()

    @contextmanager
    def making(self, kind: str) -> Iterator[None]:
        """Count what happens inside to the stages, and to one kind of artifact."""
        begun = time.perf_counter()
        with self.part(CHECKPOINTS if kind == POLICY else STAGES):
            yield
        if kind != POLICY:
            self.artifact_seconds[kind] = (
                self.artifact_seconds.get(kind, 0.0) + time.perf_counter() - begun
            )

    @contextmanager
    def activity(self, part: str, name: str) -> Iterator[None]:
        """Count what happens inside to a part, and show it under a name."""
        self._activities.append(name)
        self._tell(name, 0, 0, False)
        try:
            with self.part(part):
                yield
        finally:
            self._activities.pop()
            self._tell(name, 0, 0, True)

    def advance(self, step: int, total: int) -> None:
        """Show how far the innermost activity is; nothing if there is none."""
        if self._activities:
            self._tell(self._activities[-1], step, total, False)

    def close(self) -> None:
        """Show that the run is over."""
        self._tell("", 0, 0, True)

    def _tell(self, name: str, step: int, total: int, ended: bool) -> None:
        if self._show is not None:
            self._show(name, step, total, ended)

    def _settle(self) -> None:
        now = time.perf_counter()
        self._seconds[self._parts[-1]] += now - self._mark
        self._mark = now


def process_age() -> float:
    """Return the seconds since this process began, or 0 where the system gives no start time."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        up = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
        return max(0.0, up - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0


_CLOCK: ContextVar[WallClock | None] = ContextVar("wall_clock", default=None)


@contextmanager
def running(clock: WallClock) -> Iterator[WallClock]:
    """Make a clock the one that `part`, `activity` and `advance` use inside."""
    token = _CLOCK.set(clock)
    try:
        yield clock
    finally:
        _CLOCK.reset(token)
        clock.close()


def current() -> WallClock | None:
    """Return the clock of the run that is carried out, or None outside of a run."""
    return _CLOCK.get()


def part(name: str) -> AbstractContextManager[None]:
    """Count what happens inside to a part of the run's wall time."""
    clock = _CLOCK.get()
    return nullcontext() if clock is None else clock.part(name)


def making(kind: str) -> AbstractContextManager[None]:
    """Count what happens inside to the stages that this run makes."""
    clock = _CLOCK.get()
    return nullcontext() if clock is None else clock.making(kind)


def activity(part: str, name: str) -> AbstractContextManager[None]:
    """Count what happens inside to a part of the wall time, and show it under a name."""
    clock = _CLOCK.get()
    return nullcontext() if clock is None else clock.activity(part, name)


def advance(step: int, total: int) -> None:
    """Show how far the innermost activity is.

    Args:
        step: Steps that are done.
        total: All steps of the activity.
    """
    clock = _CLOCK.get()
    if clock is not None:
        clock.advance(step, total)


def advance_from(done: int, total: int) -> Callable[[int], None]:
    """Return `advance` for a piece of an activity, with `done` steps before it."""
    return lambda step: advance(done + step, total)
