"""AI annotators: both orders, the record of each opinion, a simulated one, a local model, an
endpoint with faults.
"""

import json
import math
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
from harness_plugins.labellers.annotator import Annotator
from harness_plugins.labellers.constitution import ConstitutionAnnotator, without_a_clause
from harness_plugins.labellers.endpoint import (
    EndpointAnnotator,
    TransientError,
    choice_of,
    read_at_most,
)
from harness_plugins.labellers.lm import LMAnnotator
from harness_plugins.labellers.verdicts import REFUSED, from_logprobs, probability

from harness.api.contracts import Judge, Labeller
from harness.api.registry import installed
from harness.api.resolve import Request, resolve
from harness.core.data import Principle, Prompt
from harness.core.errors import HarnessError, UsageError
from harness.core.options import build
from harness.models.loading import load_causal

from ..helpers.fake_endpoint import reply
from ..helpers.small_folders import WORDS, save_model

PROMPT = Prompt("train/0", "say something")
LONG = Principle("long", "Longer is better.", lambda prompt, text: float(len(text)))
GOOD = Principle(
    "good",
    "More of the word good is better.",
    lambda prompt, text: float(text.split().count("good")),
)


class Gold(Judge):
    name = "gold"

    def score(self, prompts, completions):
        return [0.0 for _ in completions]


def suite(*principles):
    return SimpleNamespace(name="toy", principles=lambda: list(principles or (LONG,)))


def ready(labeller, *principles, judge=None):
    labeller.prepare(suite(*principles), judge or Gold())
    return labeller


# -- what annotators share -------------------------------------------------------------------------


@dataclass
class Scripted(Annotator):
    """Answers from a script, and keeps what it was asked."""

    name = "scripted"

    script: tuple = ()

    def answer(self, prompt, questions, rng):
        self.asked = questions
        return list(self.script)


def opinions(script, texts=("a", "b"), **options):
    labeller = ready(Scripted(script=script, **options))
    return labeller, labeller.compare(PROMPT, list(texts), [1] * len(texts), Random(0))


@pytest.mark.parametrize(
    ("one", "two", "p", "disagree"),
    [
        (0.9, 0.3, 0.8, False),  # sure of a in front, and of a behind: (0.9 + 0.7) / 2
        (1.0, 0.0, 1.0, False),
        (0.0, 1.0, 0.0, False),
        (0.8, 0.8, 0.5, True),  # whatever stands first
        (0.9, 0.6, 0.65, True),
        (0.2, 0.2, 0.5, True),  # whatever stands second
        (0.5, 0.1, 0.7, False),  # no answer in one order is no disagreement
    ],
)
def test_both_orders_are_asked_and_averaged(one, two, p, disagree):
    labeller, (said,) = opinions((one, two))
    assert [(q.first, q.second) for q in labeller.asked] == [("a", "b"), ("b", "a")]
    assert (said.first, said.second) == (0, 1) and said.p == pytest.approx(p)
    assert said.note == {
        "principle": "long",
        "answers": [one, two],
        "disagree": disagree,
        "judge": labeller.judge_digest,
    }
    assert json.dumps(said.note) and len(labeller.judge_digest) == 16


def test_usage_counts_pairs_consistency_and_what_was_left_out():
    script = (1.0, 0.0, 1.0, 1.0, None, 0.0)
    labeller, said = opinions(script, ("a", "b", "c"))
    assert [(c.first, c.second, c.p) for c in said] == [(0, 1, 1.0), (0, 2, 0.5)]
    counts = {
        "asked": 3,
        "unanswered": 1,
        "disagreements": 1,
        "dropped": 0,
        "position_consistency": 0.5,
    }
    assert labeller.usage() == counts
    labeller, said = opinions(script, ("a", "b", "c"), drop_disagreements=True)
    assert [(c.first, c.second) for c in said] == [(0, 1)] and labeller.usage() == {
        **counts,
        "dropped": 1,
    }


def test_equal_completions_are_not_asked_about():
    labeller, said = opinions((1.0, 0.0, 1.0, 0.0), ("a", "a", "b"))
    assert [(c.first, c.second) for c in said] == [(0, 2), (1, 2)] and labeller.usage()[
        "asked"
    ] == 2
    labeller, said = opinions((), ("a", "a"))
    assert said == [] and labeller.usage()["asked"] == 0


