"""Output files: checked before the work starts, and written completely or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from ..core.errors import Refused
from ..core.files import write_bytes, write_text


def check_output(output: Path) -> None:
    """Raise Refused if a file cannot be written; missing folders are made when it is written."""
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    if output.is_dir():
        raise Refused(f"Cannot write {output}: it is a folder. Name a file.")
    if not folder.is_dir():
        raise Refused(f"Cannot write {output}: {folder} is a file. Name another folder.")
    if not os.access(folder, os.W_OK):
        raise Refused(
            f"Cannot write {output}: no write permission for {folder}. Name another folder."
        )


def write_output(output: Path, content: str | bytes) -> None:
    """Write a file and its missing folders; raise Refused with the reason on failure."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            write_text(output, content)
        else:
            write_bytes(output, content)
    except OSError as error:
        raise Refused(f"Cannot write {output}: {error.strerror}.") from error


def suite_file(output: Path, suite: str) -> Path:
    """Return the file of one suite of several: `x-SUITE.png` for `x.png`."""
    return output.with_name(f"{output.stem}-{suite}{output.suffix}")
