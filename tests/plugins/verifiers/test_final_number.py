"""The verifier `final_number`: formats, gold answers, hostile text, and bounds on time."""

import json
import os
import random
import time
from fractions import Fraction
from pathlib import Path

import pytest
from harness_plugins.verifiers.final_number import FinalNumber
from harness_plugins.verifiers.number_answers import answer_number, gives, gold_number

from harness import make_verifier, verdicts
from harness.api import verifiers as module
from harness.core.data import Prompt

FOLDER = Path(__file__).parent
FORMATS, MORE, FURTHER = (
    [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]
    for name in (
        "answer_formats.jsonl",
        "more_answer_formats.jsonl",
        "further_answer_formats.jsonl",
    )
)
REAL = os.environ.get("HARNESS_REAL_DATA")  # a folder with gsm8k/ and svamp/
HOSTILE = [
    "9" * 10**6,
    "#### " + "0" * 10**6 + "5",
    "9**" * 333_333 + "9",
    "1 " * 500_000,
    "-" * 10**6,
    "1," * 500_000,
    "." * 10**6 + "1",
    "####" * 250_000,
    "\u0665" * 10**6,
    "<<" * 250_000 + "5" + ">>" * 250_000,
    "1" + "a" * 10**6,
    "1/" * 500_000,
    "$" * 10**6,
    "(" * 10**6,
    "{" * 10**6,
    "\\boxed{" * 10**5,
    "\\frac{1}{" * 10**5,
    "\\text{" * 10**5,
    "answer " * 10**5,
    "answer is " * 10**5,
    "\nQuestion:" * 10**5,
    "\ud800" * 10**6,
    "1 and " * 10**5,
    "twenty-" * 10**5,
    "e9" * 500_000,
]


def verdict(text, gold, ended=True, verifier=None):
    verifier = verifier or FinalNumber()
    return verifier.verify([None], [text], [gold], [ended])[0]


def wrong(formats):
    """Return the answers that are judged wrongly, with the verdict."""
    golds = [FinalNumber().read_gold(row["gold"]) for row in formats]
    verdicts = [verdict(row["answer"], gold) for row, gold in zip(formats, golds, strict=True)]
    return [(r, v) for r, v in zip(formats, verdicts, strict=True) if v != float(r["right"])]


def test_hundred_formats_have_at_most_five_errors_and_no_false_accept():
    errors = wrong(FORMATS)
    assert len(FORMATS) == 100 and len(errors) <= 5
    assert [row for row, given in errors if given == 1.0] == []


def test_thousand_formats_have_few_errors_and_no_false_accept():
    errors = wrong(MORE)
    assert len(MORE) > 900 and [row for row, given in errors if given == 1.0] == []
    assert len(errors) <= 5


def test_further_formats_have_few_errors_and_no_false_accept():
    """Units, currencies, ranges, ordinals, corrections, nested boxes, code, other languages."""
    errors = wrong(FURTHER)
    assert len(FURTHER) > 200 and [row for row, given in errors if given == 1.0] == []
    assert len(errors) <= 5


@pytest.mark.parametrize(
    "gold, number",
    [
        ("48/2 = <<48/2=24>>24 clips.\n#### 72", "72"),
        ("#### 1,080", "1080"),
        (r"\frac{3}{4}", "3/4"),
        (r"-\frac{3}{4}", "-3/4"),
        (r"$\boxed{\frac{14}{3}}$", "14/3"),
        (r"so it is \boxed{3}. No: \boxed{4}", "4"),
        (r"\boxed{1{,}080}", "1080"),
        ("1 080", "1080"),
        ("5 1/2", "11/2"),
        ("50%", "50%"),
        ("72 clips", "72"),
        ("x = 72", "72"),
        ("90^\\circ", "90"),
        ("7.50", "15/2"),
    ],
)
def test_gold_answer_is_read_as_a_number(gold, number):
    assert FinalNumber().read_gold(gold) == number


