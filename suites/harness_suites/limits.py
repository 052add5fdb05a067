"""Limits on data files, so that no file fills the memory or the disk."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from harness import UsageError

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Limits:
    """The largest allowed row and file; each limit is an option of a suite."""

    max_row_mib: float = 32.0  # of one row, in MiB
    max_columns: int = 1000  # of a row or a table
    max_depth: int = 64  # levels of lists and objects in a row
    max_unpacked_gib: float = 16.0  # of a compressed file, after unpacking, in GiB

    @property
    def row_bytes(self) -> int:
        """The most bytes of one row."""
        return int(self.max_row_mib * MIB)

    def check(self) -> None:
        """Raise ValueError for a limit of 0 or less."""
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")

    def check_row(self, row: Any) -> None:
        """Raise ValueError for a row with too many columns, levels or bytes."""
        if isinstance(row, dict) and len(row) > self.max_columns:
            raise ValueError(f"{len(row)} columns, more than max_columns = {self.max_columns}")
        level, depth, size = [row], 0, 0
        while level:
            inside: list[Any] = []
            for value in level:
                if isinstance(value, dict):
                    inside += value.values()
                elif isinstance(value, list | tuple):
                    inside += value
                elif isinstance(value, str | bytes):
                    size += len(value)
            level, depth = inside, depth + 1
            if depth > self.max_depth + 1:
                raise ValueError(f"nested too deeply: more than max_depth = {self.max_depth}")
        if size > self.row_bytes:
            raise ValueError(self.too_long())

    def too_long(self) -> str:
        """Return the message for a row that is too long."""
        return f"longer than max_row_mib = {self.max_row_mib:g} MiB"


USUAL = Limits()


def number(value: object, name: str) -> float:
    """Return a number of a row; raise ValueError for anything else, NaN and infinity included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is a number, not {str(value)[:40]!r}")
    try:
        real = float(value)
    except OverflowError:
        real = math.inf
    if not math.isfinite(real):
        raise ValueError(f"{name} is not a finite number")
    return real


class Unpacking(io.RawIOBase):
    """The bytes of a compressed file; more than a limit raise UsageError."""

    def __init__(self, stream: Any, path: Path, limits: Limits) -> None:
        self._stream, self._path, self._limits = stream, path, limits
        self._place = 0

    def readable(self) -> bool:
        """Return True: it can be read."""
        return True

    def seekable(self) -> bool:
        """Return whether `seek` works on the unpacked bytes."""
        return bool(self._stream.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position in the unpacked bytes."""
        self._place = int(self._stream.seek(offset, whence))
        self._check()
        return self._place

    def tell(self) -> int:
        """Return the position in the unpacked bytes."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Read some of the unpacked bytes."""
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        self._place += len(content)
        self._check()
        return len(content)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
        super().close()

    def _check(self) -> None:
        most = self._limits.max_unpacked_gib
        if self._place > most * GIB:
            packed = self._path.stat().st_size
            raise UsageError(
                f"{self._path}: {packed:,} bytes unpack to more than max_unpacked_gib = {most:g}"
                " GiB. Set a larger max_unpacked_gib, or write several files."
            )


def unpacking(stream: Any, path: Path, limits: Limits) -> BinaryIO:
    """Return the buffered bytes of a compressed file, within the limit."""
    return io.BufferedReader(Unpacking(stream, path, limits), 1 << 16)