def test_principle_is_drawn_for_each_pair():
    labeller = ready(ConstitutionAnnotator(error_rate=0.0), LONG, GOOD)
    texts = [f"{'x' * i} {'good ' * (9 - i)}" for i in range(8)]
    notes = [c.note["principle"] for c in labeller.compare(PROMPT, texts, [1] * 8, Random(1))]
    assert len(notes) == 28 and set(notes) == {"long", "good"}


def test_who_judges_does_not_label_and_a_constitution_is_needed():
    same = SimpleNamespace(name="constitution")
    with pytest.raises(UsageError, match="judge as well"):
        ready(ConstitutionAnnotator(), judge=same)
    with pytest.raises(UsageError, match="has no principles"):
        ConstitutionAnnotator().prepare(SimpleNamespace(name="toy", principles=list), Gold())


def test_all_are_registered_and_none_is_human():
    for name in ("constitution", "lm", "endpoint"):
        assert not installed().get("labellers", name).human
    assert Labeller.human  # the negative control: a labeller that says nothing is a person


# -- the simulated one -----------------------------------------------------------------------------


def answers_of(n=4000, **options):
    labeller = ready(ConstitutionAnnotator(**options))
    said = [
        labeller.compare(PROMPT, ["long text", "short"], [1, 1], Random(i))[0] for i in range(n)
    ]
    return labeller, Counter(
        a for c in said for a in [c.note["answers"][0], 1 - c.note["answers"][1]]
    )


def test_it_applies_the_principle():
    _, counts = answers_of(50, error_rate=0.0)
    assert counts == {1.0: 100}
    labeller = ready(ConstitutionAnnotator(error_rate=0.0))
    (tie,) = labeller.compare(PROMPT, ["abc", "xyz"], [1, 1], Random(0))
    assert tie.p == 0.5 and not tie.note["disagree"]


def test_it_errs_as_often_as_it_says():
    labeller, counts = answers_of(error_rate=0.2)
    assert counts[0.0] / 8000 == pytest.approx(0.2, abs=0.018)  # four standard errors
    assert labeller.usage()["position_consistency"] == pytest.approx(1 - 2 * 0.2 * 0.8, abs=0.03)


def test_its_position_bias_shows_as_disagreement_and_averages_out():
    labeller, counts = answers_of(500, error_rate=0.0, position_bias=1.0)
    assert counts[1.0] == counts[0.0] == 500 and labeller.usage()["position_consistency"] == 0.0
    labeller, _ = answers_of(error_rate=0.0, position_bias=0.3)
    assert labeller.usage()["position_consistency"] == pytest.approx(0.7, abs=0.03)


def test_same_random_numbers_give_the_same_labels():
    labeller = ready(ConstitutionAnnotator(error_rate=0.5), LONG, GOOD)
    texts = ["good one", "a longer one", "good good", "x"]
    one, two, three = (labeller.compare(PROMPT, texts, [1] * 4, Random(seed)) for seed in (0, 0, 1))
    assert one == two and one != three


def test_revision_leaves_out_what_the_principle_likes_least():
    short = Principle("short", "", lambda prompt, text: -float(len(text)))
    assert without_a_clause("a b ; c d ; e .") == ["c d ; e .", "a b ; e .", "a b ; c d ."]
    assert (
        without_a_clause("One. Two!") == ["Two!", "One.!"]
        or without_a_clause("One. Two!")[0] == "Two!"
    )
    assert without_a_clause("only one .") == []
    sure = ready(ConstitutionAnnotator(error_rate=0.0))
    assert sure.revise(PROMPT, "longest clause here ; b .", short, Random(0)) == "b ."
    assert (
        sure.revise(PROMPT, "longest clause here ; b .", LONG, Random(0))
        == "longest clause here ; b ."
    )
    failing = ready(ConstitutionAnnotator(error_rate=1.0))
    assert (
        failing.revise(PROMPT, "longest clause here ; b .", short, Random(0))
        == "longest clause here ; b ."
    )


@pytest.mark.parametrize("options", [{"error_rate": 1.5}, {"position_bias": -0.1}])
def test_rates_outside_of_0_and_1_are_refused(options):
    with pytest.raises(UsageError, match="lie in"):
        build(ConstitutionAnnotator, options, "labeller")


# -- a local model ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("lm"))


def by_hand(labeller, text, forms):
    """softmax over the verdicts' log-probabilities behind one text alone, without padding."""
    model, tokenizer = labeller.loaded
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    logp = model(ids).logits[0, -1].double().log_softmax(-1)
    one, two = (
        sum(float(logp[tokenizer.convert_tokens_to_ids(t)].exp()) for t in tokens)
        for tokens in forms
    )
    return one / (one + two)


