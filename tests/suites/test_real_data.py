"""A model folder and a data set of one's own: plain and conversational, through the command line,
to the table.
"""

import json
import runpy
from random import Random

import pytest

from ..helpers.tools import ROOT, command

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
SETTINGS = """
max_prompt_tokens = 48
max_completion_tokens = 12
[stages.sft]
learning_rate = 1e-3
[stages.reward_model]
learning_rate = 1e-3
batch_size = 8
pooling = "mean"
[stages.evaluation]
prompts = 16
[settings."*"]
learning_rate = 1e-4
batch_size = 8
[settings.ppo]
steps = 2
"""


def sentences(n):
    rng = Random(0)
    things, verbs = "cat dog bird fish tree river".split(), "sees likes finds hears".split()
    for i in range(n):  # numbered: rows are split by their prompt
        a, b = rng.sample(things, 2)
        yield (
            f"who {rng.choice(verbs)} the {a} {i} ?",
            f"the {b} {rng.choice(verbs)} it .",
            f"no idea about {rng.choice(things)}",
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model folder, and the same pairs as plain text with an implicit prompt and as
    conversations.
    """
    folder = tmp_path_factory.mktemp("real")
    plain, chat = folder / "plain.jsonl", folder / "chat.jsonl"
    with plain.open("w") as one, chat.open("w") as two:
        for question, good, bad in sentences(160):
            head = f"\n\nHuman: {question}\n\nAssistant:"
            one.write(json.dumps({"chosen": f"{head} {good}", "rejected": f"{head} {bad}"}) + "\n")
            user = [{"role": "user", "content": question}]
            answers = [[{"role": "assistant", "content": text}] for text in (good, bad)]
            two.write(
                json.dumps({"prompt": user, "chosen": answers[0], "rejected": answers[1]}) + "\n"
            )
    runpy.run_path(str(ROOT / "examples" / "small_model.py"))["main"](
        str(plain), str(folder / "model")
    )
    (folder / "plain.toml").write_text(
        'data = "plain.jsonl"\nprompt_ends_with = "\\n\\nAssistant:"\n' + SETTINGS
    )
    (folder / "chat.toml").write_text('data = "chat.jsonl"\n' + SETTINGS)
    return folder


def run(world, suite, method, *more, code=0):
    results = world / f"results-{suite}"
    where = ["--model", world / "model", "--suite", world / f"{suite}.toml", "--results", results]
    done = command("run", "--method", method, *where, *more)
    assert done.code == code, done.text
    return results, done


@pytest.mark.parametrize("method", ["start", "dpo", "ppo", "best_of_n"])
def test_plain_pairs_with_an_implicit_prompt(world, method):
    more = ("--set", "n=2") if method == "best_of_n" else ()
    results, _ = run(world, "plain", method, *more)
    result = json.loads(next(results.glob(f"runs/plain/{method}/*/result.json")).read_text())
    assert (
        result["ground"]["judge"].startswith("reward_model_judge/")
        and "judge_model" in result["artifacts"]
    )
    sample = json.loads(
        next(results.glob(f"runs/plain/{method}/*/samples.jsonl")).read_text().splitlines()[0]
    )
    assert sample["prompt"].endswith("\n\nAssistant:")


def test_methods_stand_in_one_table(world):
    done = command("table", "--results", world / "results-plain")
    assert done.code == 0 and all(
        f"| {m} " in done.out for m in ("start", "dpo", "ppo", "best_of_n")
    ), done.text


def test_conversations_need_a_chat_template_and_honour_it(world):
    _, done = run(world, "chat", "dpo", code=2)
    assert "chat template" in done.err and not list(
        (world / "results-chat").glob("runs/*/*/*/failure.json")
    )
    config = world / "model" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": TEMPLATE}))
    results, _ = run(world, "chat", "dpo")
    sample = json.loads(
        next(results.glob("runs/chat/dpo/*/samples.jsonl")).read_text().splitlines()[0]
    )
    assert sample["prompt"].startswith("user: who ")


def test_model_that_is_not_there_is_named(world):
    done = command(
        "run", "--method", "dpo", "--model", world / "nothing", "--suite", world / "plain.toml"
    )
    assert (
        done.code == 2
        and "no tokenizer could be loaded" in done.err
        and "Traceback" not in done.text
    )
