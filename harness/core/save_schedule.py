"""The schedule of checkpoints: every n seconds or steps, never, or by the cost of a save."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .errors import UsageError

SHARE = 0.05  # of the time that checkpoints may take
LEAST = 20.0  # seconds between two checkpoints, however little one costs
# seconds until the first checkpoint, whatever its cost
FIRST = 900.0
SLOW = 200e6  # bytes per second, assumed of a disk that nothing was written to yet


@dataclass(frozen=True)
class SaveInterval:
    """The time between two checkpoints; without `seconds` and `steps` it follows from the cost."""

    seconds: float | None = None
    steps: int | None = None
    off: bool = False


def parse_interval(text: str) -> SaveInterval:
    """Return the interval that `--checkpoint-every` names.

    Args:
        text: `auto`, `off`, seconds such as `60` or `60s`, or steps such as `50steps`.

    Raises:
        UsageError: It is none of these.
    """
    word = text.strip().lower()
    if word in ("auto", "off"):
        return SaveInterval(off=word == "off")
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(s|steps?)?", word)
    if match is None or (match[2] or "s") != "s" and not re.fullmatch(r"0*[1-9]\d*", match[1]):
        raise UsageError(
            f"--checkpoint-every {text}: expected auto, off, seconds (60) or steps (50steps)."
        )
    if (match[2] or "s") == "s":
        return SaveInterval(seconds=float(match[1]))
    return SaveInterval(steps=int(match[1]))


@dataclass
class SaveCosts:
    """What the checkpoints of a process have cost so far."""

    saves: int = 0
    bytes: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Bytes written per second; SLOW before the first save."""
        return self.bytes / self.seconds if self.seconds else SLOW


@dataclass
class SaveSchedule:
    """Decides when one loop of training writes a checkpoint, and measures what that costs."""

    interval: SaveInterval
    costs: SaveCosts = field(default_factory=SaveCosts)  # shared by the loops of a process
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._begun = self._last = self.clock()
        self._last_step = 0
        self._spent = 0.0  # seconds in saves of this loop
        self._saves = 0

    def due(self, step: int, size: Callable[[], int]) -> bool:
        """Return whether a checkpoint is to be written after a step.

        Args:
            step: Steps done, from 1.
            size: Returns the bytes of a checkpoint.
        """
        if self.interval.off:
            return False
        if self.interval.steps is not None:
            return step - self._last_step >= self.interval.steps
        since = self.clock() - self._last
        if self.interval.seconds is not None:
            return since >= self.interval.seconds
        if since < LEAST:
            return False
        elapsed = self.clock() - self._begun
        return self._affordable(elapsed, size()) or (not self._saves and elapsed >= FIRST)

    def resumed(self, step: int) -> None:
        """Count steps from the checkpoint of a resumed training."""
        self._last_step = step

    @contextmanager
    def saving(self, step: int, size: int) -> Iterator[None]:
        """Measure a save of n bytes after a step."""
        begun = self.clock()
        yield
        self._last, self._last_step = self.clock(), step
        cost = self._last - begun
        self._spent += cost
        self._saves += 1
        self.costs.saves += 1
        self.costs.bytes += size
        self.costs.seconds += cost

    def _affordable(self, elapsed: float, size: int) -> bool:
        """Return whether saves still take at most SHARE of the time after one more."""
        cost = size / self.costs.rate
        return self._spent + cost <= SHARE * (elapsed + cost)
