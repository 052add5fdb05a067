"""A language model as judge: templates, verdicts in both orders, an endpoint with faults, a local
model, and labellers as judges.
"""

import json
import math
import random
from types import SimpleNamespace

import pytest
from harness_plugins.judges.llm_judge import LLMJudge
from harness_plugins.judges.templates import (
    ARENA_HARD,
    CUT,
    MT_BENCH,
    REFUSED,
    TEMPLATES,
    UNPARSED,
    read_template,
)

from harness import Answer, Prompt, UsageError
from harness.api.adapters import make
from harness.api.registry import installed
from harness.core.errors import HarnessError
from harness.core.options import build
from harness.core.run_folder import read_result
from harness.evaluation.judging import judge_answers
from harness.statistics.judges import verdict_figures

from ..helpers.fake_endpoint import reply
from ..helpers.small_folders import save_model
from ..helpers.tools import command

SECRET = "sk-very-secret-0123456789"
SUITE = SimpleNamespace(name="toy", principles=list)


@pytest.fixture
def judge_at(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_API_KEY", SECRET)

    def ready(**options):
        settings = {
            "url": fake.url,
            "model": "gpt",
            "cache": str(tmp_path / "cache"),
            "backoff": 0.01,
            "retries": 2,
            "workers": 1,
        }
        judge = build(LLMJudge, settings | options, "judge")
        judge.prepare(SUITE, None)
        return judge

    return ready


def pairs(*texts):
    """Prompts and answers on both sides."""
    prompts = [Prompt(f"test/{i}", f"question {i}") for i in range(len(texts))]
    return prompts, [Answer(a) for a, _ in texts], [Answer(b) for _, b in texts]


def shown_first(body):
    """Whether the word `good` stands before `bad` in a question."""
    text = body["messages"][-1]["content"]
    return text.index("good") < text.index("bad")


def prefers_good(body):
    return reply("m" if shown_first(body) else "M")


def log_probabilities(*tokens):
    """The `logprobs` of a choice: each token with its alternatives."""
    return {
        "content": [
            {
                "token": token,
                "top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in top.items()],
            }
            for token, top in tokens
        ]
    }


# -- templates -------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES.values())
def test_template_shows_prompt_and_answers_once_in_order(template):
    text = template.question("{first}?", "ONE {second}", "TWO")
    assert text.index("{first}?") < text.index("ONE {second}") < text.index("TWO")
    assert text.count("TWO") == text.count("{second}") == 1


@pytest.mark.parametrize(
    ("template", "text", "value"),
    [
        ("alpaca_eval", "m", 1.0),
        ("alpaca_eval", " M.", 0.0),
        ("alpaca_eval", "m or M", UNPARSED),
        ("alpaca_eval", "model", UNPARSED),
        ("alpaca_eval", "Sorry, I cannot help.", REFUSED),
        ("alpaca_eval", "I'm sorry, I cannot compare these.", REFUSED),
        ("alpaca_eval", "I\u2019m torn.", UNPARSED),
        ("alpaca_eval", "'m'", 1.0),
        ("mt_bench", "A is unable to count, B is right. [[B]]", 0.0),
        ("mt_bench", "Both good: [[C]]", 0.5),
        ("mt_bench", "[[A]] or [[B]]", UNPARSED),
        ("mt_bench", "A is better", UNPARSED),
        ("mt_bench", "I must decline.", REFUSED),
        ("arena_hard", "My answer: ... [[A>>B]]", 1.0),
        ("arena_hard", "[[B>A]]", 0.0),
        ("arena_hard", "[[A=B]]", 0.5),
    ],
)
def test_template_reads_a_reply(template, text, value):
    assert TEMPLATES[template].read_text(text) == value


def test_template_reads_refusals_and_cut_replies_of_the_api():
    assert MT_BENCH.read({"message": {"content": "[[A]]", "refusal": "no"}}, False) == REFUSED
    filtered = {"message": {"content": ""}, "finish_reason": "content_filter"}
    assert MT_BENCH.read(filtered, False) == REFUSED
    cut = {"message": {"content": "I begin with"}, "finish_reason": "length"}
    assert ARENA_HARD.read(cut, False) == CUT


def test_template_reads_soft_verdicts():
    first = log_probabilities(("m", {"m": 0.6, "M": 0.2, "x": 0.1}))
    choice = {"message": {"content": "m"}, "logprobs": first}
    assert TEMPLATES["alpaca_eval"].read(choice, True) == pytest.approx(0.75)
    assert TEMPLATES["alpaca_eval"].read(choice, False) == 1.0
    alone = {"message": {"content": "m"}, "logprobs": log_probabilities(("m", {"m": 0.9}))}
    assert TEMPLATES["alpaca_eval"].read(alone, True) == 1.0
    marked = log_probabilities(
        ("so ", {"A": 0.5, "B": 0.5}), ("[[", {}), ("A", {"A": 0.5, "B": 0.25, "C": 0.25})
    )
    choice = {"message": {"content": "so [[A]]"}, "logprobs": marked}
    assert MT_BENCH.read(choice, True) == pytest.approx(0.625)


def test_template_of_a_file_is_checked(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text('user = "{prompt} 1) {first} 2) {second}"\n[verdicts]\n1 = 1.0\n2 = 0.0\n')
    assert read_template(str(file)).question("p", "a", "b") == "p 1) a 2) b"
    for content, message in (
        ('user = "{prompt} {first}"\n[verdicts]\n1 = 1.0\n2 = 0.0\n', "{second}"),
        ('user = "{prompt} {first} {second}"\n[verdicts]\n1 = 1.0\n2 = 1.5\n', r"\[0, 1\]"),
        ('user = "{prompt} {first} {second}"\nverdict = 1\n', "verdict is none of"),
    ):
        file.write_text(content)
        with pytest.raises(UsageError, match=message):
            read_template(str(file))
    with pytest.raises(UsageError, match="expected one of alpaca_eval"):
        read_template("chatbot")


# -- an endpoint -----------------------------------------------------------------------------------


def test_judge_asks_both_orders(fake, judge_at):
    fake.script = [prefers_good]
    found = judge_at().verdicts(*pairs(("good", "bad"), ("bad", "good"), ("same", "same")))
    assert [v.p for v in found] == [1.0, 0.0, 0.5]
    assert found[0].note == {"answers": [1.0, 0.0]} and found[2].note == {"equal": True}
    assert len(fake.asked) == 4
    body = fake.asked[0]
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert body["top_logprobs"] == 5 and "question 0" in body["messages"][1]["content"]
    assert fake.keys[0] == ("/v1/chat/completions", f"Bearer {SECRET}")


def test_judge_with_a_position_bias_gives_ties_and_shows_it(fake, judge_at):
    fake.script = [reply("m")]
    wins = judge_at().verdicts(*pairs(("good", "bad"), ("a", "b"), ("c", "d")))
    figures = verdict_figures([v.p for v in wins], [v.note for v in wins])
    assert [v.p for v in wins] == [0.5] * 3 and figures["ties"] == 3
    assert figures["position_bias"]["mean"] == 0.5 and figures["position_consistency"] == 0.0
    notes = [{"answers": [1.0, 0.0]}, {"answers": [1.0, 1.0]}]
    bias = verdict_figures([1.0, 0.5], notes)["position_bias"]
    assert (bias["low"], bias["mean"], bias["high"]) == (-0.5, 0.25, 0.5)  # its possible values


def test_ties_of_equal_answers_alone_are_no_win_rate(fake, judge_at, tmp_path):
    fake.script = [reply("Hmm")]
    with pytest.raises(HarnessError, match="no verdict on any of 2 pairs of different answers"):
        judge_answers(judge_at(), *pairs(("a", "b"), ("same", "same"), ("c", "d")), tmp_path)
    fake.script = [prefers_good]
    mixed = pairs(("good", "bad"), ("same", "same"))
    assert judge_answers(judge_at(), *mixed, tmp_path).wins == [1.0, 0.5]
    assert judge_answers(judge_at(), *pairs(("same", "same")), tmp_path).wins == [0.5]


def test_replies_without_a_verdict_are_missing_and_counted(fake, judge_at, tmp_path):
    def answer(body):
        text = body["messages"][-1]["content"]
        if "question 1" in text:
            return reply("Sorry, I cannot judge.")
        if "question 2" in text and shown_first(body):
            return reply("Hmm")
        return prefers_good(body)

    fake.script = [answer]
    data = pairs(*[("good", "bad")] * 4)
    judged = judge_answers(judge_at(), *data, tmp_path / "verdicts")
    assert [p for p in judged.wins if p == p] == [1.0, 1.0] and judged.gold is None
    assert judged.figures["missing"] == 2
    assert judged.figures["problems"] == {"refused": 2, "unparsed": 1}


def test_self_agreement_comes_from_repeated_questions(fake, judge_at):
    fake.script = [lambda body: reply("m" if "seed" in body else "M")]
    judge = judge_at(repeats=2, temperature=1.0)
    found = judge.verdicts(*pairs(("good", "bad")))
    assert len(fake.asked) == 4
    assert found[0].note["repeats"] == [[0.0, 1.0], [0.0, 1.0]]
    assert verdict_figures([0.5], [found[0].note])["self_agreement"] == 0.0


def test_judge_outlives_faults_and_bills_them(fake, judge_at):
    fake.script = [
        (500, b"oops"),
        (429, b"", {"Retry-After": "0"}),
        reply("m"),
        (200, b"no json"),
        reply("M"),
    ]
    judge, state = judge_at(), random.getstate()
    assert judge.verdicts(*pairs(("good", "bad")))[0].p == 1.0
    assert random.getstate() == state  # waits between retries are random, by numbers of their own
    usage = judge.usage()
    assert (usage["requests"], usage["failed_tries"]) == (5.0, 3.0)
    assert usage["prompt_tokens"] == 20.0


def test_judging_goes_on_without_asking_twice(fake, judge_at, tmp_path):
    """The endpoint ends in the middle; the same call asks only for what is missing."""
    data = pairs(*[(f"good {i}", f"bad {i}") for i in range(40)])
    left = iter(range(70))
    fake.script = [lambda body: prefers_good(body) if next(left, None) is not None else (400, b"")]
    with pytest.raises(HarnessError, match="refused with HTTP 400"):
        judge_answers(judge_at(), *data, tmp_path / "verdicts")
    fake.script, before = [prefers_good], len(fake.asked)
    judged = judge_answers(judge_at(), *data, tmp_path / "verdicts")
    assert judged.wins == [1.0] * 40 and len(fake.asked) - before == 10
    again = judge_at(cache=str(tmp_path / "another"))  # the verdict log alone is enough
    assert judge_answers(again, *data, tmp_path / "verdicts").wins == [1.0] * 40
    assert len(fake.asked) - before == 10
    other = judge_at(template="mt_bench", cache=str(tmp_path / "third"))  # another judge asks anew
    with pytest.raises(HarnessError, match="gave no verdict"):
        judge_answers(other, *data, tmp_path / "verdicts")
    assert len(fake.asked) - before == 90


def test_verdict_log_reads_over_a_cut_line(fake, judge_at, tmp_path):
    fake.script = [prefers_good]
    data = pairs(("good", "bad"), ("good 1", "bad 1"))
    judge_answers(judge_at(), *data, tmp_path / "v")
    (file,) = (tmp_path / "v").iterdir()
    rows = file.read_text()
    assert SECRET not in rows and len(rows.split()) > 2
    file.write_text(rows[:-20])
    before = len(fake.asked)
    judged = judge_answers(judge_at(cache=str(tmp_path / "new")), *data, tmp_path / "v")
    assert judged.wins == [1.0, 1.0] and len(fake.asked) - before == 2
    parsed = [json.loads(line) for line in file.read_text().split("\n")[-2:] if line]
    assert len(parsed) == 1


def test_cost_cap_ends_the_judging(fake, judge_at):
    fake.script = [prefers_good]
    judge = judge_at(max_requests=3)
    with pytest.raises(HarnessError, match="judge llm_judge sent 3 requests, its max_requests"):
        judge.verdicts(*pairs(("good", "bad"), ("good 1", "bad 1")))


def test_judge_needs_a_key_and_a_model(monkeypatch):
    monkeypatch.delenv("HARNESS_API_KEY", raising=False)
    judge = build(LLMJudge, {"url": "http://127.0.0.1:1/v1", "model": "m"}, "judge")
    with pytest.raises(UsageError, match="The judge llm_judge needs a key"):
        judge.prepare(SUITE, None)
    with pytest.raises(UsageError, match="needs a model"):
        build(LLMJudge, {}, "judge")
    with pytest.raises(UsageError, match="carries no user, password or query"):
        build(LLMJudge, {"url": "http://u:p@host/v1", "model": "m"}, "judge")


def test_identity_holds_what_decides_verdicts(judge_at, tmp_path):
    own = tmp_path / "own.toml"
    text = 'user = "{prompt} {first} {second}"\n[verdicts]\n1 = 1.0\n2 = 0.0\n'
    own.write_text(text)
    one = judge_at(template=str(own)).identity()
    assert judge_at(template=str(own), retries=7, workers=2).identity() == one
    own.write_text(text.replace("{prompt}", "About {prompt}"))
    assert judge_at(template=str(own)).identity() != one
    assert judge_at(template=str(own)).data_files() == [own]


# -- a local model ---------------------------------------------------------------------------------

WORDS = ["<unk>", "</s>", "m", "M", "good", "bad", "question", "Answer", "Best", "model"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("judge"), WORDS)


def test_local_judge_gives_soft_verdicts_of_its_tokens(folder):
    import torch

    judge = build(LLMJudge, {"model": folder, "batch_size": 3}, "judge")
    judge.prepare(SUITE, None)
    found = judge.verdicts(*pairs(("good", "bad"), ("bad bad", "good good good")))
    one, two = found[0].note["answers"]
    assert found[0].p == pytest.approx((one + 1 - two) / 2) and 0 < one < 1
    model, tokenizer = judge.asker.client.loaded
    text = f"{judge.wording.system}\n\n{judge.wording.question('question 0', 'good', 'bad')}"
    logits = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1].double()
    by_hand = logits[[2, 3]].softmax(-1)[0]  # m against M
    assert one == pytest.approx(float(by_hand), abs=1e-6)
    usage = judge.usage()
    assert usage["requests"] == 4 and usage["flops"] > 0 and usage["prompt_tokens"] > 0
    assert "weights" in judge.identity() and judge.data_files()


def test_local_judge_reads_what_it_writes(folder):
    judge = build(LLMJudge, {"model": folder, "template": "mt_bench", "max_tokens": 4}, "judge")
    judge.prepare(SUITE, None)
    (verdict,) = judge.verdicts(*pairs(("good", "bad")))
    assert math.isnan(verdict.p) and verdict.note["problems"] == [UNPARSED] * 2


def test_local_judge_refuses_verdicts_that_are_no_tokens(tmp_path):
    judge = build(LLMJudge, {"model": save_model(tmp_path, ["<unk>", "</s>", "good"])}, "judge")
    with pytest.raises(UsageError, match="not single tokens"):
        judge.prepare(SUITE, None)


# -- labellers as judges, and judges as labellers --------------------------------------------------


class Own:
    """Stages with the suite's own judge."""

    class labelling_judge:
        name = "gold"
        prepare = staticmethod(lambda suite, stages: None)


def test_labeller_judges():
    from harness import Principle

    long = Principle("long", "Longer is better.", lambda prompt, text: float(len(text)))
    suite = SimpleNamespace(name="toy", principles=lambda: [long])
    judge = make("judges", "labeller:constitution", {"error_rate": 0.0}, installed())
    judge.prepare(suite, Own)
    found = judge.verdicts(*pairs(("long answer", "short"), ("x", "much longer"), ("a", "a")))
    assert [v.p for v in found] == [1.0, 0.0, 0.5]
    assert judge.name == "labeller:constitution" and judge.identity()["error_rate"] == 0.0
    assert verdict_figures([1.0, 0.0], [v.note for v in found])["position_consistency"] == 1.0


def test_judge_labels(fake, tmp_path, monkeypatch):
    from random import Random

    monkeypatch.setenv("HARNESS_API_KEY", SECRET)
    fake.script = [prefers_good]
    options = {"url": fake.url, "model": "gpt", "cache": str(tmp_path)}
    labeller = make("labellers", "judge:llm_judge", options, installed())
    labeller.prepare(SUITE, None)
    found = labeller.compare(Prompt("p", "q"), ["bad", "good", "bad"], [1, 1, 1], Random(0))
    assert [(c.first, c.second, c.p) for c in found] == [(0, 1, 0.0), (1, 2, 1.0)]
    assert labeller.usage()["asked"] == 2 and not labeller.human


# -- runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "judge", ["llm_judge", pytest.param("labeller:endpoint", marks=pytest.mark.slow)]
)
def test_run_is_judged_by_a_served_model_whose_name_is_no_folder(fake, tmp_path, judge):
    """The name of a served model is not looked up on this machine or on the hub."""
    fake.script = [reply("m" if judge == "llm_judge" else "1")]
    settings = [f"url={fake.url}", "model=served", f"cache={tmp_path / 'c'}", "top_logprobs=0"]
    settings = settings[: None if judge == "llm_judge" else 3]
    suite = ["-s", "summarization"] if judge != "llm_judge" else ["-s", "exact"]
    done = command(
        *("run", "-m", "start", *suite, "--quick", "--stage-set", "evaluation.prompts=8"),
        *("--results", tmp_path / "r", "--judge", judge),
        *(part for setting in settings for part in ("--judge-set", setting)),
        env={"HARNESS_API_KEY": "sk-secret-0123456789"},
    )
    assert done.code == 0, done.text
    (folder,) = (tmp_path / "r" / "runs").glob("*/start/*")
    assert read_result(folder)["evaluation"]["win_rate"]["mean"] == 0.5 and len(fake.asked) > 8
