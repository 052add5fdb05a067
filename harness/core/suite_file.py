"""Suite files: TOML with the options of a suite, `[settings.METHOD]` and `[stages.STAGE]`.

`suite = "NAME"` names the registered suite that the options configure. The default is
`preference_file`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import UsageError
from .options import toml_module
from .secrets import refuse_secrets

USUAL = "preference_file"  # the suite that a file configures by default
TITLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class SuiteFile:
    """A parsed suite file: the suite, its options, and settings by method and by `stage.NAME`."""

    suite: str = USUAL
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def is_suite_file(suite: str) -> bool:
    """Return whether a suite is named by a file."""
    return suite.endswith(".toml")


def read_suite_file(suite: str) -> SuiteFile:
    """Read a suite file; raise UsageError with the place of the error."""
    path = Path(suite)
    if not path.is_file():
        raise UsageError(f"--suite {suite}: there is no such file.")
    content = read_toml(path, "--suite ")
    settings, stages = _tables(content, "settings", suite), _tables(content, "stages", suite)
    refuse_secrets(content, suite)
    content.setdefault("title", path.stem)
    if not isinstance(content["title"], str) or not TITLE.fullmatch(content["title"]):
        raise UsageError(
            f"{suite}: title = {content['title']!r}: expected letters, digits, '_', '-' and '.'"
            " only."
        )
    content["folder"] = str(path.resolve().parent)
    kind = content.pop("suite", USUAL)
    if not isinstance(kind, str):
        raise UsageError(f"{suite}: suite = {kind!r}: expected the name of a suite.")
    return SuiteFile(
        kind, content, {**settings, **{f"stage.{name}": values for name, values in stages.items()}}
    )


def read_toml(path: Path, flag: str) -> dict[str, Any]:
    """Read a TOML file; `flag` is the command-line flag that named it."""
    tomllib = toml_module()
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{flag}{path}: not a TOML file: {error}.") from error
    except RecursionError as error:
        raise UsageError(f"{flag}{path}: its values are nested too deeply.") from error
    except OSError as error:
        raise UsageError(f"{flag}{path}: cannot be read: {error.strerror}.") from error
    return content


def _tables(content: dict[str, Any], name: str, suite: str) -> dict[str, dict[str, Any]]:
    """Remove a table of tables from the content and return it."""
    tables = content.pop(name, {})
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        raise UsageError(
            f"{suite}: {name}: expected tables such as [{name}.NAME] with options below them."
        )
    return tables
