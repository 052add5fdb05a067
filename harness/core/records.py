"""JSON files of records: sealed when they are written, and read with one message for any damage.

The seal is the SHA-256 of the other values of the file. Files of older versions have none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .digests import digest_of
from .errors import HarnessError
from .files import write_text
from .secrets import redact

SEAL = "seal"
CHANGED = "it was changed after it was written"
ANEW = "Run the study again: it is written anew."  # what mends a file of a study


class Damaged(HarnessError):
    """A file is not what was written.

    Args:
        path: The file.
        reason: What is wrong with it.
        remedy: What to do, as a sentence.
    """

    def __init__(self, path: Path, reason: object, remedy: str) -> None:
        super().__init__(f"{path} is damaged ({reason}). {remedy}")
        self.path = path


def rerun(folder: Path) -> str:
    """Return what mends a file of a run."""
    return f"Delete the folder {folder} and run again."


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically, with its seal; NaN is an error."""
    whole = {key: item for key, item in value.items() if key != SEAL}
    content = json.loads(redact(json.dumps(whole, allow_nan=False)))  # as a reader finds it
    write_text(path, json.dumps({**content, SEAL: digest_of(content)}, indent=1) + "\n")


def storable(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return a plugin's values as JSON holds them: a number that is not finite becomes None.

    Raises:
        HarnessError: A value is none that JSON has, such as a tensor.
    """
    try:
        text = json.dumps(values)
    except (TypeError, ValueError) as error:
        raise HarnessError(
            f"The {what} cannot be written as JSON: {error}. Return numbers, texts, lists and"
            " dictionaries of them."
        ) from error
    stored: dict[str, Any] = json.loads(text, parse_constant=lambda name: None)
    return stored


def read_bytes(path: Path, remedy: str) -> bytes:
    """Return the content of a file; raise Damaged where it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise Damaged(path, "it is missing", remedy) from error
    except PermissionError as error:
        what = "Change its permissions, and run the same command again."
        raise Damaged(path, "it may not be read", what) from error
    except OSError as error:  # a folder in its place, a disk that fails
        raise Damaged(path, error.strerror, remedy) from error


def parsed(content: bytes) -> Any:
    """Return JSON as values; raise ValueError for anything else, NaN and Infinity included."""
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_object(path: Path, remedy: str, sealed: bool = False) -> dict[str, Any]:
    """Return the object in a JSON file, without its seal.

    Args:
        path: The file.
        remedy: What mends it, as a sentence.
        sealed: Whether the file has a seal in any case.

    Raises:
        Damaged: The file is missing, unreadable, no JSON object, or not what was sealed.
    """
    record, whole = read_unchecked(path, remedy)
    if not (whole if whole is not None else not sealed):
        raise Damaged(path, CHANGED, remedy)
    return record


def read_unchecked(path: Path, remedy: str) -> tuple[dict[str, Any], bool | None]:
    """Return the object in a JSON file without its seal, and whether the seal fits.

    The second value is None where the file has no seal.

    Raises:
        Damaged: The file is missing, unreadable or no JSON object.
    """
    try:
        record = parsed(read_bytes(path, remedy))
        if not isinstance(record, dict):
            raise ValueError("not an object")
        seal = record.pop(SEAL, None)
        return record, None if seal is None else digest_of(record) == seal
    except ValueError as error:  # JSON and UTF-8 errors are ValueErrors
        raise Damaged(path, error, remedy) from error


def rows_of(content: bytes) -> list[dict[str, Any]]:
    """Return JSON lines as rows; raise ValueError for anything else."""
    rows = [parsed(line) for line in content.splitlines()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is not an object")
    return rows


class DamagedFiles:
    """The damaged files that this command has shown; each is shown once."""

    paths: set[Path] = set()


def show_damaged(error: Damaged) -> None:
    """Show on stderr that a file is damaged, and that the rest is shown without it."""
    if error.path not in DamagedFiles.paths:
        DamagedFiles.paths.add(error.path)
        print(f"harness: {error} The rest is shown without it.", file=sys.stderr, flush=True)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
