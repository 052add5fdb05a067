"""The verifiers that compare text: boxed, choice and exact."""

import pytest
from harness_plugins.verifiers.boxed import Boxed
from harness_plugins.verifiers.choice import Choice
from harness_plugins.verifiers.exact import Exact

from harness.core.errors import UsageError
from harness.core.options import build


def verdict(verifier, text, gold, ended=True):
    gold = verifier.read_gold(gold)
    return verifier.verify([None], [text], [gold], [ended])[0]


VERIFIERS = [Boxed(), Choice(), Exact(), Exact(after="Answer:"), Choice(numbering="0")]


@pytest.mark.parametrize("verifier", VERIFIERS, ids=str)
def test_examples_are_right_and_cut_answers_wrong(verifier):
    for gold, text in verifier.examples():
        assert verdict(verifier, text, gold) == 1.0, text
        assert verdict(verifier, text, gold, ended=False) == 0.0
    assert verifier.verify([None], ["B"], [None], [True]) == [None]


@pytest.mark.parametrize(
    "text, gold, right",
    [
        (r"so $\boxed{x^2}$.", "x^2", 1.0),
        (r"\boxed{x ^ 2}", r"\boxed{x^2}", 1.0),
        (r"\boxed{\dfrac{x}{2}}", r"\frac{x}{2}", 1.0),
        (r"\boxed{\text{Monday}}", "Monday", 1.0),
        (r"\boxed{\left(1,2\right)}", "(1, 2)", 1.0),
        (r"\boxed{0.50}", r"\frac12", 1.0),
        (r"\boxed{1{,}080}", "1080", 1.0),
        (r"\boxed{a} then \boxed{b}", "b", 1.0),
        (r"\boxed{a} then \boxed{b}", "a", 0.0),
        (r"\boxed{a}, \boxed{b}", "b", 0.0),
        (r"\boxed{x^{2}+1}", "x^2 + 1", 1.0),
        (r"\boxed{x^{23}}", "x^23", 0.0),  # TeX reads x^{2}3
        (r"\boxed{2\sqrt3}", r"2\sqrt{3}", 1.0),
        (r"\boxed{\frac3x}", r"\dfrac{3}{x}", 1.0),
        (r"\boxed{a_1}", "a_{1}", 1.0),
        (r"\boxed{50\%}", "50", 1.0),
        (r"\boxed{50\%}", "0.5", 0.0),
        (r"\boxed{\text{(A)}}", "A", 1.0),
        (r"<think>\boxed{a}</think> \boxed{b}", "b", 1.0),
        (r"<think>\boxed{a}</think> b", "a", 0.0),
        ("x^2", "x^2", 0.0),
        (r"\boxed{}", "x", 0.0),
        (r"\boxed{x", "x", 0.0),
        (r"\boxed{X}", "x", 0.0),
        (r"\boxed{(2,1)}", "(1,2)", 0.0),
        (r"\boxed{" + "x" * 400 + "}", "x", 0.0),
    ],
)
def test_boxed(text, gold, right):
    assert verdict(Boxed(), text, gold) == right


@pytest.mark.parametrize(
    "text, right",
    [
        ("B", 1.0),
        ("b", 1.0),
        ("(B)", 1.0),
        ("B.", 1.0),
        ("B) Paris", 1.0),
        ("**B**", 1.0),
        ("B: Paris", 1.0),
        ("The answer is B.", 1.0),
        ("The answer is (B) Paris.", 1.0),
        ("The correct answer is **(B)**.", 1.0),
        ("Answer: B", 1.0),
        ("The answer is option B.", 1.0),
        ("Paris is in France.\nAnswer: B\nIt is large.", 1.0),
        ("The answer is B because A is wrong.", 1.0),
        ("A is wrong. C is wrong. So the answer is B.", 1.0),
        (r"\boxed{B}", 1.0),
        (r"$\boxed{\text{B}}$", 1.0),
        ("#### B", 1.0),
        ("The answer is A. No, the answer is B.", 1.0),
        ("The correct option is (B).", 1.0),
        ("\uff22", 1.0),
        ("B\n\nExplanation: because A is wrong.", 1.0),
        ("A is wrong, so it must be\n\n**B**", 1.0),
        ("A\nB", 0.0),
        ("<think>The answer is A.</think>B", 1.0),
        ("C", 0.0),
        ("", 0.0),
        ("The answer is B or C.", 0.0),
        ("The answer is A, B.", 0.0),
        ("B and C", 0.0),
        ("B, C", 0.0),
        ("Both of them", 0.0),
        ("Bananas", 0.0),
        ("be careful", 0.0),
        ("b is a letter", 0.0),
        ("Think first.\nB is one of them", 0.0),
        ("A) no\nB) yes", 0.0),
        ("The answer is bananas.", 0.0),
        (r"\boxed{B or C}", 0.0),
        (r"\boxed{ABCD}", 0.0),
        ("ABCD", 0.0),
        ("The answer is not B.", 0.0),
    ],
)
def test_choice(text, right):
    assert verdict(Choice(), text, "B") == right


def test_word_is_no_choice():
    assert verdict(Choice(), "A dog barks", "A") == 0.0
    assert verdict(Choice(), "The answer is a dog.", "A") == 0.0
    assert verdict(Choice(), "The answer is A.", "A") == 1.0


def test_choice_reads_letters_and_numbers_of_gold_answers():
    assert Choice().read_gold("(b)") == "B" and Choice().read_gold("#### C") == "C"
    assert Choice(numbering="0").read_gold("1") == "B"
    assert Choice(numbering="1", choices="ABCDE").read_gold("5") == "E"
    for verifier, text in (
        (Choice(), "E"),
        (Choice(), "Paris"),
        (Choice(), ""),
        (Choice(numbering="0"), "4"),
        (Choice(numbering="0"), "B"),
    ):
        with pytest.raises(ValueError):
            verifier.read_gold(text)


@pytest.mark.parametrize(
    "options, why",
    [
        ({"choices": "A"}, "at least two letters"),
        ({"choices": "A1"}, "at least two letters"),
        ({"choices": "ABB"}, "a letter twice"),
        ({"numbering": "2"}, "numbering is letter, 0, 1"),
    ],
)
def test_choice_refuses_letters_that_are_none(options, why):
    with pytest.raises(UsageError, match=why):
        build(Choice, options, "verifier choice")


@pytest.mark.parametrize(
    "options, text, gold, right",
    [
        ({}, " new  york. ", "New York", 1.0),
        ({}, '"New York"', "New York", 1.0),
        ({}, "cafe\u0301\u200b", "caf\u00e9", 1.0),
        ({}, "New York City", "New York", 0.0),
        ({}, "It is New York", "New York", 0.0),
        ({"ignore_case": False}, "new york", "New York", 0.0),
        ({"ignore_punctuation": False}, "New York.", "New York", 0.0),
        ({"after": "Answer:"}, "It is large. Answer: New York", "New York", 1.0),
        ({"after": "Answer:"}, "Answer: Rome Answer: New York", "New York", 1.0),
        ({"after": "Answer:"}, "New York", "New York", 0.0),
        ({}, "x" * 10**6, "x", 0.0),
    ],
)
def test_exact(options, text, gold, right):
    assert verdict(Exact(**options), text, gold) == right


@pytest.mark.parametrize("verifier", [Boxed(), Exact(), Choice()], ids=str)
def test_empty_gold_answer_is_refused(verifier):
    with pytest.raises(ValueError):
        verifier.read_gold("  ")
