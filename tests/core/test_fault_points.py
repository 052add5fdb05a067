"""Fault points: inert unless asked for, each placed in the code, each action what it is called."""

import errno
import math
import re

import pytest

from harness.core import fault_points
from harness.core.errors import UsageError
from harness.core.fault_points import (
    POINTS,
    Count,
    Fault,
    Faults,
    fault_of,
    fault_point,
    fault_value,
    take_fault,
)
from harness.core.files import NoSpace, write_text

from ..helpers.tools import ROOT


@pytest.fixture
def plan(monkeypatch):
    """A function that sets the fault of this process."""
    return lambda fault: monkeypatch.setattr(Faults, "plan", fault)


def test_process_has_no_fault_unless_one_is_asked_for(monkeypatch):
    assert Faults.plan is None
    assert fault_point("write.begin") is None and fault_value("step.loss", 2.5) == 2.5
    monkeypatch.setattr(Faults, "plan", None)
    monkeypatch.setenv("HARNESS_FAULT", "reward:2:nan")
    take_fault()
    assert (Faults.plan.point, Faults.plan.n, Faults.plan.action) == ("reward", 2, "nan")


def test_every_point_is_placed_and_no_other():
    """A point that is listed and placed nowhere would be a fault that no campaign makes."""
    placed = set()
    for file in (ROOT / "harness").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        placed |= set(re.findall(r'fault_(?:point|value)\("([a-z.]+)"', text))
    assert placed == set(POINTS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write.begin", "expected POINT:N:ACTION"),
        ("write.begin:0:kill", "expected POINT:N:ACTION"),
        ("write.begn:1:kill", "Did you mean 'write.begin'"),
        ("write.begin:1:kil", "Did you mean 'kill'"),
    ],
)
def test_fault_that_does_not_exist_ends_the_process(text, expected, monkeypatch, capsys):
    with pytest.raises(UsageError, match=expected):
        fault_of(text)
    monkeypatch.setenv("HARNESS_FAULT", text)
    with pytest.raises(SystemExit) as error:
        take_fault()
    assert error.value.code == 2 and "harness: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("action", "error"),
    [("exit", SystemExit), ("raise", RuntimeError), ("memory", MemoryError), ("full", NoSpace)],
)
@pytest.mark.parametrize("point", ["write.begin", "write.written"])
def test_fault_before_a_file_is_replaced_leaves_the_old_one(plan, tmp_path, point, action, error):
    file = tmp_path / "file.txt"
    write_text(file, "old")
    plan(Fault(point, 2, action))
    write_text(file, "new")
    with pytest.raises(error):
        write_text(file, "newest")
    assert file.read_text(encoding="utf-8") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_full_has_the_number_of_a_full_disk(plan):
    plan(Fault("label", 1, "full"))
    with pytest.raises(OSError, match="No space left") as error:
        fault_point("label")
    assert error.value.errno == errno.ENOSPC


def test_value_is_nan_the_one_time_that_was_asked_for(plan):
    plan(Fault("reward", 2, "nan"))
    seen = [fault_value("reward", 1.0) for _ in range(3)]
    assert math.isnan(seen[1]) and (seen[0], seen[2]) == (1.0, 1.0)


def test_kill_is_a_real_kill(plan, monkeypatch):
    sent = []
    monkeypatch.setattr(fault_points.os, "kill", lambda *what: sent.append(what))
    plan(Fault("label", 1, "kill"))
    fault_point("label")
    assert sent == [(fault_points.os.getpid(), fault_points.signal.SIGKILL)]


def test_count_counts(plan):
    count = Count()
    plan(count)
    fault_point("label"), fault_point("label"), fault_value("reward", 1)
    assert count.reached == {"label": 2, "reward": 1}
