"""pass@k: against all choices of k answers, and in a run."""

import json
import math
from itertools import combinations
from statistics import fmean

import pytest

from harness.api.registry import installed
from harness.statistics.pass_at_k import (
    majority,
    majority_estimates,
    mean_estimate,
    pass_at_k,
    pass_estimates,
    powers_up_to,
)

from ..helpers.tools import command


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_pass_at_k_is_the_share_of_choices_with_a_right_answer(n):
    for right in range(n + 1):
        answers = [True] * right + [False] * (n - right)
        for k in range(1, n + 1):
            share = fmean(any(choice) for choice in combinations(answers, k))
            assert pass_at_k(n, right, k) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize(("n", "right", "k"), [(3, 1, 4), (3, 1, 0), (3, 4, 1), (3, -1, 1)])
def test_pass_at_k_refuses_what_cannot_be(n, right, k):
    with pytest.raises(ValueError, match="k <= n"):
        pass_at_k(n, right, k)


def test_pass_estimates_take_only_full_marks_as_right():
    found = pass_estimates([[1.0, 0.0, None, 0.5], [0.0] * 4])
    assert powers_up_to(4) == [1, 2, 4] == list(found) and powers_up_to(6) == [1, 2, 4, 6]
    assert found[1].mean == 0.125 and found[4].mean == 0.5 and found[4].n == 2


@pytest.mark.parametrize(
    ("readings", "verdicts", "expected"),
    [
        (["7", "8", "7"], [1.0, 0.0, 1.0], 1.0),
        (["7", "8", "8"], [1.0, 0.0, 0.0], 0.0),
        (["7", "8"], [1.0, 0.0], 0.5),  # a tie is split
        (["7", "8", "9", "8", "7"], [1.0, 0.0, 0.0, 0.0, 1.0], 0.5),
        ([None, None, "7"], [0.0, 0.0, 1.0], 1.0),  # what gives no answer does not vote
        ([None, None], [0.0, None], 0.0),
        (["7", "7", "8"], [0.5, 0.5, 1.0], 0.0),  # only full marks are right
    ],
)
def test_majority_is_right_by_its_verdict(readings, verdicts, expected):
    assert majority(readings, verdicts) == expected


def test_majority_estimates_are_means_over_blocks_of_k():
    readings, verdicts = ["7", "8", "7", "7"], [1.0, 0.0, 1.0, 1.0]
    found = majority_estimates([readings, ["1"] * 4], [verdicts, [0.0] * 4])
    assert list(found) == [1, 2, 4]
    assert [found[k].mean for k in (1, 2, 4)] == [0.375, 0.375, 0.5]  # (.5 + 1) / 2 for k = 2
    assert found[1].mean == pass_estimates([verdicts, [0.0] * 4])[1].mean


def test_mean_of_answers_leaves_out_what_has_no_verdict():
    found = mean_estimate([[1.0, 0.5], [0.0, None], [None, None]])
    assert (found.mean, found.n) == (0.375, 2)
    assert mean_estimate([[1.0], [None]]) is None
    assert mean_estimate([[1.0, math.nan], [0.0, 0.5]]).mean == (1 + 0.25) / 2


@pytest.mark.parametrize(
    ("verifier", "alike", "other"),
    [
        (
            "final_number",
            ["#### 1,080", "so it is \\boxed{1080}", "The answer is 1080."],
            "#### 108",
        ),
        ("boxed", ["\\boxed{\\frac{3}{4}}", "\\boxed{0.75}"], "\\boxed{4}"),
        ("choice", ["(B)", "The answer is B."], "C"),
        ("exact", ["New  York.", "new york"], "York"),
    ],
)
def test_equal_answers_have_equal_readings(verifier, alike, other):
    made = installed().get("verifiers", verifier)()
    readings = {made.reading(text, True) for text in alike}
    assert len(readings) == 1 and None not in readings
    assert made.reading(other, True) not in readings
    assert made.reading(alike[0], False) is None  # it was cut at the limit
    for gold, text in made.examples():  # the reading of a right answer is the gold answer's
        assert made.reading(text, True) == made.read_gold(gold) or verifier == "final_number"


def test_evaluation_draws_several_answers_where_a_verifier_checks_them(tmp_path):
    where = ("--method", "start", "--quick", "--results", tmp_path)
    several = ("--stage-set", "evaluation.answers=4", "--stage-set", "evaluation.prompts=24")
    done = command("run", *where, "--suite", "arithmetic", *several)
    assert done.code == 0, done.text
    assert "pass@4" in done.text
    (file,) = tmp_path.glob("runs/arithmetic/start/*/result.json")
    evaluation = json.loads(file.read_text())["evaluation"]
    rows = [json.loads(line) for line in (file.parent / "samples.jsonl").read_text().splitlines()]
    assert all(len(row["passes"]) == 4 and row["passes"][0] == row["accuracy"] for row in rows)
    assert len({tuple(row["passes"]) for row in rows}) > 2  # the draws are different
    right = fmean(row["passes"].count(1.0) / 4 for row in rows)
    assert evaluation["pass_at_k"]["1"]["mean"] == pytest.approx(right)
    anyone = fmean(1.0 in row["passes"] for row in rows)
    assert evaluation["pass_at_k"]["4"]["mean"] == pytest.approx(anyone)
    for row in rows:
        votes = majority(row["readings"], row["passes"])
        assert votes in (0.0, 1.0) or len(set(row["readings"])) > 1
    voted = fmean(majority(row["readings"], row["passes"]) for row in rows)
    assert evaluation["maj_at_k"]["4"]["mean"] == pytest.approx(voted)
    assert evaluation["mean_of_answers"]["mean"] == pytest.approx(
        fmean(fmean(row["passes"]) for row in rows)
    )
    columns = "method,pass_at_k,maj_at_k,mean_of_answers"
    table = command("table", "--results", tmp_path, "--columns", columns)
    assert f"{anyone:.3f} (k=4)" in table.text and f"{voted:.3f} (k=4)" in table.text
    assert "maj@4" in done.text and "mean of n answers" in table.text
    refused = command("run", *where, "--suite", "summarization", *several)
    assert refused.code == 2 and "no verifier" in refused.err


@pytest.mark.slow
def test_evaluation_of_one_answer_is_the_same_with_further_ones(tmp_path):
    """Further answers have draws of their own: the judged answer does not change."""
    where = ("--method", "start", "--quick", "--suite", "arithmetic", "--results", tmp_path)
    answers = {}
    for n in (1, 2):
        done = command("run", *where, "--stage-set", f"evaluation.answers={n}")
        assert done.code == 0, done.text
    for file in tmp_path.glob("runs/arithmetic/start/*/samples.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        answers["passes" in rows[0]] = [row["answer"] for row in rows]
    assert answers[True] == answers[False]