def test_model_is_asked_by_its_verdict_tokens(folder):
    labeller = ready(LMAnnotator(model=folder, batch_size=3))
    texts = ["good", "bad bad x long", "x"]
    said = labeller.compare(PROMPT, texts, [1] * 3, Random(0))
    assert len(said) == 3 and labeller.usage()["requests"] == 6
    from harness_plugins.labellers.annotator import Question

    for c in said:
        for p, pair in zip(
            c.note["answers"], ((c.first, c.second), (c.second, c.first)), strict=True
        ):
            text = labeller.question_text(PROMPT, Question(texts[pair[0]], texts[pair[1]], LONG))
            assert text.index(texts[pair[0]]) and LONG.text in text and PROMPT.text in text
            assert p == pytest.approx(by_hand(labeller, text, [["1"], ["2"]]), abs=1e-6)
            assert p != pytest.approx(
                by_hand(labeller, text, [["2"], ["1"]]), abs=1e-3
            )  # the negative control
        assert 0 < c.p < 1


def test_forms_with_and_without_a_space_are_added_up(tmp_path):
    labeller = ready(LMAnnotator(model=save_model(tmp_path, pieces=True), verdicts=("A", "B")))
    assert [len(ids) for ids in labeller.verdict_ids] == [2, 2]
    said = labeller.compare(PROMPT, ["good", "bad"], [1, 1], Random(0))[0]
    from harness_plugins.labellers.annotator import Question

    text = labeller.question_text(PROMPT, Question("good", "bad", LONG))
    both = by_hand(labeller, text, [["A", "\u2581A"], ["B", "\u2581B"]])
    assert said.note["answers"][0] == pytest.approx(both, abs=1e-6)
    assert said.note["answers"][0] != pytest.approx(
        by_hand(labeller, text, [["A"], ["B"]]), abs=1e-4
    )


def test_verdicts_that_are_no_single_tokens_are_refused(tmp_path, folder):
    no_digits = save_model(tmp_path, [w for w in WORDS if w not in ("1", "2")])
    with pytest.raises(UsageError, match="not single tokens"):
        ready(LMAnnotator(model=no_digits))
    ready(LMAnnotator(model=no_digits, verdicts=("A", "B")))
    with pytest.raises(UsageError, match="not single tokens"):
        ready(LMAnnotator(model=folder, verdicts=("good bad", "bad good")))


