"""Reward models of the hub as judges: scored as transformers scores them, counted, and refused."""

import json

import pytest
import torch
from harness_plugins.judges.reward_model import RewardModel
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from harness import Prompt, UsageError
from harness.api.adapters import JudgeLabeller, LabellerJudge, same_mind
from harness.core.options import build
from harness.core.run_folder import read_result, read_rows
from harness.models.sequence_scorer import SequenceScorer

from ..helpers.small_folders import WORDS, save_model
from ..helpers.tools import command, finished, on_small, only_run, with_shared_stages

TEMPLATE = "{% for m in messages %}{{ m.role[:1] }} {{ m.content }} {% endfor %}"
SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


def classifier(folder, kind="llama", labels=1, template=None, pad=None, positions=64):
    """A random sequence classifier with the words of the small folders."""
    save_model(folder, template=template)  # whole words: a prompt ends with a space
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(1)
    common = {"vocab_size": len(WORDS), "num_hidden_layers": 1, "num_labels": labels, **SIZE}
    common |= {"max_position_embeddings": positions, "initializer_range": 0.5, "pad_token_id": pad}
    if kind == "llama":
        model = LlamaForSequenceClassification(LlamaConfig(**common, eos_token_id=1))
    else:
        tokenizer.add_special_tokens({"sep_token": "x", "cls_token": "x"})
        model = BertForSequenceClassification(BertConfig(**common | {"pad_token_id": 0}))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder), model.eval(), tokenizer


def logit(model, ids):
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([ids])).logits[0, 0])


@pytest.mark.parametrize("pad", [None, 0])
@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_scores_are_those_of_the_model_alone(tmp_path, template, pad):
    folder, model, tokenizer = classifier(tmp_path, template=template, pad=pad)
    prompts, answers = ["Task: x ", "Answer: ", "Task: x "], ["good", "bad bad long", "bad"]
    found = SequenceScorer(folder, batch_size=2).score(prompts, answers)
    texts = [
        f"u {p} a {a} " if template else f"{p}{a}" for p, a in zip(prompts, answers, strict=True)
    ]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    by_hand = [logit(model, row) for row in ids]
    assert found.scores == pytest.approx(by_hand, abs=1e-5) and len(set(found.scores)) == 3
    assert found.tokens == sum(map(len, ids)) and found.flops > 0 and found.cut == 0


def test_encoder_reads_question_and_answer_as_a_pair(tmp_path):
    folder, model, tokenizer = classifier(tmp_path, kind="bert")
    found = SequenceScorer(folder).score(["Task: 1"], ["good long"])
    assert found.scores[0] == pytest.approx(
        logit(model, tokenizer("Task: 1", "good long")["input_ids"]), abs=1e-5
    )


def test_long_texts_lose_their_beginning_and_are_counted(tmp_path):
    folder, model, tokenizer = classifier(tmp_path, positions=8)
    found = SequenceScorer(folder).score(["long " * 20], ["good bad"])
    ids = tokenizer("long " * 20 + "good bad")["input_ids"]
    assert found.cut == 1 and found.scores[0] == pytest.approx(logit(model, ids[-8:]), abs=1e-5)


def test_head_that_is_not_in_the_files_is_refused(tmp_path):
    causal = save_model(tmp_path / "causal")
    with pytest.raises(UsageError, match="has no score.weight, which would be random"):
        SequenceScorer(causal)
    two, _, _ = classifier(tmp_path / "two", labels=2)
    with pytest.raises(UsageError, match="has 2 outputs"):
        SequenceScorer(two)


def test_judge_counts_and_names_its_weights(tmp_path):
    folder, _, _ = classifier(tmp_path)
    judge = build(RewardModel, {"model": folder}, "judge")
    judge.prepare(None, None)
    one, other = judge.score([Prompt("a", "Task: ")] * 2, ["good", "bad"])
    assert judge.compare([Prompt("a", "Task: ")], ["good"], ["bad"]) == [float(one > other)]
    usage = judge.usage()
    assert usage["requests"] == 4 and usage["prompt_tokens"] > 0 and usage["flops"] > 0
    assert len(judge.identity()["weights"]) == 64
    assert {f.name for f in judge.data_files()} >= {"model.safetensors"}
    with pytest.raises(UsageError, match="needs a model"):
        build(RewardModel, {}, "judge")


