"""The embedded suite: splits, gold, labeller; and the base model as any Hugging Face tool would
load it.
"""

import json
import math
from itertools import combinations
from random import Random

import pytest
from harness_suites.summarization import BradleyTerry, Summarization, SummaryGold
from harness_suites.world import documents, words
from harness_suites.world.documents import Document, Fact, read_summary
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.api.contracts import SPLITS

FACTS = (
    Fact("mayor", "destroyed", "bridge", "oslo"),  # importance 3
    Fact("nurse", "sold", "ship", "lima"),  # 2
    Fact("poet", "admired", "tower", "cairo"),  # 0
)
DOCUMENT = Document("", FACTS)


@pytest.mark.parametrize(
    "summary, score",
    [
        ("mayor destroyed bridge in oslo ; nurse sold ship in lima .", 4.0),
        ("nurse sold ship in lima ; mayor destroyed bridge in oslo .", 4.0),  # the order is free
        ("mayor destroyed bridge in oslo .", 4 * 3 / 5),
        ("mayor destroyed bridge .", 4 * 3 / 5 * 0.7),  # place left out
        ("mayor destroyed bridge in lima .", 4 * 3 / 5 * 0.7 - 0.35),  # wrong place
        ("mayor destroyed ship in oslo .", 4 * 3 / 5 * 0.3 - 0.35),  # one wrong word
        (
            "mayor destroyed bridge in oslo ; mayor destroyed bridge in oslo .",
            4 * 3 / 5 - 0.4,
        ),  # said twice
        (
            "mayor destroyed bridge in oslo ; poet admired tower .",
            4 * 3 / 5 - 0.3,
        ),  # an unimportant fact
        ("mayor destroyed bridge in oslo ; this was big news .", 4 * 3 / 5 - 0.3),  # a stock phrase
        ("mayor destroyed bridge in oslo", 4 * 3 / 5 - 0.3),  # not finished
        ("bridge bridge .", -0.5),  # malformed
        ("", -0.3),
        ("clerk robbed museum in delhi .", -3 * 0.35 - 0.35),  # nothing of it is in the document
    ],
)
def test_gold_by_hand(summary, score):
    assert read_summary(DOCUMENT, summary).score == pytest.approx(score)


def test_gold_never_falls_below_its_floor():
    assert read_summary(DOCUMENT, " ; ".join(["bridge"] * 30)).score == -4.0


def test_expert_summaries_are_near_the_best_score():
    rng = Random(0)
    scores = [
        read_summary(d, documents.expert_summary(d)).score
        for d in (documents.write_document(rng) for _ in range(300))
    ]
    assert min(scores) > 3.5 and sum(scores) / 300 > 3.85


def test_splits_are_disjoint_and_depend_on_the_seed_alone():
    suite, again, other = Summarization(), Summarization(), Summarization()
    other.shared_seed = 1
    texts = {split: {p.text for p in suite.prompts(split)} for split in SPLITS}
    for a, b in combinations(SPLITS, 2):
        assert not texts[a] & texts[b]
    assert suite.prompts("test") == again.prompts("test") != other.prompts("test")
    assert suite.demonstrations("validation") == again.demonstrations("validation")


def test_everything_fits_the_limits():
    suite = Summarization()
    for demo in suite.demonstrations()[:500]:
        assert len(demo.prompt.text.split()) <= documents.MAX_DOCUMENT_WORDS + 1
        assert len(demo.completion.split()) < suite.max_new_tokens
    known = set(words.vocabulary())
    assert all(
        set(d.prompt.text.split()) | set(d.completion.split()) <= known
        for d in suite.demonstrations()[:500]
    )


def labeller(bias=0.0, temperature=0.5):
    suite = Summarization(labeller_bias=bias, labeller_temperature=temperature)
    judge, made = SummaryGold(), BradleyTerry()
    judge.prepare(suite, None)
    made.prepare(suite, judge)
    return suite, judge, made


def test_labeller_prefers_with_the_stated_probability():
    suite, judge, made = labeller()
    prompt = suite.prompts("preferences")[0]
    document = suite.document(prompt.id)
    good, worse = (
        documents.expert_summary(document),
        documents.fact_list(Document("", document.important[:1])),
    )
    gap = (
        (judge.score([prompt], [good])[0] - judge.score([prompt], [worse])[0]) / 4 / 0.5
    )  # scaled down to be unsure
    made.temperature = 4 * 0.5
    wins = (
        sum(made.rank(prompt, [good, worse], [5, 5], Random(i)) == [0, 1] for i in range(4000))
        / 4000
    )
    assert wins == pytest.approx(1 / (1 + math.exp(-gap)), abs=0.025)


def test_bias_favours_length_and_equal_answers_tie():
    suite, _, made = labeller(bias=0.12)
    prompt = suite.prompts("preferences")[0]
    short, long = made.ceiling(prompt, ["same .", "same ."], [10, 20])
    assert long - short == pytest.approx(1.2)
    assert made.rank(prompt, ["same .", "same ."], [2, 2], Random(0)) == [0, 0]


def test_base_model_is_a_stock_llama_of_at_most_two_million_parameters_and_four_megabytes():
    folder = Summarization().base_model()
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (
        type(model).__name__ == "LlamaForCausalLM"
        and sum(p.numel() for p in model.parameters()) < 2e6
    )
    assert (folder / "model.safetensors").stat().st_size < 4e6
    assert tokenizer.get_vocab() == {word: i for i, word in enumerate(words.vocabulary())}
    record = json.loads((folder / "training.json").read_text())
    assert record["curve"][-1]["summary_sampled"] > 0.8 and "pretrain" in record["command"]


def test_base_model_writes_every_embedded_language():
    """Sampled greedily, it answers sums rightly, keeps a request's constraints, and binds a
    document's words.
    """
    from harness_suites.pretrain import probe

    folder = Summarization().base_model()
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    scores = probe(model, tokenizer, 48)
    assert (
        scores["sum_greedy"] > 0.9
        and scores["reply_greedy"] > 0.9
        and scores["summary_greedy"] > 1.3
    )