@pytest.mark.parametrize(
    "gold",
    [
        r"2\sqrt{3}",
        "(1, 2)",
        "12:30",
        "3 or 5",
        "11_{2}",
        "0.333...",
        "[0,5)",
        "many",
        "",
        "72 clips in 2 months",
        "####",
        "between 3 and 5",
        "2x",
        "12/05/2024",
        r"\pi",
        r"\boxed{}",
        "1/0",
        "9" * 300,
        "10^999",
    ],
)
def test_gold_answer_that_is_not_one_number_is_refused(gold):
    with pytest.raises(ValueError, match="holds no readable number"):
        FinalNumber().read_gold(gold)


def test_answer_that_was_cut_off_is_wrong():
    assert verdict("#### 72", "72") == 1.0
    assert verdict("#### 72", "72", ended=False) == 0.0
    assert verdict("#### 72", "72", ended=False, verifier=FinalNumber(must_end=False)) == 1.0


def test_without_a_gold_answer_there_is_no_verdict():
    assert verdict("#### 72", None) is None


@pytest.mark.parametrize(
    "text, number",
    [
        (r"\boxed{5} #### 6 The answer is 7. So 8", 5),
        ("#### 6 The answer is 7. So 8", 6),
        ("The answer is 7. So 8", 7),
        ("So 8", 8),
        (r"\boxed{3} and then \boxed{5}. So 8", 5),
        ("#### 6 #### 7", 6),
        ("The answer is 6. No, the answer is 7.", 7),
        ("72. You asked for 11 clips", 11),
    ],
)
def test_place_of_the_answer(text, number):
    assert answer_number(text).value == number


def test_numbers_are_compared_by_value():
    same = ["0.5", "1/2", "2/4", r"\frac{1}{2}", "\u00bd", ".5", "50/100", "one half"]
    assert all(gives(text, "1/2") for text in same)
    assert not any(gives(text, "1/3") for text in [*same, "0.33", "0.333"])


def test_percent_sign_counts_where_the_gold_answer_has_one():
    assert gives("50%", "50%") and gives("0.5", "50%") and gives("50%", "50")
    assert not gives("50", "50%") and not gives("50%", "1/2")


