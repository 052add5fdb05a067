"""The suite `instructions`: its prompts, its answers, its gates, and runs at toy size."""

import json
from collections import Counter

import pytest
from harness_plugins.verifiers.likelihood import Likelihood
from harness_suites.instruction_kinds import ANY_KIND, PAIRS, SINGLE_KINDS, draw, forms_of
from harness_suites.instruction_words import ENDINGS, KEYS, OPENINGS, TASKS, TOPICS, WORDS
from harness_suites.instructions import Instructions

from harness import make_verifier, verdicts
from harness.api.contracts import SPLITS
from harness.core.data import completion_text, prompt_text
from harness.core.errors import UsageError
from harness.core.options import build

from ..helpers.chat_families import chat_model
from ..helpers.tools import ROOT, command

EXAMPLE = ROOT / "examples" / "instructions.toml"


def suite(seed=0, **options):
    made = build(Instructions, {"prompts_to_train": 110} | options, "suite")
    made.shared_seed = seed
    return made


def texts(made, split):
    return [prompt_text(prompt.text) for prompt in made.prompts(split)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return chat_model(tmp_path_factory.mktemp("chat") / "model", 256)


def test_splits_share_no_prompt_and_the_seed_decides_them():
    made = suite()
    every = [text for split in SPLITS for text in texts(made, split)]
    assert len(every) == len(set(every)) == 110 + 4 * 27
    assert texts(suite(), "test") == texts(made, "test")
    assert set(texts(suite(seed=1), "test")).isdisjoint(every)
    assert [len(made.prompts(split)) for split in SPLITS] == [made.size(s) for s in SPLITS]


def test_kinds_have_equal_shares_and_stand_in_the_ids():
    made = suite()
    assert Counter(p.id.split("/")[1] for p in made.prompts("train")) == dict.fromkeys(ANY_KIND, 10)
    only = suite(kinds=["lower", "json"])
    assert {p.id.split("/")[1] for p in only.prompts("test")} == {"lower", "json"}


def test_large_suite_has_no_prompt_twice():
    every = texts(suite(prompts_to_train=3000), "train")
    assert len(set(every)) == 3000


def test_kind_that_is_used_up_is_refused():
    with pytest.raises(UsageError, match="The kind lower has too few different instructions"):
        suite(kinds=["lower"], prompts_to_train=10_000).prompts("train")


@pytest.mark.parametrize("kind", ANY_KIND)
def test_suites_answers_keep_their_constraints_and_no_others(kind):
    made = suite(kinds=[kind], prompts_to_train=60)
    demos = made.demonstrations("train")
    asked, answers = [d.prompt for d in demos], [completion_text(d.completion) for d in demos]
    verifier, ended = made.make_verifier(), [True] * len(demos)
    assert set(verdicts(verifier, asked, answers, ended).values) == {1.0}
    assert set(verdicts(verifier, asked, answers, [False] * len(demos)).values) == {0.0}
    others = verdicts(verifier, asked, answers[1:] + answers[:1], ended).values
    assert sum(value == 1.0 for value in others) < 0.1 * len(others)  # of another topic


def test_text_says_what_the_constraints_need():
    for place in range(60):
        made = draw("include", str(place))
        about, include = json.loads(made.gold)
        assert f'"{include["words"][0]}"' in made.text and about["required"]
        assert any(form in made.text for form in about["any"])
    exact = draw("exact_words", "0")
    assert str(json.loads(exact.gold)[1]["at_most"]) in exact.text


def test_topic_is_required_or_not():
    for on_topic in (True, False):
        kinds = [c["kind"] for c in json.loads(draw("lower", "0", on_topic).gold)]
        assert kinds == ["about"] * on_topic + ["lower"]


def test_lists_hold_nothing_twice_and_pairs_are_known():
    for words in (TOPICS, WORDS, OPENINGS, ENDINGS, KEYS, TASKS):
        assert len(set(words)) == len(words)
    assert len(TOPICS) > 150 and len(WORDS) > 180
    topics = {form for topic in TOPICS for form in forms_of(topic)}
    assert not topics & set(WORDS)  # a word that is included is not the topic
    assert {kind for pair in PAIRS for kind in pair} <= set(SINGLE_KINDS)


@pytest.mark.parametrize(
    "topic, form",
    [("cities", "city"), ("wolves", "wolf"), ("buses", "bus"), ("dogs", "dog"), ("tea", "teas")],
)
def test_topic_counts_in_singular_and_plural(topic, form):
    assert {topic, form} <= set(forms_of(topic))


@pytest.mark.parametrize(
    "options, why",
    [
        ({"kinds": ["rhyme"]}, "kinds are include"),
        ({"kinds": []}, "at least one kind"),
        ({"kinds": ["lower", "lower"]}, "each of them once"),
        ({"prompts_to_train": 4}, "at least 8"),
        ({"least_likelihood": 1}, "below 0, or 0"),
        ({"chat_template": False}, "true or a Jinja file"),
        ({"chat_template": "no.jinja"}, "there is no no.jinja"),
    ],
)
def test_options_that_make_no_sense(options, why):
    with pytest.raises(UsageError, match=why):
        suite(**options)


# -- models ----------------------------------------------------------------------------------------


def test_model_without_a_chat_template_gets_a_clear_message(tmp_path):
    base = ROOT / "suites" / "harness_suites" / "base"
    done = command("run", "-m", "rlvr", "-s", EXAMPLE, "--model", base, "--results", tmp_path)
    assert done.code and "has no chat template. Use a model that was tuned" in done.text


def test_likelihood_is_the_mean_log_probability_under_the_model(model):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompt = suite(kinds=["lower"]).prompts("test")[0]
    tokenizer = AutoTokenizer.from_pretrained(model)
    head = tokenizer.apply_chat_template(prompt.text, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(f"{head}people like it<|im_end|>", add_special_tokens=False).input_ids
    start = len(tokenizer(head, add_special_tokens=False).input_ids)
    logits = AutoModelForCausalLM.from_pretrained(model)(torch.tensor([ids])).logits[0]
    logp = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids)[1:, None])[start - 1 :, 0]
    verifier = make_verifier("likelihood", {"model": str(model)})
    found = verifier.mean(prompt.text, "people like it", True)
    assert found == pytest.approx(logp.mean().item(), abs=2e-3)
    cut = verifier.mean(prompt.text, "people like it", False)
    assert cut == pytest.approx(logp[:-1].mean().item(), abs=2e-3)


