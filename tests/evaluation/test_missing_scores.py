"""A missing score is missing on both sides, and is counted; ties are half."""

import json
import math

import pytest

from harness.api.judge_contract import Answer, Judge, preferences
from harness.core.data import Prompt
from harness.core.errors import HarnessError
from harness.evaluation.judging import judge_answers
from harness.statistics.over_prompts import (
    known_interval,
    mean_interval,
    rate_interval,
    win_rate,
    win_scores,
)

from ..helpers.tools import command, on_small, only_run, plugin, with_shared_stages

NAN = math.nan


@pytest.mark.parametrize("compare", [win_scores, preferences])
def test_win_scores_of_a_missing_score_are_missing_on_both_sides(compare):
    ours, theirs = [NAN, 1.0, 1.0, 0.0, 2.0], [0.0, NAN, 0.0, 1.0, 2.0]
    one, two = compare(ours, theirs), compare(theirs, ours)
    assert [x for x in one if x == x] == [1.0, 0.0, 0.5]
    assert all(a == 1 - b or (a != a and b != b) for a, b in zip(one, two, strict=True))


def test_win_rate_leaves_missing_scores_out():
    one = win_rate([NAN, 1.0, 1.0], [0.0, NAN, 0.0])
    assert (one.mean, one.n) == (1.0, 1)
    with pytest.raises(ValueError, match="no score is there"):
        win_rate([NAN], [0.0])


def test_mean_interval_refuses_a_missing_value():
    with pytest.raises(ValueError, match="is missing"):
        mean_interval([1.0, NAN, 0.0])
    assert known_interval([1.0, NAN, 0.0]).n == 2
    assert known_interval([1.0, NAN]) is None


def test_win_rate_counts_ties_as_half():
    a, b = [1.0, 0.0] + [0.3] * 98, [0.0, 1.0] + [0.3] * 98
    one, two = win_rate(a, b), win_rate(b, a)
    assert one.mean == 0.5 and abs(one.low - (1 - two.high)) < 1e-12
    assert (win_rate([1.0] * 9, [0.0] * 9).mean, win_rate([0.0] * 9, [1.0] * 9).mean) == (1.0, 0.0)


def test_rate_interval_of_soft_verdicts_is_narrower_than_of_decided_ones():
    soft, decided = rate_interval([0.6, 0.4] * 50), rate_interval([1.0, 0.0] * 50)
    assert soft.mean == decided.mean == 0.5
    assert soft.high - soft.low < 0.5 * (decided.high - decided.low)
    ties = rate_interval([0.5] * 50 + [1.0] * 25 + [0.0] * 25)
    scores = [0.0] * 50 + [1.0] * 25 + [-1.0] * 25
    assert ties == win_rate(scores, [0.0] * 100)


PLUGIN = """
from dataclasses import dataclass
from harness import Judge, Prompt, Verifier, hookimpl
from harness_suites.summarization import Summarization


class Never(Verifier):
    name = "never"

    def verify(self, prompts, completions, golds, ended):
        return [None if p.id.startswith("test") else 1.0 for p in prompts]


class Gaps(Judge):
    name = "gaps"

    def score(self, prompts, completions):
        missing = [p.id.endswith("3") for p in prompts]
        return [float("nan") if m else float(len(c)) for m, c in zip(missing, completions)]


class Mute(Judge):
    name = "mute"

    def compare(self, prompts, a, b):
        return [float("nan")] * len(a)


@dataclass
class Ungraded(Summarization):
    name, proxy = "ungraded", False

    def make_verifier(self):
        return Never()

    def prompts(self, split):
        return [Prompt(f"{split}/{i}", self.document(f"{split}/{i}").prompt) for i in range(60)]


@hookimpl
def register_suites(register):
    register(Ungraded)


@hookimpl
def register_judges(register):
    register(Gaps)
    register(Mute)
"""
SMALL = [
    *("--stage-set", "sft.steps=2", "--stage-set", "sft.batch_size=8"),
    *("--stage-set", "evaluation.prompts=30"),
]


@pytest.fixture(scope="module")
def place():
    """A run whose verifier grades no evaluated answer, judged with gaps; and the plugin file."""
    where = with_shared_stages("missing")
    file = plugin(where, "ungraded", PLUGIN)
    args = ["-p", file, "--results", where / "r", "--quick", *SMALL]
    done = command("run", "-m", "start", "-s", "ungraded", "--judge", "gaps", *args)
    assert done.code == 0, done.text
    return where, file, only_run(where / "r", "ungraded", "start")


def test_run_without_a_verdict_of_the_verifier_ends_well(place):
    _, _, folder = place
    evaluation = json.loads((folder / "result.json").read_text())["evaluation"]
    assert "accuracy" not in evaluation and "baseline_accuracy" not in evaluation
    assert evaluation["missing"]["accuracy"] == evaluation["missing"]["baseline_accuracy"] == 30


def test_missing_scores_of_a_judge_are_left_out_and_counted(place):
    where, _, folder = place
    evaluation = json.loads((folder / "result.json").read_text())["evaluation"]
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    there = [row["win"] for row in rows if row["win"] is not None]
    assert len(there) == 27 and evaluation["win_rate"]["n"] == 27
    assert evaluation["win_rate"]["mean"] == pytest.approx(sum(there) / 27)
    counts = {name: evaluation["missing"][name] for name in ("win", "gold", "baseline_gold")}
    assert counts == {"win": 3, "gold": 3, "baseline_gold": 3}
    assert evaluation["judge"]["missing"] == 3
    table = command("table", "--results", where / "r")
    assert table.code == 0 and "3 win" in table.text, table.text


def test_evaluate_with_a_judge_that_says_nothing_is_refused(place):
    _, file, folder = place
    done = command("evaluate", folder, "-p", file, "--judge", "mute")
    assert done.code == 1 and "gave no verdict on any of 30 pairs" in done.text, done.text


INFINITE = """
from harness import hookimpl
from harness.api.contracts import Judge


class Infinite(Judge):
    name, version = "infinite", "1"

    def score(self, prompts, answers):
        return [float("inf")] * len(prompts)


@hookimpl
def register_judges(register):
    register(Infinite)
"""


def test_score_that_is_not_finite_names_its_judge():
    where = with_shared_stages("infinite")
    file = plugin(where, "infinite", INFINITE)
    done = command(*on_small("start", "-p", file, "--judge", "infinite", results=where))
    assert done.code == 1 and "a gold score of the judge infinite that is not finite" in done.err


@pytest.mark.parametrize("found", [[1.0], None, ["good", "bad"], [10**400, 1]])
def test_what_are_no_scores_is_refused_under_the_judge_s_name(found, tmp_path):
    class Odd(Judge):
        """Returns what the test says."""

        name, version = "odd", "1"

        def score(self, prompts, completions):
            return found

    answers = [Answer("a"), Answer("b")]
    with pytest.raises(HarnessError, match="The judge odd returned .* expected 2 numbers"):
        judge_answers(Odd(), [Prompt("p", "x")] * 2, answers, answers, tmp_path)
