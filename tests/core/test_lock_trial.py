"""The trial of file locks: two takers, here and elsewhere; a broken lock is refused."""

import sys

import pytest

from harness.core.errors import Refused
from harness.core.lock_trial import ABSENT, HELD, TAKEN, require_locks

from ..helpers.tools import command, plugin, small_suite

BROKEN = """
class Timeout(Exception):
    pass


class FileLock:
    def __init__(self, path):
        pass

    def acquire(self, timeout=-1):
        return self
"""

IDLE = """
from dataclasses import dataclass

from harness import Launcher, hookimpl


@dataclass
class Idle(Launcher):
    name = "idle"

    def run(self, jobs, started, ended):
        pass


@hookimpl
def register_launchers(register):
    register(Idle)
"""


def nowhere(arguments):
    return None


def test_locks_that_hold_are_tried_and_nothing_is_left(tmp_path):
    seen = []
    assert not require_locks(tmp_path, nowhere)
    assert require_locks(tmp_path, lambda arguments: seen.append(list(arguments)) or HELD)
    assert seen[0][:2] == ["-m", "harness.core.lock_trial"] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (TAKEN, "processes on two machines took one lock"),
        (ABSENT, "does not see"),
        (1, "The same Python"),
    ],
)
def test_what_another_machine_finds_is_refused(tmp_path, status, told):
    with pytest.raises(Refused, match=told):
        require_locks(tmp_path, lambda arguments: status)


def test_study_is_refused_where_two_processes_get_one_lock(tmp_path):
    """The second taker has a lock library that always grants; negative control: without it."""
    plugin(tmp_path, "filelock", BROKEN)
    idle = plugin(tmp_path, "idle", IDLE)
    file = tmp_path / "s.toml"
    file.write_text(
        f'suites = ["small"]\nplugins = ["{small_suite()}", "{idle}"]\nquick = true\n'
        '[[methods]]\nname = "start"\n'
    )
    asked = ("study", file, "--results", tmp_path / "results", "--launcher", "idle")
    done = command(*asked)
    assert done.code == 1 and "1 left" in done.text, done.text
    path = ":".join([str(tmp_path), *sys.path[1:]])
    done = command(*asked, env={"PYTHONPATH": path})
    assert done.code == 3 and "two processes on this machine took one lock" in done.err, done.text
    assert "nolock" in done.err and "--results" in done.err and "left" not in done.out
