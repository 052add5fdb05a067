"""Records to tables: rows, means, intervals, refusals, failures, labels, and both formats."""

import csv
import io
import math
from statistics import fmean

import pytest
from harness_plugins.reporters import CSV, Markdown

from harness.errors import HarnessError, UsageError
from harness.report.select import Filter, select
from harness.report.table import Table
from harness.report.tables import COLUMNS, comparison

from .tools import GROUND, failure, put, record


def table(results, *records, **asked):
    return of(put(results, *records), **asked)


def of(results, *suite, **asked):
    """The comparison of what lies below a folder."""
    return comparison(select(results, Filter(*suite, **asked)))


def texts(made):
    return [[str(cell) for cell in row] for row in texts(made)]


def parsed(made):
    return list(csv.DictReader(io.StringIO(CSV().render(made))))


def test_rows_sft_first_then_by_strength(tmp_path):
    made = table(tmp_path, record("dpo", win=0.6), record("ppo", win=0.8), record("sft", win=0.5))
    assert [row[0] for row in texts(made)] == ["sft", "ppo", "dpo"]
    unused = {"accuracy", "verifier queries", "AI labels", "queries / answer"}  # no row says anything there
    assert made.columns == [c.title for c in COLUMNS if c.title not in unused]
    assert all(len(row) == len(made.columns) for row in texts(made))
    assert made.title == "toy: 64 test prompts, one answer each at T=1"
    row = dict(zip(made.columns, texts(made)[2], strict=True))
    assert row["win-rate vs SFT [95 %]"] == "0.600 [0.550, 0.650]" and row["KL (nats)"] == "5.12"
    assert row["tokens gen. / trained"] == "1 k / 2.5 k" and row["labels"] == "720" and row["seeds"] == "1"
    assert row["models held (params)"] == "policy (300 k)" and row["peak MiB"] == "512"


def test_each_run_can_have_a_row_of_its_own(tmp_path):
    put(tmp_path, record("dpo", win=0.6), record("dpo", seed=1, win=0.8), record("sft", win=0.5))
    assert [row[:3] for row in of(tmp_path).rows] == [
        ["sft", "1", "0.500 [0.450, 0.550]"], ["dpo", "2", of(tmp_path).rows[1][2]]
    ]  # fmt: skip
    made = of(tmp_path, each=True)
    assert [row[0] for row in texts(made)] == ["sft, seed 0", "dpo, seed 1", "dpo, seed 0"]
    assert texts(made)[1][2] == "0.800 [0.750, 0.850]" and "One seed per row" in made.notes[-1]


def test_one_seed_keeps_its_interval_over_prompts(tmp_path):
    (row,) = table(tmp_path, record(win=0.6)).plain
    assert (row["win_rate_low"], row["win_rate_high"]) == pytest.approx((0.55, 0.65))


def test_means_and_interval_over_seeds(tmp_path):
    wins = (0.5, 0.6, 0.7)
    made = table(tmp_path, *(record(seed=i, win=w) for i, w in enumerate(wins)))
    (row,) = made.plain
    assert row["seeds"] == 3 and row["win_rate"] == pytest.approx(fmean(wins))
    spread = 4.302652729911275 * 0.1 / math.sqrt(3)  # t with 2 degrees of freedom, sd 0.1
    half = math.hypot(spread, 0.05)
    assert row["win_rate_low"] == pytest.approx(0.6 - half) and row["win_rate_high"] == pytest.approx(0.6 + half)


def test_interval_over_seeds_stays_a_share(tmp_path):
    (row,) = table(tmp_path, record(seed=0, win=0.9), record(seed=1, win=0.1)).plain
    assert row["win_rate_low"] == 0.0 and row["win_rate_high"] == 1.0


def test_every_cost_is_a_mean_over_seeds(tmp_path):
    second = record(seed=1)
    second["cost"]["method"] |= {"seconds": 14.5, "tokens_generated": 3000}
    (row,) = table(tmp_path, record(seed=0), second).plain
    assert row["method_seconds"] == 13.5 and row["method_tokens_generated"] == 2000


