"""The running sums of arithmetic, and suites from files with a verifier."""

import json

import pytest
from harness_plugins.verifiers.final_number import FinalNumber
from harness_suites.arithmetic import SumVerifier
from harness_suites.question_file import QuestionFile, Verdict
from harness_suites.summarization import Summarization

from harness.api.contracts import SPLITS
from harness.api.participants import participants
from harness.api.registry import installed
from harness.api.resolve import Request, resolve
from harness.core.data import Prompt, completion_text
from harness.core.errors import UsageError
from harness.core.options import build

from ..helpers.tools import ROOT, command, only_run


def verdict(verifier, text, gold, ended=True):
    prompt = Prompt("p", "What is 1 and 11 ?", gold)
    return verifier.verify([prompt], [text], [gold], [ended])[0]


def test_nothing_to_compare_with_is_no_verdict():
    assert (
        verdict(FinalNumber(), "#### 72", None) is None
        and verdict(SumVerifier(), "= 6 .", None) is None
    )


@pytest.mark.parametrize(
    "text, right",
    [
        ("5 + 3 = 8 ; 8 - 2 = 6 .", 1.0),
        ("= 6 .", 1.0),
        ("5 + 3 = 8 ; 8 - 2 = 6", 0.0),
        ("5 + 3 = 8 ; 8 - 2 = 5 .", 0.0),
        ("6 .", 0.0),
        ("start with 6 .", 0.0),
        ("5 + 3 = 6 . 8", 0.0),
        ("= 6 . .", 0.0),
        ("= 16 .", 0.0),
        ("= 06 .", 0.0),
        ("", 0.0),
        ("= \uff16 .", 0.0),
        ("= 6 . = 7 .", 0.0),
        ("9 " * 10**6 + "= 6 .", 1.0),
    ],
    ids=lambda t: str(t)[-12:],
)
def test_running_sums(text, right):
    assert verdict(SumVerifier(), text, "6") == right


# -- suites from a file ----------------------------------------------------------------------------

ROWS = [
    {
        "question": f"Ann has {i} hens and buys {i % 7} more. How many?",
        "answer": f"{i}+{i % 7} = <<{i}+{i % 7}={i + i % 7}>>{i + i % 7} hens.\n#### {i + i % 7}",
    }
    for i in range(1000, 1200)
]


@pytest.fixture
def suite(tmp_path):
    """A factory of suites: `suite(rows, "name", **options)`."""

    def make(rows, name="data.jsonl", seed=0, **options):
        text = (
            json.dumps(rows, indent=1)
            if name.endswith(".json")
            else "\n".join(map(json.dumps, rows))
        )
        (tmp_path / name).write_text(text)
        made = build(QuestionFile, {"data": name, "folder": str(tmp_path)} | options, "suite")
        made.shared_seed = seed
        return made

    return make


def test_splits_share_no_question_and_lose_none(suite):
    made = suite(ROWS)
    texts = [{p.text for p in made.prompts(split)} for split in SPLITS if split != "preferences"]
    assert sum(map(len, texts)) == len(set.union(*texts)) == len(ROWS) and all(texts)
    again, other = suite(ROWS[::-1]), suite(ROWS, seed=1)
    assert {p.text for p in again.prompts("test")} == {p.text for p in made.prompts("test")}
    assert {p.text for p in other.prompts("test")} != {p.text for p in made.prompts("test")}


def test_worked_answers_are_verified_and_changed_ones_are_not(suite):
    made = suite(ROWS)
    verifier, judge = made.make_verifier(), Verdict()
    judge.prepare(made, None)
    for split in ("demonstrations", "train", "validation", "test"):
        for d in made.demonstrations(split):
            text = completion_text(d.completion)
            assert (
                text.startswith(" ") and "<<" not in text and d.prompt.text.endswith("?\nAnswer:")
            )
            for answer, right in ((text, 1.0), (text + "1", 0.0)):
                found = verdict(verifier, answer, d.prompt.answer)
                assert found == judge.score([d.prompt], [answer])[0] == right


def test_calculator_marks_stay_if_asked(suite):
    assert all("<<" in d.completion for d in suite(ROWS, calculator_marks=True).demonstrations())


def test_joined_columns_numbers_and_one_array(suite):
    rows = [{"Body": f"{i} hens.", "Question": "How many?", "Answer": float(i)} for i in range(100)]
    made = suite(
        rows,
        "data.json",
        question_columns=["Body", "Question"],
        answer_column="Answer",
        prompt_template="{question}",
    )
    found = {
        d.prompt.text: d
        for part in ("demonstrations", "train", "validation", "test")
        for d in made.demonstrations(part)
    }
    assert len(found) == 100
    assert (found["7 hens. How many?"].completion, found["7 hens. How many?"].prompt.answer) == (
        " 7",
        "7",
    )