@pytest.mark.parametrize("text", HOSTILE, ids=lambda t: t[:8])
def test_million_hostile_characters_take_linear_time(text):
    """Ten times the text may take some thirty times the time, for a noisy machine; a quadratic one
    takes a hundred.
    """

    def seconds(part):
        begun = time.process_time()
        assert verdict(part, "7") == 0.0
        return time.process_time() - begun

    short = min(seconds(text[: len(text) // 10]) for _ in range(3))
    assert seconds(text) < 30 * short + 0.05


@pytest.mark.parametrize("name", ["final_number", "math_verify"])
def test_hostile_answers_hardly_lower_the_throughput(name, monkeypatch):
    """20 % hostile answers: measured 0.8 to 1.1 times the CPU time; here with room for noise."""
    monkeypatch.setattr(module, "_cache", type(module._cache)())
    verifier = make_verifier(name)
    working = "First 48 / 2 = 24 clips are sold. Then 48 + 24 clips are sold in all. " * 4
    asked = [Prompt(str(n), "q", str(n)) for n in range(500)]
    clean = [f"{working}So the total is {n} clips." for n in range(500)]
    places = range(0, 500, 5)
    mixed = list(clean)
    for place in places:
        mixed[place] = HOSTILE[place // 5 % len(HOSTILE)]

    def seconds(texts):
        module._cache.clear()
        begun = time.process_time()
        found = verdicts(verifier, asked, texts, [True] * 500).values
        assert sum(found) == 500 - len(places) * (texts is mixed)
        return time.process_time() - begun

    assert min(seconds(mixed) for _ in range(3)) < 2 * min(seconds(clean) for _ in range(3))


@pytest.mark.parametrize("text", HOSTILE, ids=lambda t: t[:8])
def test_no_hostile_answer_takes_much_longer_than_a_usual_one(text):
    """Measured at most 3 times; a share of 20 % then takes at most 1.4 times the time."""
    usual = "First 48 / 2 = 24 clips are sold. Then 48 + 24 clips are sold in all. " * 4 + "So 72."

    def seconds(part):
        begun = time.process_time()
        for _ in range(10):
            gives(part, "7")
        return time.process_time() - begun

    assert min(seconds(text) for _ in range(5)) < 6 * min(seconds(usual) for _ in range(5))


def test_any_text_is_read_without_an_error():
    """What is read of a gold answer is accepted for itself, whatever the text was."""
    parts = [*"0 1 2 9 / . , - + * ^ _ { } ( ) [ ] = ~ < > % $ : ! ? # |".split(), " ", "\n"]
    parts += ["72", "1,080", "\\frac", "\\sqrt", "\\boxed{", "\\text{", "####", "answer is "]
    parts += ["twenty", "-five", "hundred", "half", " and ", " or ", "cm", "e5", "10^", "\u00b2"]
    parts += ["\u00bd", "\u0667", "\u2212", "\x00", "\ud800", "May 12", "3:15", "x", "one", "<b>"]
    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(rng.choice(parts) for _ in range(rng.randrange(1, 25)))
        answer_number(text)
        gold = gold_number(text)
        assert gold is None or gives(gold.text, gold.text), text


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("<think>maybe 5</think>72", "72", 1.0),
        ("<think>72</think>\n\n5", "72", 0.0),
        ("so it is 5</think>\nThe answer is 72.", "72", 1.0),  # the prompt has opened the thought
        ("<think>the answer is 72", "72", 0.0),  # a thought without an end is no answer
        ("<think>it is \\boxed{72}</think>", "72", 0.0),
        ("72 <think>is that right? 5</think>", "72", 1.0),
        ("<reasoning>5</reasoning><answer>72</answer>", "72", 1.0),
        ("$\\boxed 7$", "7", 1.0),
        ("$\\boxed 7$ and then 9", "9", 0.0),
        ("\\boxed{1~080}", "1080", 1.0),
        ("\\boxed{1~080}", "80", 0.0),
        ("\\boxed{72~\\text{cm}}", "72", 1.0),
        ("it takes 5~7 days", "7", 0.0),
        ("about ~72", "72", 1.0),
        ("ln 5", "5", 0.0),
        ("log 100", "100", 0.0),
        ("He cuts a log 72 inches long", "72", 1.0),
    ],
)
def test_thoughts_ties_and_functions_are_no_part_of_the_number(text, gold, right):
    assert FinalNumber().verify([None], [text], [gold], [True]) == [right]


def real_golds():
    """Yield the name of each set of real data at hand, with its gold answers."""
    for name in ("train", "test"):
        rows = (Path(REAL) / "gsm8k" / f"{name}.jsonl").read_text().splitlines()
        yield [json.loads(row)["answer"] for row in rows]
    rows = json.loads((Path(REAL) / "svamp" / "SVAMP.json").read_text())
    yield [str(row["Answer"]).removesuffix(".0") for row in rows]


@pytest.mark.skipif(not REAL, reason="set HARNESS_REAL_DATA to a folder with gsm8k/ and svamp/")
def test_every_real_gold_answer_is_accepted_for_itself_and_not_for_the_next_number():
    for texts in real_golds():
        golds = [FinalNumber().read_gold(text) for text in texts]
        others = [str(Fraction(gold) + 1) for gold in golds]
        none, ended = [None] * len(golds), [True] * len(golds)
        assert set(FinalNumber().verify(none, texts, golds, ended)) == {1.0}
        assert set(FinalNumber().verify(none, golds, golds, ended)) == {1.0}
        assert set(FinalNumber().verify(none, texts, others, ended)) == {0.0}