def test_likelihood_is_a_bar_and_text_without_tokens_has_none(model):
    prompt = suite().prompts("test")[0]
    found = {}
    for least in (-1.0, -100.0):
        verifier = Likelihood(model=str(model), least=least)
        found[least] = verifier.verify([prompt] * 3, ["tea", "\ud800", ""], [None] * 3, [True] * 3)
    assert found[-1.0] == [0.0, 0.0, 0.0] and found[-100.0] == [1.0, 0.0, 1.0]
    assert verifier.verify([prompt], [""], [None], [False]) == [0.0]


def test_gates_are_those_of_the_options(model):
    made = suite()
    made.model = str(model)
    assert [(p.label, p.gate) for p in made.make_verifier().parts] == [
        ("constraints", False),
        ("sense", True),
        ("likelihood", True),
    ]
    bare = suite(sense=False, least_likelihood=0)
    bare.model = str(model)
    assert [p.label for p in bare.make_verifier().parts] == ["constraints"]
    with pytest.raises(UsageError, match="no option 'fewest'"):
        suite(sense_options={"fewest": 3}).make_verifier()


@pytest.mark.parametrize("method", ["rlvr", "raft", "dpo"])
def test_example_runs_at_toy_size(method, model, tmp_path):
    reward = ("--set", "reward=verifier") if method == "raft" else ()
    few = ("evaluation.prompts=11", "preferences.prompts=12")
    done = command(
        *("run", "-m", method, "-s", EXAMPLE, "--model", model, "--results", tmp_path),
        *("--suite-set", "prompts_to_train=44", "--suite-set", "max_completion_tokens=16"),
        *("--suite-set", "least_likelihood=-20", "--suite-set", "sense=false"),
        *("--suite-set", "kinds=no_commas", "--suite-set", "must_end=false"),
        *("--suite-set", "on_topic=false"),
        *("--set", "steps=1", "--set", "batch_size=2", *reward),
        *(part for setting in few for part in ("--stage-set", setting)),
    )
    assert done.code == 0, done.text
    (file,) = tmp_path.rglob("result.json")
    parts = json.loads(file.read_text())["evaluation"]["verdicts"]
    assert parts.keys() == {"constraints", "likelihood"} and parts["likelihood"]["mean"] == 1.0
