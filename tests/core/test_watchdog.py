"""Waiting has an end, and says what is waited for."""

import threading
import time

import pytest

from harness.core import watchdog
from harness.core.watchdog import Patience, RankWatch, TooSlow, waiting_for


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(Patience, "seconds", 0.3)
    monkeypatch.setattr(watchdog, "REMIND_SECONDS", 0.1)


def test_waiting_for_ends_a_wait_at_the_limit(capsys):
    begun = time.monotonic()
    with pytest.raises(TooSlow, match="No answer from the judge slow for 0 s.*--answer-timeout"):
        with waiting_for("the judge slow"):
            time.sleep(30)
    assert time.monotonic() - begun < 5
    assert "waiting for the judge slow for 0 s" in capsys.readouterr().err


def test_waiting_for_ends_a_busy_loop():
    with pytest.raises(TooSlow), waiting_for("a loop"):
        while True:
            pass


def test_waiting_for_leaves_no_alarm():
    with waiting_for("an answer in time"):
        pass
    time.sleep(0.5)


def test_waiting_for_nests():
    with pytest.raises(TooSlow, match="outer"), waiting_for("outer"):
        with waiting_for("inner"):
            pass
        time.sleep(30)


def test_waiting_for_does_nothing_in_another_thread():
    done = []

    def wait():
        with waiting_for("x"):
            done.append(1)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    assert done == [1]


def test_rank_that_waits_for_the_others_names_itself(capfd):
    watch = RankWatch(1, 2, every=0.1)
    with watch.waiting():
        time.sleep(0.01)
    time.sleep(0.2)
    assert capfd.readouterr().err == ""
    with watch.waiting():
        time.sleep(0.35)
    told = capfd.readouterr().err.splitlines()
    assert told and all(line.startswith("harness: process 1 of 2 has waited ") for line in told)
    assert len(told) <= 3  # once in each interval
    with watch.waiting():
        time.sleep(0.25)
    assert capfd.readouterr().err  # a second wait is told, too