def test_another_model_behind_the_same_folder_is_another_run(tmp_path):
    folder = save_model(tmp_path)

    def fingerprint():
        asked = Request(
            "dpo", "summarization", labeller_settings=(f"model={folder}",), fixed={"labeller": "lm"}
        )
        return resolve(asked, installed()).fingerprint()

    before = fingerprint()
    assert fingerprint() == before
    weights = Path(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert fingerprint() != before


def test_chat_template_is_honoured(tmp_path):
    template = (
        "{% for m in messages %}Task: {{ m.content }}{% endfor %}{% if add_generation_prompt %}"
        " Answer:{% endif %}"
    )
    labeller = ready(LMAnnotator(model=save_model(tmp_path, template=template)))
    assert labeller._text("x") == "Task: x Answer:"
    answers = labeller.compare(PROMPT, ["good", "bad"], [1, 1], Random(0))[0].note["answers"]
    from harness_plugins.labellers.annotator import Question

    text = labeller.question_text(PROMPT, Question("good", "bad", LONG))
    assert answers[0] == pytest.approx(
        by_hand(labeller, f"Task: {text} Answer:", [["1"], ["2"]]), abs=1e-6
    )
    assert answers[0] != pytest.approx(by_hand(labeller, text, [["1"], ["2"]]), abs=1e-5)


def test_its_identity_is_its_weights_and_its_words(folder, tmp_path):
    same, other = save_model(tmp_path / "a"), save_model(tmp_path / "b", seed=1)
    identity = LMAnnotator(model=folder).identity()
    assert LMAnnotator(model=same).identity() == identity  # wherever they lie
    assert LMAnnotator(model=other).identity() != identity
    assert LMAnnotator(model=folder, verdicts=("A", "B")).identity() != identity
    json.dumps(identity)


def test_judges_model_is_refused(folder, tmp_path):
    other = save_model(tmp_path / "b", seed=1)
    for theirs in (folder, load_causal(folder)):
        with pytest.raises(UsageError, match="judge as well"):
            ready(LMAnnotator(model=folder), judge=SimpleNamespace(name="gold", model=theirs))
    ready(LMAnnotator(model=folder), judge=SimpleNamespace(name="gold", model=load_causal(other)))


def test_model_revises_by_what_it_writes(folder):
    labeller = ready(LMAnnotator(model=folder, max_revision_tokens=3))
    revised = labeller.revise(PROMPT, "good x", GOOD, Random(0))
    assert revised == labeller.revise(PROMPT, "good x", GOOD, Random(1)) and revised
    assert len(revised.split()) <= 3


def test_principles_from_a_file(folder, tmp_path):
    file = tmp_path / "principles.txt"
    file.write_text("Be kind.\n\nBe brief.\n")
    labeller = build(LMAnnotator, {"model": folder, "constitution_file": str(file)}, "labeller")
    labeller.prepare(SimpleNamespace(name="toy", principles=list), Gold())
    assert [p.text for p in labeller.principles] == ["Be kind.", "Be brief."]
    before = labeller.identity()
    file.write_text("Be kind.\n")
    assert labeller.identity() != before
    with pytest.raises(UsageError, match="no such file"):
        build(LMAnnotator, {"model": folder, "constitution_file": str(file) + "x"}, "labeller")
    with pytest.raises(UsageError, match="needs a model"):
        build(LMAnnotator, {}, "labeller")


# -- an endpoint -----------------------------------------------------------------------------------

SECRET = "sk-very-secret-0123456789"


@pytest.fixture
def endpoint(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_API_KEY", SECRET)

    def make(**options):
        settings = {
            "url": fake.url,
            "model": "m",
            "cache": str(tmp_path / "cache"),
            "backoff": 0.01,
            "timeout": 5.0,
            "retries": 2,
            "workers": 1,
        }
        return ready(build(EndpointAnnotator, settings | options, "labeller"))

    return make


def compare(labeller, texts=("good", "bad")):
    return labeller.compare(PROMPT, list(texts), [1] * len(texts), Random(0))


def test_it_asks_as_the_api_says_and_reads_the_verdict(fake, endpoint):
    fake.script = [
        lambda body: reply("1" if "Response 1:\ngood" in body["messages"][0]["content"] else "2")
    ]
    labeller = endpoint()
    (said,) = compare(labeller)
    assert said.p == 1.0 and not said.note["disagree"]
    assert fake.keys[0] == ("/v1/chat/completions", f"Bearer {SECRET}")
    assert (
        fake.asked[0]["model"] == "m" and fake.asked[0]["temperature"] == 0 and len(fake.asked) == 2
    )
    usage = labeller.usage()
    assert (
        usage["requests"] == 2 and usage["prompt_tokens"] == 20 and usage["completion_tokens"] == 2
    )


def test_verdict_that_follows_the_order_is_a_disagreement(fake, endpoint):
    labeller = endpoint()
    (said,) = compare(labeller)
    assert (
        said.p == 0.5 and said.note["disagree"] and labeller.usage()["position_consistency"] == 0.0
    )
    assert compare(endpoint(drop_disagreements=True)) == []


@pytest.mark.parametrize(
    "fault",
    [
        (429, b"slow down", {"Retry-After": "0"}),
        (429, b"", {"Retry-After": "\xb2"}),
        (500, b"oops"),
        (503, b""),
        (200, b""),
        (200, b'{"choices": [{"mess'),
        (200, b'{"answer": "1"}'),
        (200, b'{"choices": []}'),
        (200, b"[1, 2]"),
        (200, b'{"choices": [{"message": 3}]}'),
        (200, b'{"choices": [{"message": {"content": 7}}]}'),
        ("hang", 1.0),
        (200, b'{"choices"', {"Content-Length": "1000"}),
    ],
    ids=[
        "429",
        "429 with an odd wait",
        "500",
        "503",
        "empty",
        "truncated",
        "schema",
        "no choice",
        "list",
        "message",
        "content",
        "timeout",
        "short body",
    ],
)
def test_what_fails_in_passing_is_tried_again(fake, endpoint, fault):
    fake.script = [fault, reply("1"), reply("2")]
    labeller = endpoint(timeout=0.4)
    (said,) = compare(labeller)
    assert said.p == 1.0
    assert labeller.usage()["failed_tries"] == 1 and labeller.usage()["requests"] == 3


def test_tries_are_bounded_and_nothing_bad_is_cached(fake, endpoint, tmp_path):
    fake.script = [(500, b"oops")]
    with pytest.raises(HarnessError, match="failed 3 times, last with: HTTP 500"):
        compare(endpoint())
    assert len(fake.asked) == 3 and list((tmp_path / "cache").iterdir()) == []


def test_wait_that_the_server_asks_for_is_kept(fake, endpoint):
    fake.script = [(429, b"", {"Retry-After": "1"}), reply("1"), reply("2")]
    begun = time.monotonic()
    compare(endpoint())
    assert time.monotonic() - begun >= 1.0


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_other_statuses_end_it_at_once_and_the_key_is_not_told(fake, endpoint, status):
    fake.script = [
        (
            status,
            f"Incorrect API key provided: {SECRET}".encode(),
            {"Location": f"{fake.url}/elsewhere"},
        )
    ]
    with pytest.raises(HarnessError, match=f"HTTP {status}") as error:
        compare(endpoint())
    assert (
        len(fake.asked) == 1
        and SECRET not in str(error.value)
        and "[HARNESS_API_KEY]" in str(error.value)
    )


def test_key_that_no_header_can_hold_is_an_error_without_the_key(fake, endpoint, monkeypatch):
    monkeypatch.setenv("HARNESS_API_KEY", f"{SECRET}\nX-Other: 1")
    with pytest.raises(HarnessError, match="the value of HARNESS_API_KEY is not a key") as error:
        compare(endpoint())
    assert fake.asked == [] and SECRET not in str(error.value)


def test_long_error_response_is_cut_after_the_key_is_removed(fake, endpoint):
    fake.script = [(401, f"{'x' * 290}{SECRET}".encode())]
    with pytest.raises(HarnessError) as error:
        compare(endpoint())
    assert SECRET[:8] not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("I'm sorry, I cannot compare these.", "refusals"),
        ("Both are fine.", "unparsed"),
        ("", "unparsed"),
        ("1 or 2", "unparsed"),
        ("12", "unparsed"),
    ],
)
def test_refusals_and_what_cannot_be_read_are_counted_and_left_out(fake, endpoint, text, counted):
    fake.script = [reply(text)]
    labeller = endpoint()
    assert compare(labeller) == []
    usage = labeller.usage()
    assert usage[counted] == 2 and usage["unanswered"] == 1 and usage["asked"] == 1
    assert {"refusals", "unparsed"} - {counted} == {
        k for k in ("refusals", "unparsed") if not usage.get(k)
    }


