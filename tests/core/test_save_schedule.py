"""When checkpoints are written: by a clock of the test's own."""

import pytest

from harness.core.errors import UsageError
from harness.core.save_schedule import (
    FIRST,
    LEAST,
    SHARE,
    SaveCosts,
    SaveInterval,
    SaveSchedule,
    parse_interval,
)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def train(schedule, clock, turn, turns, cost, size):
    """Take turns of `turn` seconds, saves of `cost`; return the times at which saves ended."""
    ends = []
    for step in range(1, turns + 1):
        clock.now += turn
        if schedule.due(step, lambda: size):
            with schedule.saving(step, size):
                clock.now += cost
            ends.append(clock.now)
    return ends


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("auto", SaveInterval()),
        ("off", SaveInterval(off=True)),
        ("60", SaveInterval(seconds=60)),
        ("0", SaveInterval(seconds=0)),
        ("1.5s", SaveInterval(seconds=1.5)),
        ("50steps", SaveInterval(steps=50)),
        ("1 step", SaveInterval(steps=1)),
    ],
)
def test_parse_interval(text, interval):
    assert parse_interval(text) == interval


@pytest.mark.parametrize("text", ["", "-1", "0steps", "1.5steps", "fast", "50 stepss", "nan"])
def test_parse_interval_refuses_anything_else(text):
    with pytest.raises(UsageError, match="expected auto, off, seconds"):
        parse_interval(text)


@pytest.mark.parametrize("cost", [0.01, 1.0, 8.0, 60.0, 300.0])
def test_saves_take_at_most_their_share_of_a_long_run(cost):
    clock = Clock()
    schedule = SaveSchedule(SaveInterval(), SaveCosts(), clock)
    ends = train(schedule, clock, turn=2.0, turns=50_000, cost=cost, size=10**9)
    assert len(ends) * cost / clock.now <= SHARE + 1e-9
    assert ends[0] <= FIRST + 2 + cost  # the first one is bounded whatever it costs
    longest = max(b - a for a, b in zip(ends, ends[1:], strict=False))
    # what the first one took too much must be made up for
    assert longest <= max(LEAST, 2 * cost / SHARE) + cost + 4


def test_share_that_is_not_kept_is_seen():
    """The negative control: saves every 20 seconds that take 8."""
    clock = Clock()
    schedule = SaveSchedule(SaveInterval(seconds=20), SaveCosts(), clock)
    ends = train(schedule, clock, turn=2.0, turns=5_000, cost=8.0, size=10**9)
    assert len(ends) * 8.0 / clock.now > SHARE


def test_first_save_waits_for_what_its_size_will_cost():
    clock = Clock()
    schedule = SaveSchedule(SaveInterval(), SaveCosts(), clock)
    small = train(schedule, clock, turn=2.0, turns=100, cost=0.1, size=10**6)
    assert LEAST <= small[0] <= LEAST + 3
    clock, costs = Clock(), SaveCosts(saves=1, bytes=10**9, seconds=10.0)  # of a stage before
    schedule = SaveSchedule(SaveInterval(), costs, clock)
    large = train(schedule, clock, turn=2.0, turns=200, cost=10.0, size=10**9)
    assert 10 / SHARE - 10 <= large[0] <= 10 / SHARE + 14


def test_steps_and_off():
    clock = Clock()
    schedule = SaveSchedule(SaveInterval(steps=50), SaveCosts(), clock)
    assert len(train(schedule, clock, 1.0, 220, 0.0, 1)) == 4
    schedule = SaveSchedule(SaveInterval(steps=50), SaveCosts(), clock)
    schedule.resumed(30)
    assert not schedule.due(79, lambda: 1) and schedule.due(80, lambda: 1)
    schedule = SaveSchedule(SaveInterval(off=True), SaveCosts(), clock)
    assert train(schedule, clock, 1000.0, 50, 0.0, 1) == []
