"""A clock of CPU seconds that notes how much memory was resident when it was started."""

from __future__ import annotations

import time
from pathlib import Path


def resident(name: str) -> int:
    """Return bytes of this process's resident memory: `VmRSS` now, `VmHWM` at the most."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return (
        next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:"))
        * 1024
    )


class Clock:
    """Marks at the begin and after every step; what is done before `begin` costs nothing."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        self.before = 0  # bytes resident before the first step: imports, models, data

    def begin(self) -> None:
        """Start."""
        self.before = resident("VmRSS")
        self.marks.append(time.process_time())

    def tick(self, *_: object) -> None:
        """End a step."""
        self.marks.append(time.process_time())

    @property
    def seconds(self) -> list[float]:
        """CPU seconds of each step."""
        return [b - a for a, b in zip(self.marks, self.marks[1:], strict=False)]
