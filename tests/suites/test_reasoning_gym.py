"""The suite `reasoning_gym`, and the small examples of suites with verifiers."""

import json

import pytest
from harness_suites.reasoning_gym import ReasoningGym

from harness.api.verifiers import verdicts
from harness.core.data import completion_text
from harness.core.errors import UsageError
from harness.core.options import build

from ..helpers.tools import ROOT, command

MODEL = ROOT / "suites" / "harness_suites" / "base"
FEW = ("--stage-set", "sft.steps=2", "--stage-set", "evaluation.prompts=4", "--set", "steps=1")


def suite(**options):
    return build(ReasoningGym, {"problems": 40} | options, "suite")


@pytest.mark.parametrize("task", ["chain_sum", "basic_arithmetic", "letter_counting"])
def test_splits_share_no_problem_and_answers_are_right(task):
    made = suite(task=task)
    splits = ("demonstrations", "preferences", "train", "validation", "test")
    texts = [{p.text for p in made.prompts(split)} for split in splits]
    assert sum(map(len, texts)) == len(set.union(*texts)) and all(texts)
    demos = made.demonstrations("train")
    prompts, right = [d.prompt for d in demos], [completion_text(d.completion) for d in demos]
    verifier = made.make_verifier()
    assert set(verdicts(verifier, prompts, right, [True] * len(demos)).values) == {1.0}
    assert set(verdicts(verifier, prompts, ["x"] * len(demos), [True] * len(demos)).values) == {0.0}
    assert suite(task=task).prompts("test") == made.prompts("test")


def test_problems_and_scores_are_the_same_in_every_process(monkeypatch):
    # this task goes through a set of letters, whose order is another one in every process
    posed = []
    for order in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", order)
        made = suite(task="ransom_note")
        demos = made.demonstrations("train")
        posed.append([d.prompt for d in demos])
        right = [completion_text(d.completion) for d in demos]
        verdict = verdicts(made.make_verifier(), posed[-1], right, [True] * len(demos))
        assert set(verdict.values) == {1.0}
    assert posed[0] == posed[1]


def test_task_that_does_not_exist_is_refused():
    for options in ({"task": "no_such_task"}, {"task_options": {"no_such_option": 1}}):
        with pytest.raises(UsageError, match="cannot generate problems of it"):
            suite(**options).prompts("test")


def test_example_of_a_task_runs_at_toy_size(tmp_path):
    done = command(
        *("run", "-m", "rlvr", "-s", ROOT / "examples" / "chain_sum.toml", "--model", MODEL),
        *("--suite-set", "problems=40", *FEW, "--set", "batch_size=2", "--results", tmp_path),
    )
    assert done.code == 0, done.text


@pytest.mark.parametrize(
    "example, row",
    [
        ("svamp", {"Body": "{} hens and 2.", "Question": "How many?", "Answer": 7.0}),
        ("multiple_choice", {"question": "{} (A) yes (B) no", "answer": "B"}),
    ],
)
def test_examples_from_files_run_at_toy_size(example, row, tmp_path):
    rows = [
        {k: v.format(i) if k != "answer" and isinstance(v, str) else v for k, v in row.items()}
        for i in range(80)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = command(
        *("run", "-m", "rlvr", "-s", ROOT / "examples" / f"{example}.toml", "--model", MODEL),
        *("--suite-set", f"data={tmp_path / 'rows.jsonl'}", "--set", "batch_size=2", *FEW),
        *("--suite-set", "max_completion_tokens=16", "--results", tmp_path / "results"),
    )
    assert done.code == 0, done.text
