"""Rows that the chat template cannot take are refused by number before anything is trained."""

import json

import pytest
from harness_suites import rendering
from harness_suites.preference_file import PreferenceFile
from harness_suites.question_file import QuestionFile

from harness.api.participants import participants
from harness.api.registry import installed
from harness.api.resolve import Request, resolve
from harness.core.errors import UsageError
from harness.core.options import build

from ..helpers.chat_families import FAMILIES


def m(role, content):
    return {"role": role, "content": content}


def pair(i, *before):
    head = [*before, m("user", f"which way is {i}?")]
    return {"prompt": head, "chosen": [m("assistant", "north")], "rejected": [m("assistant", "up")]}


SYSTEM = m("system", "be brief")
ROWS = [pair(i) for i in range(80)]


@pytest.fixture
def suite(tmp_path):
    """A factory of suites for a family's model: `suite("gemma2", rows, **options)`."""

    def make(family, rows, cls=PreferenceFile, **options):
        folder = tmp_path / family
        if not folder.exists() and family in FAMILIES:
            FAMILIES[family].tokenizer().save_pretrained(folder)
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        made = build(cls, {"data": "rows.jsonl", "folder": str(tmp_path)} | options, "suite")
        made.model = str(folder)
        return made

    return make


def test_a_row_that_the_template_refuses_is_named_with_the_templates_reason(suite):
    rows = [*ROWS[:5], pair(5, SYSTEM), *ROWS[6:]]
    with pytest.raises(UsageError, match="row 6: The chat template cannot.*System role not"):
        suite("gemma2", rows).preferences()
    made = suite("gemma2", rows, bad_rows="skip")
    assert sum(map(len, made._parts.values())) == 79
    (skipped,) = made.data_report().sources[0].skipped
    assert skipped.rows == 1 and skipped.first == ["row 6"]
    assert "System role not supported" in skipped.reason
    assert sum(map(len, suite("gemma3", rows)._parts.values())) == 80  # it takes a system message


def test_a_suite_that_is_only_described_needs_no_model(suite):
    made = suite("gemma2", [pair(i, SYSTEM) for i in range(80)])
    made.model = None
    assert sum(map(len, made._parts.values())) == 80


def test_an_answer_that_does_not_follow_its_prompt_is_refused_by_row(suite):
    rows = [
        {"prompt": f"{i}?", "chosen": "<think>\na\n</think>\n\nb", "rejected": "c"}
        for i in range(80)
    ]
    with pytest.raises(UsageError, match="row 1: With its answer.*opens a thought"):
        suite("r1", rows).preferences()
    for row in rows:
        row["rejected"] = "<think>\nc\n</think>\n\nd"
    assert sum(map(len, suite("r1", rows)._parts.values())) == 80


def test_answers_that_nothing_learns_from_are_not_looked_at(suite):
    rows = [{"question": f"{i} and 1?", "answer": f"so #### {i + 1}"} for i in range(80)]
    made = suite("r1", rows, QuestionFile)
    with pytest.raises(UsageError, match="row 1: With its answer.*opens a thought"):
        made.prompts("train")
    made = suite("r1", rows, QuestionFile)
    made.answers_train = False
    assert made.prompts("train")


def test_a_prompt_that_no_cut_makes_fit_is_refused_by_row(suite):
    rows = [*ROWS[:3], pair(3, m("system", "word " * 90)), *ROWS[4:]]
    with pytest.raises(UsageError, match="row 4: max_prompt_tokens = 40 is too short"):
        suite("chatml", rows, max_prompt_tokens=40).preferences()


def test_conversations_without_any_template_are_no_fault_of_a_row(suite, tmp_path, make_tokenizer):
    make_tokenizer().save_pretrained(tmp_path / "base")
    with pytest.raises(UsageError, match="tokenizer has no chat template") as refusal:
        suite("base", ROWS, bad_rows="skip").preferences()
    assert "row" not in str(refusal.value)


def test_a_row_is_looked_at_once(suite, monkeypatch):
    suite("chatml", ROWS).preferences()
    monkeypatch.setattr(rendering, "_tokens", None)  # a second look would fail
    suite("chatml", ROWS).preferences()
    with pytest.raises(TypeError):
        suite("chatml", [pair("new")]).preferences()


@pytest.mark.parametrize(
    ("method", "start", "train"),
    [("rlvr", "model", False), ("rlvr", "sft", True), ("sft", "sft", True)],
)
def test_a_run_says_whether_it_learns_from_the_answers(suite, tmp_path, method, start, train):
    rows = [{"question": f"{i} and 1?", "answer": f"{i + 1}"} for i in range(80)]
    suite("chatml", rows, QuestionFile)
    (tmp_path / "mine.toml").write_text('suite = "question_file"\ndata = "rows.jsonl"\n')
    request = Request(
        method,
        str(tmp_path / "mine.toml"),
        fixed={"model": str(tmp_path / "chatml"), "start": start},
    )
    made = participants(resolve(request, installed()), installed()).suite
    assert made.answers_train is train and made.model == str(tmp_path / "chatml")