def test_mixed_ground_is_refused_by_name(tmp_path):
    with pytest.raises(UsageError) as refusal:
        table(tmp_path, record("dpo"), record("ppo", seed=3, ground=GROUND | {"preferences": "XX"}))
    told = str(refusal.value)
    assert "differ in preferences" in told and "bb: dpo seed 0" in told and "XX: ppo seed 3" in told


def test_ground_that_one_run_lacks_is_refused(tmp_path):
    with pytest.raises(UsageError, match="differ in judge"):
        table(tmp_path, record("dpo"), record("ppo", ground={k: v for k, v in GROUND.items() if k != "judge"}))


def test_methods_can_be_chosen_out_of_mixed_ground(tmp_path):
    mixed = [record("dpo"), record("ppo"), record("sft", ground=GROUND | {"judge": "other/1"})]
    made = table(tmp_path, *mixed, methods=["ppo", "dpo"])
    assert [row[0] for row in texts(made)] == ["dpo", "ppo"]


def test_an_unknown_method_is_refused(tmp_path):
    with pytest.raises(UsageError, match="nosuch"):
        table(tmp_path, record("dpo"), methods=["nosuch"])


def test_a_failed_seed_is_counted(tmp_path):
    made = table(tmp_path, record(seed=0), record(seed=1), failure(seed=2))
    (cells,) = texts(made)
    assert cells[1] == "2/3" and cells[2].startswith("0.600")
    assert made.plain[0]["failed"] == 1


def test_a_row_of_failures_says_why(tmp_path):
    made = table(tmp_path, record("ppo"), failure("dpo"))
    assert [row[0] for row in texts(made)] == ["ppo", "dpo"]
    assert texts(made)[1][:3] == ["dpo", "0/1", "failed: The loss is nan at optimiser step 3."]
    assert len(texts(made)[1]) == len(made.columns)
    assert "failed: The loss" in Markdown().render(made)
    assert parsed(made)[1]["failure"] == "The loss is nan at optimiser step 3."


def test_only_failures_make_a_table_too(tmp_path):
    made = table(tmp_path, failure("dpo"))
    assert texts(made)[0][1] == "0/1" and "no finished run" in made.title


def test_the_newest_of_one_recipe_and_seed_counts(tmp_path):
    newest = record(win=0.9, finished_at="2026-03-01T00:00:00Z")
    older = [record(win=0.1), record(win=0.2, finished_at="2026-02-01T00:00:00Z")]
    for order in ([newest, *older], [*older, newest]):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        (row,) = table(folder, *order).plain
        assert row["win_rate"] == 0.9 and row["seeds"] == 1


def test_a_failure_newer_than_the_result_counts(tmp_path):
    newer = failure(finished_at="2026-03-01T00:00:00Z")
    (cells,) = table(tmp_path, record(), newer).rows
    assert cells[1] == "0/1"


def test_rows_of_one_method_are_told_apart_by_their_options(tmp_path):
    made = table(
        tmp_path, record(recipe="r1", options={"beta": 0.1, "epochs": 1.0}, win=0.7),
        record(recipe="r2", options={"beta": 0.5, "epochs": 1.0}, win=0.6), record("ppo", win=0.5),
    )  # fmt: skip
    assert [row[0] for row in texts(made)] == ["dpo (beta=0.1)", "dpo (beta=0.5)", "ppo"]


def test_options_that_followed_from_what_was_asked_for_are_not_told(tmp_path):
    made = table(
        tmp_path, record(recipe="r1", options={"optimiser": "ppo", "beta": 0.1, "steps": 50}, win=0.7, asked=[]),
        record(recipe="r2", options={"optimiser": "dpo", "beta": 0.3, "steps": 9}, win=0.6, asked=["optimiser"]),
    )  # fmt: skip
    assert [row[0] for row in texts(made)] == ["dpo", "dpo (optimiser=dpo)"]


