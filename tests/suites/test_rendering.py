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


def test_row_that_the_template_refuses_is_named_with_the_templates_reason(suite):
    rows = [*ROWS[:5], pair(5, SYSTEM), *ROWS[6:]]
    with pytest.raises(UsageError, match="row 6: The chat template cannot.*System role not"):
        suite("gemma2", rows).preferences()
    made = suite("gemma2", rows, bad_rows="skip")
    assert sum(map(len, made._parts.values())) == 79
    (skipped,) = made.data_report().sources[0].skipped
    assert skipped.rows == 1 and skipped.first == ["row 6"]
    assert "System role not supported" in skipped.reason
    assert sum(map(len, suite("gemma3", rows)._parts.values())) == 80  # it takes a system message


def test_suite_that_is_only_described_needs_no_model(suite):
    made = suite("gemma2", [pair(i, SYSTEM) for i in range(80)])
    made.model = None
    assert sum(map(len, made._parts.values())) == 80


def test_answer_that_does_not_follow_its_prompt_is_refused_by_row(suite):
    rows = [
        {"prompt": f"{i}?", "chosen": "<think>\na\n</think>\n\nb", "rejected": "c"}
        for i in range(80)
    ]
    with pytest.raises(
        UsageError, match="row 1: The chat template renders the prompt differently.*opens a thought"
    ):
        suite("r1", rows).preferences()
    for row in rows:
        row["rejected"] = "<think>\nc\n</think>\n\nd"
    assert sum(map(len, suite("r1", rows)._parts.values())) == 80


def test_answers_that_nothing_learns_from_are_not_looked_at(suite):
    rows = [{"question": f"{i} and 1?", "answer": f"so #### {i + 1}"} for i in range(80)]
    made = suite("r1", rows, QuestionFile)
    with pytest.raises(
        UsageError, match="row 1: The chat template renders the prompt differently.*opens a thought"
    ):
        made.prompts("train")
    made = suite("r1", rows, QuestionFile)
    made.answers_train = False
    assert made.prompts("train")


def test_prompt_that_no_cut_makes_fit_is_refused_by_row(suite):
    rows = [*ROWS[:3], pair(3, m("system", "word " * 90)), *ROWS[4:]]
    with pytest.raises(UsageError, match="row 4: max_prompt_tokens = 40 is too short"):
        suite("chatml", rows, max_prompt_tokens=40).preferences()


@pytest.mark.parametrize(
    ("family", "mark", "where"),
    [
        ("chatml", "<|im_end|>", "chosen"),
        ("chatml", "<|endoftext|>", "rejected"),
        ("chatml", "<|im_start|>", "user"),
        ("chatml", "<|im_end|>", "plain"),
        ("zephyr", "</s>", "system"),
        ("zephyr", "<|assistant|>", "earlier"),  # a mark of the template that is no token
        ("mistral", "[INST]", "user"),
    ],
)
def test_special_tokens_inside_text_are_refused_by_row_and_counted(suite, family, mark, where):
    text = f"say {mark} first"
    row = pair(5)
    if where in ("chosen", "rejected"):
        row[where] = [m("assistant", text)]
    elif where == "plain":
        row = {"prompt": text, "chosen": "north", "rejected": "up"}
    else:
        head = {
            "user": [m("user", text)],
            "system": [m("system", text), m("user", "which?")],
            "earlier": [m("user", "a?"), m("assistant", text), m("user", "which?")],
        }
        row["prompt"] = head[where]
    rows = [*ROWS[:5], row, *ROWS[6:]]
    with pytest.raises(UsageError, match="row 6: .* holds .* as text") as refusal:
        suite(family, rows).preferences()
    assert repr(mark) in str(refusal.value)
    made = suite(family, rows, bad_rows="skip")
    assert sum(map(len, made._parts.values())) == 79
    assert made.data_report().sources[0].skipped[0].first == ["row 6"]


def test_end_token_at_the_end_of_an_answer_and_words_like_tokens_are_taken(suite):
    rows = [
        {"prompt": f"{i} <p> [1] </think>?", "chosen": "<b>x</b> <|im_end|>\n", "rejected": "a < b"}
        for i in range(80)
    ]
    assert sum(map(len, suite("chatml", rows)._parts.values())) == 80


@pytest.mark.parametrize(
    ("family", "column", "text", "reason"),
    [
        ("llama3", "prompt", "<|im_start|>user\nwhich?<|im_end|>\n", "begins with '<.im_start.>'"),
        ("chatml", "prompt", "[INST] which? [/INST]", "template of another model has rendered it"),
        ("chatml", "chosen", "north<|eot_id|>\n", "ends with '<.eot_id.>'"),
        ("chatml", "rejected", "up</s>", "ends answers of another model"),
    ],
)
def test_text_that_another_template_rendered_is_refused_by_row(suite, family, column, text, reason):
    plain = {"prompt": "which?", "chosen": "north", "rejected": "up"}
    rows = [plain | {"prompt": f"{i}?"} for i in range(80)]
    rows[5] |= {column: text}
    with pytest.raises(UsageError, match=f"row 6: .*{reason}"):
        suite(family, rows).preferences()
    rows[5] |= plain | {"prompt": "is [INST] a tag?", "chosen": "the tag </b> ends it"}
    assert sum(map(len, suite(family, rows)._parts.values())) == 80  # words about tags are read


def test_text_that_was_rendered_before_keeps_its_tokens(suite):
    head = "<|im_start|>user\n{}?<|im_end|>\n<|im_start|>assistant\n"
    rows = [
        {"prompt": head.format(i), "chosen": "north<|im_end|>", "rejected": "up<|im_end|>"}
        for i in range(80)
    ]
    assert sum(map(len, suite("chatml", rows)._parts.values())) == 80
    rows[3]["chosen"] = "north<|im_end|>\n<|im_start|>user\nand?<|im_end|>"
    with pytest.raises(UsageError, match="row 4: the answer holds '<|im_end|>'"):
        suite("chatml", rows).preferences()


def test_conversations_without_any_template_are_no_fault_of_a_row(suite, tmp_path, make_tokenizer):
    make_tokenizer().save_pretrained(tmp_path / "base")
    with pytest.raises(UsageError, match="tokenizer has no chat template") as refusal:
        suite("base", ROWS, bad_rows="skip").preferences()
    assert "row" not in str(refusal.value)


def test_row_is_looked_at_once(suite, monkeypatch):
    suite("chatml", ROWS).preferences()
    monkeypatch.setattr(rendering, "_tokens", None)  # a second look would fail
    suite("chatml", ROWS).preferences()
    with pytest.raises(TypeError):
        suite("chatml", [pair("new")]).preferences()


@pytest.mark.parametrize(
    ("method", "start", "train"),
    [("rlvr", "model", False), ("rlvr", "sft", True), ("sft", "sft", True)],
)
def test_run_says_whether_it_learns_from_the_answers(suite, tmp_path, method, start, train):
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
