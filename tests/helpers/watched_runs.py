"""Runs that are watched, and killed at a step."""

from .tools import command, fresh, on_small, plugin

# Writes every step it saw to $WATCHED, and kills its own process at the n-th of a phase, where
# $KILL is "phase n".
WATCHER = """
import os

from harness import hookimpl

SEEN = []


@hookimpl
def step_logged(phase, step):
    SEEN.append(phase)
    with open(os.environ["WATCHED"], "a") as stream:
        stream.write(f"{phase} {step}\\n")
    if os.environ.get("KILL") == f"{phase} {SEEN.count(phase)}":
        os.kill(os.getpid(), 9)
"""


class Watched:
    """A results folder, and runs in it that are watched, and killed."""

    def __init__(self):
        self.folder = fresh("killed")
        self.watcher = plugin(self.folder, "watcher", WATCHER)

    def run(self, method, kill="", *more):
        """Run with the watcher; return (exit status, {phase: steps seen}, the command)."""
        log = self.folder / "watched"
        log.write_text("")
        env = {"WATCHED": str(log), "KILL": kill}
        done = command(
            *on_small(
                method, "-p", self.watcher, "--checkpoint-every", 0, *more, results=self.folder
            ),
            env=env,
        )
        seen = {}
        for line in log.read_text().splitlines():
            phase, step = line.split()
            seen.setdefault(phase, []).append(int(step))
        return done, seen

    def rest(self, method, *more):
        """Run without the watcher."""
        return command(*on_small(method, "--checkpoint-every", 0, *more, results=self.folder))
