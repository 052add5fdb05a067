"""Sampling of the evaluation's own, stop strings, and fixed answers to compare with."""

import json
from types import SimpleNamespace

import pytest
import torch

from harness.core.data import Prompt, Sampling
from harness.core.errors import UsageError
from harness.core.fixed_answers import fixed_answers
from harness.core.options import build
from harness.core.settings import EvaluationOptions
from harness.evaluation.answers import sampling_of, stopped
from harness.models.batches import Batch, PromptBatch
from harness.models.generation import check_sampling, draw_tokens, shaped

from ..helpers.tools import command, finished, fresh, on_small, results, small_suite

PROMPTS = [Prompt("test/0", "first question"), Prompt("test/1", "second question")]
SUITE = SimpleNamespace(references=lambda split: {"test/0": "a", "test/1": "b"})


# -- sampling --------------------------------------------------------------------------------------

LOGITS = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()


def shares(sampling):
    """The share of each token over evenly spread noise."""
    noise = (torch.arange(2000) + 0.5) / 2000
    tokens, _ = draw_tokens(shaped(LOGITS.expand(2000, -1), sampling), noise)
    return (torch.bincount(tokens, minlength=4) / 2000).tolist()


def test_greedy_takes_the_most_probable_token():
    assert shares(Sampling(greedy=True)) == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (1.0, [0.5, 0.3, 0.15, 0.05]),
        (0.81, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0.0]),
        (0.79, [0.625, 0.375, 0.0, 0.0]),
        (0.4, [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_top_p_keeps_the_smallest_set_of_that_probability(top_p, expected):
    assert shares(Sampling(top_p=top_p)) == pytest.approx(expected, abs=2e-3)


def test_sampling_of_an_evaluation_changes_the_suites():
    own = Sampling(0.7, 48)
    assert sampling_of(own, EvaluationOptions()) == own
    changed = sampling_of(own, EvaluationOptions(temperature=0.2, top_p=0.9, max_new_tokens=5))
    assert changed == Sampling(0.2, 5, 0.9)


def test_training_refuses_truncated_sampling():
    for sampling in (Sampling(greedy=True), Sampling(top_p=0.9)):
        with pytest.raises(UsageError, match="truncated or penalised"):
            check_sampling(sampling)


@pytest.mark.parametrize(
    "options", [{"top_p": 0}, {"temperature": -1}, {"greedy": True, "answers": 2}]
)
def test_evaluation_options_that_make_no_sense_are_refused(options):
    with pytest.raises(UsageError):
        build(EvaluationOptions, options, "evaluation")


class Letters:
    """Tokens that are single letters."""

    tokenizer = SimpleNamespace(decode=lambda ids, **_: "".join(chr(97 + i) for i in ids))

    def texts(self, batch):
        lengths = batch["mask"].sum(-1).long()
        rows = batch["completion_ids"]
        return [
            [self.tokenizer.decode(rows[i, 0, : lengths[i, 0]].tolist())] for i in range(len(rows))
        ]


def letters(*texts):
    width = max(map(len, texts))
    ids = [[[ord(c) - 97 for c in text.ljust(width, "a")]] for text in texts]
    mask = [[[1.0] * len(text) + [0.0] * (width - len(text))] for text in texts]
    prompts = PromptBatch(PROMPTS, torch.zeros(2, 1).long(), torch.ones(2, 1).long())
    columns = {"completion_ids": torch.tensor(ids), "mask": torch.tensor(mask)}
    return Batch(prompts, {**columns, "ended": torch.zeros(2, 1).bool()})


def test_stop_strings_cut_answers_and_their_tokens():
    batch, texts = stopped(letters("abcxyd", "abc"), Letters(), ["yd", "xy"])
    assert texts == ["abc", "abc"]
    assert batch.lengths[:, 0].tolist() == [3, 3] and batch["ended"][:, 0].tolist() == [True, False]
    same, texts = stopped(letters("abcxyd", "abc"), Letters(), ())
    assert texts == ["abcxyd", "abc"] and same.lengths[:, 0].tolist() == [6, 3]


# -- fixed answers ---------------------------------------------------------------------------------


def test_fixed_answers_are_found_by_id_or_by_prompt(tmp_path):
    file = tmp_path / "answers.jsonl"
    rows = [
        {"prompt_id": "test/1", "answer": "two"},
        {"instruction": "first question", "output": "1"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert fixed_answers(str(file), SUITE, PROMPTS, "test") == ["1", "two"]
    file.write_text(json.dumps(rows))
    assert fixed_answers(str(file), SUITE, PROMPTS, "test") == ["1", "two"]
    assert fixed_answers("references", SUITE, PROMPTS, "test") == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt_id": "test/0", "answer": "x"}', "1 of 2 evaluation prompts have no answer"),
        ('{"prompt_id": "test/0"}', "row 1 needs a prompt"),
        ("no json", "is not JSON lines"),
    ],
)
def test_fixed_answers_that_are_not_there_are_refused(tmp_path, content, message):
    file = tmp_path / "answers.jsonl"
    file.write_text(content)
    with pytest.raises(UsageError, match=message):
        fixed_answers(str(file), SUITE, PROMPTS, "test")
    with pytest.raises(UsageError, match="there is no such file"):
        fixed_answers(str(tmp_path / "none"), SUITE, PROMPTS, "test")


# -- through the command line ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def greedy():
    """A run, and the evaluation of its policy with greedy answers against its own answers."""
    import shutil

    where, first = fresh("greedy"), finished("dpo")
    folder = where / first.relative_to(results())
    folder.parent.mkdir(parents=True)
    shutil.copytree(first, folder)
    shutil.copytree(results() / "artifacts", where / "artifacts")
    done = command("evaluate", folder, "-p", small_suite(), "--greedy", "--against", folder)
    assert done.code == 0, done.text
    (other,) = (run for run in folder.parent.iterdir() if run != folder)
    return folder, other, done.text


def test_evaluate_greedily_against_another_run(greedy):
    folder, other, text = greedy
    before, after = (json.loads((f / "result.json").read_text()) for f in (folder, other))
    e = after["evaluation"]
    assert e["temperature"] == 0 and e["kl_temperature"] == before["evaluation"]["temperature"]
    assert e["kl"] == before["evaluation"]["kl"]  # of the same sampled answers
    old, new = (
        [json.loads(line) for line in (f / "samples.jsonl").read_text().splitlines()]
        for f in (folder, other)
    )
    assert [row["baseline"] for row in new] == [row["answer"] for row in old]
    assert [row["answer"] for row in new] != [row["answer"] for row in old]
    assert [row["baseline_gold"] for row in new] == pytest.approx([row["gold"] for row in old])
    assert "greedy" in text and "against" in text and "of answers at T=" in text
    assert after["ground"]["baseline_answers"] != before["ground"]["baseline_answers"]
    assert after["ground"]["sampling"].endswith("greedy=True")


def test_run_refuses_an_answer_file_that_is_not_there():
    where = fresh("no-answers")
    more = ("--stage-set", "evaluation.against=none.jsonl")
    done = command(*on_small("start", *more, results=where))
    assert done.code == 2 and "there is no such file" in done.text
    assert not (where / "runs").exists() or not list((where / "runs").rglob("spec.json"))
