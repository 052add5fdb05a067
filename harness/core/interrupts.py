"""Ends that the user or the system asks for, told apart from what a plugin raises.

Ctrl-C and a plugin both raise KeyboardInterrupt. Only the first sets `Signals.received`.
"""

from __future__ import annotations

import signal
from types import FrameType


class Terminated(BaseException):
    """SIGTERM as an exception that `except Exception` in a plugin does not catch."""


class Signals:
    """The signals that this process received."""

    watched = False  # whether an interrupt by the user would set `received`
    received = False  # whether the user or the system requested an end


def watch_signals() -> None:
    """Turn SIGTERM into an exception, and note it and SIGINT. The main thread calls this once.

    A SIGINT that is ignored, as in a background job of a shell, stays ignored.
    """
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    Signals.watched, Signals.received = True, False


def asked_for(error: BaseException) -> bool:
    """Return whether an error is an end requested by the user or the system. Without
    `watch_signals`, as in a notebook, every KeyboardInterrupt counts as the user's.
    """
    if isinstance(error, Terminated) or Signals.received:
        return True
    return isinstance(error, KeyboardInterrupt) and not Signals.watched


def _terminate(number: int, frame: FrameType | None) -> None:
    Signals.received = True
    raise Terminated


def _interrupt(number: int, frame: FrameType | None) -> None:
    Signals.received = True
    raise KeyboardInterrupt
