"""Ratings at equal style: closed cases, a bias of length that is removed, and coverage."""

import math

import numpy as np
import pytest

from harness.statistics.rating import ELO
from harness.statistics.style import differences, style_controlled, style_of


def logit(p):
    return math.log(p / (1 - p))


def elo(nats):
    return 1000 + ELO * nats


def alone(outcomes):
    """One feature (S, P, 1) that never varies: no control."""
    return np.zeros((*np.shape(outcomes), 1))


def test_style_of_counts_markdown_outside_of_code():
    text = "# Title\n\n- one **bold** word\n* two __too__\n 3. three\n```\n# code\n- code\n```\n#no"
    assert style_of(text) == (len(text), 1, 3, 2)
    assert style_of("2 * 3 * 4, a_b, **open\n#") == (24, 0, 0, 0)


def test_differences_are_shares_of_the_sum():
    assert differences([3, 0, 0], [1, 2, 0]).tolist() == [0.5, -1.0, 0.0]


def test_without_style_a_rating_is_the_log_odds_of_the_win_rate():
    wins = np.array([[1.0] * 30 + [0.0] * 10])
    found = style_controlled({"a": wins}, {"a": alone(wins)}, ridge=0.0)
    assert found.raw["a"].elo == pytest.approx(elo(logit(0.75)), abs=1e-6)
    assert found.controlled["a"] == found.raw["a"] and found.coefficients == {}
    # the delta method: var(logit p) = 1 / (n p (1 - p)), with n - 1 and t of 39 degrees for n
    half = 2.0227 * math.sqrt(1 / (39 * 0.75 * 0.25))
    assert found.raw["a"].high - found.raw["a"].elo == pytest.approx(ELO * half, rel=1e-3)


def test_two_styles_give_the_mean_of_their_log_odds():
    """A saturated fit: longer by half of the sum where 24 of 30 are won, shorter where 4 of 10."""
    wins = np.array([[1.0] * 24 + [0.0] * 6 + [1.0] * 4 + [0.0] * 6])
    style = np.where(np.arange(40) < 30, 0.5, -0.5).reshape(1, 40, 1)
    found = style_controlled({"a": wins}, {"a": style}, ridge=0.0)
    assert found.controlled["a"].elo == pytest.approx(elo((logit(0.8) + logit(0.4)) / 2), abs=1e-4)
    z = 0.5 / style.std(ddof=1)
    assert found.coefficients["length"].mean == pytest.approx(
        (logit(0.8) - logit(0.4)) / 2 / z, abs=1e-4
    )
    assert found.raw["a"].elo == pytest.approx(elo(logit(0.7)), abs=1e-4)


def test_rows_share_the_coefficients_and_turn_with_the_sides():
    """The same battles seen from the baseline have the opposite sign."""
    rng = np.random.default_rng(0)
    style = {name: rng.normal(0.2, 0.3, (2, 60, 2)) for name in "ab"}
    wins = {name: (rng.random((2, 60)) < 0.6).astype(float) for name in "ab"}
    one = style_controlled(wins, style)
    other = style_controlled({n: 1 - w for n, w in wins.items()}, {n: -s for n, s in style.items()})
    for name in "ab":
        assert other.controlled[name].elo - 1000 == pytest.approx(1000 - one.controlled[name].elo)
        assert other.controlled[name].low - 1000 == pytest.approx(1000 - one.controlled[name].high)
    assert other.coefficients["length"].mean == pytest.approx(one.coefficients["length"].mean)


def biased(rng, skill, longer, gamma, prompts=200, seeds=5):
    """Outcomes and style of a row: a judge that pays gamma nats for a difference of .2."""
    style = rng.normal(longer, 0.2, (seeds, prompts, 1))
    p = 1 / (1 + np.exp(-(skill + gamma * style[..., 0] / 0.2)))
    return (rng.random((seeds, prompts)) < p).astype(float), style


def test_a_bias_of_length_is_removed():
    """`long` is no better than `plain`: its answers are longer, and the judge pays for length."""
    rng = np.random.default_rng(1)
    made = {"plain": biased(rng, 0.3, 0.0, 0.8), "long": biased(rng, 0.3, 0.2, 0.8)}
    found = style_controlled({n: m[0] for n, m in made.items()}, {n: m[1] for n, m in made.items()})
    raw, controlled = found.raw, found.controlled
    assert raw["long"].low > raw["plain"].high  # the bias
    assert abs(controlled["long"].elo - controlled["plain"].elo) < 25
    for row in controlled.values():
        assert row.low < elo(0.3) < row.high
    assert found.coefficients["length"].low > 0 and found.identified


def test_a_judge_without_the_bias_loses_nothing():
    """The negative control: control for style takes no real gain away."""
    rng = np.random.default_rng(2)
    made = {"plain": biased(rng, 0.0, 0.0, 0.0), "better": biased(rng, 0.8, 0.2, 0.0)}
    found = style_controlled({n: m[0] for n, m in made.items()}, {n: m[1] for n, m in made.items()})
    assert found.controlled["better"].low > found.controlled["plain"].high
    assert found.coefficients["length"].low < 0 < found.coefficients["length"].high


def test_answers_that_are_all_longer_are_not_identified():
    rng = np.random.default_rng(3)
    style = rng.uniform(0.1, 0.5, (1, 50, 1))
    found = style_controlled({"a": (rng.random((1, 50)) < 0.5) * 1.0}, {"a": style})
    assert not found.identified


def test_a_row_that_wins_always_has_an_open_end():
    wins = np.ones((1, 20))
    found = style_controlled({"a": wins}, {"a": alone(wins)})
    assert found.raw["a"].high == math.inf and found.raw["a"].low >= 1000


@pytest.mark.parametrize(
    ("wins", "message"), [([[0.5, 1.2]], "not all in"), ([[0.5, math.nan]], "needs a finite")]
)
def test_outcomes_outside_of_shares_are_refused(wins, message):
    with pytest.raises(ValueError, match=message):
        style_controlled({"a": wins}, {"a": alone(wins)})
    with pytest.raises(ValueError, match="were expected"):
        style_controlled({"a": [[0.5, 1.0]]}, {"a": np.zeros((1, 3, 1))})


@pytest.mark.parametrize("studies", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_intervals_at_equal_style_cover_the_truth(studies):
    """3 seeds whose log-odds vary by .2, 100 prompts, 3 rows: 95 % nominal."""
    rng, held = np.random.default_rng(4), []
    for _ in range(studies):
        made = {}
        for i in range(3):
            seeds = [
                biased(rng, 0.4 * i - 0.4 + d, 0.1 * i, 0.5, 100, 1) for d in rng.normal(0, 0.2, 3)
            ]
            made[str(i)] = tuple(np.concatenate(part) for part in zip(*seeds, strict=True))
        wins, style = ({n: m[j] for n, m in made.items()} for j in (0, 1))
        found = style_controlled(wins, style).controlled
        held += [found[str(i)].low < elo(0.4 * i - 0.4) < found[str(i)].high for i in range(3)]
    assert 0.92 < np.mean(held) <= 0.995
