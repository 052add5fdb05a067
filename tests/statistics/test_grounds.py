"""Grounds as a third axis: intervals and bold type of studies with several grounds, at known truth.

Outcomes are drawn from a logistic model. Its random effects are grounds, methods on a ground, seeds
within a ground, and prompts.
"""

import numpy as np
import pytest

from harness.statistics import compare, intervals, pooling
from harness.statistics.length import length_controlled, sigmoid

GROUNDS, SEEDS, METHODS = 3, 3, 4
OF_RUNS = tuple(np.repeat(range(GROUNDS), SEEDS))  # the ground of each of nine runs
PROMPT_SD = 1.2  # of log-odds


def study(rng, odds, sd, prompts=96, own_prompts=True):
    """Scores (9, P) of each method, and the true win-rates.

    Args:
        rng: The generator.
        odds: Log-odds of each method.
        sd: Of log-odds: between grounds, methods on a ground, seeds of a ground.
        prompts: P.
        own_prompts: Whether each ground has prompts of its own.
    """
    m, s = len(odds), (len(odds), GROUNDS, SEEDS, prompts)
    hard = PROMPT_SD * rng.normal(size=(1, GROUNDS if own_prompts else 1, 1, prompts))
    latent = np.asarray(odds)[:, None, None, None] + hard
    latent = latent + sd[0] * rng.normal(size=(1, GROUNDS, 1, 1))
    latent = latent + sd[1] * rng.normal(size=(m, GROUNDS, 1, 1))
    latent = latent + sd[2] * rng.normal(size=(m, GROUNDS, SEEDS, 1))
    scores = (rng.random(s) < sigmoid(latent)).astype(float)
    return {f"m{i}": scores[i].reshape(-1, prompts) for i in range(m)}