def test_judge_that_is_the_labeller_is_the_same_mind(tmp_path):
    folder, _, _ = classifier(tmp_path / "one")
    again, other = (build(RewardModel, {"model": folder}, "judge") for _ in range(2))
    assert same_mind(JudgeLabeller(again), other) and not same_mind(None, other)
    torch.manual_seed(0)
    another = tmp_path / "another"
    classifier(another)
    model = LlamaForSequenceClassification.from_pretrained(another)
    model.score.weight.data.add_(1.0)
    model.save_pretrained(another)
    third = build(RewardModel, {"model": str(another)}, "judge")
    assert not same_mind(JudgeLabeller(third), other)
    assert isinstance(LabellerJudge(JudgeLabeller(again)), LabellerJudge)


def test_check_compares_a_judge_with_preferences(tmp_path):
    from harness.api.registry import installed
    from harness.check import FAILED, PASSED, Options
    from harness.check.judges import judge_findings

    folder, _, _ = classifier(tmp_path / "m")
    judge = build(RewardModel, {"model": folder}, "judge")
    judge.prepare(None, None)
    words = ["good", "bad", "long", "x", "1", "2", "A", "B", "good bad", "bad long"]
    scores = judge.score([Prompt("", "Task: ")] * len(words), words)
    order = [w for _, w in sorted(zip(scores, words, strict=True), reverse=True)]
    pairs = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :]]
    file = tmp_path / "p.jsonl"

    def findings(turned):
        rows = [
            {"prompt": "Task: ", "chosen": b if turned else a, "rejected": a if turned else b}
            for a, b in pairs
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = Options(settings=(f"model={folder}",))
        found = judge_findings("reward_model", installed(), options, file)
        return {finding.proof: finding for finding in found}

    right = findings(False)
    assert right["is better than a coin"].status == PASSED
    assert "accuracy 1.000" in right["is better than a coin"].detail
    assert right["Cohen's kappa"].detail.startswith("1.000")
    wrong = findings(True)["is better than a coin"]
    assert wrong.status == FAILED and "accuracy 0.000" in wrong.detail


def judged_run(results, *more):
    """A quick run of dpo on the suite `small` that is judged by a reward model from the start."""
    short = ("--set", "steps=2", "--stage-set", "evaluation.prompts=8")
    return command(*on_small("dpo", "--judge", "reward_model", *short, *more, results=results))


@pytest.mark.slow
def test_run_is_judged_by_a_reward_model_from_the_start(tmp_path):
    """Verdicts are those of the classifier on the kept texts, and labels are the suite's."""
    folder, _, _ = classifier(tmp_path / "judge", positions=256, pad=0)
    results = with_shared_stages("judged")
    done = judged_run(results, "--judge-set", f"model={folder}")
    assert done.code == 0, done.text
    run = only_run(results, "small", "dpo")
    result = read_result(run)
    rows = read_rows(run / "samples.jsonl")
    scorer = SequenceScorer(folder)
    ours = scorer.score([row["prompt"] for row in rows], [row["answer"] for row in rows]).scores
    theirs = scorer.score([row["prompt"] for row in rows], [row["baseline"] for row in rows]).scores
    assert [row["gold"] for row in rows] == pytest.approx(ours, abs=1e-4)
    assert [row["baseline_gold"] for row in rows] == pytest.approx(theirs, abs=1e-4)
    wins = [0.5 if a == b else float(a > b) for a, b in zip(ours, theirs, strict=True)]
    assert [row["win"] for row in rows] == wins
    assert result["ground"]["judge"].startswith("reward_model/")
    assert result["cost"]["judge"]["flops"] > 0
    kept = read_result(finished("dpo"))["artifacts"]["preferences"]["content"]
    assert result["artifacts"]["preferences"]["content"] == kept


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((), "needs a model: --judge-set model=FOLDER_OR_HUB_ID"),
        (("model=/nonexistent/folder",), "could be loaded"),
        (("model=CAUSAL",), "has no score.weight, which would be random"),
    ],
)
def test_run_refuses_a_judge_that_is_no_reward_model_before_anything_is_made(
    tmp_path, settings, message
):
    causal = save_model(tmp_path / "causal")
    settings = [w for s in settings for w in ("--judge-set", s.replace("CAUSAL", causal))]
    done = judged_run(tmp_path / "results", *settings)
    assert done.code == 2 and message in done.text and "Traceback" not in done.text
    assert not list((tmp_path / "results").glob("artifacts/*"))
