"""Waiting for parts outside the harness: a labeller, a judge, a process, a network."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .errors import HarnessError

REMIND_SECONDS = 60.0  # between two messages during a wait


class Patience:
    """How long one answer may take; `seconds` is set by `--answer-timeout`."""

    seconds = 3600.0


class TooSlow(HarnessError):
    """An answer took longer than the limit."""


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Say every minute what is waited for, and end the wait at the limit.

    Python code and blocking calls of the main thread are interrupted. Elsewhere, and on systems
    without `SIGALRM`, nothing is interrupted.

    Args:
        what: The subject of the message: `the labeller endpoint`.

    Raises:
        TooSlow: The limit has passed.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "setitimer"):
        yield
        return
    begun = time.monotonic()

    def look(number: int, frame: FrameType | None) -> None:
        waited = time.monotonic() - begun
        if waited >= Patience.seconds:
            raise TooSlow(too_slow(what, waited))
        print(f"harness: waiting for {what} for {waited:.0f} s", file=sys.stderr, flush=True)
        signal.setitimer(signal.ITIMER_REAL, _next(waited))

    before = signal.signal(signal.SIGALRM, look)
    outer = signal.setitimer(signal.ITIMER_REAL, _next(0.0))[0]
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if outer:
            signal.setitimer(signal.ITIMER_REAL, outer)


def _next(waited: float) -> float:
    return max(0.01, min(REMIND_SECONDS, Patience.seconds - waited))


class RankWatch:
    """Names this process, every minute, while it waits for the other processes of its run.

    A collective call cannot be interrupted by a signal, so a thread looks. The time limit of the
    process group ends the wait.
    """

    def __init__(self, rank: int, size: int, every: float = REMIND_SECONDS) -> None:
        self.rank, self.size, self.every = rank, size, every
        self._since: float | None = None
        self._thread: threading.Thread | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Note that this process waits, until the block is left."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def _look(self) -> None:
        reminders = 0
        while True:
            time.sleep(min(1.0, self.every / 4))
            since = self._since
            waited = 0.0 if since is None else time.monotonic() - since
            reminders = reminders if waited >= reminders * self.every else 0
            if waited >= (reminders + 1) * self.every:
                reminders += 1
                print(
                    f"harness: process {self.rank} of {self.size} has waited {waited:.0f} s for the"
                    " other processes of this run: look at what they do",
                    file=sys.stderr,
                    flush=True,
                )


def too_slow(what: str, seconds: float) -> str:
    """Return the message on an answer that took too long."""
    return (
        f"No answer from {what} for {seconds:.0f} s. What was done is kept: look at what hangs and"
        " run the same command again, or allow more time with --answer-timeout SECONDS."
    )
