"""The embedded suites: splits, gold by hand, what labeller and constitution can see, and what the
model learns.
"""

import json
from itertools import combinations
from random import Random

import pytest
from harness_suites.arithmetic import Arithmetic, ArithmeticGold
from harness_suites.embedded import BradleyTerry
from harness_suites.helpfulness import Helpfulness, HelpfulnessGold
from harness_suites.summarization import Summarization, SummaryGold
from harness_suites.world import documents, requests, sums, words
from harness_suites.world.requests import Request, kept_constraints, read_reply
from harness_suites.world.sums import Problem

from harness.api.contracts import SPLITS
from harness.api.registry import installed
from harness.api.resolve import Request as RunRequest
from harness.api.resolve import resolve
from harness.api.verifiers import verdicts

from ..helpers.registries import METHODS
from ..helpers.tools import command, finished, fresh, only_run

SUITES = {
    Arithmetic: ArithmeticGold,
    Helpfulness: HelpfulnessGold,
    Summarization: SummaryGold,
}
each_suite = pytest.mark.parametrize("cls", SUITES, ids=lambda cls: cls.name)


def judge_of(suite):
    judge = SUITES[type(suite)]()
    judge.prepare(suite, None)
    return judge


# -- what every embedded suite keeps to ------------------------------------------------------------


@each_suite
def test_splits_share_no_prompt_and_depend_on_the_seed_alone(cls):
    suite, other = cls(), cls()
    other.shared_seed = 1
    texts = {split: [p.text for p in suite.prompts(split)] for split in SPLITS}
    for a, b in combinations(SPLITS, 2):
        assert not set(texts[a]) & set(texts[b])
    assert all(len(set(t)) == len(t) for t in texts.values())
    assert suite.prompts("test") == cls().prompts("test") != other.prompts("test")
    assert suite.demonstrations("validation") == cls().demonstrations("validation")


@each_suite
def test_every_word_is_known_and_every_text_fits(cls):
    suite, known = cls(), set(words.vocabulary())
    for demo in suite.demonstrations()[:1000]:
        assert set(demo.prompt.text.split()) | set(demo.completion.split()) <= known
        assert len(demo.completion.split()) < suite.max_new_tokens
        assert (
            len(demo.prompt.text.split()) + suite.max_new_tokens < 256
        )  # what the base model can look back at


@each_suite
def test_prompt_carries_an_answer_only_for_a_verifier(cls):
    suite = cls()
    assert all(
        (p.answer is not None) == (suite.make_verifier() is not None) for p in suite.prompts("test")
    )


@each_suite
def test_settings_name_real_methods_options_and_stages(cls):
    for method in METHODS:
        for quick in (False, True):
            resolve(RunRequest(method, cls.name, fixed={"quick": quick}), installed())


@each_suite
def test_labeller_agrees_with_gold_more_often_than_not_and_errs(cls):
    suite = cls()
    judge, labeller, told = judge_of(suite), BradleyTerry(), []
    labeller.prepare(suite, judge)
    demos = suite.demonstrations("preferences")
    for i, (a, b) in enumerate(zip(demos, demos[1:301], strict=False)):
        pair = [a.completion, b.completion]  # of another prompt: usually worse, and often by little
        gold = judge.score([a.prompt] * 2, pair)
        if gold[0] != gold[1]:
            ranks = labeller.rank(a.prompt, pair, [9, 9], Random(i))
            told.append((gold[0] > gold[1]) == (ranks[0] < ranks[1]))
    assert 0.6 < sum(told) / len(told) < 1.0


