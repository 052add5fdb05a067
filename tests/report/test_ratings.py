"""`harness table --ratings`: ratings against the baseline, with and without control for style."""

import csv
import io
from random import Random
from statistics import fmean

import pytest

from harness.core.run_folder import write_rows
from harness.report.selection.filters import Filter
from harness.report.selection.select import select
from harness.report.tables.ratings import ratings_table

from ..helpers.tools import command, put, record, samples


def put_row(results, method, seed, longer, paid, bias=True):
    """A run whose answers are longer than the baseline's on most prompts; the judge pays for it."""
    rng, rows = Random(f"{method}/{seed}"), []
    for _ in range(120):
        is_long = rng.random() < longer
        win = rng.random() < (0.5 + paid if is_long else 0.5 - paid)
        word = rng.choice(["**word** ", "word "])
        rows.append((word * (20 if is_long else 3), float(win)))
    made = record(method, seed, fmean(win for _, win in rows))
    made["evaluation"]["prompts"] = len(rows)
    if not bias:
        made["evaluation"]["judge"] = {"name": "gold", "length_bias": False}
    before = set(results.glob("runs/*/*/*"))
    put(results, made)
    (folder,) = set(results.glob("runs/*/*/*")) - before
    lines = [
        row | {"win": win, "answer": answer, "baseline": "word " * 10}
        for row, (answer, win) in zip(samples(made), rows, strict=True)
    ]
    write_rows(folder / "samples.jsonl", lines)


@pytest.fixture
def biased(tmp_path):
    for seed in range(5):
        put_row(tmp_path, "plain", seed, 0.5, 0.3)
        put_row(tmp_path, "long", seed, 0.9, 0.3)
    return tmp_path


def test_a_row_that_wins_by_length_has_the_rating_of_its_equal(biased):
    rows = {row["method"]: row for row in ratings_table(select(biased, Filter())).plain}
    long, plain = rows["long"], rows["plain"]
    assert long["rating_low"] > plain["rating_high"]
    assert long["style_rating_low"] < plain["style_rating"] < long["style_rating_high"]
    assert long["style_rating"] - 1000 < 0.5 * (long["rating"] - 1000)
    assert long["length_ratio"] > plain["length_ratio"]


def test_the_command_prints_ratings_and_coefficients(biased):
    done = command("table", "--ratings", "--results", biased)
    assert done.code == 0 and "rating at equal style [95 %]" in done.out
    assert "length +" in done.out and "; bold " in done.out and "; headers" not in done.out
    text = command("table", "--ratings", "--results", biased, "--format", "csv").out
    assert [row["seeds"] for row in csv.DictReader(io.StringIO(text))] == ["5", "5"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--match", "kl"), "--ratings has columns of its own"),
        (("--mixed",), "--ratings has columns of its own"),
        (("--across",), "--across has columns of its own"),
        (("--columns", "method"), "--ratings has columns of its own"),
    ],
)
def test_ratings_refuse_options_that_would_be_ignored(tmp_path, options, message):
    done = command("table", "--ratings", *options, "--results", tmp_path)
    assert done.code == 2 and message in done.text


def test_a_judge_of_content_has_no_bias_to_take_away(tmp_path):
    put_row(tmp_path, "dpo", 0, 0.5, 0.3, bias=False)
    table = ratings_table(select(tmp_path, Filter()))
    assert "rating at equal style [95 %]" not in table.columns
    assert any("length and form are no bias" in note for note in table.notes)


def test_runs_without_a_win_rate_have_no_ratings(tmp_path):
    made = record("dpo", 0)
    held_out = {"accuracy": 0.52, "low": 0.47, "high": 0.57, "pairs": 385.0}
    made["evaluation"]["judge"] = {"name": "taste", "held_out": held_out}
    put(tmp_path, made)
    done = command("table", "--ratings", "--results", tmp_path)
    assert done.code == 2 and "does not exclude .5" in done.text
