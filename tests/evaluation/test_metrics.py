"""ROUGE of any script, with stemming and several references."""

import pytest

from harness.evaluation.metrics import Words, load

TEXTS = [
    "Small birds sing",
    "\u043c\u0430\u043b\u044b\u0435 \u043f\u0442\u0438\u0446\u044b \u043f\u043e\u044e\u0442",
    "\u03bc\u03b9\u03ba\u03c1\u03ac \u03c0\u03bf\u03c5\u03bb\u03b9\u03ac",
    "caf\u00e9 gar\u00e7on",
    "\u5c0f\u9e1f\u5531\u6b4c",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e",
]


def rouge(prediction, reference, **options):
    return load("rouge").compute(predictions=[prediction], references=[reference], **options)


@pytest.mark.parametrize("text", TEXTS)
def test_rouge_of_equal_texts_is_1_in_any_script(text):
    assert set(rouge(text, text).values()) == {1.0}


def test_rouge_compares_whole_words():
    assert rouge("caf\u00e9 noir", "caf\u00ea noir")["rouge1"] == 0.5
    assert rouge("cafe\u0301 noir", "caf\u00e9 noir")["rouge1"] == 1.0  # composed and not
    assert rouge("\u5c0f\u9e1f\u5531\u6b4c", "\u5c0f\u9e1f\u98de")["rouge1"] == pytest.approx(4 / 7)
    assert Words().tokenize("\u0939\u093f\u0928\u094d\u0926\u0940 x") == [
        "\u0939\u093f\u0928\u094d\u0926\u0940",
        "x",
    ]


def test_rouge_stems_english_words():
    assert rouge("the bird was singing", "the birds sing")["rouge1"] == pytest.approx(6 / 7)
    assert rouge("the bird was singing", "the birds sing", stem=False)["rouge1"] < 0.5


def test_rouge_of_english_is_that_of_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    a, b = "Don't count 1,080 sparrows_twice; they're flying!", "Counting sparrows twice is dull."
    for stem in (True, False):
        expected = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=stem).score(b, a)
        own = rouge(a, b, stem=stem)
        assert own == pytest.approx({name: s.fmeasure for name, s in expected.items()})


def test_rouge_takes_the_best_of_several_references():
    several = load("rouge").compute(
        predictions=["a red kite", "x y"], references=[["a blue jay", "a red kite"], ["x y", "z"]]
    )
    assert set(several.values()) == {1.0}


def test_rouge_takes_one_reference_beside_several():
    mixed = load("rouge").compute(predictions=["a b", "x y"], references=["a b", ["z", "x y"]])
    assert set(mixed.values()) == {1.0}


@pytest.mark.parametrize("reference", [[], None])
def test_rouge_without_a_reference_names_the_text(reference):
    with pytest.raises(ValueError, match="text 2 has no reference"):
        load("rouge").compute(predictions=["a", "b"], references=["a", reference])


def test_rouge_of_rare_chinese_characters_is_by_the_character():
    assert rouge("\U00020000\U00020001", "\U00020000\U00020002")["rouge1"] == 0.5