def test_every_record_is_named_as_its_row():
    told = [record(recipe="r1", asked=[]), record("ppo"), record(recipe="r2", options={"beta": 0.5}, asked=["beta"])]
    assert row_names(told) == ["dpo", "ppo", "dpo (beta=0.5)"]


def test_rows_that_differ_elsewhere_show_their_recipe(tmp_path):
    made = table(tmp_path, record(recipe="aaaa1", win=0.7), record(recipe="bbbb2", win=0.6))
    assert [row[0] for row in texts(made)] == ["dpo [aaaa]", "dpo [bbbb]"]


def test_an_estimated_kl_is_marked(tmp_path):
    best = record("best_of_n")
    best["evaluation"] |= {"kl_estimator": "best-of-n level mass", "kl_bound": 0.636}
    made = table(tmp_path, best)
    assert texts(made)[0][5] == "5.12 (est.)" and any("= 0.64 bounds it" in note for note in made.notes)


def test_several_suites_need_a_name(tmp_path):
    put(tmp_path, record(), record(suite="other", recipe="dpo-on-other"))
    with pytest.raises(UsageError, match="Name one suite with --suite: there are runs of other, toy"):
        of(tmp_path)
    assert of(tmp_path, "other").title.startswith("other")
    with pytest.raises(UsageError, match="other, toy"):
        of(tmp_path, "nosuch")


def test_an_empty_folder_says_what_to_do(tmp_path):
    with pytest.raises(UsageError, match="no (finished )?run below .* harness run"):
        of(tmp_path)


def test_a_newer_schema_is_refused(tmp_path):
    with pytest.raises(HarnessError, match="written by a newer harness"):
        table(tmp_path, record(schema=99))


def columns_of(line):
    """Split a Markdown row at its unescaped bars."""
    return [cell.replace("\\|", "|").strip() for cell in line.replace("\\|", "\0").strip("|").split("|")]


def test_markdown_is_a_table(tmp_path):
    lines = Markdown().render(table(tmp_path, record("dpo"), record("ppo"))).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 4 and len({len(line) for line in rows}) == 1 and len({line.count("|") for line in rows}) == 1
    assert lines[0].startswith("**toy") and set(rows[1]) == {"|", "-"}


def test_markdown_escapes_bars():
    made = Table("t", ["a", "b|c"], [["x|y", "z"], ["|", "\\"]])
    rows = [line for line in Markdown().render(made).splitlines() if line.startswith("|")]
    assert r"x\|y" in rows[2] and r"b\|c" in rows[0]
    assert all(line.replace("\\|", "").count("|") == 3 for line in rows)


def test_markdown_keeps_a_row_on_its_line(tmp_path):
    made = table(tmp_path, failure("dpo", why="first line\nsecond | line"))
    rows = [line for line in Markdown().render(made).splitlines() if line.startswith("|")]
    assert len(rows) == 3 and "second" in rows[2]


def test_csv_parses_back_with_unrounded_figures(tmp_path):
    made = table(tmp_path, record("dpo", win=1 / 3, options={"note": 'a,"b"\n'}), record("dpo", recipe="r2", win=0.25))
    first, second = parsed(made)
    assert float(first["win_rate"]) == 1 / 3 and float(first["kl"]) == 5.123456789
    assert first["method"] == 'dpo (note=a,"b"\n)' and "(beta=0.1" not in first["method"]
    assert float(second["method_flops"]) == 3e12 and second["failed"] == "0"


def test_csv_of_rows_and_failures_has_one_header(tmp_path):
    made = table(tmp_path, record("ppo"), failure("dpo"))
    text = CSV().render(made)
    header, *rows = csv.reader(io.StringIO(text))
    assert len(set(header)) == len(header) and {len(row) for row in rows} == {len(header)}


def test_a_table_is_a_pure_function_of_its_records(tmp_path):
    first = put(tmp_path / "a", record("dpo"), record("ppo", win=0.7))
    again = put(tmp_path / "b", record("ppo", win=0.7), record("dpo"))
    assert Markdown().render(of(first)) == Markdown().render(of(again))