@each_suite
def test_constitution_says_something_else_than_gold(cls):
    """Each principle tells answers apart, none orders them as gold does, and together they lean
    towards gold.
    """
    suite = cls()
    judge, demos = judge_of(suite), suite.demonstrations("validation")[:60]
    answers = [(d.prompt, d.completion, other) for d in demos for other in _spoilt(d.completion)]
    gold = [
        a - b
        for a, b in zip(
            judge.score([p for p, _, _ in answers], [a for _, a, _ in answers]),
            judge.score([p for p, _, _ in answers], [b for _, _, b in answers]),
            strict=True,
        )
    ]
    principles = suite.principles()
    assert len({p.id for p in principles}) == len(principles) >= 3
    total = [0.0] * len(answers)
    for principle in principles:
        gaps = [float(principle.check(p, a) - principle.check(p, b)) for p, a, b in answers]
        assert any(gaps) and principle.text.endswith(".")
        assert any(
            (g > 0) - (g < 0) != (h > 0) - (h < 0) for g, h in zip(gaps, gold, strict=True)
        ), principle.id
        total = [t + (g > 0) - (g < 0) for t, g in zip(total, gaps, strict=True)]
    broadcast_from_main = [(t > 0) == (g > 0) for t, g in zip(total, gold, strict=True) if t and g]
    assert sum(broadcast_from_main) / len(broadcast_from_main) > 0.6  # a coin would give a half


