"""The command line in this process: for tests that give it many inputs."""

import contextlib
import io
import os
import signal
import sys
from dataclasses import dataclass

from harness.cli.app import main
from harness.core.interrupts import Signals

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Ended:
    """The exit status of a command, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def messages(self) -> list[str]:
        """The messages that say why it ended."""
        starts = ("harness: ", "Error: ")
        return [line for line in self.err.splitlines() if line.startswith(starts)]


def call(*arguments: object) -> Ended:
    """Carry a command out; an exception that it does not handle is raised."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with _process_state(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sys.argv = ["harness", *map(str, arguments)]
        try:
            main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
    return Ended(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _process_state():
    """Put back what a command changes of its process."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    arguments, streams, folder = sys.argv, (sys.stdout, sys.stderr), os.getcwd()
    seen = Signals.watched, Signals.received
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        sys.argv, (sys.stdout, sys.stderr) = arguments, streams
        Signals.watched, Signals.received = seen
        os.chdir(folder)
