"""The files of human preferences that judges are checked against."""

import json

import pytest

from harness import UsageError
from harness.check.judges import read_preferences

from ..helpers.tools import command


def written(tmp_path, *rows):
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_preferences_are_read_in_their_public_forms(tmp_path):
    rows = read_preferences(
        written(
            tmp_path,
            {"instruction": "i", "output_1": "x", "output_2": "y", "preference": 2},
            {"question": "q", "answer_a": "x", "answer_b": "y", "winner": "model_a"},
            {"prompt": "p", "a": "x", "b": "y", "winner": "tie"},
            {"prompt": "p", "chosen": "good", "rejected": "bad"},
            {"prompt": "p", "chosen": [{"role": "assistant", "content": "good"}], "rejected": "b"},
            {"prompt": "p", "a": "x", "b": "y", "p": 0.7},
        )
    )
    assert [row.p for row in rows] == [0.0, 1.0, 0.5, 0.0, 1.0, 0.7]
    assert (rows[3].a, rows[3].b) == ("bad", "good")  # every other pair is turned
    assert rows[4].a == "good"


def test_prompt_that_two_answers_begin_with_is_read(tmp_path):
    asked = [{"role": "user", "content": "q"}]
    good, bad = ([*asked, {"role": "assistant", "content": text}] for text in ("good", "bad"))
    text = "\n\nHuman: q\n\nAssistant: r\n\nHuman: s\n\nAssistant:"
    rows = read_preferences(
        written(
            tmp_path,
            {"chosen": good, "rejected": bad},
            {"chosen": f"{text} Good.", "rejected": f"{text} Gone."},
        )
    )
    assert [row.prompt.text for row in rows] == [asked, text]
    assert [(row.a, row.b, row.p) for row in rows] == [
        ("good", "bad", 1.0),
        (" Gone.", " Good.", 0.0),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "x", "rejected": "y"}, "equal up to a last 'Assistant:'"),
        ({"chosen": [{"content": "p"}, {"content": "x"}], "rejected": "y"}, "needs a prompt"),
        ({"prompt": "p", "a": "x"}, "two answers"),
        ({"a": "x", "b": "y", "p": 1}, "needs a prompt"),
        ({"prompt": "p", "a": "x", "b": "y"}, "does not say which"),
        ({"prompt": "p", "a": "x", "b": "y", "p": 1.5}, "does not say which"),
        ({"prompt": "p", "a": "x", "b": "y", "winner": "c"}, "does not say which"),
        ([], "needs a prompt"),
    ],
)
def test_rows_that_are_no_preference_are_named(tmp_path, row, message):
    file = written(tmp_path, {"prompt": "p", "a": "x", "b": "y", "p": 1}, row)
    with pytest.raises(UsageError, match=f"row 2 .*{message}"):
        read_preferences(file)


def test_judge_needs_a_file_and_others_take_none(tmp_path):
    done = command("check", "llm_judge", "--set", "model=m")
    assert done.code == 2 and "--against FILE" in done.err
    done = command("check", "dpo", "--against", tmp_path / "x")
    assert done.code == 2 and "only a judge" in done.err
    done = command("check", "llm_judge", "--set", "model=m", "--against", tmp_path / "none")
    assert done.code == 2 and "there is no such file" in done.err


def test_judge_of_a_run_takes_the_place_of_humans(tmp_path):
    rows = [
        {"prompt_id": f"test/{i}", "prompt": "p", "answer": "x", "baseline": "y", "win": win}
        for i, win in enumerate([1.0, 0.25, None, 0.5])
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_preferences(tmp_path)
    assert [(row.a, row.b, row.p) for row in found] == [
        ("x", "y", 1.0),
        ("y", "x", 0.75),
        ("x", "y", 0.5),
    ]
    (tmp_path / "samples.jsonl").write_text(json.dumps(rows[2]) + "\n")
    with pytest.raises(UsageError, match="its judge gave no verdicts"):
        read_preferences(tmp_path)
