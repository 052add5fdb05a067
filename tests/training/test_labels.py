"""What a labeller may say."""

import math

import pytest

from harness import Comparison, HarnessError, Prompt
from harness.training.labels import checked_labels

PROMPT = Prompt("p1", "a question")


@pytest.mark.parametrize("p", [2.0, -0.1, math.nan, math.inf, None, "1", 1j])
def test_label_that_is_no_probability_is_blamed_on_the_labeller(p):
    with pytest.raises(HarnessError, match="The labeller odd gave p = .* of prompt p1"):
        checked_labels([Comparison(0, 1, p)], 2, "odd", PROMPT)


@pytest.mark.parametrize("pair", [(0, 2), (-1, 0), (1, 1), (0.5, 1)])
def test_label_of_other_completions_is_blamed_on_the_labeller(pair):
    with pytest.raises(HarnessError, match="two different completions out of 0 to 1"):
        checked_labels([Comparison(*pair, 0.5)], 2, "odd", PROMPT)


def test_right_labels_pass_unchanged():
    said = [Comparison(0, 1, 0.0), Comparison(1, 2, 1), Comparison(2, 0, 0.5)]
    assert checked_labels(said, 3, "fine", PROMPT) == said
