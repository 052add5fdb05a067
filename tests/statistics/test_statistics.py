"""harness.statistics: hand-computed values, properties, and published figures (its simulations:
test_coverage.py).
"""

import csv
import gzip
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from harness.statistics import aggregate, compare, intervals, length, pooling, power, rating
from harness.statistics.over_prompts import mean_interval, win_rate

from ..helpers.tools import ROOT, process

DATA = Path(os.environ.get("HARNESS_TEST_DATA", ROOT.parent / "shared" / "data")) / "alpaca_eval"
with_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="no AlpacaEval data: HARNESS_TEST_DATA or ../shared/data"
)
FEW, SOME = st.integers(1, 4), st.integers(2, 12)
GRID = st.sampled_from([0.0, 0.5, 1.0])


def wins(seeds=FEW, prompts=SOME, values=GRID):
    """Score matrices (S, P)."""
    return st.tuples(seeds, prompts).flatmap(
        lambda shape: arrays(np.float64, shape, elements=values)
    )


@st.composite
def two_methods(draw):
    prompts = draw(st.integers(2, 12))
    return draw(wins(prompts=st.just(prompts))), draw(wins(prompts=st.just(prompts)))


# intervals


def test_parts_by_hand():
    # rows 1 and 3 on average, columns 1, 2, 3: every cell is row + column - 2, so nothing is left
    found = intervals.parts(np.array([[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]]))
    assert found.mean == 2 and found.rest == pytest.approx(0, abs=1e-15)
    assert found.seeds == pytest.approx(1.0)  # MSA = 3 * 2, over S P = 6
    assert found.prompts == pytest.approx(1 / 3)  # MSB = 2 * 1, over 6
    half = math.sqrt(12.7062047**2 * 1.0 + 4.3026527**2 / 3)
    assert intervals.half_width(found) == pytest.approx(half, rel=1e-7)
    crossed = intervals.parts(
        np.array([[1.0, 0.0], [0.0, 1.0]])
    )  # all interaction: MSA = MSB = 0, MSE = 1
    assert (crossed.seeds, crossed.prompts, crossed.rest) == (0, 0, pytest.approx(0.25))


def test_one_seed_is_the_interval_over_prompts_and_says_so():
    rng = np.random.default_rng(0)
    values = rng.normal(size=50)
    ours, theirs = intervals.two_way_interval(values), mean_interval(values.tolist())
    assert (ours.low, ours.high) == pytest.approx(
        (theirs.low, theirs.high), abs=1e-3 * (theirs.high - theirs.low)
    )
    assert ours.label == "this checkpoint, not this algorithm" and math.isnan(ours.seed_sd)
    several = intervals.two_way_interval(rng.normal(size=(3, 50)))
    assert several.label == "this algorithm on one ground: seeds and prompts" and several.seeds == 3


@given(
    st.lists(st.integers(0, 3), min_size=2, max_size=40),
    st.lists(st.integers(0, 3), min_size=40, max_size=40),
)
def test_one_seed_wins_have_the_interval_of_the_record(ours, other):
    theirs = other[: len(ours)]
    old = win_rate(ours, theirs)
    new = intervals.win_rate_interval(intervals.pairwise_scores(ours, theirs))
    assert (new.mean, new.low, new.high) == pytest.approx((old.mean, old.low, old.high), abs=1e-9)


@given(wins())
def test_intervals_hold_the_mean_within_bounds_and_mirror(scores):
    found, mirrored = intervals.win_rate_interval(scores), intervals.win_rate_interval(1 - scores)
    assert 0 <= found.low <= found.mean + 1e-9 and found.mean - 1e-9 <= found.high <= 1
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low), abs=1e-7)


@given(wins(values=st.floats(-5, 5)), st.randoms(use_true_random=False))
def test_intervals_ignore_the_order_of_seeds_and_prompts(scores, random):
    rows, columns = list(range(scores.shape[0])), list(range(scores.shape[1]))
    random.shuffle(rows), random.shuffle(columns)
    one, two = (
        intervals.two_way_interval(scores),
        intervals.two_way_interval(scores[rows][:, columns]),
    )
    assert (two.mean, two.low, two.high) == pytest.approx((one.mean, one.low, one.high), abs=1e-6)


