"""Rows on disk while a run goes on."""

import json

import pytest

from harness.core.live_rows import LiveFiles, LiveRows, line_of
from harness.core.run_folder import write_rows


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def files(tmp_path):
    return LiveFiles(LiveRows(tmp_path / "metrics.jsonl"), LiveRows(tmp_path / "rollouts.jsonl"))


def test_rows_are_readable_as_soon_as_they_are_added(files):
    files.turn(1, {"loss": 0.5}, [{"completion": "a"}])
    assert lines(files.metrics.path) == [{"loss": 0.5}]
    assert lines(files.rollouts.path) == [{"completion": "a", "step": 1}]


def test_restart_cuts_what_came_after_the_checkpoint(files):
    rows = [{"step": n, "loss": n / 10} for n in (1, 2, 3)]
    for row in rows:
        files.turn(row["step"], row, [{"completion": f"{row['step']}"}])
    with files.metrics.path.open("a") as one, files.rollouts.path.open("a") as two:
        one.write('{"step": 4, "lo')
        two.write('{"step": 4, "com')
    files.restart(rows[:2])
    assert lines(files.metrics.path) == rows[:2]
    assert [row["step"] for row in lines(files.rollouts.path)] == [1, 2]
    files.turn(3, rows[2], [])
    write_rows(files.metrics.path.with_name("whole.jsonl"), rows)
    assert (
        files.metrics.path.read_bytes() == files.metrics.path.with_name("whole.jsonl").read_bytes()
    )


def test_restart_leaves_no_file_where_nothing_was_written(files):
    files.restart([])
    assert not files.metrics.path.exists() and not files.rollouts.path.exists()


def test_process_that_does_not_write_leaves_the_file_alone(tmp_path):
    rows = LiveRows(tmp_path / "metrics.jsonl", writes=False)
    rows.append({"loss": 1})
    rows.restart([{"loss": 1}])
    rows.keep(lambda row: False)
    rows.sync()
    assert not list(tmp_path.iterdir())


def test_line_of_refuses_what_is_not_json():
    assert line_of({"b": 1, "a": 2}) == '{"a": 2, "b": 1}\n'
    with pytest.raises(ValueError, match="Out of range"):
        line_of({"loss": float("nan")})
