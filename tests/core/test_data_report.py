"""The report on a user's data: few lines, warnings that name the option, nothing of a row's own."""

import json

from harness.core.data_report import (
    Cut,
    DataReport,
    Measured,
    Overlap,
    SourceReport,
    brief,
    recorded,
)


def source(**reasons):
    report = SourceReport("data.jsonl", "train", rows=100, used=90)
    for place, reason in reasons.items():
        report.skip(place, reason)
    return report


def measured(prompts, completions):
    return Measured(
        True,
        False,
        Cut("max_prompt_tokens", 64, 100, prompts, 90, 99),
        Cut("max_completion_tokens", 32, 100, completions, 40, 50),
    )


def test_reasons_that_differ_in_a_value_only_are_one():
    report = source(a="not 'x'", b="not 'y'", c='not "z" 12', d="empty")
    assert [(s.reason, s.rows) for s in report.skipped] == [("not 'x'", 2), ('not "z" 12', 1)] + [
        ("empty", 1)
    ]


def test_first_places_are_kept():
    report = source(**{f"row{i}": "empty" for i in range(9)})
    assert report.skipped[0].first == ["row0", "row1", "row2"] and report.skipped[0].rows == 9
    (line,) = DataReport([report]).lines()
    assert line == ("train: 90 of 100 rows of data.jsonl; 9 skipped: empty (row0, row1, row2, ...)")


def test_only_many_cuts_are_a_warning_and_it_names_the_option():
    assert DataReport(measured=measured(5, 5)).warnings() == []
    (warning,) = DataReport(measured=measured(5, 6)).warnings()
    assert "6% of the completions" in warning
    assert "--suite-set max_completion_tokens=40 leaves 95 % whole" in warning


def test_limits_of_a_quick_run_are_no_warning():
    report = DataReport(measured=measured(50, 60), lowered=True)
    assert report.warnings() == [] and "50% of the prompts" in report.lines()[0]


def test_unknown_tokens_are_a_warning():
    few, many = measured(0, 0), measured(0, 0)
    few.unknown, many.unknown = 0.01, 0.25
    assert DataReport(measured=few).warnings() == []
    (warning,) = DataReport(measured=many).warnings()
    assert "25% of the tokens are the tokenizer's unknown token" in warning


def test_no_control_character_reaches_the_terminal():
    report = DataReport([source(row1="no column '\x1b[2J'")])
    report.overlaps = [Overlap("test", "train", 1, 1, ("a", "b"), "\x1b[31mred")]
    assert "\x1b" not in "".join([*report.lines(), *report.warnings()])


def test_record_holds_no_text_of_a_prompt():
    report = DataReport(overlaps=[Overlap("test", "train", 1, 2, ("a", "b"), "a secret question")])
    assert "secret" in report.warnings()[0]
    record = report.record()
    assert "secret" not in json.dumps(record) and record["overlaps"][0]["rows"] == 2


def full():
    report = DataReport([source(row1="empty", row2="no 'x'")], {"test": {"rows": 9, "prompts": 8}})
    report.overlaps = [Overlap("test", "train", 2, 3, ("test row 1", "train row 2"), "secret")]
    report.measured = measured(5, 40)
    report.measured.pairs, report.measured.equal_pairs = 50, 7
    report.measured.judged_prompts = Cut("max_prompt_tokens", 64, 10, 1, 60, 70)
    report.measured.judged_completions = Cut("max_completion_tokens", 32, 20, 15, 40, 50)
    return report


def test_recorded_report_is_read_back_without_the_examples():
    report = full()
    again = recorded(json.loads(json.dumps(report.record())))
    assert again.lines() == report.lines() and again.record() == report.record()
    assert [w.replace(": 'secret'", "") for w in report.warnings()] == again.warnings()
    assert recorded(DataReport([source()]).record()).measured is None


def test_cuts_of_the_judges_rows_have_figures_of_their_own():
    line = full().lines()[-1]
    assert line == ("rows of the judge: 10% of their prompts and 75% of their completions are cut")


def test_brief_names_what_was_skipped_dropped_and_cut():
    assert brief(full().record()) == (
        "90 of 100 rows used; 10 skipped; 3 dropped: their prompts stand in another part; 7 equal"
        " pairs dropped; cut: 5% of prompts, 40% of completions (warning: above 5 %)"
    )
    few = DataReport([SourceReport("x", "train", 5, 5)], measured=measured(0, 0))
    assert brief(few.record()) == ("5 of 5 rows used; cut: 0% of prompts, 0% of completions")
