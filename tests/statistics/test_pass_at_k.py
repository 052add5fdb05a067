"""pass@k: against all choices of k answers, and in a run."""

import json
from itertools import combinations
from statistics import fmean

import pytest

from harness.statistics.pass_at_k import pass_at_k, pass_estimates, powers_up_to

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
    table = command("table", "--results", tmp_path, "--columns", "method,pass_at_k")
    assert f"{anyone:.3f} (k=4)" in table.text
    refused = command("run", *where, "--suite", "summarization", *several)
    assert refused.code == 2 and "no verifier" in refused.err


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
