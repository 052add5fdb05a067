"""The labeller `verdict`: labels by hand, their error rate, and what it counts."""

from random import Random

import pytest
from harness_plugins.labellers.verdict import VerdictLabeller
from harness_suites.summarization import Summarization

from harness import Prompt, make_verifier
from harness.core.errors import UsageError
from harness.core.options import build


class Questions:
    """A suite with nothing but a verifier."""

    name = "questions"

    def make_verifier(self):
        return make_verifier("final_number")


def labeller(**options):
    made = build(VerdictLabeller, options, "labeller verdict")
    made.prepare(Questions(), None)
    return made


PROMPT = Prompt("p", "48 + 24?", "72")
TEXTS = ["72", "71", "So 72", "no"]


def labels(made, texts=TEXTS, ended=(True, True, True, True), seed=0):
    said = made.compare_sampled(PROMPT, texts, [1] * len(texts), ended, Random(seed))
    return [(c.first, c.second, c.p) for c in said]


def test_right_answer_is_preferred_to_a_wrong_one_and_equal_ones_get_no_label():
    made = labeller()
    assert labels(made) == [(0, 1, 1.0), (0, 3, 1.0), (1, 2, 0.0), (2, 3, 1.0)]
    assert made.usage() == {"answers": 4, "accepted": 2, "asked": 4}
    assert made.ceiling(PROMPT, TEXTS, [1] * 4) == [1.0, 0.0, 1.0, 0.0]


def test_answer_that_was_cut_is_a_wrong_one():
    assert labels(labeller(), ended=(False, True, True, True)) == [
        (0, 2, 0.0),
        (1, 2, 0.0),
        (2, 3, 1.0),
    ]


def test_error_rate_is_the_share_of_reversed_labels():
    made = labeller(error_rate=0.25)
    said = [label for seed in range(500) for label in labels(made, ["72", "71"], (True,) * 2, seed)]
    assert len(said) == 500 and 0.2 < sum(p == 0.0 for _, _, p in said) / 500 < 0.3
    assert labels(made, seed=3) == labels(made, seed=3)


def test_without_a_gold_answer_there_are_no_labels():
    made = labeller()
    assert made.compare(Prompt("p", "?"), TEXTS, [1] * 4, Random(0)) == []
    assert made.ceiling(Prompt("p", "?"), TEXTS, [1] * 4) is None


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match="error_rate lies in"):
        labeller(error_rate=1.5)
    with pytest.raises(UsageError, match="summarization has none"):
        VerdictLabeller().prepare(Summarization(), None)
