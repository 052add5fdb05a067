"""Grades by a model of the lab: what is asked, how replies are read, and what the mean is of."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from harness_suites.arithmetic import Arithmetic

from harness.core.data import Prompt
from harness.core.errors import UsageError
from harness.models.loading import load_causal, load_tokenizer
from harness.models.logprobs import completion_logp
from harness.models.tokens import Tokens
from harness.training import grades
from harness.training.grades import Scale, expected, questions, replied

SCALE = Scale("User: {prompt} Assistant: {completion} . many ?", ("1", "3", "5"))


@pytest.fixture(scope="module")
def embedded():
    folder = Arithmetic().base_model()
    return load_causal(str(folder)), Tokens(load_tokenizer(str(folder)))


@pytest.fixture
def batch(embedded):
    _, tokens = embedded
    prompts = [Prompt("a", "tell me"), Prompt("b", "more {completion}")]
    texts = [["the sea .", "the {prompt}"], ["a boat .", "salt ."]]
    ids = [
        [tokens.answer_ids(p.text, text) for text in row]
        for p, row in zip(prompts, texts, strict=True)
    ]
    return tokens.batch(prompts, ids)


def runtime(calls=None):
    counted = SimpleNamespace(phase=lambda name: nullcontext(), aside=nullcontext)
    return SimpleNamespace(meter=counted, device="cpu")


def test_questions_hold_prompt_and_completion_and_their_braces_stay():
    scale = Scale("Q {prompt} A {completion} ?", ("0", "1"))
    assert scale.posed(Prompt("p", "more {completion}"), "x {prompt}") == (
        "Q more {completion} A x {prompt} ?"
    )


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("It is fine.\nScore: 3", 3.0),
        ("Score: 1 at first. In the end **Score:** 5", 5.0),
        ("score = 5.0", 5.0),
        ("Score: 4", math.nan),  # not on the scale
        ("3", math.nan),
        ("Score: <total points>", math.nan),
        ("", math.nan),
    ],
)
def test_reply_is_read_where_it_says_the_score(reply, grade):
    assert SCALE.read(reply) == pytest.approx(grade, nan_ok=True)


def test_replies_without_a_grade_are_left_out_of_the_mean(embedded, batch):
    _, tokens = embedded
    asked = questions(SCALE, batch, tokens)
    replies = [["Score: 1", "Score: 5"], ["none", "Score: 3"], ["none", "none"], ["Score: 5"] * 2]
    drawn = []
    sampler = SimpleNamespace(draw=lambda model, prompts, n: drawn.append((len(prompts), n)))
    written = SimpleNamespace(texts=lambda batch: replies)
    values = replied(SCALE, asked, SimpleNamespace(model=None), sampler, 2, written)
    assert values.tolist() == pytest.approx([3.0, 3.0, math.nan, 5.0], nan_ok=True)
    assert drawn == [(4, 2)]


def test_expected_grade_is_the_mean_under_the_models_next_token(embedded, batch, monkeypatch):
    model, tokens = embedded
    asked = questions(SCALE, batch, tokens)
    monkeypatch.setattr(grades, "metered", lambda role, b, _: completion_logp(model, b).detach())
    policy = SimpleNamespace(model=model, role=None)
    values = expected(SCALE, asked, policy, tokens, runtime())
    by_hand = []
    for prompt in asked.prompts:
        ids = torch.tensor([tokens.prompt_ids(prompt.text)])
        logits = model(ids).logits[0, -1].double()
        p = logits[[tokens.tokenizer.convert_tokens_to_ids(g) for g in SCALE.grades]].softmax(-1)
        by_hand.append(float(p @ torch.tensor([1.0, 3.0, 5.0]).double()))
    assert values.tolist() == pytest.approx(by_hand, rel=1e-4)
    assert len(set(values.tolist())) == 4  # each completion has a grade of its own


def test_grades_that_are_the_same_tokens_are_refused(embedded, batch):
    model, tokens = embedded
    scale = Scale(SCALE.question, ("1", "77", "78"))  # neither is a word of this model
    asked = questions(scale, batch, tokens)
    with pytest.raises(UsageError, match="not different tokens"):
        expected(scale, asked, SimpleNamespace(model=model, role=None), tokens, runtime())


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (Scale("{prompt}", ("1", "2")), "completion"),
        (Scale("{prompt} {completion}", ("1",)), "two numbers"),
        (Scale("{prompt} {completion}", ("good", "bad")), "two numbers"),
    ],
)
def test_scales_that_make_no_sense_are_refused(scale, message):
    with pytest.raises(ValueError, match=message):
        scale.check()
