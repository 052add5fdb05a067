"""What the console shows of a run: steps, activities, and the time that is left."""

import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest
from harness_plugins import console

from ..helpers.tools import ENV, fresh, on_small, with_shared_stages


@pytest.fixture
def plain(monkeypatch):
    """A console that writes plain lines, and shows activities after 0.05 s."""
    for name, seconds in (("PLAIN_AFTER", 0.05), ("PLAIN_EVERY", 0.1), ("QUIET_EVERY", 0.1)):
        monkeypatch.setattr(console, name, seconds)
    shown = console.Console()
    shown.live = False
    yield shown
    shown.close()


def wait_for(capsys, text, seconds=10):
    """Return what was printed until `text` was among it."""
    printed, end = "", time.monotonic() + seconds
    while text not in printed and time.monotonic() < end:
        time.sleep(0.02)
        printed += capsys.readouterr().err
    assert text in printed
    return printed


def test_time_left_follows_the_steps_so_far():
    assert console.time_left((0, 100.0), 10, 50, 120.0) == "  about 80 s left"
    assert console.time_left((5, 100.0), 10, 50, 120.0) == "  about 3 min left"
    for began, step in (((0, 100.0), 0), ((10, 100.0), 10), ((0, 100.0), 50)):
        assert console.time_left(began, step, 50, 120.0) == ""


def test_step_lines_have_metrics_and_the_time_left(plain, capsys):
    for step in range(1, 4):
        plain.last = 0.0  # as if the last line were long ago
        plain.step(
            "ppo", step, 3, {"loss": 0.5, "grad_norm": 1e-5, "own": 2}, ("grad_norm", "kl", "loss")
        )
        time.sleep(0.01)
    first, second, last = capsys.readouterr().err.splitlines()
    assert first.split() == ["ppo", "1/3", "grad", "norm", "1e-05", "loss", "0.5"]
    assert (
        re.search(r"2/3  grad norm 1e-05  loss 0.5  about \d+ s left", second)
        and "left" not in last
    )


def test_activities_that_last_are_shown_with_their_steps(plain, capsys):
    plain.activity("evaluation: KL", 0, 0, False)
    plain.activity("evaluation: KL", 3, 8, False)
    wait_for(capsys, "evaluation: KL 3/8  0 s")
    plain.activity("evaluation: KL", 4, 8, False)
    assert "about" in wait_for(capsys, "evaluation: KL 4/8")
    plain.activity("evaluation: KL", 0, 0, True)
    capsys.readouterr()
    time.sleep(0.3)
    assert capsys.readouterr().err == ""


def test_activities_without_steps_are_shown_again(plain, capsys):
    plain.activity("evaluation: judge", 0, 0, False)
    wait_for(capsys, "evaluation: judge  0 s")
    wait_for(capsys, "evaluation: judge  0 s")


def test_only_the_innermost_activity_is_shown(plain, capsys):
    plain.activity("outer", 0, 0, False)
    plain.activity("inner", 0, 0, False)
    assert "outer" not in wait_for(capsys, "inner")
    plain.activity("inner", 0, 0, True)
    wait_for(capsys, "outer")


def test_short_activities_leave_no_line(plain, capsys):
    plain.activity("loading", 0, 0, False)
    plain.activity("loading", 0, 0, True)
    time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_end_of_a_run_ends_everything(plain, capsys):
    plain.activity("loading", 0, 0, False)
    plain.step("sft", 1, 2, {}, ())
    capsys.readouterr()
    plain.activity("", 0, 0, True)
    time.sleep(0.2)
    assert capsys.readouterr().err == "" and not plain.activities and plain.phase == ""


def test_terminal_shows_bars_of_steps_and_of_activities():
    slow = fresh("console") / "slow.py"
    slow.write_text(
        "import time\nfrom harness import hookimpl\n\n\n@hookimpl\ndef activity_changed(activity,"
        " ended):\n    if activity == 'evaluation: KL' and not ended:\n        time.sleep(1.5)\n"
    )
    leader, follower = pty.openpty()
    arguments = on_small("dpo", "-p", slow, results=with_shared_stages("bars"))
    child = subprocess.Popen(
        [sys.executable, "-m", "harness", *map(str, arguments)],
        stdout=follower,
        stderr=follower,
        env={**os.environ, **ENV, "COLUMNS": "100", "TERM": "xterm", "NO_COLOR": ""},
    )
    text = b""
    while child.poll() is None or select.select([leader], [], [], 0.2)[0]:
        if select.select([leader], [], [], 0.2)[0]:
            text += os.read(leader, 65536)
    shown = text.decode()
    assert child.returncode == 0, shown
    assert "evaluation: KL" in shown and re.search(r"dpo.*6/6", shown), shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") > 0  # the cursor is visible again