@given(
    wins(values=st.floats(-5, 5).map(lambda x: round(x, 3))), st.floats(0.1, 10), st.floats(-5, 5)
)
def test_intervals_move_and_stretch_with_the_scores(scores, scale, shift):
    one, two = (
        intervals.two_way_interval(scores),
        intervals.two_way_interval(scale * scores + shift),
    )
    assert (two.low, two.high) == pytest.approx(
        (scale * one.low + shift, scale * one.high + shift), abs=1e-5
    )


def test_all_won_is_not_certain():
    for seeds in (1, 3):
        found = intervals.win_rate_interval(np.ones((seeds, 64)))
        assert found.high == 1 and 0.9 < found.low < 0.96


@given(
    wins(seeds=st.integers(2, 4), values=st.floats(-5, 5).map(lambda x: round(x, 3))),
    st.floats(0.001, 0.5),
)
@settings(max_examples=50)
def test_p_is_the_level_at_which_the_interval_touches(scores, null):
    found = intervals.parts(scores)
    p = float(intervals.p_value(found, null))
    assume(1e-9 < p < 0.999)
    assert float(intervals.half_width(found, 1 - p)) == pytest.approx(
        abs(float(found.mean) - null), rel=1e-5
    )


@pytest.mark.parametrize(
    "scores", [[[1.0, math.nan]], [[1.0]], np.zeros((2, 2, 2))], ids=["gap", "one", "3d"]
)
def test_scores_that_are_no_matrix_are_refused(scores):
    with pytest.raises(ValueError):
        intervals.two_way_interval(scores)


def test_scores_out_of_bounds_are_refused():
    with pytest.raises(ValueError):
        intervals.win_rate_interval([0.2, 1.2])


# comparison


@given(two_methods())
def test_comparison_is_antisymmetric(methods):
    a, b = methods
    one, two = compare.compare(a, b), compare.compare(b, a)
    assert (one.difference, one.low, one.p) == pytest.approx(
        (-two.difference, -two.high, two.p), abs=1e-9
    )


@given(two_methods())
def test_p_agrees_with_the_interval(methods):
    found = compare.compare(*methods)
    assume(min(abs(found.low), abs(found.high)) > 1e-6)
    assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_pairing_prompts_narrows():
    rng = np.random.default_rng(1)
    hard = rng.normal(size=200)
    a, b = (hard + 0.3 * rng.normal(size=(3, 200)) for _ in range(2))
    paired = compare.compare(a, b)
    shuffled = compare.compare(a, b[:, rng.permutation(200)])
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


def test_paired_seeds_are_the_intervals_of_the_differences():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 4, 30))
    one, two = compare.compare(a, b, paired_seeds=True), intervals.two_way_interval(a - b)
    assert (one.low, one.high) == pytest.approx((two.low, two.high))
    with pytest.raises(ValueError):
        compare.compare(a, b[:3], paired_seeds=True)


def test_one_seed_on_either_side_is_said():
    assert compare.compare(np.eye(4), np.eye(4)[0]).label == intervals.ONE_SEED
    assert compare.compare(np.eye(4), np.eye(4)).label == intervals.SEVERAL_SEEDS