def test_question_that_is_a_conversation_stays_one(suite):
    rows = [r | {"question": [{"role": "user", "content": r["question"]}]} for r in ROWS]
    demo = suite(rows).demonstrations()[0]
    assert demo.prompt.text[0]["role"] == "user" and demo.completion[0]["content"].startswith("1")


@pytest.mark.parametrize(
    "row, why",
    [
        ({"question": "How many?", "answer": "many"}, "holds no readable number: 'many'"),
        ({"question": "How many?"}, "no column 'answer'; there are question"),
        ({"answer": "1"}, "no column 'question'"),
        ({"question": "How many?", "answer": None}, "expected text or a number, not 'None'"),
        ({"question": "How many?", "answer": True}, "expected text or a number"),
        ({"question": " ", "answer": 1}, "expected text or a number"),
        ([1], "expected an object"),
    ],
)
def test_bad_rows(suite, row, why):
    with pytest.raises(UsageError, match=f"row 4: .*{why}"):
        suite([*ROWS[:3], row, *ROWS[3:]]).prompts("test")
    assert sum(
        len(suite([row, *ROWS], bad_rows="skip").prompts(s)) for s in SPLITS if s != "preferences"
    ) == len(ROWS)


@pytest.mark.parametrize(
    "options, why",
    [
        ({"question_columns": []}, "names no column"),
        ({"prompt_template": "Q"}, "where the {question} stands"),
        ({"demonstration_share": 1}, "between 0 and 1"),
        ({"data": ""}, "either data .* or dataset"),
    ],
)
def test_options_that_make_no_sense(suite, options, why):
    with pytest.raises(UsageError, match=why):
        suite(ROWS, **options)


def test_judge_verdict_needs_a_verifier():
    with pytest.raises(UsageError, match="summarization has none"):
        Verdict().prepare(Summarization(), None)


# -- suite files that say which suite they are of --------------------------------------------------

MINE = """
suite = "question_file"
data = "data.jsonl"
prompt_template = "Q: {question} A:"
max_completion_tokens = 24
[stages.sft]
steps = 2
[stages.evaluation]
prompts = 4
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "mine.toml").write_text(MINE)
    return tmp_path


def on(folder, method, *more):
    model = ROOT / "suites" / "harness_suites" / "base"
    args = (
        "run",
        "-m",
        method,
        "-s",
        "mine.toml",
        "--model",
        model,
        "--results",
        folder / "results",
        *more,
    )
    return command(*args, cwd=folder)


def test_suite_file_says_which_suite_it_is_of(folder):
    spec = resolve(Request("start", str(folder / "mine.toml")), installed())
    assert type(participants(spec, installed()).suite) is QuestionFile and spec.suite_name == "mine"
    (folder / "mine.toml").unlink()  # a run goes on though its file is gone
    assert type(participants(spec, installed()).suite) is QuestionFile


@pytest.mark.parametrize(
    "kind, why", [("'nosuch'", "no suite 'nosuch'"), ("3", "suite = 3: expected the name")]
)
def test_suite_file_of_no_suite(folder, kind, why):
    (folder / "mine.toml").write_text(MINE.replace('"question_file"', kind))
    with pytest.raises(UsageError, match=why):
        resolve(Request("start", str(folder / "mine.toml")), installed())


def test_run_on_questions(folder):
    done = on(folder, "start")
    assert done.code == 0, done.text
    figures = json.loads(
        only_run(folder / "results", "mine", "start").joinpath("result.json").read_text()
    )["evaluation"]
    assert figures["accuracy"]["n"] == 4 and "proxy" not in figures
    settings = ("--set", "reward=verifier", "--set", "steps=1", "--set", "batch_size=2")
    assert on(folder, "ppo", *settings).code == 0


VERDICTS = """
verifier = "regex"
[verifier_options]
pattern = "^\\\\s*\\\\S*[a-m]\\\\S*\\\\s"
must_end = false
"""
FEW = ("--stage-set", "preferences.prompts=24", "--set", "steps=2", "--set", "batch_size=4")


def test_preferences_are_made_out_of_verdicts(folder):
    (folder / "mine.toml").write_text(MINE.replace("[stages.sft]", VERDICTS + "[stages.sft]", 1))
    for method in ("dpo", "ppo"):
        done = on(folder, method, *FEW)
        assert done.code == 0, done.text
    record = only_run(folder / "results", "mine", "dpo") / "result.json"
    result = json.loads(record.read_text())
    assert result["cost"]["ai_labels"] > 0 and result["cost"]["labels"] == 0
    assert "proxy" not in result["evaluation"]


def test_verdicts_that_are_all_equal_make_no_preferences(folder):
    done = on(folder, "dpo", *FEW)
    assert done.code == 2 and "equally good" in done.err, done.text
