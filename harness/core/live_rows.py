"""JSON lines that grow on disk during a run; a reader may follow them with `tail -f`.

After a crash the files may hold rows past the last checkpoint. They are cut on resumption, so the
finished file has the bytes of an undisturbed run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from .fault_points import fault_point
from .files import write_text, writing
from .secrets import redact


def line_of(row: Mapping[str, Any]) -> str:
    """Return a row as its line, with sorted keys; NaN is an error, because it is not valid JSON."""
    return json.dumps(row, sort_keys=True, allow_nan=False) + "\n"


class LiveRows:
    """One growing file of JSON lines; a process that does not write leaves the file alone."""

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self._writes = path, writes
        self._stream: IO[str] | None = None

    def restart(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace the content by these rows."""
        self.close()
        text = "".join(map(line_of, rows))
        if self._writes and (text or self.path.exists()):
            write_text(self.path, text)

    def keep(self, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
        """Drop the rows that are not wanted, and a last line that was cut by a crash."""
        if self._writes and self.path.exists():
            self.restart(row for row in _readable(self.path) if wanted(row))

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; readers see the whole line at once."""
        if not self._writes:
            return
        text = redact(line_of(row))
        with writing(self.path, len(text)):
            fault_point("row.append")
            if self._stream is None:
                self._stream = self.path.open("a", encoding="utf-8")
            self._stream.write(text)
            self._stream.flush()

    def sync(self) -> None:
        """Flush the rows to disk, so that they outlast a crash of the machine."""
        if self._stream is not None:
            with writing(self.path):
                os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Let go of the file."""
        stream, self._stream = self._stream, None
        if stream is not None:
            with writing(self.path):
                stream.close()


class LiveFiles:
    """The metrics and the sampled rollouts of a run, written turn by turn."""

    def __init__(self, metrics: LiveRows, rollouts: LiveRows) -> None:
        self.metrics, self.rollouts = metrics, rollouts

    def restart(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Cut the files to the turns that are done, which have these metrics."""
        self.metrics.restart(rows)
        self.rollouts.keep(lambda row: row["step"] <= len(rows))

    def turn(
        self, step: int, metrics: Mapping[str, Any], rollouts: Iterable[Mapping[str, Any]]
    ) -> None:
        """Add the rows of a turn, numbered from 1."""
        self.metrics.append(metrics)
        for completion in rollouts:
            self.rollouts.append({"step": step, **completion})

    def sync(self) -> None:
        """Flush both to disk."""
        self.metrics.sync()
        self.rollouts.sync()

    def close(self) -> None:
        """Let go of both."""
        self.metrics.close()
        self.rollouts.close()


def _readable(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file up to the first line that is damaged."""
    rows: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            row = json.loads(line.decode("utf-8"))
        except ValueError:  # JSON and UTF-8 errors are ValueErrors
            break
        if not line.endswith(b"\n") or not isinstance(row, dict):
            break
        rows.append(row)
    return rows