def true_rate(odds, sd):
    """The win-rate over all grounds, seeds and prompts, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(61)
    spread = np.sqrt(PROMPT_SD**2 + sum(one**2 for one in sd))
    return float(weights @ sigmoid(odds + spread * nodes) / weights.sum())


def coverage(sd, studies, odds=(-0.5, 0.3, 1.2, 2.2), grounds=OF_RUNS, **more):
    """The share of the four intervals of studies that hold the true win-rates."""
    rng, truth, held = np.random.default_rng(0), [true_rate(one, sd) for one in odds], []
    for _ in range(studies):
        for rate, scores in zip(truth, study(rng, odds, sd, **more).values(), strict=True):
            found = intervals.win_rate_interval(scores, grounds=grounds)
            held.append(found.low <= rate <= found.high)
    return float(np.mean(held))


SPREADS = [(0.0, 0.0, 0.0), (0.3, 0.1, 0.1), (0.1, 0.0, 0.3), (0.6, 0.2, 0.3)]


@pytest.mark.parametrize("sd", SPREADS)
def test_three_way_intervals_of_a_study_cover(sd):
    """3 grounds x 3 seeds x 4 methods."""
    assert 0.93 <= coverage(sd, 250) <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("own_prompts", [True, False])
@pytest.mark.parametrize("sd", [*SPREADS, (0.1, 0.1, 0.1), (0.3, 0.3, 0.3), (0.6, 0.0, 0.0)])
def test_three_way_intervals_of_many_studies_cover(sd, own_prompts):
    for prompts in (64, 256):
        share = coverage(sd, 1000, prompts=prompts, own_prompts=own_prompts)
        assert 0.93 <= share <= 0.99, (prompts, share)


def test_seeds_alone_do_not_cover_grounds():
    """Negative control: nine runs of three grounds taken for nine seeds of one."""
    assert coverage((0.6, 0.2, 0.1), 60, grounds=None, own_prompts=False) < 0.85


def false_bold(sd, tables, grounds=True, **more):
    """The share of tables of equal methods in which any is called worse."""
    rng, told = np.random.default_rng(1), 0
    for _ in range(tables):
        table = study(rng, [0.5] * METHODS, sd, **more)
        of_each = dict.fromkeys(table, OF_RUNS) if grounds else None
        standing = compare.confidence_set(table, grounds=of_each)
        told += any(one is compare.Standing.WORSE for one in standing.values())
    return told / tables


UNLIKE = [(0.3, 0.0, 0.1), (0.3, 0.2, 0.1)]


@pytest.mark.parametrize("sd", UNLIKE)
def test_false_bold_on_several_grounds(sd):
    assert false_bold(sd, 100) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("own_prompts", [True, False])
@pytest.mark.parametrize(
    "sd", [*UNLIKE, (0.0, 0.0, 0.0), (0.3, [[[[1.0]]], [[[0.0]]], [[[0.0]]], [[[0.0]]]], 0.1)]
)
def test_false_bold_on_several_grounds_in_many_tables(sd, own_prompts):
    """Alike methods, and one that differs by ground where the others do not."""
    sd = (sd[0], np.array(sd[1]), sd[2])
    assert false_bold(sd, 1000, own_prompts=own_prompts) <= 0.05


def test_seeds_alone_call_equal_methods_worse():
    """Negative control: methods that differ by ground, taken for seeds of one ground."""
    assert false_bold((0.3, 0.5, 0.1), 60, grounds=False, own_prompts=False) > 0.15


def test_pairs_are_paired_over_grounds():
    """A difference does not contain what a ground does to both methods."""
    rng = np.random.default_rng(2)
    table = study(rng, [0.0, 0.6], (1.5, 0.0, 0.0), prompts=400)
    of_each = dict.fromkeys(table, OF_RUNS)
    pair = compare.all_pairs(table, grounds=of_each)["m0", "m1"]
    alone = [intervals.win_rate_interval(scores, grounds=OF_RUNS) for scores in table.values()]
    assert pair.high - pair.low < 0.3 * min(one.high - one.low for one in alone)
    assert pair.label == alone[0].label == intervals.SEVERAL_GROUNDS
    same = compare.compare(*table.values(), grounds=(OF_RUNS, OF_RUNS))
    assert (same.difference, same.low, same.high) == pytest.approx(
        (pair.difference, pair.low, pair.high)
    )


def test_grounds_count_equally_and_only_common_ones_are_compared():
    scores = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    found = intervals.two_way_interval(scores, grounds=[0, 0, 1])
    assert found.mean == pytest.approx((0.5 + 1 / 3) / 2) and (found.seeds, found.grounds) == (3, 2)
    other = np.array([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    pair = compare.compare(scores, other, grounds=([0, 0, 1], [1, 2]))
    assert pair.difference == pytest.approx(1 / 3 - 1 / 3)  # of ground 1
    assert pair.label == intervals.ONE_SEED
    none = compare.compare(scores, other, grounds=([0, 0, 1], [2, 3]))
    assert none.p == 1.0 and none.high == np.inf


def test_one_ground_is_the_two_way_interval():
    scores = np.random.default_rng(3).random((4, 50))
    one, plain = (intervals.two_way_interval(scores, grounds=g) for g in ([7] * 4, None))
    assert (one.low, one.high, one.label) == (plain.low, plain.high, intervals.SEVERAL_SEEDS)
    with pytest.raises(ValueError, match="need a ground each"):
        intervals.two_way_interval(scores, grounds=[0, 1])


def test_spreads_of_grounds_and_seeds_are_told_apart():
    rng, p = np.random.default_rng(4), 300
    found = []
    for _ in range(200):
        runs = 0.3 * np.repeat(rng.normal(size=(6, 1)), 4, 0) + 0.1 * rng.normal(size=(24, 1))
        scores = runs + rng.normal(size=(24, p)) + rng.normal(size=(1, p))
        grounds = list(np.repeat(range(6), 4))
        found.append(intervals.two_way_interval(scores, grounds=grounds))
    assert np.mean([one.ground_sd**2 for one in found]) == pytest.approx(0.09, rel=0.15)
    assert np.mean([one.seed_sd**2 for one in found]) == pytest.approx(0.01, rel=0.15)


def test_pool_of_grounds_leaves_out_what_grounds_do_to_all():
    rng = np.random.default_rng(5)
    luck = 3.0 * rng.normal(size=(1, 4, 1))
    own = 0.1 * rng.normal(size=(8, 4, 1)) * np.array([1.0] * 7 + [40.0])[:, None, None]
    table = list(luck + own + 0.01 * rng.normal(size=(8, 4, 20)))
    pool = pooling.pooled_on_grounds(table, [range(4)] * 8)
    assert pool.within == frozenset(range(7)) and pool.variance < 0.03 and pool.df > 9
    assert pooling.pooled_on_grounds(table[:2], [range(4)] * 2) is None
    assert pooling.pooled_on_grounds([t[:2] for t in table], [range(2)] * 8) is None


def test_length_controlled_intervals_are_over_grounds():
    rng = np.random.default_rng(6)
    scores, lengths = (rng.random((9, 60)) < 0.7).astype(float), rng.normal(size=(9, 60))
    scores[:3] = 1.0  # one ground wins all
    one, several = (
        length_controlled(scores, lengths, np.zeros(60), grounds=g).win_rate
        for g in (None, OF_RUNS)
    )
    assert several.high - several.low > 1.3 * (one.high - one.low) and several.grounds == 3