def test_holm_by_hand():
    assert compare.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert compare.holm([]) == [] and compare.holm([0.7, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_holm_is_between_raw_and_bonferroni_whatever_the_order(p, random):
    adjusted = compare.holm(p)
    assert all(raw <= a <= min(1, len(p) * raw) + 1e-12 for raw, a in zip(p, adjusted, strict=True))
    order = list(range(len(p)))
    random.shuffle(order)
    assert compare.holm([p[i] for i in order]) == [adjusted[i] for i in order]


@pytest.mark.parametrize(
    ("seeds", "used"),
    [((3, 3, 3), True), ((3, 3, 3, 1), True), ((3, 3, 1, 1), False), ((3, 3, 2), False)],
)
def test_whether_a_pool_is_used_is_told(seeds, used):
    rng = np.random.default_rng(1)
    scores = {str(i): rng.normal(size=(n, 40)) for i, n in enumerate(seeds)}
    assert compare.borrows(scores) == used
    assert (compare.all_pairs(scores) != compare.all_pairs(scores, borrow=False)) == used


def test_stepwise_tests_correct_for_the_rows_that_are_left():
    """Pairs among rows far below correct nothing for the two above, as they would in Holm's."""
    rng = np.random.default_rng(0)
    hard = rng.normal(size=400)
    means = {"a": 0.12, "b": 0.0, **dict.fromkeys("cdefgh", -3.0)}
    table = {n: m + hard + 0.85 * rng.normal(size=400) for n, m in means.items()}
    p = compare.all_pairs(table)["a", "b"].p
    assert 0.05 / 15 < p < 0.05  # so that the family decides
    standing = compare.confidence_set(table)
    assert [n for n in table if standing[n] is not compare.Standing.WORSE] == ["a"]
    assert compare.all_pairs(table)["a", "b"].adjusted > 0.05  # negative control: Holm


def test_same_scores_under_two_names_are_tested_once():
    rng = np.random.default_rng(3)
    hard = rng.normal(size=300)
    one, other = (m + hard + rng.normal(size=300) for m in (0.25, 0.0))
    p = compare.all_pairs({"a": one, "b": other})["a", "b"].p
    alone, twice = {"a": one, "b": other}, {"a": one, "b": other, "a again": one, "b again": other}
    standing = compare.confidence_set(twice, alpha=2 * p)
    assert compare.confidence_set(alone, alpha=2 * p)["b"] is compare.Standing.WORSE
    assert standing["a"] is standing["a again"] is compare.Standing.BEST
    assert standing["b"] is standing["b again"] is compare.Standing.WORSE


def test_noisy_row_is_open_and_not_best():
    rng = np.random.default_rng(1)
    hard = rng.normal(size=200)
    table = {
        f"m{i}": level + hard + 0.1 * rng.normal(size=(3, 200))
        for i, level in enumerate((2.0, 1.98, 1.0, 0.9, 0.8))
    }
    noise = np.array([[-1.5], [0.0], [1.5]])
    table["wild"] = 1.0 + hard + noise + 0.1 * rng.normal(size=(3, 200))
    standing = compare.confidence_set(table)
    assert standing["wild"] is compare.Standing.OPEN
    assert standing["m0"] is compare.Standing.BEST and standing["m2"] is compare.Standing.WORSE
    assert not compare.best_group(table)["wild"]


def test_best_group_by_hand():
    rng = np.random.default_rng(3)
    noise = {name: rng.normal(size=(3, 400)) for name in "abcd"}
    shift = {"a": 1.0, "b": 0.98, "c": 0.0, "d": -1.0}
    scores = {name: noise[name] + shift[name] for name in "abcd"}
    assert compare.best_group(scores) == {"a": True, "b": True, "c": False, "d": False}
    assert compare.best_group(scores, higher=False) == {
        "a": False,
        "b": False,
        "c": False,
        "d": True,
    }
    assert compare.best_group({"a": scores["a"]}) == {"a": True}
    assert compare.best_group({"a": scores["a"], "b": scores["a"]}) == {"a": True, "b": True}


def test_pool_has_every_degree_of_freedom_where_methods_are_alike_and_few_where_one_is_noisy():
    def methods(*sds):
        """Of such standard deviations between seeds, no two the same scores."""
        return [
            np.tile(sd * np.array([[-1.0], [0.0], [1.0]]), (1, 8)) + k for k, sd in enumerate(sds)
        ]

    alike = pooling.pooled(methods(*[1.0] * 6))
    assert alike == compare.Pool(pytest.approx(1.0), pytest.approx(12.0), frozenset(range(6)))
    noisy = pooling.pooled(methods(3.0, *[1.0] * 5))
    assert noisy.variance == pytest.approx(14 / 6) and noisy.df == pytest.approx(3 * 14**2 / 86)
    wild = pooling.pooled(methods(1.0, 1.0, 10.0, 1.0, 1.0, 1.0))  # an outlier speaks for nobody
    assert wild == compare.Pool(pytest.approx(1.0), pytest.approx(10.0), frozenset({0, 1, 3, 4, 5}))
    assert pooling.pooled(methods(1.0, 1.0)) is None
    assert pooling.pooled([method[:2] for method in methods(*[1.0] * 6)]) is None


def test_sign_test_is_mcnemar():
    assert compare.sign_test([1] * 5 + [0, 1], [0] * 5 + [0, 1]) == pytest.approx(0.0625)
    assert (
        compare.sign_test([1] * 3, [0] * 3) == pytest.approx(0.25)
        and compare.sign_test([1], [1]) == 1.0
    )


# several tasks


def test_aggregates_by_hand():
    assert aggregate.iqm([[0, 1, 2, 3], [4, 5, 6, 100]]) == pytest.approx(3.5)
    with pytest.raises(ValueError, match="needs every score"):
        aggregate.iqm([1, 2, math.nan, 4])  # sorting counts it as the highest: 3
    assert aggregate.probability_of_improvement(
        [[1, 5], [3, 5]], [[2, 5], [0, 9]]
    ) == pytest.approx((0.75 + 0.25) / 2)


@given(two_methods())
def test_probability_of_improvement_is_antisymmetric_and_ties_are_half(methods):
    a, b = methods
    p = aggregate.probability_of_improvement(a, b)
    assert p == pytest.approx(1 - aggregate.probability_of_improvement(b, a))
    assert 0 <= p <= 1 and aggregate.probability_of_improvement(a, a) == pytest.approx(0.5)


def test_iqm_is_scipys_trimmed_mean_and_improvement_mann_whitneys():
    from scipy.stats import mannwhitneyu, trim_mean

    rng = np.random.default_rng(4)
    x, y = rng.normal(0.3, 1, (7, 5)), rng.normal(size=(6, 5))
    assert aggregate.iqm(x) == pytest.approx(trim_mean(x, 0.25, axis=None))
    u = [mannwhitneyu(x[:, k], y[:, k], alternative="greater").statistic / 42 for k in range(5)]
    assert aggregate.probability_of_improvement(x, y) == pytest.approx(np.mean(u))


def test_bootstrap_is_seeded_and_stratified():
    x = np.array([[0.0, 100.0], [1.0, 101.0], [2.0, 102.0]])
    one, two = (
        aggregate.stratified_bootstrap(lambda s: float(s.mean()), [x], 500, seed=7)
        for _ in range(2)
    )
    assert one == two and 50 <= one.low < one.value < one.high <= 52  # tasks are never swapped
    tasks = aggregate.stratified_bootstrap(
        lambda s: float(s.mean()), [x], 500, seed=7, tasks_too=True
    )
    assert tasks.high - tasks.low > 50


@pytest.mark.parametrize("matrices", [[[0.5, 0.6, 0.7]], [[[0.5], [0.6]], [[0.7]]]])
def test_bootstrap_refuses_one_run(matrices):
    """Drawn again a run is itself, and the interval had width 0."""
    with pytest.raises(ValueError, match="it needs two runs"):
        aggregate.stratified_bootstrap(lambda *scores: float(np.mean(scores[0])), matrices, 10)


# power


def test_power_has_the_textbooks_numbers():
    needed = [power.prompts_needed(power.Design(), effect) for effect in (0.02, 0.03, 0.05, 0.10)]
    assert needed == [4904, 2178, 783, 194]
    assert power.prompts_needed(power.Design(), 0.03, difference=True) == 4361
    assert power.prompts_needed(power.Design(correlation=0.5), 0.03, difference=True) == 2181
    for n, half in ((256, 0.061), (512, 0.043), (805, 0.035), (1000, 0.031)):
        assert 1.96 * math.sqrt(sum(power.variances(power.Design(n), False))) == pytest.approx(
            half, abs=5e-4
        )


def test_seeds_alone_can_be_too_few():
    few = power.Design(seeds=3, seed_sd=0.03)
    assert power.prompts_needed(few, 0.05) is None
    assert power.prompts_needed(power.Design(seeds=10, seed_sd=0.03), 0.05) < 2000


def test_with_prompts_without_end_power_is_that_of_t_over_seeds():
    from scipy.stats import nct

    endless = power.Design(10**9, 3, seed_sd=0.03)
    for shift in (1.0, 2.0, 4.3):  # standard errors
        tails = nct.sf(4.3026527, 2, shift) + nct.sf(4.3026527, 2, -shift)
        assert power.power(endless, shift * 0.03 / math.sqrt(3)) == pytest.approx(tails, abs=1e-3)


@pytest.mark.parametrize("difference", [False, True])
def test_detectable_effect_is_detected_and_more_seeds_help(difference):
    effects = []
    for seeds in (2, 3, 5, 10):
        design = power.Design(512, seeds, ties=0.1, seed_sd=0.02, correlation=0.2)
        effects.append(power.minimum_detectable_effect(design, difference))
        assert power.power(design, effects[-1], difference) == pytest.approx(0.8, abs=1e-3)
    assert effects == sorted(effects, reverse=True)


def test_ties_make_small_effects_easier_to_see():
    assert power.prompts_needed(power.Design(ties=0.5), 0.05) < power.prompts_needed(
        power.Design(), 0.05
    )


def test_power_command():
    done = process("power", "--prompts", "783", "--effect", "0.05")
    assert done.code == 0 and "| one method against 50 %" in done.out and "80.0%" in done.out
    assert "783" in done.out and "one checkpoint" in done.out
    done = process("power", "--seeds", "3", "--effect", "0.02")
    assert "no number is enough with" in done.out and "Assumed" in done.out
    done = process("power", "--seeds", "2", "--correlation", "0.9")
    assert done.code == 2 and "No such study" in done.err and "Traceback" not in done.err


# length


def test_length_control_without_length_is_the_win_rate():
    scores = np.array([[1, 1, 0, 0.5, 1, 0, 1, 1.0]])
    found = length.length_controlled(scores, np.full((1, 8), 10), np.full(8, 10))
    assert found.win_rate.mean == pytest.approx(found.raw.mean, abs=1e-4) and found.phi == 0


@given(wins(seeds=st.integers(1, 3), prompts=st.integers(8, 20)), st.integers(0, 99))
@settings(max_examples=50)
def test_swapping_the_sides_mirrors_length_control(scores, seed):
    assume(0.1 < scores.mean() < 0.9)
    rng = np.random.default_rng(seed)
    ours, theirs = rng.integers(5, 50, scores.shape), rng.integers(5, 50, scores.shape)
    one, two = (
        length.length_controlled(scores, ours, theirs),
        length.length_controlled(1 - scores, theirs, ours),
    )
    assert one.win_rate.mean == pytest.approx(1 - two.win_rate.mean, abs=1e-6)
    assert 0 <= one.win_rate.low <= one.win_rate.high <= 1 and math.isfinite(one.theta)


def test_policy_that_is_only_verbose_gains_raw_but_not_length_controlled():
    rng = np.random.default_rng(5)
    baseline = rng.normal(100, 20, 4000)
    ours = baseline + rng.normal(30, 30, (1, 4000))  # longer, no better
    p = length.sigmoid(-1.5 * length.length_feature(baseline, ours))
    found = length.length_controlled((rng.random((1, 4000)) < p).astype(float), ours, baseline)
    assert found.raw.low > 0.6 and found.win_rate.low < 0.5 < found.win_rate.high
    assert found.phi == pytest.approx(-1.5, abs=0.2)


@pytest.mark.parametrize(("longer", "identified"), [(0.0, True), (3.0, False)])
def test_equal_length_must_be_in_sight_in_every_seed(longer, identified):
    rng = np.random.default_rng(7)
    ours = rng.normal(100, 10, (3, 400))
    ours[1] += longer * 30  # a seed that always rambles
    found = length.length_controlled(
        (rng.random((3, 400)) < 0.5).astype(float), ours, rng.normal(100, 10, 400)
    )
    assert found.identified == identified and (found.overlap < 0.01) == (not identified)


def test_all_won_stays_finite():
    found = length.length_controlled(np.ones((2, 32)), np.arange(64).reshape(2, 32), np.arange(32))
    assert math.isfinite(found.theta) and found.win_rate.low < 0.97 <= found.win_rate.mean


def test_influence_is_the_jackknifes():
    rng = np.random.default_rng(6)
    gap, y = rng.normal(size=(1, 300)), (rng.random((1, 300)) < 0.7).astype(float)
    found = length.length_controlled(y, -gap, np.zeros(300))
    left_out = [
        length.length_controlled(*(np.delete(a, i, 1) for a in (y, -gap)), np.zeros(299)).theta
        for i in range(300)
    ]
    spread = math.sqrt(299 / 300 * sum((t - np.mean(left_out)) ** 2 for t in left_out))
    odds = [math.log(end / (1 - end)) for end in (found.win_rate.low, found.win_rate.high)]
    assert (odds[1] - odds[0]) / 2 / 1.968 == pytest.approx(spread, rel=0.03)


# ratings

TEAMS = ("Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore")
# wins of row over column, 13 games each: Agresti, Categorical Data Analysis, table 10.10
BASEBALL = np.array(
    [
        [0, 7, 9, 7, 7, 9, 11],
        [6, 0, 7, 5, 11, 9, 9],
        [4, 6, 0, 7, 7, 8, 12],
        [6, 8, 6, 0, 6, 7, 10],
        [6, 2, 6, 7, 0, 7, 12],
        [4, 4, 5, 6, 6, 0, 6],
        [2, 4, 1, 3, 1, 7, 0],
    ]
)


def test_baseball():
    assert ((BASEBALL + BASEBALL.T)[np.triu_indices(7, 1)] == 13).all()
    nats = rating.bradley_terry(BASEBALL, ridge=0)
    printed = [1.58, 1.44, 1.29, 1.25, 1.11, 0.68, 0.0]  # section 10.6, Baltimore 0
    assert np.round(nats - nats[-1], 2).tolist() == printed


def test_twenty_to_nothing_stays_finite_and_needs_the_prior():
    nats = rating.bradley_terry([[0, 20], [0, 0]])
    assert 1 < nats[0] < 5 and nats[1] == pytest.approx(-nats[0])
    with pytest.raises(ValueError, match="prior"):
        rating.bradley_terry([[0, 20], [0, 0]], ridge=0)


@given(arrays(np.float64, (4, 4), elements=st.integers(0, 20)), st.permutations(range(4)))
def test_ratings_do_not_depend_on_order_and_solve_their_equations(games, order):
    np.fill_diagonal(games, 0)
    nats = rating.bradley_terry(games)
    turned = rating.bradley_terry(games[np.ix_(order, order)])
    assert turned == pytest.approx(nats[list(order)], abs=1e-6)
    assert rating.bradley_terry(games.T) == pytest.approx(-nats, abs=1e-6)
    expected = (games + games.T) * length.sigmoid(nats[:, None] - nats[None])
    assert games.sum(1) - expected.sum(1) == pytest.approx(rating.RIDGE * nats, abs=1e-6)


def test_ties_are_half_wins_and_copies_rate_alike():
    rng = np.random.default_rng(8)
    x, y = rng.integers(0, 5, (3, 200)), rng.integers(0, 6, (3, 200))
    found = rating.rate({"a": x, "b": y, "copy": x}, anchor="b", resamples=200)
    assert (
        found.ratings["a"] == found.ratings["copy"]
        and found.ratings["b"].elo == found.ratings["b"].low == 1000
    )
    assert found.ratings["a"].low < found.ratings["a"].elo < found.ratings["a"].high
    again = rating.rate({"copy": x, "a": x, "b": y}, anchor="b", resamples=200)
    assert again.ratings["a"].low == pytest.approx(found.ratings["a"].low)
    per_prompt = rating.battles({"a": x, "b": y})
    assert per_prompt[:, 0, 1].mean() == pytest.approx(aggregate.probability_of_improvement(x, y))


def test_one_prompt_answered_many_times_is_one_cluster():
    rng = np.random.default_rng(9)
    a, b = rng.normal(0.3, 1, 100), rng.normal(size=100)
    one = rating.rate({"a": a, "b": b}, resamples=400).ratings["a"]
    copied = rating.rate({"a": np.tile(a, (5, 1)), "b": np.tile(b, (5, 1))}, resamples=400).ratings[
        "a"
    ]
    assert copied == one


def test_residual_sees_rock_paper_scissors():
    circle = np.array([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]])
    nats = rating.bradley_terry(100 * circle)
    assert nats == pytest.approx(np.zeros(3), abs=1e-9) and rating.intransitivity(circle, nats)[
        0
    ] == pytest.approx(0.5)
    true = np.array([1.0, 0.0, -1.0])
    fitted = length.sigmoid(true[:, None] - true[None])
    exact = rating.bradley_terry(1e6 * (fitted - 0.5 * np.eye(3)), ridge=0)
    assert exact == pytest.approx(true) and rating.intransitivity(fitted, exact)[0] < 1e-9


# AlpacaEval 2, as published


def rows(name):
    opened = gzip.open(DATA / name, "rt") if name.endswith(".gz") else open(DATA / name)
    with opened as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def board():
    return {row[""]: row for row in rows("leaderboard_v2.csv")}


@pytest.fixture(scope="module")
def annotations():
    found = {}
    for row in rows("annotations_v2.csv.gz"):
        found.setdefault(row["model"], []).append(
            (
                int(row["index"]),
                float(row["preference"]) - 1,
                float(row["len_1"]),
                float(row["len_2"]),
            )
        )
    return {model: np.array(sorted(cells)) for model, cells in found.items()}


@pytest.fixture(scope="module")
def difficulty():
    with gzip.open(DATA / "instructions.jsonl.gz", "rt") as stream:
        found = {
            row["index"]: row["instruction_difficulty_recovered"] for row in map(json.loads, stream)
        }
    return np.array([found[i] for i in range(len(found))])


@with_data
def test_published_win_rates(board, annotations):
    errors = []
    for model in board.keys() & annotations.keys():
        soft, printed = annotations[model][:, 1], board[model]
        found = intervals.win_rate_interval(soft)
        errors.append(abs(100 * found.mean - float(printed["win_rate"])))
        standard_error = 100 * float(np.sqrt(intervals.parts(soft[None]).prompts))
        assert standard_error == pytest.approx(float(printed["standard_error"]), abs=1e-8)
        discrete = intervals.pairwise_scores(soft, 0.5)
        assert 100 * discrete.mean() == pytest.approx(float(printed["discrete_win_rate"]), abs=1e-8)
    assert len(errors) == 57 and max(errors) < 1e-8


@with_data
def test_published_length_controlled_win_rates_from_published_weights(board, difficulty):
    close = {}
    for row in rows("lc_weights_v1.csv"):
        if row[""] in board:
            answered = difficulty[
                : int(board[row[""]]["n_total"])
            ]  # upstream joined by position where rows are missing
            theta, psi = (
                float(row["not_gamed_baseline.astype(float)"]),
                float(row["instruction_difficulty"]),
            )
            printed = float(board[row[""]]["length_controlled_winrate"])
            close[row[""]] = abs(length.published(theta, psi, answered) - printed)
    assert len(close) == 199 and sum(error < 1e-6 for error in close.values()) == 194
    assert max(close.values()) < 0.2  # the five others differ upstream


@with_data
def test_length_controlled_win_rates_refitted(board, annotations, difficulty):
    gamed = json.loads((DATA / "gamed_sufficient_statistics.json").read_text())
    extra = [
        [0.0, np.tanh(float(r["std_delta_len"])), float(r["instruction_difficulty"])]
        for r in rows("gamed_design.csv.gz")
    ]
    weights = np.r_[np.ones(805), np.full(len(extra), gamed["row_weight"])]
    errors = []
    for model in board.keys() & annotations.keys():
        cells = annotations[model]
        if len(cells) == 805:
            index, y, baseline, ours = cells.T
            own = np.stack(
                [
                    np.ones(805),
                    length.length_feature(baseline, ours),
                    difficulty[index.astype(int)],
                ],
                1,
            )
            moment = own.T @ y + gamed["row_weight"] * np.array([0.0, *gamed["T"]])
            theta, _, psi = length.logistic(np.concatenate([own, extra]), weights, moment)
            printed = float(board[model]["length_controlled_winrate"])
            errors.append(abs(length.published(theta, psi, difficulty) - printed))
    assert len(errors) == 51 and max(errors) < 0.15


@with_data
def test_length_control_on_own_data_ranks_as_published(board, annotations):
    from scipy.stats import spearmanr

    own, printed = [], []
    for model in sorted(board.keys() & annotations.keys()):
        _, y, baseline, ours = annotations[model].T
        own.append(length.length_controlled(y, ours, baseline).win_rate.mean)
        printed.append(float(board[model]["length_controlled_winrate"]))
    assert (
        spearmanr(own, printed).statistic > 0.9
    )  # without their difficulty levels differ, by 28 points at most


def test_same_scores_under_two_names_are_in_the_pool_once():
    rng = np.random.default_rng(8)
    calm = [rng.random((3, 64)) + 0.01 * rng.normal(size=(3, 1)) for _ in range(6)]
    wild = rng.random((3, 64)) + np.array([[2.0], [0.0], [-2.0]])
    once, twice = pooling.pooled([*calm, wild]), pooling.pooled([*calm, wild, wild.copy()])
    assert once == twice and once.within == frozenset(range(6))
    assert pooling.pooled([*calm, calm[0].copy()]).within == frozenset(range(7))
