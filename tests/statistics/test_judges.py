"""Agreement of judges: kappa, accuracy, Spearman, and the accuracy on held-out pairs."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from harness.statistics import judges

NAN = math.nan


def test_kappa_of_a_textbook_table():
    """20 and 15 agreements, 5 and 10 disagreements of 50: chance is one half, kappa .4."""
    pairs = [(1, 1)] * 20 + [(1, -1)] * 5 + [(-1, 1)] * 10 + [(-1, -1)] * 15
    found = judges.cohens_kappa(pairs)
    assert found.mean == pytest.approx(0.4)
    rng = np.random.default_rng(0)
    draws = [
        judges.cohens_kappa([pairs[i] for i in rng.integers(0, 50, 50)]).mean for _ in range(800)
    ]
    assert (found.high - found.low) / 2 / 1.96 == pytest.approx(np.std(draws), rel=0.12)


def test_kappa_of_one_category_is_not_defined():
    assert judges.cohens_kappa([(1, 1)] * 9) is None
    assert judges.cohens_kappa([(1, 1)] * 9 + [(-1, -1)]).mean == pytest.approx(1.0)


def test_spearman_is_scipys_and_its_interval_covers():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 60))
    assert judges.spearman(list(x), list(x + y)).mean == pytest.approx(spearmanr(x, x + y)[0])
    held, true = [], 6 / math.pi * math.asin(0.5 / 2)  # of a normal pair with correlation 1/2
    for _ in range(400):
        a, b = rng.normal(size=(2, 80))
        found = judges.spearman(list(a), list(0.5 * a + math.sqrt(0.75) * b))
        held.append(found.low <= true <= found.high)
    assert 0.92 < np.mean(held) < 0.98
    assert judges.spearman([1.0] * 9, list(range(9))) is None


def test_agreement_leaves_missing_verdicts_and_human_ties_out():
    found = judges.agreement([0.9, 0.5, NAN, 0.2, 0.8], [1.0, 1.0, 1.0, 0.0, 0.5])
    assert (found.pairs, found.missing) == (5, 1)
    assert found.accuracy.mean == pytest.approx(2.5 / 3) and found.accuracy.n == 3


def test_agreement_leaves_missing_human_preferences_out():
    found = judges.agreement([0.9, 0.1, 0.8], [1.0, 0.0, NAN])
    assert (found.pairs, found.missing) == (3, 1)
    assert found.accuracy.mean == 1.0 and found.kappa.n == 2


@pytest.mark.parametrize(
    ("accuracy", "pairs", "doubt"),
    [
        (0.6, 20, "not shown to be better than a coin"),
        (0.53, 5000, "hardly better than a coin"),
        (0.7, 200, None),
    ],
)
def test_held_out_accuracy_near_a_coin_is_doubted(accuracy, pairs, doubt):
    found = judges.held_out_figures(accuracy, pairs)
    assert found.get("doubt") == doubt and found["low"] < accuracy < found["high"]


@pytest.mark.parametrize(
    ("accuracy", "low", "high", "reason"),
    [
        (0.52, 0.47, 0.57, "no win-rate: the judge's held-out accuracy .52 [.47, .57] does not"),
        (0.52, 0.5, 0.57, "no win-rate: the judge's held-out accuracy .52 [.50, .57] does not"),
        (0.3, 0.2, 0.4, "no win-rate: the judge's held-out accuracy .30 [.20, .40] is below .5"),
        (1.0, 0.4, 1.0, "no win-rate: the judge's held-out accuracy 1.00 [.40, 1.00] does not"),
        (0.52, 0.501, 0.57, ""),
    ],
)
def test_no_win_rate_comes_from_a_coin(accuracy, low, high, reason):
    found = judges.no_win_rate({"accuracy": accuracy, "low": low, "high": high})
    assert found.startswith(reason) and bool(found) == bool(reason)


def test_judge_of_unknown_accuracy_gives_win_rates():
    assert judges.no_win_rate(None) == judges.no_win_rate({"accuracy": 0.5, "pairs": 9.0}) == ""
