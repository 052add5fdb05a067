"""Runs on a chat model: the layouts of conversations and of labelled answers, by the command
line.
"""

import json

import pyarrow.parquet as pq
import pytest

from ..helpers.chat_families import FAMILIES, chat_model
from ..helpers.tools import command

SETTINGS = """
max_prompt_tokens = 64
max_completion_tokens = 12
[stages.sft]
steps = 2
batch_size = 4
[stages.reward_model]
batch_size = 8
[stages.evaluation]
prompts = 8
[settings."*"]
batch_size = 4
steps = 2
"""


def user(text):
    return {"role": "user", "content": text}


def says(text):
    return {"role": "assistant", "content": text}


def ultrafeedback(i):
    """A row of UltraFeedback's layout: the prompt stands beside whole conversations, too."""
    asked = f"which way is {i}?"
    return {
        "prompt": asked,
        "chosen": [user(asked), says(f"north {i}")],
        "rejected": [user(asked), says("up")],
    }


def single(i):
    """A row of a single answer with a label."""
    return {"prompt": f"which way is {i}?", "completion": f"north {i}", "label": i % 3 > 0}


def sharegpt(i):
    """A row of one conversation."""
    return {"conversations": [{"from": "human", "value": f"{i}?"}, {"from": "gpt", "value": "so"}]}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny chat model, and a suite file for each layout."""
    folder = tmp_path_factory.mktemp("talk")
    chat_model(folder / "model")
    for row in (ultrafeedback, single, sharegpt):
        name = row.__name__
        lines = "".join(json.dumps(row(i)) + "\n" for i in range(120))
        (folder / f"{name}.jsonl").write_text(lines)
        (folder / f"{name}.toml").write_text(f'data = "{name}.jsonl"\n{SETTINGS}')
    return folder


def run(world, suite, method, *more, code=0):
    where = ["--model", world / "model", "--suite", world / f"{suite}.toml"]
    done = command(
        "run", "--method", method, *where, "--start", "sft", "--results", world / "results", *more
    )
    assert done.code == code, done.text
    return done


def artifact(world, kind, name):
    (folder,) = (world / "results" / "artifacts").glob(f"{kind}-*")
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def test_what_is_trained_on_ultrafeedback_is_what_the_template_renders(world):
    run(world, "ultrafeedback", "dpo")
    tokenizer = FAMILIES["chatml"].tokenizer()
    rows = artifact(world, "preferences", "pairs")
    assert len(rows) > 20
    for row in rows:
        number = row["chosen"].removeprefix("north ")
        assert tokenizer.decode(row["chosen_ids"]) == f"north {number}<|im_end|>"
        assert tokenizer.decode(row["rejected_ids"]) == "up<|im_end|>"
        assert json.loads(row["prompt"][1:]) == [user(f"which way is {number}?")]


def result_of(world, suite, method):
    (file,) = (world / "results").glob(f"runs/{suite}/{method}/*/result.json")
    return json.loads(file.read_text())


def test_run_says_and_records_how_prompts_are_posed(world):
    done = run(world, "single", "start", "--suite-set", "title=templated")
    assert "prompts are rendered by the chat template;" in done.text
    rendering = result_of(world, "templated", "start")["rendering"]
    assert len(rendering["chat_template"]) == 16
    off = ("--suite-set", "title=plain", "--suite-set", "chat_template=false")
    done = run(world, "single", "start", *off)
    assert "prompts are plain text (chat_template is false);" in done.text
    assert result_of(world, "plain", "start")["rendering"] == {"chat_template": None}
    asked = [
        json.loads(line)["prompt"]
        for line in next((world / "results").glob("runs/plain/start/*/samples.jsonl")).open()
    ]
    assert all(text.startswith("which way is") for text in asked)


def test_conversations_without_their_template_are_refused(world):
    done = run(world, "ultrafeedback", "start", "--suite-set", "chat_template=false", code=2)
    assert "The data are conversations and chat_template is false" in done.err


def test_labelled_answers_train_kto_its_reward_model_and_the_judge(world):
    run(world, "single", "kto")
    result = result_of(world, "single", "kto")
    for name in ("reward_model", "judge_model"):
        assert 0 <= result["artifacts"][name]["heldout_accuracy"] <= 1
    assert result["evaluation"]["proxy"]["n"] == 8
    labels = result["artifacts"]["preferences"]
    assert labels["pairs"] == 0 and labels["asked"] == labels["labels"] + labels["heldout_labels"]


def test_pairs_that_labelled_answers_do_not_make_are_refused(world):
    done = run(world, "single", "dpo", code=3)
    assert "dpo needs pairs, which the suite single cannot give. It gives: demonstrations," in (
        done.err
    )
    assert "labelled" in done.err and "Nothing was trained" in done.err


def test_judge_without_preferences_is_refused_before_anything_is_trained(world):
    done = run(world, "sharegpt", "start", code=3)
    assert "The judge reward_model_judge learns from preferences" in done.err
    assert "--judge" in done.err and not list((world / "results").glob("runs/sharegpt/*/*/*.json"))