def _spoilt(text):
    """A text cut, unfinished, repeating itself, straying, with other manners, and without its last
    word.
    """
    body = text.split()
    half = body[: len(body) // 2]
    changed = [
        half,
        body[:-1],
        body[:-1] + half,
        [*half, "boat", "boat", "."],
        ["please", *body],
        body[:-2] + ["."],
    ]
    return [" ".join(words) for words in changed]


# -- arithmetic ------------------------------------------------------------------------------------

PROBLEM = Problem(5, (3, -2))


@pytest.mark.parametrize(
    "text, sound, right",
    [
        ("5 + 3 = 8 ; 8 - 2 = 6 .", 1.0, True),
        ("5 + 3 = 9 ; 9 - 2 = 7 .", 0.5, False),  # the error carries over
        ("5 + 3 = 9 ; 9 - 2 = 6 .", 0.0, True),
        ("5 + 3 = 8 ; 8 - 2 = 5 .", 0.5, False),
        ("5 + 3 = 8 ; 8 + 2 = 10 .", 0.5, False),
        ("5 + 3 = 8 ; 7 - 2 = 5 .", 0.5, False),
        ("5 + 3 = 8 ; 8 - 2 = 6", 1.0, False),
        ("5 + 3 = 8 .", 0.5, False),
        ("= 6 .", 0.0, True),
        ("", 0.0, False),
        ("5 + 3 = 8 ; 8 - 2 = 6 ; 6 + 1 = 7 .", 2 / 3, False),
        ("5 + 3 = " + "9" * 5000 + " ; 1 - 2 = 6 .", 0.0, True),
    ],
    ids=lambda t: str(t)[:24],
)
def test_arithmetic_gold_by_hand(text, sound, right):
    assert sums.sound_steps(PROBLEM, text) == pytest.approx(sound)
    assert (sums.final_answer(text) == str(PROBLEM.answer)) == right
    assert ArithmeticGold()._score(PROBLEM, text) == pytest.approx(sound + right)


def test_right_workings_are_verified_and_slipping_ones_often_not():
    suite = Arithmetic()
    verifier, references, prompts = (
        suite.make_verifier(),
        suite.references("test"),
        suite.prompts("test"),
    )
    right = verdicts(verifier, prompts, [references[p.id] for p in prompts], [True] * len(prompts))
    assert set(right.values) == {1.0}
    demos = suite.demonstrations()
    found = verdicts(
        verifier, [d.prompt for d in demos], [d.completion for d in demos], [True] * len(demos)
    )
    assert 0.45 < sum(found.values) / len(demos) < 0.65


# -- helpfulness -----------------------------------------------------------------------------------

ASKED = Request("sea", 5, ("boat", "fish"), ("sand",), True)


@pytest.mark.parametrize(
    "reply, score",
    [
        ("please wave boat fish shore salt .", 4.0),
        ("please fish wave boat salt wave .", 4.0),
        ("wave boat fish shore salt .", 3.0),
        ("please wave boat fish shore .", 4 - 1 / 3),
        ("please boat fish .", 3.0),
        ("please wave boat fish shore salt shore salt shore .", 3.0),
        ("please wave boat salt shore salt .", 3.5),
        ("please sand boat fish shore salt .", 3.0),
        ("please boat fish fish fish salt .", 3.5),
        ("please boat fish song shore salt .", 3.5),
        ("please wave boat fish shore salt", 3.5),
        ("please wave boat . fish shore .", 3.5),
        ("", 0.5),
        ("song " * 30 + ".", -4.0),
    ],
)
def test_helpfulness_gold_by_hand(reply, score):
    assert read_reply(ASKED, reply).score == pytest.approx(score)


def test_expert_replies_have_the_best_score_and_demonstrations_mixed_ones():
    suite = Helpfulness()
    judge, rng = judge_of(suite), Random(0)
    prompts = suite.prompts("validation")
    experts = [requests.expert_reply(rng, suite.request(p.id)) for p in prompts]
    assert set(judge.score(prompts, experts)) == {4.0}
    assert all(
        kept_constraints(suite.request(p.id), text) == 1.0
        for p, text in zip(prompts, experts, strict=True)
    )
    demos = suite.demonstrations()
    scores = judge.score([d.prompt for d in demos], [d.completion for d in demos])
    assert (
        2.8 < sum(scores) / len(scores) < 3.4
        and min(scores) < 1
        and scores.count(4.0) > len(scores) / 5
    )


def test_what_the_base_model_was_pretrained_on_has_not_changed():
    """The base model's training text, by hash: whoever changes it has to pretrain again."""
    import hashlib

    rng, told = Random(1), []
    for _ in range(200):
        request, problem, document = (
            requests.write_request(rng),
            sums.write_problem(rng),
            documents.write_document(rng),
        )
        told += [
            request.prompt,
            requests.write_reply(rng, request, 0.85),
            problem.prompt,
            document.prompt,
        ]
        told += [sums.worked_answer(rng, problem), documents.neutral_summary(rng, document)]
    assert hashlib.sha256("\n".join(told).encode()).hexdigest()[:16] == "be7a072055d7e810"


# -- what the start checkpoint learns --------------------------------------------------------------


def test_start_checkpoint_of_helpfulness_reads_its_constraints():
    """Answers given to other requests of the same topic score far lower: a checkpoint that did not
    read would not.
    """
    args = (
        "--results",
        fresh("suites"),
        "--stage-set",
        "sft.steps=60",
        "--stage-set",
        "evaluation.prompts=200",
    )
    done = command(
        "run",
        "-m",
        "start",
        "-s",
        "helpfulness",
        "--quick",
        "--stage-set",
        "evaluation.split=validation",
        *args,
    )
    assert done.code == 0, done.text
    lines = (
        only_run(args[1], "helpfulness", "start").joinpath("samples.jsonl").read_text().splitlines()
    )
    samples = [json.loads(line) for line in lines]
    suite = Helpfulness()
    own, others = [], []
    for sample in samples:
        asked = suite.request(sample["prompt_id"])
        same = [
            s
            for s in samples
            if s is not sample and suite.request(s["prompt_id"]).topic == asked.topic
        ]
        own.append(read_reply(asked, sample["answer"]).score)
        others.append(sum(read_reply(asked, s["answer"]).score for s in same) / len(same))
    assert sum(own) / len(own) > sum(others) / len(others) + 0.6


def test_quick_run_on_arithmetic_reports_accuracy():
    figures = json.loads(finished("dpo", "arithmetic").joinpath("result.json").read_text())[
        "evaluation"
    ]
    assert 0 < figures["accuracy"]["mean"] <= 1 and 0 < figures["baseline_accuracy"] <= 1
    gold = figures["gold"]["mean"]
    assert (
        figures["accuracy"]["mean"] <= gold <= 1 + figures["accuracy"]["mean"]
    )  # what it is made of
