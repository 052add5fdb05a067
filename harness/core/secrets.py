"""Secrets: read from the environment here, and removed here from all that is written or shown.

A secret is the value of an environment variable whose name says so (`HARNESS_API_KEY`, `HF_TOKEN`),
or what a plugin has read with `read_secret`. Files and terminal output pass `redact`.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from .errors import UsageError

NAMES = re.compile(r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.I)
LOST = (errno.EPIPE, errno.EIO)  # no reader of a pipe; a terminal that is gone
SHORTEST = 8  # characters; shorter values would be found in ordinary text
LONGEST = 4096
FORMS = re.compile(  # how keys of common services begin
    r"\b(?:sk-(?:proj-|ant-)?[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|AKIA[A-Z0-9]{16}|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[A-Za-z0-9_-]{30,})"
)

_read: dict[str, str] = {}  # value: the variable it was read from


def read_secret(variable: str, purpose: str) -> str:
    """Return a key from the environment, without white space around it.

    Args:
        variable: The environment variable.
        purpose: What needs the key, as the subject of the message: `The labeller endpoint`.

    Raises:
        UsageError: The variable is empty, or holds what no request header can carry. The message
            names the variable, never its value.
    """
    value = os.environ.get(variable, "")
    key = value.strip()
    if value:
        _read[value] = variable
    if not key:
        raise UsageError(f"{purpose} needs a key in the environment variable {variable}.")
    bad = next((i for i, c in enumerate(key) if not "!" <= c <= "~"), None)
    if bad is not None or len(key) > LONGEST:
        reason = (
            f"longer than {LONGEST} characters"
            if bad is None
            else f"not a key: character {bad + 1} of {len(key)} is a space, a control character or"
            " not ASCII"
        )
        raise UsageError(f"{purpose}: the value of {variable} is {reason}. Set it again.")
    _read[key] = variable
    return key


def secrets_of(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return every known secret as {value: name of its variable}, longest first."""
    names = dict(_read)
    for name, value in (os.environ if environment is None else environment).items():
        if NAMES.search(name):
            names.setdefault(value, name)
    wanted = {}
    for value, name in names.items():
        for form in (value, value.strip()):
            if len(form) >= SHORTEST and not form.startswith(("/", "./", "~")):
                wanted[form] = name
    return dict(sorted(wanted.items(), key=lambda item: -len(item[0])))


def redact(text: str) -> str:
    """Return a text with `[NAME]` in place of each secret, in any form that a text may hold it."""
    for value, name in secrets_of().items():
        for form in _forms(value):
            if form in text:
                text = text.replace(form, f"[{name}]")
    return text


def _forms(value: str) -> list[str]:
    """Return the forms of a value in text: plain, escaped, percent-encoded, in base64."""
    plain = value.encode("utf-8", "surrogateescape")
    escaped = [json.dumps(value)[1:-1], repr(value)[1:-1], repr(plain)[2:-1]]
    coded = [quote(plain, safe=""), base64.b64encode(plain).decode().rstrip("=")]
    return list(dict.fromkeys([value, *escaped, *coded]))


def refuse_secrets(values: Mapping[str, Any], where: str) -> None:
    """Raise UsageError for an option that holds a secret: options are recorded and shown.

    Args:
        values: option values by name.
        where: how the options are given: `--labeller-set`.
    """
    known = secrets_of()
    for name, value in values.items():
        text = str(value)
        held = next((variable for secret, variable in known.items() if secret in text), None)
        if held or FORMS.search(text):
            what = f"the value of {held}" if held else "what looks like a key"
            raise UsageError(
                f"{where} {name} holds {what}. Options are recorded: put the key into an"
                " environment variable, and name the variable."
            )


class RedactingStream:
    """A text stream that shows no secret and survives its reader.

    When the reader is gone (`harness run | head -1`, a closed terminal), output is dropped: a run
    continues and writes its files. Everything else is delegated to the stream itself.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text without secrets."""
        try:
            written: int = self._stream.write(redact(text))
        except OSError as error:
            self._drop(error)
            return len(text)
        return written

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Send output to the null device; raise errors with other causes than a lost reader."""
        if error.errno not in LOST:
            raise error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)

    def writelines(self, lines: Any) -> None:
        """Write lines without secrets."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def redact_streams() -> None:
    """Show no secret on the standard streams of this process."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, RedactingStream):
            setattr(sys, name, RedactingStream(stream))
