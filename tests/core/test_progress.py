"""The wall clock of a run: parts, what is made, and what is told of activities."""

import pytest

from harness.core import progress
from harness.core.progress import (
    EVALUATION,
    LOADING,
    METHOD,
    OTHER,
    PARTS,
    STAGES,
    WallClock,
    activity,
    advance,
    advance_from,
    current,
    making,
    part,
    running,
)


@pytest.fixture
def now(monkeypatch):
    """A clock that stands still: `now[0]` is its reading in seconds."""
    reading = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: reading[0])
    return reading


def passes(now, seconds):
    now[0] += seconds


def test_wall_clock_counts_nested_parts_once(now):
    clock = WallClock()
    with running(clock):
        passes(now, 1)
        with part(METHOD):
            passes(now, 2)
            with part(LOADING):
                passes(now, 4)
            passes(now, 8)
        passes(now, 16)
    expected = dict.fromkeys(PARTS, 0.0) | {OTHER: 17.0, METHOD: 10.0, LOADING: 4.0}
    assert clock.seconds() == expected


def test_wall_clock_sum_is_the_time_since_the_command_began(now):
    clock = WallClock(started=90.0)
    with running(clock), part(EVALUATION):
        passes(now, 5)
    assert clock.seconds()[LOADING] == 10 and sum(clock.seconds().values()) == now[0] - 90


def test_wall_clock_counts_a_part_that_fails(now):
    clock = WallClock()
    with running(clock):
        with pytest.raises(KeyError), part(METHOD):
            passes(now, 3)
            raise KeyError
        passes(now, 1)
    assert (clock.seconds()[METHOD], clock.seconds()[OTHER]) == (3, 1)


def test_making_counts_stages_by_kind_and_the_policy_as_a_checkpoint(now):
    clock = WallClock()
    with running(clock):
        for kind, seconds in (("sft", 2), ("pool", 3), ("pool", 4), ("policy", 5)):
            with making(kind):
                passes(now, seconds)
    assert clock.artifact_seconds == {"sft": 2, "pool": 7}
    assert clock.seconds()[STAGES] == 9 and clock.seconds()["checkpoints"] == 5


def test_activities_are_shown_from_begin_to_end():
    shown = []
    with running(WallClock(show=lambda *told: shown.append(told))):
        with activity(EVALUATION, "answers"):
            advance(1, 4)
            with activity(LOADING, "a model"):
                pass
            advance_from(2, 4)(1)
    assert shown == [
        ("answers", 0, 0, False),
        ("answers", 1, 4, False),
        ("a model", 0, 0, False),
        ("a model", 0, 0, True),
        ("answers", 3, 4, False),
        ("answers", 0, 0, True),
        ("", 0, 0, True),
    ]


def test_steps_outside_of_an_activity_are_not_shown():
    shown = []
    with running(WallClock(show=lambda *told: shown.append(told))), part(METHOD):
        advance(1, 2)
    assert shown == [("", 0, 0, True)]


def test_outside_of_a_run_nothing_is_counted():
    with part(METHOD), activity(LOADING, "x"), making("sft"):
        advance(1, 2)
    assert current() is None


def test_running_ends_with_the_run_even_if_it_fails():
    shown = []
    with pytest.raises(ValueError), running(WallClock(show=lambda *told: shown.append(told))):
        raise ValueError
    assert current() is None and shown == [("", 0, 0, True)]