def test_one_order_alone_is_no_label(fake, endpoint):
    fake.script = [reply("1"), reply(None, message={"refusal": "no"})]
    labeller = endpoint()
    assert compare(labeller) == [] and labeller.usage()["refusals"] == 1


def test_answers_are_cached_by_what_was_asked(fake, endpoint, tmp_path):
    fake.script = [reply("1"), reply("2")]
    (first,) = compare(endpoint())
    labeller = endpoint()
    (again,) = compare(labeller)
    assert again.p == first.p and len(fake.asked) == 2
    assert labeller.usage()["cached"] == 2 and labeller.usage().get("requests", 0) == 0
    compare(endpoint(), ("good", "worse"))
    assert len(fake.asked) == 4  # the negative control: another question is asked
    compare(endpoint(model="other"))
    assert len(fake.asked) == 6
    for file in (tmp_path / "cache").iterdir():
        file.write_text("{")  # damaged
    compare(endpoint())
    assert len(fake.asked) == 8


def test_cost_cap_holds_and_what_was_paid_for_is_kept(fake, endpoint, tmp_path):
    with pytest.raises(HarnessError, match="max_requests"):
        compare(endpoint(max_requests=3), ("a", "b", "c"))
    assert len(fake.asked) == 3 and len(list((tmp_path / "cache").iterdir())) == 3
    compare(endpoint(max_requests=3), ("a", "b", "c"))  # three more from the cache, three anew
    assert len(fake.asked) == 6


def test_several_requests_are_under_way_at_once_and_keep_their_order(fake, endpoint):
    def slow(body):
        time.sleep(0.1)
        return reply("1" if "Response 1:\na" in body["messages"][0]["content"] else "2")

    fake.script = [slow]
    labeller = endpoint(workers=6)
    begun = time.monotonic()
    said = labeller.compare(PROMPT, ["a", "b", "a b"], [1] * 3, Random(0))
    assert time.monotonic() - begun < 0.55
    assert [c.p for c in said] == [1.0, 0.5, 0.0]


