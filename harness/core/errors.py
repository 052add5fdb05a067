"""Errors a user can cause.

Each ends the command in one clear message and an exit code, never a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from .plain_text import visible


class HarnessError(Exception):
    """An error that states the event, the place, the expectation and the remedy. `exit_code` is the
    exit status of the command.
    """

    exit_code = 1

    def __str__(self) -> str:
        """Return the message without terminal escapes: it may quote any file."""
        return visible(super().__str__())


class UsageError(HarnessError):
    """A configuration, a name or a value that cannot work: nothing was started."""

    exit_code = 2


class Refused(HarnessError):
    """The run cannot start: a lock is held, a folder is not writable, or a need is not met."""

    exit_code = 3


class PolicyNotSaved(HarnessError):
    """The run is finished and recorded, but its trained policy could not be written."""

    exit_code = 4


class Diverged(HarnessError):
    """A loss, reward or gradient stopped being finite."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Return the error for a name that does not exist, with the nearest one that does."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return UsageError(f"There is no {kind} {name!r}. {hint}Known: {', '.join(names) or 'none'}.")
