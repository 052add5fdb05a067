"""Tables of several judges: the same policies, a win-rate by each judge."""

import csv
import io

import pytest
from harness_plugins.reporters import CSV, LaTeX, Markdown

from harness.core.errors import UsageError
from harness.report.selection.filters import Filter
from harness.report.selection.select import select
from harness.report.tables.tables import comparison

from ..helpers.tools import GROUND, command, put, record

RATES = {"taste": {"dpo": 0.7, "ipo": 0.4}, "other": {"dpo": 0.3, "ipo": 0.8}}


def judged(judge, method, seed=0, win=None, sampling="T=1", **more):
    """A run of a method that a judge evaluated: its policy is of the method and the seed."""
    made = record(
        method,
        seed,
        RATES[judge][method] if win is None else win,
        recipe=f"{method} by {judge}",
        pins={"policy-1": {"kind": "policy", "content": f"weights of {method} {seed}"}},
        ground={**GROUND, "judge": f"{judge}/1", "sampling": sampling},
        **more,
    )
    made["evaluation"]["judge"] = {"name": judge}
    return made


def table_of(results, judges=("taste", "other"), **criteria):
    first, *others = [select(results, Filter(judge=judge, **criteria)) for judge in judges]
    return comparison(first, others=others)


@pytest.fixture
def both(tmp_path):
    return put(tmp_path, *(judged(j, m, s) for j in RATES for m in RATES[j] for s in (0, 1)))


def test_table_has_a_win_rate_by_each_judge_of_the_same_policy(both):
    table = table_of(both)
    by_method = {str(f["method"]): f for f in table.plain}
    for method in ("dpo", "ipo"):
        assert by_method[method]["win_rate"] == pytest.approx(RATES["taste"][method])
        assert by_method[method]["win_rate.other"] == pytest.approx(RATES["other"][method])
        alone = select(both, Filter(judge="other", methods=[method]))
        (own,) = comparison(alone).plain
        for end in ("low", "high"):
            assert by_method[method][f"win_rate.other_{end}"] == own[f"win_rate_{end}"]
    titles = [t for t in table.columns if "win-rate by" in t]
    assert titles == ["win-rate by taste [95 %]", "win-rate by other [95 %]"]
    assert any(note.startswith("Columns of the judges taste, other") for note in table.notes)


def test_bold_type_of_each_judge_is_its_own(both):
    table = table_of(both)
    for key, best in (("win_rate", "dpo"), ("win_rate.other", "ipo")):
        assert [f["method"] for f in table.plain if f.get(f"{key}_best")] == [best]
    order = [table_of(both, judges).plain[0]["method"] for judges in (RATES, [*RATES][::-1])]
    assert order == ["dpo", "ipo"]  # rows are in the order of the first judge


def test_every_format_shows_both_judges(both):
    table = table_of(both)
    for reporter in (Markdown, LaTeX):
        text = reporter().render(table)
        assert "0.700" in text and "0.300" in text and "win-rate by other" in text
    rows = list(csv.DictReader(io.StringIO(CSV().render(table))))
    assert [float(row["win_rate.other"]) for row in rows] == pytest.approx([0.3, 0.8])


def test_row_that_a_judge_did_not_evaluate_is_blank_and_named(tmp_path):
    runs = [judged(j, m) for j in RATES for m in RATES[j] if (j, m) != ("other", "ipo")]
    table = table_of(put(tmp_path, *runs))
    column = table.columns.index("win-rate by other [95 %]")
    assert [row[column].text for row in table.rows] == ["0.300", "-"]
    assert "The judge other evaluated 0 of 1 runs of ipo." in table.notes


def test_a_policy_of_other_weights_is_not_joined(tmp_path):
    retrained = judged("other", "dpo")
    retrained["pins"]["policy-1"]["content"] = "other weights"
    table = table_of(put(tmp_path, judged("taste", "dpo"), retrained))
    assert "win_rate.other" not in table.plain[0]


def test_doubtful_judge_has_no_win_rate_beside_a_good_one(both):
    held_out = {"accuracy": 0.52, "low": 0.47, "high": 0.57, "pairs": 385.0}
    doubtful = judged("other", "dpo", 2, 0.9)
    doubtful["evaluation"]["judge"]["held_out"] = held_out
    doubtful["finished_at"] = "2026-02-01T00:00:00Z"
    put(both, doubtful, judged("taste", "dpo", 2))
    table = table_of(both, methods=["dpo"])
    assert "0.900" not in Markdown().render(table)
    assert any(note.startswith("By other: no win-rate") for note in table.notes)


def test_evaluations_that_differ_in_more_than_the_judge_are_refused(tmp_path):
    put(tmp_path, judged("taste", "dpo"), judged("other", "dpo", sampling="T=0"))
    with pytest.raises(UsageError, match="by taste and other differ in sampling"):
        table_of(tmp_path)


def test_unknown_judge_is_named_with_the_nearest(both):
    with pytest.raises(UsageError, match="taste"):
        select(both, Filter(judge="tast"))


def test_command_prints_a_column_for_each_judge(both):
    done = command("table", "--judges", "taste, other", "--results", both)
    assert done.code == 0 and "| win-rate by taste [95 %]" in done.out
    assert "0.700" in done.out and "0.300" in done.out


@pytest.mark.parametrize("option", ["--across", "--ratings", "--mixed", "--match=kl"])
def test_command_refuses_judges_beside_tables_of_other_columns(both, option):
    done = command("table", "--judges", "taste,other", option, "--results", both)
    assert done.code == 2 and "leave" in done.err
