"""Files that a person asked for: looked at before the work, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from ..core.errors import Refused
from ..core.files import write_bytes, write_text


def check_output(output: Path) -> None:
    """Raise Refused where a file cannot be written, before anything is computed for it."""
    folder = output.parent
    if not folder.is_dir():
        raise Refused(f"Cannot write {output}: there is no folder {folder}. Make it first.")
    if output.is_dir():
        raise Refused(f"Cannot write {output}: it is a folder. Name a file.")
    if not os.access(folder, os.W_OK):
        raise Refused(
            f"Cannot write {output}: {folder} is not yours to write in. Name another place."
        )


def write_output(output: Path, content: str | bytes) -> None:
    """Write a file; raise Refused with the reason where that fails."""
    try:
        if isinstance(content, str):
            write_text(output, content)
        else:
            write_bytes(output, content)
    except OSError as error:
        raise Refused(f"Cannot write {output}: {error.strerror}.") from error