def test_soft_labels_from_log_probabilities(fake, endpoint):
    top = [
        {"token": "1", "logprob": math.log(0.5)},
        {"token": " 1", "logprob": math.log(0.1)},
        {"token": "2", "logprob": math.log(0.2)},
    ]
    fake.script = [reply("1", logprobs={"content": [{"top_logprobs": top}]})]
    (said,) = compare(endpoint(top_logprobs=5))
    assert said.note["answers"] == [pytest.approx(0.75)] * 2 and fake.asked[0]["top_logprobs"] == 5
    fake.script = [reply("1")]  # an endpoint that gives none: the text decides
    (said,) = compare(endpoint(top_logprobs=5), ("x", "y"))
    assert said.note["answers"] == [1.0, 1.0]


def test_without_a_key_it_is_refused(endpoint, monkeypatch, fake):
    monkeypatch.delenv("HARNESS_API_KEY")
    with pytest.raises(UsageError, match="HARNESS_API_KEY"):
        endpoint()
    monkeypatch.setenv("OTHER_KEY", "k")
    endpoint(key_variable="OTHER_KEY")
    assert fake.asked == []


def test_secret_is_in_no_file_record_or_message(fake, endpoint, tmp_path):
    fake.script = [reply("1"), reply("2"), (401, f"bad key {SECRET}".encode())]
    labeller = endpoint()
    said = compare(labeller)
    with pytest.raises(HarnessError):
        compare(labeller, ("x", "y"))
    assert SECRET not in repr((labeller, labeller.identity(), labeller.usage(), said))
    files = [f for f in tmp_path.rglob("*") if f.is_file()]
    assert files and not [f for f in files if SECRET.encode() in f.read_bytes()]


def test_revision_is_a_critique_and_a_rewriting(fake, endpoint):
    fake.script = [reply("too long"), reply("short")]
    assert endpoint().revise(PROMPT, "a long one", LONG, Random(0)) == "short"
    assert "too long" in fake.asked[1]["messages"][0]["content"]
    fake.script = [reply(None)]
    assert endpoint().revise(PROMPT, "another", LONG, Random(0)) == "another"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "ftp://x"}, "needs --labeller-set url"),
        ({"url": ""}, "needs"),
        ({"model": ""}, "needs"),
        ({"url": "https://me:pw@x/v1"}, "no user, password"),
        ({"url": "https://x/v1?key=1"}, "no user, password"),
        ({"max_requests": 0}, "above 0"),
        ({"retries": -1}, "negative"),
        ({"verdicts": "1,1"}, "two different"),
    ],
)
def test_options_that_make_no_sense_are_refused(endpoint, options, message):
    with pytest.raises(UsageError, match=message):
        endpoint(**options)


def test_judges_model_behind_an_endpoint_is_refused(endpoint):
    labeller = endpoint()
    with pytest.raises(UsageError, match="judge as well"):
        ready(labeller, judge=SimpleNamespace(name="gold", model="m"))


def test_machinery_is_no_part_of_its_identity(endpoint):
    one, other = endpoint(), endpoint(workers=3, retries=0, timeout=1.0)
    assert one.identity() == other.identity() != endpoint(max_tokens=3).identity()


@pytest.mark.parametrize(
    ("text", "p"),
    [
        ("1", 1.0),
        (" 2.", 0.0),
        ("Response 2 is better.", 0.0),
        ("**1**", 1.0),
        ("", None),
        ("1 and 2", None),
        ("I cannot help with that", REFUSED),
        ("I am unable to pick 1", REFUSED),
    ],
)
def test_verdicts_of_texts(text, p):
    assert probability({"message": {"content": text}}, ("1", "2"), soft=False) == p


def test_answer_that_drips_is_given_up_at_the_deadline():
    class Drip:
        def iter_bytes(self):
            while True:
                time.sleep(0.02)
                yield b"x"

    begun = time.monotonic()
    with pytest.raises(TransientError, match="not whole in time"):
        read_at_most(Drip(), 1 << 22, begun + 0.1)
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("logprob", ["NaN", "1e308", "Infinity", "5"])
def test_log_probabilities_that_are_none_are_not_read(logprob):
    top = [{"token": t, "logprob": float(logprob)} for t in ("1", "2")]
    choice = {"logprobs": {"content": [{"top_logprobs": top}]}}
    assert from_logprobs(choice, ("1", "2")) is None


def test_answer_nested_without_end_is_transient():
    with pytest.raises(TransientError, match="no chat completion"):
        choice_of(b"[" * 100000)
